"""Tables, plots and docs/benchmarks.md, all from committed results."""
