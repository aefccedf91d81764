"""The device operations of a run per token: launches, copies and waits on a GPU, dispatched
operations on a CPU. Counted, not timed.

Two runs of different length are counted, and the difference is divided by the number of additional
tokens, so the prompt and the end of a run do not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # public, not in __all__
from torch.utils._python_dispatch import TorchDispatchMode

SHORT, LONG = 2, 6  # tokens
# The CUDA runtime calls of a profile, by the beginning of their names.
CALLS = {
    "launches": ("cudaLaunch", "cuLaunch"),
    "graphs": ("cudaGraphLaunch", "cuGraphLaunch"),
    "copies": ("cudaMemcpy", "cuMemcpy"),
    "waits": ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
}


def a_token(run: Callable[[int], object], device: torch.device) -> dict[str, float]:
    """Counts per token.

    Args:
        run: generates an answer of the given number of tokens; called twice for each length.
        device: where it runs.

    Returns:
        On a GPU `launches`, `graphs`, `copies`, `waits` and `kernels`, including those in
        graphs; on a CPU `operations`, without those that only make a view.
    """
    count = _on_a_gpu if device.type == "cuda" else _on_a_cpu
    counts = []
    for tokens in (SHORT, LONG):
        run(tokens)  # the set-up and recording of a first run does not count
        counts.append(count(run, tokens))
    short, long = counts
    return {name: (long[name] - short[name]) / (LONG - SHORT) for name in long}


def _on_a_gpu(run: Callable[[int], object], tokens: int) -> Counter[str]:
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        run(tokens)
        torch.cuda.synchronize()
    counts: Counter[str] = Counter({**dict.fromkeys(CALLS, 0), "kernels": 0})
    for name, on_device in _events(seen):
        for what, beginnings in CALLS.items():
            counts[what] += name.startswith(beginnings)
        if on_device == DeviceType.CUDA:
            counts["kernels"] += not name.startswith(("Memcpy", "Memset"))
    return counts


def _events(seen: Any) -> Iterator[tuple[str, Any]]:
    """Name and device type of everything recorded. Taken from the profiler's raw events if they are
    available, because building its event tree takes many seconds."""
    results = getattr(seen.profiler, "kineto_results", None)
    if results is not None:
        for event in results.events():
            yield event.name(), event.device_type()
        return
    for event in seen.events() or ():
        yield event.name, event.device_type


def _on_a_cpu(run: Callable[[int], object], tokens: int) -> Counter[str]:
    with _Operations() as seen:
        run(tokens)
    return Counter(operations=seen.count)


class _Operations(TorchDispatchMode):
    """Counts dispatched operations that are not views."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))
