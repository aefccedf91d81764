"""The Experiments tab: causal experiments on attention sinks."""
