"""The checks of `benchmarks gpu`: each a function that returns plain values, and a row of `CHECKS`.

`goals` are the project's targets on a GPU of the H100 class. On a CPU, and with tiny shapes,
figures are given without saying whether they meet their goal.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from sinkscope.benchmarks import capture, sinks, var
from sinkscope.benchmarks.exactness import rows_against_eager
from sinkscope.benchmarks.floor import floor
from sinkscope.benchmarks.gpu_folder import check_folder
from sinkscope.benchmarks.gpu_memory import peaks
from sinkscope.benchmarks.shapes import build_handle, build_prompt, device_name
from sinkscope.benchmarks.variants import EngineName
from sinkscope.models.loading import ModelHandle


@dataclass(frozen=True)
class Plan:
    """Sizes of a whole run.

    Attributes:
        name: as given on the command line.
        small, large: shape, prompt length and new tokens of the two models.
        exact: shape, prompt length and new tokens of the rows against eager.
        batch: samples per pass when finding sinks.
        repeats: rounds.
        warmups: maximum number of plain runs before the first round.
    """

    name: str
    small: tuple[str, int, int]
    large: tuple[str, int, int]
    exact: tuple[str, int, int]
    batch: int
    repeats: int
    warmups: int


PLANS = {
    "full": Plan("full", ("3b", 1024, 64), ("7b", 4096, 48), ("3b", 1024, 16), 8, 3, 8),
    "tiny": Plan("tiny", ("tiny", 120, 13), ("tiny", 160, 13), ("tiny", 120, 4), 2, 1, 1),
}


@dataclass(frozen=True)
class Goals:
    """The largest allowed ratios, for one of the two models.

    Attributes:
        capture, var: by quantity.
        sinks: finding, a batch divided by a plain pass of it.
    """

    capture: dict[str, float]
    var: dict[str, float]
    sinks: float


GOALS = {
    "small": Goals(
        {"total": 0.25, "first": 1.1},
        {"var": 0.27, "first": 1.3, "compare": 0.36, "again": 0.33, "same_text": 0.05},
        1.5,
    ),
    "large": Goals(
        {"total": 0.45, "first": 1.05},
        {"var": 0.55, "first": 1.15, "compare": 0.7, "again": 0.5, "same_text": 0.08},
        1.3,
    ),
}
LARGE = "with 7B shapes and a long prompt"
Size = Literal["small", "large"]


class Bench:
    """A run of the checks: builds models, one at a time, and releases them.

    Args:
        plan: the sizes.
        device: `cpu` or `cuda`.
        folder: of a model to load, if there is one.

    Raises:
        ValueError: torch finds no such device.
    """

    def __init__(self, plan: Plan, device: str, folder: Path | None) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device is 'cuda', but torch finds no CUDA device here.")
        self.plan, self.device, self.folder = plan, device, folder
        self._held: tuple[object, ModelHandle] | None = None

    def handle(
        self, shape: str, dtype: torch.dtype | None = None, layers: int | None = None
    ) -> ModelHandle:
        """A random-weight model; the previous one if it is the same."""
        dtype = dtype or (torch.bfloat16 if self.device == "cuda" else torch.float32)
        what = (shape, dtype, layers)
        if self._held is None or self._held[0] != what:
            self._held = None
            self.let_go()
            self._held = what, build_handle(shape, self.device, dtype, layers=layers)
        return self._held[1]

    def sizes(self, size: Size) -> tuple[str, int, int]:
        """Shape, prompt length and new tokens of one of the two models."""
        return self.plan.small if size == "small" else self.plan.large

    def let_go(self) -> None:
        """Release unused memory."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def forget(self) -> None:
        """Release the model as well."""
        self._held = None
        self.let_go()

    @property
    def judged(self) -> bool:
        """Whether goals are judged: only on a GPU and with the real shapes."""
        return self.device == "cuda" and self.plan.name == "full"

    def machine(self) -> dict[str, Any]:
        """The machine and the library versions."""
        about: dict[str, Any] = {
            "device": device_name(self.device),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "cuda": torch.version.cuda,
        }
        if self.device == "cuda":
            about["memory"] = torch.cuda.get_device_properties(0).total_memory
            about["capability"] = list(torch.cuda.get_device_capability())
        return about

    def goal(self, what: str, value: float, most: float) -> dict[str, Any]:
        """A figure with its upper limit."""
        return {"what": what, "value": value, "most": most, "met": self._met(value <= most)}

    def _met(self, good: bool) -> bool | None:
        return good if self.judged else None


def _capture(bench: Bench, size: Size) -> dict[str, Any]:
    shape, length, tokens = bench.sizes(size)
    goals = GOALS[size].capture
    handle = bench.handle(shape)
    least = floor(handle)
    prompt, plan = build_prompt(handle, length), bench.plan
    slow = ("hooks", "output_attentions") if shape == "7b" else ()
    row = capture.one_length(handle, prompt, tokens, plan.repeats, plan.warmups, slow)
    graph, again = row["ways"]["graph"], row["ways"]["again"]
    return {
        "shape": shape,
        "tokens": tokens,
        "dtype": handle.info.dtype,
        "floor": least,
        "each_by_floor": {
            name: variant["each_seconds"] / least["seconds"]
            for name, variant in row["ways"].items()
            if "skipped" not in variant
        },
        **row,
        "goals": [
            bench.goal("capture (graph) / plain", graph["total_ratio"], goals["total"]),
            bench.goal("to the first token (graph) / plain", graph["first_ratio"], goals["first"]),
            bench.goal("plain again / plain, distance from 1", abs(again["total_ratio"] - 1), 0.05),
        ],
    }


