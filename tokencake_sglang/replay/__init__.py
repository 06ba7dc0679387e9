"""Workloads: what agents asked and when; recorded, replayed in virtual time, and judged."""
