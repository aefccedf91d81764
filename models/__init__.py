"""Model families: how prompts become tensors, how models are loaded, how attention is captured."""
