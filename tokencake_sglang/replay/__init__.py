"""Workloads: what agents asked and when, replayed in a closed loop on any server. Pure."""
