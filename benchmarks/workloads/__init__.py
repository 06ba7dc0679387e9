"""Workloads: one replay format (FORMAT.md), the importers that fill it and what is read off it."""
