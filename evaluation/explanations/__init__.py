"""Explanation methods scored against what a word names in the image (docs/explain_score.md)."""
