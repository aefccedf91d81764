"""Recording a step as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

WARM_UPS, COMPILED_WARM_UPS = 1, 3


@dataclass(frozen=True)
class Recording:
    """A recorded step.

    Attributes:
        replay: runs it once, on the current stream.
        nbytes: what it keeps on the device in addition to the step's own tensors.
    """

    replay: Callable[[], None]
    nbytes: int


class RecordingFailedError(RuntimeError):
    """A step cannot be recorded; the text says why. Its state has been restored."""


def can_record(device: torch.device) -> bool:
    """Whether steps there can be recorded."""
    return device.type == "cuda"


def runs_ahead(device: torch.device) -> bool:
    """Whether the next step is better launched before a token is reported: where the host does not
    compute it itself."""
    return device.type == "cuda"


def needs_host_copy(device: torch.device) -> bool:
    """Whether a step's output has to be copied to the host and waited for."""
    return device.type == "cuda"


def record(
    step: Callable[[], None], moving: Sequence[Tensor], device: torch.device, warm_ups: int
) -> Recording:
    """Record `step`, which must not read the host, and restore everything that it changed.

    Args:
        step: runs on the current stream.
        moving: tensors that it writes and reads again.
        device: the current CUDA device.
        warm_ups: how often it runs before the recording, so that libraries allocate memory and code
            is compiled.

    Raises:
        RecordingFailedError: it cannot be recorded. Other recordings that draw at random no longer
            follow the device's generator then, and must not be replayed.
        torch.OutOfMemoryError: the device is full.
    """
    side = torch.cuda.Stream(device)
    current = torch.cuda.current_stream(device)
    numbers = torch.cuda.default_generators[torch.cuda.current_device()]
    with _put_back(moving, device):
        before = numbers.clone_state()
        try:
            side.wait_stream(current)
            with torch.cuda.stream(side):
                try_out(step, moving, device, warm_ups)
            current.wait_stream(side)
            torch.cuda.empty_cache()
            held = torch.cuda.memory_reserved(device)
            graph = torch.cuda.CUDAGraph()
            # Other threads of the app may use CUDA meanwhile; that is not part of this recording.
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                step()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # What a capture that reads the host raises differs between versions, and a compiler may
            # raise anything.
            torch.cuda.synchronize(device)
            # A failed capture leaves the generator in capture mode, and no more random numbers
            # could be drawn.
            numbers.graphsafe_set_state(before)
            raise RecordingFailedError(f"{type(error).__name__}: {first_line(error)}") from error
    return Recording(graph.replay, max(0, torch.cuda.memory_reserved(device) - held))


def try_out(
    step: Callable[[], None], moving: Sequence[Tensor], device: torch.device, times: int
) -> None:
    """Run a step several times, each as if it were the first."""
    for _ in range(times):
        with _put_back(moving, device):
            step()


@contextmanager
def _put_back(moving: Sequence[Tensor], device: torch.device) -> Iterator[None]:
    """Restores tensors and random states at the end."""
    before = [tensor.clone() for tensor in moving]
    cuda = device.type == "cuda"
    drawn = torch.cuda.get_rng_state(device) if cuda else torch.random.get_rng_state()
    try:
        yield
    finally:
        for tensor, old in zip(moving, before, strict=True):
            tensor.copy_(old)
        if cuda:
            torch.cuda.set_rng_state(drawn, device)
        else:
            torch.random.set_rng_state(drawn)


def first_line(error: Exception, longest: int = 300) -> str:
    """The error's first line, as part of a sentence."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return line[:longest]
