"""`python -m sinkscope.benchmarks sinks`: the cost of finding sink dimensions.

The same samples pass through the same model, plainly and with measurement, interleaved in one
process; every ratio is the median over rounds of the time divided by that of the plain pass in the
same round. Peak memory is measured in separate processes. Nothing here imports torch before the
command runs.
"""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sinkscope.benchmarks.capture import most_warmups
from sinkscope.benchmarks.options import (
    AsJson,
    Device,
    DType,
    Lengths,
    Memory,
    Rounds,
    Shape,
    Threads,
)
from sinkscope.benchmarks.output import check_folder, write_result

if TYPE_CHECKING:
    from sinkscope.models.family import PromptInputs
    from sinkscope.models.loading import ModelHandle

MEGABYTE = 1 << 20
# What is timed, in the order of the table. The first is the unit, `received` the default of `find`.
VARIANTS = {
    "forward": "plain SDPA forward (the unit)",
    "single_forwards": "plain SDPA forwards, one by one",
    "received": "find: exact received attention",
    "after_image": "find: from the rows after the image",
    "norm": "find: by norm, without attention",
}
TIME_TARGET, MEMORY_TARGET = 1.5, 0.05


def sinks(
    shape: Shape = "small",
    device: Device = "cpu",
    dtype: DType = "auto",
    lengths: Lengths = "256,1024,2048",
    batch: Annotated[int, typer.Option(min=1, max=64, help="Samples per pass.")] = 1,
    repeats: Rounds = 7,
    threads: Threads = 1,
    memory: Memory = True,
    as_json: AsJson = False,
    output: Annotated[
        Path | None, typer.Option(help="Folder for sinks.json and sinks.txt.")
    ] = None,
) -> None:
    """Finding's one pass per sample, compared with a plain forward pass of the same sample."""
    from sinkscope.cli.common import clear_errors

    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    with clear_errors():
        check_folder(output)
        from sinkscope.benchmarks.capture import prompt_lengths

        wanted = prompt_lengths(lengths)
        result = measure(shape, device, dtype, wanted, batch, repeats, threads, memory)
        write_result(result, table(result), "sinks", as_json, output)


def measure(
    shape: str,
    device: str,
    dtype: str,
    lengths: list[int],
    batch: int,
    repeats: int,
    threads: int,
    memory: bool,
) -> dict[str, Any]:
    """All measurements, as plain values.

    Raises:
        ValueError: no such device, or a length with no room for an image.
    """
    import torch

    from sinkscope.benchmarks.shapes import SHORTEST, build_prompt, device_name, prepared_handle
    from sinkscope.benchmarks.sink_variants import VARIANTS as RUNS

    handle = prepared_handle(shape, device, dtype, threads)
    for run in RUNS.values():  # the set-up of a first call is not measured
        run(handle, build_prompt(handle, SHORTEST), 1, lambda: None)
    rows = [one_length(handle, build_prompt(handle, length), batch, repeats) for length in lengths]
    result: dict[str, Any] = {
        "benchmark": "sinks",
        "shape": shape,
        "device": device_name(device),
        "dtype": handle.info.dtype,
        "threads": threads,
        "batch": batch,
        "repeats": repeats,
        "torch": torch.__version__,
        "layers": handle.info.layers,
        "heads": handle.info.heads,
        "rows": rows,
    }
    if memory:
        result["memory"] = _memory(shape, device, handle.info.dtype, lengths, batch)
    return result


def one_length(
    handle: ModelHandle,
    inputs: PromptInputs,
    batch: int,
    repeats: int,
    warmups: int | None = None,
) -> dict[str, Any]:
    """All variants on `batch` samples of one length; see `benchmarks.capture.one_length`."""
    from functools import partial

    from sinkscope.benchmarks import timing
    from sinkscope.benchmarks.sink_variants import VARIANTS as RUNS

    runs = {name: partial(RUNS[name], handle, inputs, batch) for name in VARIANTS}
    on_a_gpu = handle.device.type == "cuda"
    settled = timing.settle(runs["forward"], handle.device, most_warmups(warmups, on_a_gpu))
    for run in runs.values() if on_a_gpu else ():
        run(lambda: None)
    timings = timing.rounds(runs, repeats, handle.device)
    variants = timing.totals(timings, "forward")
    return {
        "length": inputs.layout.length,
        "vision_tokens": inputs.layout.vision_tokens,
        "batch": batch,
        "noise": timing.noise(timings["forward"], "total"),
        "settled": settled,
        "ways": variants,
    }


def _memory(
    shape: str, device: str, dtype: str, lengths: list[int], batch: int, processes: int = 3
) -> dict[str, Any]:
    """Peak of a plain pass and of the default variant, each the median over separate processes."""
    from sinkscope.benchmarks import memory

    if not memory.supported(device):
        return {"skipped": "peaks of a CPU run are read from /proc, which this system lacks"}
    rows = []
    for length in lengths:
        typer.echo(f"Peak memory at {length}", err=True)
        peaks: dict[str, list[int]] = {"forward": [], "received": []}
        for _ in range(processes):
            for name, peak in peaks.items():
                peak.append(
                    memory.peak_extra(
                        name, shape, device, dtype, length, batch, returned_at_once=True
                    )
                )
        plain, ours = (statistics.median(peak) for peak in peaks.values())
        rows.append(
            {
                "length": length,
                "forward_bytes": plain,
                "find_bytes": ours,
                "extra": ours / plain - 1,
                "spread_bytes": {name: max(peak) - min(peak) for name, peak in peaks.items()},
            }
        )
    return {"processes": processes, "rows": rows}


def table(result: dict[str, Any]) -> str:
    """The measurements as text: ratios to the plain pass, and peaks of both."""
    lines = [
        f"Finding sinks, {result['shape']} shape, {result['device']}, {result['dtype']}, "
        f"{result['threads']} thread(s), {result['batch']} sample(s) per pass, "
        f"{result['repeats']} rounds, torch {result['torch']}",
    ]
    for row in result["rows"]:
        noise = "" if row["noise"] is None else f", plain passes differ by {row['noise']:.1%}"
        lines += [
            "",
            f"prompt of {row['length']} tokens, {row['vision_tokens']} of them vision{noise}",
            f"  {'':40}{'ratio':>10}{'fastest':>10}{'seconds':>10}",
        ]
        for name, what in VARIANTS.items():
            variant = row["ways"][name]
            lines.append(
                f"  {what:40}{variant['ratio']:>10.3f}{variant['ratio_of_fastest']:>10.3f}"
                f"{variant['seconds']:>10.3f}"
            )
    worst = max(row["ways"]["received"]["ratio"] for row in result["rows"])
    lines += ["", f"time: {worst:.3f} at most (target {TIME_TARGET:g})"]
    memory = result.get("memory", {})
    if "skipped" in memory:
        lines.append(f"memory: not measured, {memory['skipped']}")
    for row in memory.get("rows", ()):
        spread = max(row["spread_bytes"].values())
        lines.append(
            f"peak memory of one pass at {row['length']}: plain "
            f"{row['forward_bytes'] / MEGABYTE:.1f} MB, find {row['find_bytes'] / MEGABYTE:.1f} MB:"
            f" {row['extra']:+.1%} (target {MEMORY_TARGET:+.0%}; processes differ by "
            f"{spread / MEGABYTE:.1f} MB)"
        )
    return "\n".join(lines)