def _var(bench: Bench, size: Size) -> dict[str, Any]:
    shape, length, tokens = bench.sizes(size)
    goals = GOALS[size].var
    handle = bench.handle(shape)
    prompt, plan = build_prompt(handle, length), bench.plan
    slow = ("dense", "two_runs", "compare", "other_settings") if shape == "7b" else ("two_runs",)
    row = var.one_length(handle, prompt, tokens, plan.repeats, plan.warmups, slow)
    variants = row["ways"]
    return {
        "shape": shape,
        "tokens": tokens,
        **row,
        "goals": [
            bench.goal(
                "VAR (graph) / plain", variants["var_run_graph"]["total_ratio"], goals["var"]
            ),
            bench.goal(
                "to the first token, VAR / plain",
                variants["var_run_graph"]["first_ratio"],
                goals["first"],
            ),
            bench.goal(
                "compare (graph)", variants["compare_graph"]["total_ratio"], goals["compare"]
            ),
            bench.goal(
                "compare again (graph)",
                variants["other_settings_graph"]["total_ratio"],
                goals["again"],
            ),
            bench.goal("same text", variants["same_text"]["total_ratio"], goals["same_text"]),
        ],
    }


def _sinks(bench: Bench, size: Size) -> dict[str, Any]:
    shape, length, _ = bench.sizes(size)
    most = GOALS[size].sinks
    handle, plan = bench.handle(shape), bench.plan
    prompt = build_prompt(handle, length)
    batch = plan.batch if shape != "7b" else max(1, plan.batch // 4)
    alone = sinks.one_length(handle, prompt, 1, plan.repeats, plan.warmups)
    together = sinks.one_length(handle, prompt, batch, plan.repeats, plan.warmups)
    received = together["ways"]["received"]
    return {
        "shape": shape,
        "alone": alone,
        "together": together,
        "goals": [
            bench.goal("finding, a batch / plain pass of it", received["ratio"], most),
            bench.goal(
                "finding, a batch / plain passes one by one",
                received["ratio"] / together["ways"]["single_forwards"]["ratio"],
                most,
            ),
        ],
    }


def _memory(bench: Bench) -> dict[str, Any]:
    shape, length, tokens = bench.plan.small
    handle = bench.handle(shape)
    peak = peaks(handle, build_prompt(handle, length), tokens)
    room = 96 * 2**20
    goals = [
        bench.goal(
            f"{name}: bytes beyond plain and histories",
            float(peak["peak_bytes"][name] - peak["peak_bytes"]["plain"] - allowed),
            room,
        )
        for name, allowed in peak["allowed_bytes"].items()
        if peak["peak_bytes"]
    ]
    return {**peak, "goals": goals}


def _exact(bench: Bench) -> dict[str, Any]:
    shape, length, tokens = bench.plan.exact
    single = bench.handle(shape, torch.float32, layers=2)
    two_layers = rows_against_eager(single, build_prompt(single, length), tokens, "graph")
    half = torch.bfloat16
    whole = bench.handle(shape, half)
    prompt = build_prompt(whole, length)
    engines: tuple[EngineName, ...] = ("loop", "graph")
    differences = {name: rows_against_eager(whole, prompt, tokens, name) for name in engines}
    return {
        "float32": two_layers,
        "bfloat16": differences,
        "goals": [
            bench.goal("float32, two layers: largest", two_layers["rows_largest"], 1e-3),
            *(
                bench.goal(
                    f"bfloat16, {name}: rows (goal: SDPA's logits)",
                    one["rows_relative"],
                    one["logits_relative"],
                )
                for name, one in differences.items()
            ),
        ],
    }


def _folder(bench: Bench) -> dict[str, Any]:
    if bench.folder is None:
        return {"skipped": "no --folder was given"}
    bench.forget()
    return check_folder(bench.folder, bench.device)


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: its name in the JSON.
        what: a description.
        seconds: approximate time on a GPU of the H100 class.
        run: runs the check.
    """

    name: str
    what: str
    seconds: int
    run: Callable[[Bench], dict[str, Any]]


CHECKS = (
    Check(
        "capture",
        "plain twice, both engines, eager with hooks, output_attentions",
        90,
        partial(_capture, size="small"),
    ),
    Check("var", "VAR and comparing, both engines", 80, partial(_var, size="small")),
    Check("sinks", "finding, one sample and a batch per pass", 20, partial(_sinks, size="small")),
    Check("memory", "peak memory of each way", 30, _memory),
    Check("exact", "rows against eager: float32 of two layers, bfloat16 of all", 30, _exact),
    Check(
        "folder", "a folder of the published layout: loaded, asked, compared, searched", 60, _folder
    ),
    Check("capture_large", f"capture {LARGE}", 60, partial(_capture, size="large")),
    Check("var_large", f"VAR and comparing {LARGE}", 60, partial(_var, size="large")),
    Check("sinks_large", f"finding {LARGE}", 30, partial(_sinks, size="large")),
)
