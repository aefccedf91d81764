"""Causal experiments on attention sinks: what causes them."""
