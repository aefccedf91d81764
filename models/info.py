"""Which model made something: the record that every trace carries."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelInfo:
    """Identity, sizes and device of a loaded model.

    Attributes:
        id: as the user asked for it.
        revision: the hub commit, or for a folder a fingerprint of its config and weights.
        family: adapter name.
        dtype, device: as loaded.
        layers, heads, hidden_size: of the text model.
        note: what a user should know about the checkpoint, in sentences: which chat template was
            taken where it has none of its own, which files were not read; "" where there is
            nothing.
    """

    id: str
    revision: str
    family: str
    dtype: str
    device: str
    layers: int
    heads: int
    hidden_size: int
    note: str = ""
