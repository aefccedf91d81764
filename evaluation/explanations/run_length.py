"""COCO's run-length masks, with counts as numbers or as a compressed text.

The pixels of a mask, column by column from the top left, are runs of unset and set ones in turn;
the first run is unset and may be 0 long. As text each count is written in groups of 5 bits, the
least first, as characters from `0` (48) on; bit 5 says that more follow and bit 4 of the last group
is the sign; from the fourth count on the difference to the count two before it is written
(pycocotools, maskApi.c, `rleFrString`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

MOST_PIXELS = 1 << 28
MOST_GROUPS = 12  # of 5 bits, of one count


def read_run_length(encoded: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    """bool (height, width), of `{"size": [height, width], "counts": numbers or text}`.

    Raises:
        ValueError: it is not such a mask, or its runs do not add up to its pixels.
    """
    size, counts = encoded.get("size"), encoded.get("counts")
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(map(_whole, size)):
        raise ValueError(f"a run-length mask has size {size!r}; allowed: [height, width].")
    height, width = size
    if not 0 < height * width <= MOST_PIXELS:
        raise ValueError(
            f"a run-length mask has size {size!r}; allowed: 1 to {MOST_PIXELS} pixels."
        )
    if isinstance(counts, bytes | str):
        runs = _of_text(counts if isinstance(counts, bytes) else counts.encode())
    elif isinstance(counts, list | tuple) and all(map(_whole, counts)):
        runs = list(counts)
    else:
        raise ValueError(
            f"a run-length mask has counts {str(counts)[:60]!r}; allowed: whole numbers from 0, or "
            "their compressed text."
        )
    if sum(runs) != height * width or min(runs, default=0) < 0:
        raise ValueError(
            f"a run-length mask of {height} x {width} has runs of {sum(runs)} pixels; allowed: "
            f"{height * width}."
        )
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape((height, width), order="F")


def _of_text(text: bytes) -> list[int]:
    runs: list[int] = []
    count = group = 0
    for character in text:
        bits = character - 48
        if not 0 <= bits < 64 or group == MOST_GROUPS:
            raise ValueError(
                f"a run-length mask has counts {text[:60]!r}; allowed: COCO run lengths as text."
            )
        count |= (bits & 31) << (5 * group)
        group += 1
        if bits & 32:
            continue
        if bits & 16:
            count -= 1 << (5 * group)
        runs.append(count + (runs[-2] if len(runs) > 2 else 0))
        count = group = 0
    if group:
        raise ValueError(f"a run-length mask has counts {text[:60]!r}, which end within a number.")
    return runs


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
