"""The record of a run: the GenerationTrace, its parts, and its file format."""
