"""What a run leaves behind: the GenerationTrace, its parts, and its file format."""
