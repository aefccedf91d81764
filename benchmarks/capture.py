"""`python -m sinkscope.benchmarks capture`: the cost of capturing attention relative to plain
generation.

Several ways to generate the same answer (`benchmarks.variants`), with both of our engines, run
interleaved in one process. The time of a token is reported with its lower bound
(`benchmarks.floor`) and its device operations (`benchmarks.launches`). Peak memory is measured in
separate processes; then one token's map is read back from a file. Nothing here imports torch before
the command runs.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sinkscope.benchmarks.options import (
    AsJson,
    DType,
    Lengths,
    Memory,
    NewTokens,
    Shape,
    Threads,
    Warmups,
)
from sinkscope.benchmarks.output import check_folder, write_result

if TYPE_CHECKING:
    from sinkscope.benchmarks.variants import Variant
    from sinkscope.models.family import PromptInputs
    from sinkscope.models.loading import ModelHandle

NEAREST = 2048  # the prompt length at which peak memory is measured, or the nearest given
BASELINES = ("hooks", "output_attentions")


def capture(
    shape: Shape = "small",
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where to run.")] = "cpu",
    dtype: DType = "auto",
    lengths: Lengths = "256,1024,2048",
    tokens: NewTokens = 32,
    repeats: Annotated[
        int,
        typer.Option(min=1, max=999, help="Rounds; the eager baselines run in every third."),
    ] = 6,
    threads: Threads = 1,
    warmups: Warmups = None,
    memory: Memory = True,
    as_json: AsJson = False,
    output: Annotated[
        Path | None, typer.Option(help="Folder for capture.json, capture.txt and capture.png.")
    ] = None,
) -> None:
    """Our capture, plain SDPA, eager with hooks, and eager with output_attentions, side by side."""
    from sinkscope.cli.common import clear_errors

    # The libraries read them when they load, which is below.
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    with clear_errors():
        wanted = prompt_lengths(lengths)
        check_folder(output)
        options = (tokens, repeats, threads, memory, warmups)
        result = measure(shape, device, dtype, wanted, *options)

        from sinkscope.benchmarks import report

        write_result(result, report.as_table(result), "capture", as_json, output)
        if output is not None:
            report.plot(result, output / "capture.png")


def measure(
    shape: str,
    device: str,
    dtype: str,
    lengths: list[int],
    tokens: int,
    repeats: int,
    threads: int,
    memory: bool,
    warmups: int | None = None,
) -> dict[str, Any]:
    """All measurements, as plain values.

    Raises:
        ValueError: no such device, or a length with no room for an image.
    """
    import torch

    from sinkscope.benchmarks.floor import floor
    from sinkscope.benchmarks.shapes import SHORTEST, build_prompt, device_name, prepared_handle
    from sinkscope.benchmarks.variants import VARIANTS

    _say(f"Building the {shape} shape with random weights")
    handle = prepared_handle(shape, device, dtype, threads)
    dtype = handle.info.dtype
    prompts = {length: build_prompt(handle, length) for length in lengths}
    for variant in VARIANTS.values():  # the set-up of a first call is not measured
        variant(handle, build_prompt(handle, SHORTEST), 3, lambda: None)
    result: dict[str, Any] = {
        "benchmark": "capture",
        "shape": shape,
        "device": device_name(device),
        "dtype": dtype,
        "threads": threads,
        "tokens": tokens,
        "repeats": repeats,
        "torch": torch.__version__,
        "layers": handle.info.layers,
        "heads": handle.info.heads,
        "floor": floor(handle),
        "lengths": [
            one_length(handle, prompts[length], tokens, repeats, warmups) for length in lengths
        ],
    }
    result["slopes"] = _slopes(result["lengths"])
    if memory:
        nearest = min(lengths, key=lambda length: abs(length - NEAREST))
        result["memory"] = _memory(handle, prompts[nearest], shape, device, dtype, tokens)
    result["reading"] = _reading()
    return result


def one_length(
    handle: ModelHandle,
    inputs: PromptInputs,
    tokens: int,
    repeats: int,
    warmups: int | None = None,
    left_out: tuple[str, ...] = (),
) -> dict[str, Any]:
    """All variants on one prompt.

    Args:
        handle: a loaded model.
        inputs: the prompt.
        tokens: new tokens per run.
        repeats: rounds.
        warmups: maximum number of plain runs before the first round; None: depends on the device.
        left_out: names of variants that do not run.
    """
    from sinkscope.attention_extractor import forecast
    from sinkscope.benchmarks import launches, timing
    from sinkscope.benchmarks.variants import VARIANTS, matrix_bytes
    from sinkscope.config import GenerationSettings

    length = inputs.layout.length
    guess = forecast(handle, inputs, GenerationSettings(max_new_tokens=tokens))
    free = _free_bytes(handle.device.type)
    fits = free is None or matrix_bytes(handle, inputs) < free * 0.6
    variants = {
        name: variant
        for name, variant in VARIANTS.items()
        if name not in left_out and (fits or name != "output_attentions")
    }
    _say(f"Prompt of {length}: {', '.join(variants)}")
    answers: dict[str, tuple[int, ...]] = {}

    def run(name: str) -> Any:
        def once(mark: Any) -> None:
            answers[name] = variants[name](handle, inputs, tokens, mark)

        return once

    on_a_gpu = handle.device.type == "cuda"
    settled = timing.settle(run("plain"), handle.device, most_warmups(warmups, on_a_gpu))
    for name in variants if on_a_gpu else ():  # recording and compiling are not measured
        run(name)(lambda: None)
    timings = timing.rounds(
        {name: run(name) for name in variants}, repeats, handle.device, BASELINES
    )
    row: dict[str, Any] = {
        "length": length,
        "vision_tokens": inputs.layout.vision_tokens,
        "forecast_seconds": guess.seconds,
        "noise": timing.noise(timings["plain"], "total"),
        "settled": settled,
        "same_tokens": all(answers[name] == answers["plain"] for name in ("ours", "graph")),
        "ways": {},
    }
    for name in VARIANTS:
        if name in left_out:
            continue
        if name not in variants:
            size = matrix_bytes(handle, inputs) / 1e9
            row["ways"][name] = {"skipped": f"would keep {size:.0f} GB"}
            continue
        entry: dict[str, Any] = {}
        for part in ("first", "each", "total"):
            entry[f"{part}_seconds"] = timing.median(timings[name], part)
            entry[f"{part}_ratio"], entry[f"{part}_ratio_of_fastest"] = timing.ratio(
                timings[name], timings["plain"], part
            )
        asked = partial(_asks, variants[name], handle, inputs)
        entry["asks"] = launches.a_token(asked, handle.device)
        row["ways"][name] = entry
    return row


def most_warmups(asked: int | None, on_a_gpu: bool) -> int:
    """Maximum number of plain runs before the first round: a GPU's clock, kernels and allocator
    need several to become stable."""
    if asked is not None:
        return asked
    return 10 if on_a_gpu else 2


def _slopes(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Seconds a run costs beyond plain, per 1000 prompt tokens."""
    from sinkscope.benchmarks.timing import slope

    slopes: dict[str, float | None] = {}
    for name in ("ours", "graph", *BASELINES):
        rows_with = [row for row in rows if "skipped" not in row["ways"][name]]
        extra = [
            (row["ways"][name]["total_ratio"] - 1) * row["ways"]["plain"]["total_seconds"]
            for row in rows_with
        ]
        slopes[name] = slope([row["length"] / 1000 for row in rows_with], extra)
    return slopes


