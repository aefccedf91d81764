"""Checkpoints in the forms in which people have them: the published layout in miniature, and the
results of training tools."""
