"""The matrix: every workload through every system, each run a process, each result committed."""
