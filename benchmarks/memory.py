"""Peak memory of one run in a process of its own; `python -m benchmarks.memory` is that process.

Peaks of several runs in one process would hide each other, for the allocator keeps what it has.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CLEAR_PEAK = "5"  # what /proc/self/clear_refs takes to forget the highest resident size


def peak_extra(way: str, shape: str, device: str, dtype: str, length: int, tokens: int) -> int:
    """Bytes that one run needs above what was there before it: resident memory on a CPU, allocated
    memory on a GPU.

    Raises:
        ChildProcessError: the process ended early, out of memory for instance.
    """
    words = [way, shape, device, dtype, str(length), str(tokens)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", *words],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parent.parent,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise ChildProcessError(f"{way} at {length} ended early: {last}")
    return int(json.loads(done.stdout.splitlines()[-1]))


def _measure(way: str, shape: str, device: str, dtype: str, length: int, tokens: int) -> int:
    import torch

    from benchmarks.shapes import SHORTEST, build_handle, build_prompt
    from benchmarks.ways import WAYS

    torch.set_num_threads(1)
    handle = build_handle(shape, device, getattr(torch, dtype))
    inputs = build_prompt(handle, length)
    # what a first call loads and sets up belongs to no run
    WAYS[way](handle, build_prompt(handle, SHORTEST), 3, lambda: None)
    if handle.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        WAYS[way](handle, inputs, tokens, lambda: None)
        return torch.cuda.max_memory_allocated() - before
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text(CLEAR_PEAK)
    WAYS[way](handle, inputs, tokens, lambda: None)
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    """Bytes, from /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"This system's /proc/self/status has no {field}.")


def supported(device: str) -> bool:
    """Whether peaks can be measured here: on a CPU it needs Linux."""
    return device != "cpu" or Path("/proc/self/clear_refs").exists()


if __name__ == "__main__":
    name, shape, device, dtype, length, tokens = sys.argv[1:]
    print(json.dumps(_measure(name, shape, device, dtype, int(length), int(tokens))))
