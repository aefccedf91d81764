"""A decode engine of our own: one step over a fixed memory, recorded as a CUDA graph where there is
CUDA. `answering.answer_by_steps` runs it from the prompt to the last token."""
