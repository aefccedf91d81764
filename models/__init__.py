"""Model families: how a prompt becomes tensors, how a checkpoint is loaded, how attention is captured."""
