"""Inputs and results of `drawing.scale`, to run the browser's code against.

    python -m tests.drawing.scale_vectors

writes them to `scale_vectors.json` beside this file. Run it after a change of `drawing/scale.py`;
the hand-computed cases of `test_scale.py` tell whether the change is right.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np

from sinkscope.drawing.scale import (
    Scale,
    Scaling,
    difference_of,
    percent,
    scaling,
    signed_scaling,
    times,
)

FILE = Path(__file__).with_name("scale_vectors.json")
SAID = {"percent": percent, "times": times}


def pools() -> dict[str, list[np.ndarray]]:
    """Typical maps, and maps at the limits of what a scale must handle."""
    random = np.random.default_rng(7)

    def attention(patches: int) -> np.ndarray:
        return (random.gamma(0.6, 1.0, patches) * 0.2 / patches).astype(np.float16)

    sink = attention(96)
    sink[[17, 40]] = (0.31, 0.12)
    missing = sink.astype(np.float32)
    missing[[17, 40]] = np.nan
    large = attention(450)
    large[:5] = 0.04
    return {
        "one map": [attention(96)],
        "two sinks": [sink],
        "the sinks missing": [missing],
        "both sides of a comparison": [sink, attention(96)],
        "sides with other grids": [attention(96), attention(35)],
        "every token of an answer": [attention(54) * (t + 1) for t in range(9)],
        "a large map": [large],
        "nearly all in two patches": [np.r_[0.55, 0.43, 0.01, [0.0005] * 20]],
        "all in one patch": [np.r_[0.9, [0.0] * 20]],
        "ties": [np.r_[0.1, 0.3, 0.3, 0.9, 0.9, 0.0, 0.0, 0.0]],
        "all the same": [np.full(12, 0.02)],
        "all zero": [np.zeros(9)],
        "all missing": [np.full(4, np.nan)],
        "one patch": [np.array([0.25])],
        "two patches": [np.array([0.011, 0.033])],
        "three patches, one of them zero": [np.array([0.0, 0.2, 0.013])],
        "smaller than float16": [np.array([1e-9, 2e-9, 5e-7, 3e-8, 0.0])],
        "times a generic prompt": [random.gamma(1.5, 1.2, 60)],
    }


def _plain(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(x) else float(f"{x:.7g}") for x in values]


def _result(scale: Scaling, maps: list[np.ndarray]) -> dict[str, Any]:
    return {
        "low": scale.low,
        "high": scale.high,
        "over": scale.over,
        "ticks": [list(tick) for tick in scale.ticks],
        "words": scale.words,
        "places": [_plain(scale.unit(values)) for values in maps],
    }


def vectors() -> Iterator[dict[str, Any]]:
    """Each case: the input, and the result of `drawing.scale`."""
    for name, given in pools().items():
        # As written to the file: seven digits restore a float32 exactly.
        maps = [np.array(_plain(np.asarray(v, np.float32)), np.float32) for v in given]
        said = "times" if name.startswith("times") else "percent"
        results = {
            k: _result(scaling(maps, k, format_value=SAID[said]), maps) for k in get_args(Scale)
        }
        moved = difference_of(maps[0], np.roll(maps[0], 3))
        results["signed"] = _result(signed_scaling([moved], SAID[said]), [moved])
        yield {"name": name, "said": said, "maps": [_plain(m) for m in maps], "results": results}


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in vectors())
    FILE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
