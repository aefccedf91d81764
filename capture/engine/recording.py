"""Recording a step as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UPS, COMPILED_WARM_UPS = 1, 3


class RecordingFailedError(RuntimeError):
    """A step cannot be recorded; the text says why. It has been put back as it was."""


def record(
    step: Callable[[], None], moving: Sequence[Tensor], device: torch.device, warm_ups: int
) -> Callable[[], None]:
    """Record `step`, which reads no host, and put all that it moved back.

    Args:
        step: runs on the current stream.
        moving: what it writes and reads again.
        device: a CUDA device.
        warm_ups: how often it runs before: libraries take their memory then, and what is compiled
            is compiled.

    Returns:
        What replays it.

    Raises:
        RecordingFailedError: it cannot be recorded.
        torch.OutOfMemoryError: the device is full.
    """
    before = [tensor.clone() for tensor in moving]
    drawn = torch.cuda.get_rng_state(device)

    def put_back() -> None:
        for tensor, old in zip(moving, before, strict=True):
            tensor.copy_(old)
        torch.cuda.set_rng_state(drawn, device)

    side = torch.cuda.Stream(device)
    current = torch.cuda.current_stream(device)
    try:
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(warm_ups):
                step()
                put_back()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads of the app may use CUDA meanwhile; that is none of this recording.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # What a capture that reads the host raises differs from version to version, and a compiler
        # raises what it likes.
        torch.cuda.synchronize(device)
        put_back()
        raise RecordingFailedError(f"{type(error).__name__}: {first_line(error)}") from error
    put_back()
    replay: Callable[[], None] = graph.replay
    return replay


def first_line(error: Exception, longest: int = 300) -> str:
    """Of its text, for a sentence."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return line[:longest]
