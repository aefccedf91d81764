"""What a run asks of its device for each token: launches, copies and waits on a GPU, dispatched
operations on a CPU. Counted, not timed.

Two runs of different length are counted, and their difference is shared by the tokens that the
longer one has more: so the prompt and the end of a run do not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # public, not in __all__
from torch.utils._python_dispatch import TorchDispatchMode

SHORT, LONG = 2, 6  # tokens
# What CUDA's runtime calls say in a profile, by how their names begin.
CALLS = {
    "launches": ("cudaLaunch", "cuLaunch"),
    "graphs": ("cudaGraphLaunch", "cuGraphLaunch"),
    "copies": ("cudaMemcpy", "cuMemcpy"),
    "waits": ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
}


def a_token(run: Callable[[int], object], device: torch.device) -> dict[str, float]:
    """Counts for each token.

    Args:
        run: makes an answer of so many tokens; it is called twice for each length.
        device: where.

    Returns:
        On a GPU `launches`, `graphs`, `copies`, `waits` and `kernels`, those inside of graphs
        included; on a CPU `operations`, without those that only make a view.
    """
    count = _on_a_gpu if device.type == "cuda" else _on_a_cpu
    counts = []
    for tokens in (SHORT, LONG):
        run(tokens)  # what a first run sets up or records belongs to none
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
    """Name and device type of all that was recorded: as the profiler has it, where it shows it, for
    the tree that it makes of it takes many seconds."""
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
    """Counts what is dispatched and is no view."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))
