"""Inputs of the text model: embeddings, positions, mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sinkscope.capture.probes.base import Probe, Reader
from sinkscope.models.run_info import RunInfo
from sinkscope.models.sites import SiteSelection

OF_ONE_PASS = ("past_key_values", "use_cache")  # belongs to the pass, not to the prompt


@dataclass(frozen=True)
class TextInputs(Probe):
    """Keeps the keyword arguments of the last pass; `session[probe]` is that mapping.

    With them the text model can be called again on the same prompt without its images.
    """

    def begin(self, run: RunInfo) -> Reader:
        return _TextInputsReader()


class _TextInputsReader(Reader):
    reads = (SiteSelection("text_inputs"),)

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}

    def see(self, site: str, layer: int, values: Any, positions: Sequence[int]) -> None:
        self._kept = {name: values[name] for name in values if name not in OF_ONE_PASS}

    def result(self) -> dict[str, Any]:
        return self._kept
