"""Causal experiments on attention sinks: what makes attention go there."""