def _memory(
    handle: ModelHandle, inputs: PromptInputs, shape: str, device: str, dtype: str, tokens: int
) -> dict[str, Any]:
    from sinkscope.attention_extractor import forecast
    from sinkscope.benchmarks import memory
    from sinkscope.benchmarks.variants import VARIANTS, matrix_bytes
    from sinkscope.config import GenerationSettings

    length = inputs.layout.length
    guess = forecast(handle, inputs, GenerationSettings(max_new_tokens=tokens))
    entry: dict[str, Any] = {
        "length": length,
        "payload_bytes": guess.payload_bytes,
        "forecast_extra_bytes": guess.extra_bytes(device),
        "forecast_output_attentions_bytes": matrix_bytes(handle, inputs),
        "peak_bytes": {},
    }
    if not memory.supported(device):
        entry["skipped"] = "peaks of a CPU run are read from /proc, which this system lacks"
        return entry
    for name in (name for name in VARIANTS if name != "again"):
        _say(f"Peak memory at {length}: {name}")
        try:
            entry["peak_bytes"][name] = memory.peak_extra(
                name, shape, device, dtype, length, tokens
            )
        except ChildProcessError as error:
            entry["peak_bytes"][name] = None
            _say(str(error))
    plain = entry["peak_bytes"]["plain"]
    if plain is not None:
        entry["extra_bytes"] = {
            name: None if peak is None else peak - plain
            for name, peak in entry["peak_bytes"].items()
            if name != "plain"
        }
    return entry


def _reading() -> dict[str, Any]:
    from sinkscope.benchmarks import reading

    _say("Reading one token's map from a file")
    return reading.measure()


def prompt_lengths(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"lengths is {text!r}; allowed: a list such as 256,1024,4096.")
    return sorted({int(part) for part in parts})


def _free_bytes(device: str) -> int | None:
    import torch

    from sinkscope.capture.forecast import available_memory

    return available_memory(torch.device(device))


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _asks(variant: Variant, handle: ModelHandle, inputs: PromptInputs, count: int) -> object:
    return variant(handle, inputs, count, lambda: None)
