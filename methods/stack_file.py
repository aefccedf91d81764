"""A `MapStack` as a file: an .npz with its values and a JSON description."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sinkscope.methods.base import Axes, MapStack
from sinkscope.models.family import PromptLayout
from sinkscope.utils import write_atomically

FORMAT, VERSION = "sinkscope map stack", 1
_HEADER = ("unit", "signed", "normalisation", "least")


def save_stack(stack: MapStack, path: Path, about: Mapping[str, Any] | None = None) -> None:
    """Write a stack atomically.

    Args:
        stack: without its layout, which the run has.
        path: ending in .npz.
        about: further information, as JSON values.

    Raises:
        OSError: the file cannot be written.
    """
    header = {
        "format": FORMAT,
        "version": VERSION,
        "axes": stack.axes,
        **{name: getattr(stack, name) for name in _HEADER},
        "about": dict(about or {}),
    }
    arrays = {"values": stack.values}
    if stack.ratio is not None:
        header["ratio"] = [{name: getattr(part, name) for name in _HEADER} for part in stack.ratio]
        arrays |= {f"values{k}": part.values for k, part in enumerate(stack.ratio)}
    text = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    # Numpy's stub takes one type for all keywords.
    write_atomically(path, lambda file: np.savez(file, said=text, **arrays))  # type: ignore[arg-type]


def open_stack(path: Path, layout: PromptLayout) -> tuple[MapStack, dict[str, Any]]:
    """Read a stack.

    Args:
        path: of the file.
        layout: of the run's prompt.

    Returns:
        The stack, and `about`.

    Raises:
        ValueError: the file is missing, of another kind, damaged, or of another prompt.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            header = json.loads(arrays["said"].tobytes())
            if header["format"] != FORMAT or header["version"] != VERSION:
                raise ValueError(f"its format is {header['format']!r} {header['version']!r}")
            axes: Axes = tuple((name, tuple(indices)) for name, indices in header["axes"])
            given = {name: header[name] for name in _HEADER}
            ratio = None
            if "ratio" in header:
                above, below = (
                    MapStack(arrays[f"values{k}"], axes, layout, **part_header)
                    for k, part_header in enumerate(header["ratio"])
                )
                ratio = above, below
            stack = MapStack(arrays["values"], axes, layout, ratio=ratio, **given)
            return stack, dict(header["about"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path.name} cannot be read as maps of a method: {error}") from error
