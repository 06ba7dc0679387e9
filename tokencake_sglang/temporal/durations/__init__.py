"""Distributions of durations: learned from history, from estimates, and while a call runs."""
