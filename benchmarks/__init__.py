"""Performance comparisons, one command each: `python -m sinkscope.benchmarks --help`."""
