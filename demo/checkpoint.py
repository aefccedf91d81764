"""The checkpoint of a training run: everything that changes during training, in one file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sinkscope.demo.recipe import Stage, fingerprint

if TYPE_CHECKING:
    from sinkscope.demo.train import TrainSettings

CHECKPOINT = "checkpoint.safetensors"


@dataclass
class Run:
    """What changes during training; exactly this is in a checkpoint."""

    model: Any
    heads: nn.ModuleDict
    optimizer: torch.optim.AdamW
    stage: int = 0
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


def _optimized(run: Run) -> Iterator[tuple[str, Tensor]]:
    for group in run.optimizer.param_groups:
        yield from zip(group["param_names"], group["params"], strict=True)


def save(run: Run, settings: TrainSettings) -> None:
    """Writes the checkpoint and then renames it, so an interruption leaves the previous one."""
    from safetensors.torch import save_file

    tensors = {f"model.{k}": v for k, v in run.model.state_dict().items() if k != "lm_head.weight"}
    tensors |= {f"heads.{k}": v for k, v in run.heads.state_dict().items()}
    for name, parameter in _optimized(run):
        for key, value in run.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    progress = {
        "stage": run.stage,
        "step": run.step,
        "seed": settings.seed,
        "steps": settings.steps,
        "recipe": fingerprint(_begun(settings.stages, run.stage, run.step)),
        "history": run.history,
    }
    partial = settings.work / (CHECKPOINT + ".partial")
    save_file(
        {k: v.detach().cpu().contiguous() for k, v in tensors.items()},
        partial,
        metadata={"progress": json.dumps(progress)},
    )
    partial.replace(settings.work / CHECKPOINT)


def _begun(stages: tuple[Stage, ...], stage: int, step: int) -> tuple[Stage, ...]:
    """The stages that a run has begun. If one of them changes, the run cannot be resumed; later
    stages may still change."""
    return stages[: stage + (step > 0)]


def restore(run: Run, settings: TrainSettings) -> None:
    """Restores the checkpoint in the work folder, if there is one.

    Raises:
        ValueError: it belongs to a run with another recipe, seed or number of steps.
    """
    from safetensors import safe_open

    path = settings.work / CHECKPOINT
    if not path.exists():
        return
    with safe_open(path, framework="pt") as stored:
        progress = json.loads(stored.metadata()["progress"])
        recipe = fingerprint(_begun(settings.stages, progress["stage"], progress["step"]))
        before = (progress["seed"], progress["recipe"], progress.get("steps"))
        if before != (settings.seed, recipe, settings.steps):
            raise ValueError(
                f"{path} belongs to a run with another recipe, seed or number of steps: "
                "choose another folder, or remove it"
            )
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "heads": {}, "optimizer": {}}
    for name, value in tensors.items():
        part, rest = name.split(".", 1)
        parts[part][rest] = value
    run.model.load_state_dict(parts["model"], strict=False)
    run.model.tie_weights()
    run.heads.load_state_dict(parts["heads"])
    parameters = dict(_optimized(run))
    for name, value in parts["optimizer"].items():
        key, owner = name.split(".", 1)
        parameter = parameters[owner]
        # The fused optimizer keeps its step count on the device.
        run.optimizer.state[parameter][key] = value.to(parameter.device)
    run.stage, run.step, run.history = progress["stage"], progress["step"], progress["history"]


def read_history(work: Path) -> list[dict[str, Any]]:
    """The figures of every step so far, from the checkpoint in ``work``."""
    from safetensors import safe_open

    with safe_open(work / CHECKPOINT, framework="pt") as stored:
        history: list[dict[str, Any]] = json.loads(stored.metadata()["progress"])["history"]
    return history
