"""The Evaluate tab: methods compared on benchmarks."""
