"""Which heads VAR may change, if it is limited to some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sinkscope.config import VARSettings


def head_masks(
    settings: Sequence[VARSettings | None], rows_of: Mapping[int, Sequence[int]], heads: int | None
) -> dict[int, Tensor] | None:
    """The heads that may change, of each layer in which VAR acts.

    Args:
        settings: one per batch row, None where VAR does not act.
        rows_of: layer -> batch rows in which it acts.
        heads: query heads of the model; None: not known.

    Returns:
        layer -> bool (B, H, 1); None where no row is limited, so that nothing is to be computed.

    Raises:
        ValueError: a row is limited and `heads` is not known.
    """
    if all(row_settings is None or row_settings.heads is None for row_settings in settings):
        return None
    if heads is None:
        raise ValueError("VAR is limited to some heads, and the number of heads is not known.")
    masks = {}
    for layer in rows_of:
        mask = torch.ones(len(settings), heads, 1, dtype=torch.bool)
        for row, row_settings in enumerate(settings):
            if row_settings is not None and row_settings.heads is not None:
                mask[row] = False
                mask[row, [head for at, head in row_settings.heads if at == layer]] = True
        masks[layer] = mask
    return masks
