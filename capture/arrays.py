"""A saved run for NumPy: read, and drawn, without torch, which takes seconds to import.

It is the same `GenerationTrace`, but with arrays of the same shape and number type instead of
tensors. `attention_processor.patch_map` takes both. Everything else, such as saving a
trace, needs tensors (`GenerationTrace.open`).
"""

from __future__ import annotations

import dataclasses
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from sinkscope.capture.trace import GenerationTrace, PromptTrace
from sinkscope.capture.trace_file import TraceFile, TraceFileError, content_checksum, damage_named
from sinkscope.capture.trace_values import ROWS, check_numbers, check_tensors, trace_of


def open_arrays(path: Path) -> GenerationTrace:
    """Read a whole trace as arrays.

    Raises:
        ValueError: the file is missing, damaged, not a trace, or of a newer format; the text says
            which.
    """
    with closing(TraceFile(path)) as file, damage_named(path):
        check_tensors(file.about, file.table)
        arrays: dict[str, Any] = {name: file.array(name) for name in file.table}
        if content_checksum(arrays) != file.about["checksum"]:
            raise TraceFileError(
                f"{path.name} is damaged: its checksum does not match its content."
            )
        check_numbers(arrays)
        return trace_of(file.about, arrays)


def as_arrays(trace: GenerationTrace) -> GenerationTrace:
    """A trace with arrays instead of tensors; they share memory."""
    prompts = {
        name: None if rows is None else _with_arrays(rows)
        for name, rows in (("prompt_rows", trace.prompt_rows), ("reference", trace.reference))
    }
    converted: GenerationTrace = dataclasses.replace(_with_arrays(trace), **prompts)
    return converted


def _with_arrays(rows: Any) -> Any:
    assert isinstance(rows, GenerationTrace | PromptTrace)
    parts: dict[str, Any] = {name: np.asarray(getattr(rows, name)) for name in ROWS}
    return dataclasses.replace(rows, **parts)
