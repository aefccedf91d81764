"""Explanation methods: for a token of a run, a value for each vision token (docs/method.md)."""
