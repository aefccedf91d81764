"""Steps kept with their model, for runs that can use them again."""

from __future__ import annotations

from collections import OrderedDict

import torch

from sinkscope.capture.engine.step import DecodeStep, StepKey
from sinkscope.models.loading import ModelHandle

MOST_STEPS = 4
MOST_BYTES = 1 << 30  # and at most a part of the device's memory
PART = 16
NAME = "steps"  # in `ModelHandle.kept`


class StepStore:
    """The most recently used steps, limited in number and in total size. The handle's lock guards
    it."""

    def __init__(self, most: int = MOST_STEPS, most_bytes: int = MOST_BYTES) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._steps: OrderedDict[StepKey, DecodeStep] = OrderedDict()

    def take(self, key: StepKey) -> DecodeStep | None:
        """The step of this key, removed from the store until it is put back: a run that fails
        leaves none."""
        return self._steps.pop(key, None)

    def put(self, step: DecodeStep) -> None:
        """Keep a step; the least recently used are dropped, and one that is too large is not
        kept."""
        self._steps[step.key] = step
        while self._steps and (len(self._steps) > self._most or self.nbytes > self._most_bytes):
            self._steps.popitem(last=False)

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def nbytes(self) -> int:
        """Bytes of all steps."""
        return sum(step.nbytes for step in self._steps.values())


def store_of(handle: ModelHandle) -> StepStore:
    """The handle's store; it is released with the handle."""
    if NAME not in handle.kept:
        most = MOST_BYTES
        if handle.device.type == "cuda":
            most = min(most, torch.cuda.get_device_properties(handle.device).total_memory // PART)
        handle.kept[NAME] = StepStore(most_bytes=most)
    store: StepStore = handle.kept[NAME]
    return store


def release_steps(handle: ModelHandle) -> None:
    """Drop all steps, to free their memory."""
    handle.kept.pop(NAME, None)


def kept_bytes(handle: ModelHandle) -> int:
    """The memory that the steps use, and would release."""
    store = handle.kept.get(NAME)
    return store.nbytes if isinstance(store, StepStore) else 0
