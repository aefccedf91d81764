"""Benchmarks: methods compared on the same questions, and how sure the difference is.

`base` has the words that the parts share: a question, a protocol, a judgement, a metric.
"""
