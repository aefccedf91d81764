"""Performance comparisons, one command each: `python -m benchmarks --help`."""
