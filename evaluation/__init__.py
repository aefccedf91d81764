"""Benchmarks: methods compared on the same questions, with the uncertainty of the difference.

`base` has the shared types: a question, a protocol, a judgement, a metric.
"""
