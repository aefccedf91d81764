"""`python -m sinkscope.benchmarks evaluation`: the cost of a pair of default and VAR relative to
default.

The same questions about the same drawn scenes are asked with default alone, with default and VAR as
one pair, with both one after the other, and with a sweep, interleaved in one process. A ratio is
the median over rounds of the time divided by that of default alone in the same round. Nothing here
imports torch before the command runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sinkscope.benchmarks.options import AsJson, Device, DTypeName, Rounds, Threads
from sinkscope.benchmarks.output import check_folder, write_result

if TYPE_CHECKING:
    from sinkscope.config import GenerationSettings
    from sinkscope.evaluation.base import Question
    from sinkscope.evaluation.methods import Method
    from sinkscope.models.loading import ModelHandle

VARIANTS = {
    "default": "default alone (the unit)",
    "pair": "default and var, one pair",
    "apart": "default, then var by itself",
    "three": "default, var, var-random",
    "sweep": "default and var at keep 0, 0.3, 0.6",
}
TARGET = 1.3


def evaluation(
    model: Annotated[str, typer.Option(help="demo, a hub id, or a folder.")] = "demo",
    device: Device = "cpu",
    dtype: Annotated[DTypeName, typer.Option(help="Of the weights.")] = "bfloat16",
    questions: Annotated[int, typer.Option(min=1, max=10_000, help="In each round.")] = 28,
    repeats: Rounds = 7,
    threads: Threads = 1,
    batch_tokens: Annotated[
        int, typer.Option(min=0, help="Tokens of a batch, as in `evaluate run`; 0: no batches.")
    ] = 16_384,
    as_json: AsJson = False,
    output: Annotated[
        Path | None, typer.Option(help="Folder for evaluation.json and evaluation.txt.")
    ] = None,
) -> None:
    """Several methods on the same questions, compared with the plain model."""
    from sinkscope.cli.common import clear_errors

    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    with clear_errors():
        check_folder(output)
        result = measure(model, device, dtype, questions, repeats, threads, batch_tokens)
        write_result(result, table(result), "evaluation", as_json, output)


def measure(
    model: str,
    device: str,
    dtype: str,
    questions: int,
    repeats: int,
    threads: int,
    batch_tokens: int = 16_384,
) -> dict[str, Any]:
    """All measurements, as plain values.

    Raises:
        ValueError: no such device or model, or the model has no sink profile.
    """
    import itertools
    from functools import partial

    import torch

    from sinkscope.benchmarks import timing
    from sinkscope.benchmarks.shapes import device_name
    from sinkscope.config import GenerationSettings, ModelSettings
    from sinkscope.evaluation.base import Question
    from sinkscope.evaluation.method_specs import parse_methods
    from sinkscope.evaluation.methods import resolve
    from sinkscope.evaluation.tasks.demo import TASK
    from sinkscope.models.loading import load_model

    torch.set_num_threads(threads)
    # A text here; the settings check it.
    handle = load_model(ModelSettings(model, device=device, dtype=dtype))  # type: ignore[arg-type]
    items = [
        one for one in itertools.islice(TASK.read(None), questions) if isinstance(one, Question)
    ]
    settings = GenerationSettings(max_new_tokens=TASK.protocols[0].max_new_tokens)

    def methods(*texts: str, sweeps: tuple[str, ...] = ()) -> tuple[Method, ...]:
        return resolve(parse_methods(texts, sweeps), handle.profile, handle.info)

    plain, pair = methods("default"), methods("default", "var")
    passes: dict[str, list[tuple[Method, ...]]] = {
        "default": [plain],
        "pair": [pair],
        "apart": [plain, pair[1:]],
        "three": [methods("default", "var", "var-random")],
        "sweep": [methods("default", "var", sweeps=("keep=0,0.3,0.6",))],
    }
    runs = {
        name: partial(_run, handle, items, settings, batch_tokens, passes[name])
        for name in VARIANTS
    }
    for run in runs.values():  # the set-up of a first call is not measured
        run(lambda: None)
    timings = timing.rounds(runs, repeats, handle.device)
    variants = timing.totals(timings, "default")
    return {
        "benchmark": "evaluation",
        "model": handle.info.id,
        "device": device_name(device),
        "dtype": handle.info.dtype,
        "threads": threads,
        "questions": questions,
        "repeats": repeats,
        "batch_tokens": batch_tokens,
        "torch": torch.__version__,
        "noise": timing.noise(timings["default"], "total"),
        "ways": variants,
        "target": TARGET,
    }


def _run(
    handle: ModelHandle,
    items: Sequence[Question],
    settings: GenerationSettings,
    batch_tokens: int,
    passes: Sequence[tuple[Method, ...]],
    mark: Callable[[], None],
) -> None:
    """The runner's own work on these questions."""
    from sinkscope.evaluation.session import MOST_TOGETHER
    from sinkscope.evaluation.work import Plan, Work, work

    for methods in passes:
        plan = Plan(methods, settings, retries=0, batch_tokens=batch_tokens)
        for start in range(0, len(items), MOST_TOGETHER):
            unit = [Work(one.pictures, one.text) for one in items[start : start + MOST_TOGETHER]]
            for done in work(plan, handle, unit):
                if done.error is not None:
                    raise ValueError(f"A question failed: {done.error}")
                mark()


def table(result: dict[str, Any]) -> str:
    """The measurements as text."""
    noise = "" if result["noise"] is None else f", two plain rounds differ by {result['noise']:.1%}"
    lines = [
        f"Evaluation, {result['model']}, {result['device']}, {result['dtype']}, "
        f"{result['threads']} thread(s), {result['questions']} questions a round, "
        f"{result['repeats']} rounds, batches of {result['batch_tokens']} tokens, torch "
        f"{result['torch']}{noise}",
        "",
        f"  {'':40}{'ratio':>10}{'fastest':>10}{'seconds':>10}",
    ]
    for name, what in VARIANTS.items():
        variant = result["ways"][name]
        lines.append(
            f"  {what:40}{variant['ratio']:>10.3f}{variant['ratio_of_fastest']:>10.3f}"
            f"{variant['seconds']:>10.3f}"
        )
    reached = result["ways"]["pair"]["ratio"] <= result["target"]
    word = "reached" if reached else "NOT reached"
    lines += ["", f"Target, pair / default alone <= {result['target']}: {word}"]
    return "\n".join(lines)
