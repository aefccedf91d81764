"""Peak memory of one run in its own process, `python -m sinkscope.benchmarks.memory`.

Peaks of several runs in one process would hide each other, because the allocator keeps memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil

CLEAR_PEAK = "5"  # written to /proc/self/clear_refs, it resets the highest resident size


def peak_extra(
    variant: str,
    shape: str,
    device: str,
    dtype: str,
    length: int,
    tokens: int,
    returned_at_once: bool = False,
) -> int:
    """Bytes that one run needs beyond those in use before it: resident memory on a CPU, allocated
    memory on a GPU.

    Args:
        variant: one of `benchmarks.variants`, `benchmarks.sink_variants` or
            `benchmarks.method_variants`.
        shape, device, dtype: the model.
        length: of the prompt.
        tokens: new tokens; for `sink_variants`, samples per pass.
        returned_at_once: make glibc return every larger block to the system when it is freed. What
            it keeps otherwise varies by more than a small difference between variants.

    Raises:
        ChildProcessError: the process ended early, out of memory for instance.
    """
    words = [variant, shape, device, dtype, str(length), str(tokens)]
    environment = dict(os.environ)
    if returned_at_once:
        environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
    done = subprocess.run(
        [sys.executable, "-m", "sinkscope.benchmarks.memory", *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if done.returncode != 0:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise ChildProcessError(f"{variant} at {length} ended early: {last}")
    return int(json.loads(done.stdout.splitlines()[-1]))


def _measure(variant: str, shape: str, device: str, dtype: str, length: int, tokens: int) -> int:
    import torch

    from sinkscope.benchmarks import method_variants, sink_variants, variants
    from sinkscope.benchmarks.shapes import SHORTEST, build_handle, build_prompt

    run = {**variants.VARIANTS, **sink_variants.VARIANTS, **method_variants.VARIANTS}[variant]
    torch.set_num_threads(1)
    handle = build_handle(shape, device, getattr(torch, dtype))
    inputs = build_prompt(handle, length)
    # what a first call loads and sets up is not measured
    run(handle, build_prompt(handle, SHORTEST), 3, lambda: None)
    if handle.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(handle, inputs, tokens, lambda: None)
        return torch.cuda.max_memory_allocated() - before
    before = int(psutil.Process().memory_info().rss)
    Path("/proc/self/clear_refs").write_text(CLEAR_PEAK)
    run(handle, inputs, tokens, lambda: None)
    return _highest() - before


def _highest() -> int:
    """The highest resident size since the last reset, in bytes; psutil does not have it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("This system's /proc/self/status has no VmHWM.")


def supported(device: str) -> bool:
    """Whether peaks can be measured here: on a CPU it needs Linux."""
    return device != "cpu" or Path("/proc/self/clear_refs").exists()


if __name__ == "__main__":
    name, shape, device, dtype, length, tokens = sys.argv[1:]
    print(json.dumps(_measure(name, shape, device, dtype, int(length), int(tokens))))
