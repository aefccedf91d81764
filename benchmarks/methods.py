"""The cost of explanation methods, with their limits: seconds with the bundled model, and memory.

One token of an answer of 20 by each method, and the whole answer; then peaks of rollout and
Chefer's relevance relative to a plain forward pass, each in its own process (`benchmarks.memory`).
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sinkscope.benchmarks.options import Threads
from sinkscope.benchmarks.output import check_folder, write_result
from sinkscope.cli.common import clear_errors

if TYPE_CHECKING:
    from sinkscope.capture.trace import GenerationTrace
    from sinkscope.methods.passes import Passes

TOKENS = 20  # of the answer
LENGTH, SHAPE = 1024, "small"  # at which memory is measured
ASKS_OFTEN = ("occlusion_edges", "occlusion_pixels", "region_search")
SECONDS = 2.0  # one token, at most
SECONDS_OFTEN = 20.0  # one token, for methods with many passes
SECONDS_ANSWER = 20.0  # all tokens; not for occlusion and region search
PEAK = 3.0  # times a plain forward pass's
PEAKS = ("rollout", "chefer")
MEGABYTE = 1 << 20


def methods(
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Rounds; the median counts.")] = 3,
    threads: Threads = 1,
    memory: Annotated[bool, typer.Option(help="Measure peak memory too.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of the table.")] = False,
    output: Annotated[Path | None, typer.Option(help="A folder for the table and JSON.")] = None,
) -> None:
    """The time of each explanation method on the bundled model, with its limit."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    with clear_errors():
        check_folder(output)
        result = measure(rounds, threads, memory)
        write_result(result, table(result), "methods", as_json, output)


def measure(rounds: int, threads: int = 1, memory: bool = True) -> dict[str, Any]:
    """Wall and processor seconds of each method, and memory peaks.

    Raises:
        ValueError: the bundled model is missing.
    """
    import torch

    from sinkscope.benchmarks.memory import peak_extra, supported
    from sinkscope.methods.explain import METHODS, explain
    from sinkscope.methods.passes import passes_of

    torch.set_num_threads(threads)
    handle, inputs, run = _run()
    explain(run, 0, "logit_lens", session=passes_of(handle, run, inputs))  # sets up what it needs
    last = len(run.tokens) - 1
    results: dict[str, Any] = {}
    for method in METHODS:
        session: Passes = passes_of(handle, run, inputs)
        why = method.availability(run)
        if why is not None:
            results[method.name] = {"why_not": why}
            continue

        def one(session: Passes = session, name: str = method.name) -> Any:
            session._prefixes.clear()  # each time as if it were the first
            return explain(run, last, name, session=session)

        def whole(session: Passes = session, name: str = method.name) -> Any:
            session._prefixes.clear()
            return explain(run, "answer", name, session=session)

        often = method.name in ASKS_OFTEN
        results[method.name] = {
            "token": _seconds(one, rounds),
            "most": SECONDS_OFTEN if often else SECONDS,
            "answer": _seconds(whole, 1),
            "answer_most": None if often else SECONDS_ANSWER,
        }
    result: dict[str, Any] = {
        "benchmark": "methods",
        "rounds": rounds,
        "threads": threads,
        "torch": torch.__version__,
        "positions": run.layout.length,
        "vision_tokens": run.layout.vision_tokens,
        "tokens": len(run.tokens),
        "methods": results,
    }
    if memory and supported("cpu"):
        peaks = {
            variant: peak_extra(variant, SHAPE, "cpu", "float32", LENGTH, 1, returned_at_once=True)
            for variant in ("forward", *PEAKS)
        }
        result["peaks"] = peaks
    result["held"] = within_limits(result)
    return result


def within_limits(result: dict[str, Any]) -> bool:
    """Whether every method is within its limits, in processor time: wall time includes other
    programs."""
    measured = [one for one in result["methods"].values() if "token" in one]
    peaks = result.get("peaks")
    return (
        all(one["token"]["processor"] <= one["most"] for one in measured)
        and all(
            one["answer_most"] is None or one["answer"]["processor"] <= one["answer_most"]
            for one in measured
        )
        and (peaks is None or all(peaks[name] <= PEAK * peaks["forward"] for name in PEAKS))
    )


def table(result: dict[str, Any]) -> str:
    """The result for a terminal."""
    lines = [
        f"Explanation methods, bundled model: {result['positions']} prompt tokens, "
        f"{result['vision_tokens']} vision tokens, an answer of {result['tokens']}",
        f"{result['threads']} CPU threads, torch {result['torch']}, median of {result['rounds']} "
        "rounds (the answer: 1); wall seconds (processor seconds)",
        "",
        f"{'':<20}{'one token':>16}{'limit':>10}{'whole answer':>18}{'limit':>10}",
    ]
    for name, one in result["methods"].items():
        if "why_not" in one:
            lines.append(f"{name:<20} not possible: {one['why_not']}")
            continue
        most = "" if one["answer_most"] is None else f"{one['answer_most']:g}"
        lines.append(
            f"{name:<20}{_shown(one['token']):>16}{one['most']:>10g}"
            f"{_shown(one['answer']):>18}{most:>10}"
        )
    if "peaks" in result:
        plain = result["peaks"]["forward"]
        lines += ["", f"Peak memory without the weights, N = {LENGTH}, {SHAPE} shape, float32"]
        lines += [
            f"{name:<20}{peak / MEGABYTE:>13.1f} MB{peak / plain:>9.2f} x forward"
            for name, peak in result["peaks"].items()
        ]
        lines.append(f"At most {PEAK:g} x.")
    return "\n".join([*lines, "", f"All within their limits: {'yes' if result['held'] else 'NO'}."])


def _shown(seconds: dict[str, float]) -> str:
    return f"{seconds['clock']:.2f} ({seconds['processor']:.2f})"


def _run() -> tuple[Any, Any, GenerationTrace]:
    """The bundled model, and an answer of 20 tokens to a drawn scene, with VAR's sinks known."""
    from PIL import Image

    from sinkscope.attention_extractor import generate
    from sinkscope.config import GenerationSettings
    from sinkscope.demo.questions import DESCRIBE
    from sinkscope.demo.scenes import scene
    from sinkscope.models.loading import load_model

    handle = load_model("demo", device="cpu", dtype="float32")
    settings = GenerationSettings(max_new_tokens=TOKENS, reference=True)
    for index in range(50):  # until an answer is long enough
        image = Image.fromarray(scene((TOKENS, index), 196, 196).image)
        inputs = handle.prepare([image], DESCRIBE)
        run = generate(handle, inputs, settings)
        if len(run.tokens) == TOKENS:
            return handle, inputs, run
    raise ValueError(f"No answer of {TOKENS} tokens was found.")


def _seconds(call: Callable[[], Any], rounds: int) -> dict[str, float]:
    times = []
    for _ in range(rounds):
        clock, processor = time.perf_counter(), time.process_time()
        call()
        times.append((time.perf_counter() - clock, time.process_time() - processor))
    return {
        "clock": statistics.median(one for one, _ in times),
        "processor": statistics.median(one for _, one in times),
    }
