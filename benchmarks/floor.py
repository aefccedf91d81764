"""The lower bound of a token's time: every weight of the text model is read once.

The device's reading speed is measured by copying a large buffer, which moves twice its bytes.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from sinkscope.models.loading import ModelHandle

COPIED = {"cuda": 1 << 30, "cpu": 1 << 27}  # bytes of the buffer
REPEATS = 5


def weight_bytes(handle: ModelHandle) -> int:
    """Bytes of the weights that one new token needs: layers, norms and output head; only one row
    of the embedding is read."""
    embedding = {id(weight) for weight in handle.model.get_input_embeddings().parameters()}
    needed = {
        id(weight): weight.nbytes
        for weight in handle.stack.language_model.parameters()
        if id(weight) not in embedding
    }
    # A tied head is the embedding, and all of it is read.
    needed.update({id(weight): weight.nbytes for weight in handle.stack.output_head.parameters()})
    return sum(needed.values())


def bandwidth(device: torch.device) -> float:
    """Bytes per second that a copy reads and writes, in the fastest of a few tries."""
    size = COPIED["cuda" if device.type == "cuda" else "cpu"]
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    best = float("inf")
    for _ in range(REPEATS):
        _wait(device)
        began = time.perf_counter()
        target.copy_(source)
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size / best


def floor(handle: ModelHandle) -> dict[str, Any]:
    """`weight_bytes`, `bandwidth` in bytes per second, and the resulting `seconds` per token."""
    needed, speed = weight_bytes(handle), bandwidth(handle.device)
    return {"weight_bytes": needed, "bandwidth": speed, "seconds": needed / speed}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
