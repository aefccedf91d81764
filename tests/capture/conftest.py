"""Recordings of decode steps, played without a GPU."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from sinkscope.capture.engine import answering
from sinkscope.capture.engine.recording import Recording, try_out


def played(
    step: Callable[[], None], moving: Sequence[Tensor], device: torch.device, warm_ups: int
) -> Recording:
    """`record` without a GPU: the step is tried out, restored, and then run again each time."""
    assert warm_ups == 1
    try_out(step, moving, device, 2)
    again = weakref.ref(step)  # a graph does not reference what was recorded
    return Recording(lambda: again()(), 1000)  # type: ignore[misc]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Recordings are played on the CPU; counts the recordings."""
    made: list[int] = []

    def noted(step: Any, *about: Any) -> Recording:
        made.append(id(step))
        return played(step, *about)

    monkeypatch.setattr(answering, "can_record", lambda device: True)
    monkeypatch.setattr(answering, "runs_ahead", lambda device: True)
    monkeypatch.setattr(answering, "record", noted)
    return made
