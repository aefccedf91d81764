"""`python -m sinkscope.benchmarks var`: the cost of VAR and comparing relative to one plain run.

All variants (`benchmarks.var_variants`) run interleaved in one process; a ratio is the median over
rounds of the time divided by that of plain generation in the same round. Nothing here imports torch
before the command runs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sinkscope.benchmarks.capture import most_warmups
from sinkscope.benchmarks.options import (
    AsJson,
    Device,
    DType,
    Lengths,
    NewTokens,
    Rounds,
    Shape,
    Threads,
    Warmups,
)
from sinkscope.benchmarks.output import check_folder, write_result

if TYPE_CHECKING:
    from sinkscope.models.family import PromptInputs
    from sinkscope.models.loading import ModelHandle

# What is timed, in the order of the table.
VARIANTS = {
    "plain": "plain SDPA generate (the unit)",
    "again": "plain once more",
    "var_run": "VAR and capture, one run",
    "var_run_graph": "the same by steps (graph)",
    "dense": "dense VAR in eager attention, no capture",
    "two_runs": "two runs, without and with VAR",
    "compare": "compare: shared prefix, batch of two",
    "compare_graph": "the same by steps (graph)",
    "other_settings": "compare again with another setting",
    "other_settings_graph": "the same by steps (graph)",
    "same_text": "VAR on the same text, one pass",
}


def var(
    shape: Shape = "small",
    device: Device = "cpu",
    dtype: DType = "auto",
    lengths: Lengths = "1024",
    tokens: NewTokens = 32,
    repeats: Rounds = 5,
    threads: Threads = 1,
    warmups: Warmups = None,
    as_json: AsJson = False,
    output: Annotated[
        Path | None, typer.Option(help="Folder for var.json, var.txt and var.png.")
    ] = None,
) -> None:
    """VAR at prefill and in whole runs, dense and ours; and comparing with the plain model."""
    from sinkscope.cli.common import clear_errors

    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    with clear_errors():
        check_folder(output)
        from sinkscope.benchmarks.capture import prompt_lengths

        options = (tokens, repeats, threads, warmups)
        result = measure(shape, device, dtype, prompt_lengths(lengths), *options)
        write_result(result, table(result), "var", as_json, output)
        if output is not None:
            plot(result, output / "var.png")


def measure(
    shape: str,
    device: str,
    dtype: str,
    lengths: list[int],
    tokens: int,
    repeats: int,
    threads: int,
    warmups: int | None = None,
) -> dict[str, Any]:
    """All measurements, as plain values.

    Raises:
        ValueError: no such device, or a length with no room for an image.
    """
    import torch

    from sinkscope.benchmarks.shapes import build_prompt, device_name, prepared_handle

    handle = prepared_handle(shape, device, dtype, threads)
    rows = [
        one_length(handle, build_prompt(handle, length), tokens, repeats, warmups)
        for length in lengths
    ]
    return {
        "benchmark": "var",
        "shape": shape,
        "device": device_name(device),
        "dtype": handle.info.dtype,
        "threads": threads,
        "tokens": tokens,
        "repeats": repeats,
        "torch": torch.__version__,
        "rows": rows,
    }


def one_length(
    handle: ModelHandle,
    inputs: PromptInputs,
    tokens: int,
    repeats: int,
    warmups: int | None = None,
    left_out: tuple[str, ...] = (),
) -> dict[str, Any]:
    """All variants on one prompt; arguments as in `benchmarks.capture.one_length`."""
    from sinkscope.benchmarks import timing, var_variants

    settings = var_variants.settings_for(handle, inputs)
    runs = var_variants.VarVariants(handle, inputs, settings, tokens)
    named = {name: getattr(runs, name) for name in VARIANTS if name not in left_out}
    on_a_gpu = handle.device.type == "cuda"
    settled = timing.settle(named["plain"], handle.device, most_warmups(warmups, on_a_gpu))
    for run in named.values() if on_a_gpu else ():  # what is recorded once is not measured
        run(lambda: None)
    timings = timing.rounds(named, repeats, handle.device)
    variants = {}
    for name, timings_of in timings.items():
        total, fastest = timing.ratio(timings_of, timings["plain"], "total")
        variants[name] = {
            "first_ratio": timing.ratio(timings_of, timings["plain"], "first")[0],
            "total_ratio": total,
            "total_ratio_of_fastest": fastest,
            "total_seconds": timing.median(timings_of, "total"),
        }
    return {
        "length": inputs.layout.length,
        "vision_tokens": inputs.layout.vision_tokens,
        "tau": settings.tau,
        "noise": timing.noise(timings["plain"], "total"),
        "settled": settled,
        "ways": variants,
    }


def table(result: dict[str, Any]) -> str:
    """The measurements as text: ratios to one plain run."""
    lines = [
        f"VAR, {result['shape']} shape, {result['device']}, {result['dtype']}, "
        f"{result['threads']} thread(s), {result['tokens']} new tokens, "
        f"{result['repeats']} rounds, torch {result['torch']}",
    ]
    for row in result["rows"]:
        noise = "" if row["noise"] is None else f", plain runs differ by {row['noise']:.1%}"
        lines += [
            "",
            f"prompt of {row['length']} tokens, {row['vision_tokens']} of them vision{noise}",
            f"  {'':42}{'to token 1':>12}{'whole run':>12}{'fastest':>12}",
        ]
        for name, variant in row["ways"].items():
            what = VARIANTS[name]
            first = "" if name == "same_text" else f"{variant['first_ratio']:.3f}"
            lines.append(
                f"  {what:42}{first:>12}{variant['total_ratio']:>12.3f}"
                f"{variant['total_ratio_of_fastest']:>12.3f}"
            )
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    """A bar for each variant and prompt length: whole run relative to one plain run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    names = list(VARIANTS)[1:]
    width = 0.8 / len(result["rows"])
    for index, row in enumerate(result["rows"]):
        values = [row["ways"][name]["total_ratio"] for name in names]
        places = [place + index * width for place in range(len(names))]
        bars = axes.barh(places, values, width, label=f"prompt of {row['length']}")
        axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks([place + 0.4 - width / 2 for place in range(len(names))])
    axes.set_yticklabels([VARIANTS[name] for name in names])
    axes.invert_yaxis()
    axes.set_xlabel(
        "CPU time / one plain run" if result["device"].startswith("cpu") else "time / one plain run"
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
