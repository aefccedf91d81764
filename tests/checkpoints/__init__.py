"""Checkpoints as people have them: the published layout in miniature, and what trainers make of
it."""
