"""Trains the bundled model from scratch: ``sinkscope demo train``.

It builds tokenizer and model, runs the stages of ``demo.recipe``, writes a checkpoint every few
hundred steps, and writes the loadable folder at the end of each stage. Scenes are drawn from (seed,
stage, step) and no random state is carried over, so an interrupted and resumed run gives the same
result as an uninterrupted one.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sinkscope.demo.card import write_profile
from sinkscope.demo.checkpoint import Run, restore, save
from sinkscope.demo.folder import CELL, build_config, build_tokenizer, patches, write_folder
from sinkscope.demo.packing import IGNORE, PackedBatch, Packer
from sinkscope.demo.questions import questions
from sinkscope.demo.recipe import STAGES, SinkTeaching, Stage
from sinkscope.demo.scenes import Scene, scene
from sinkscope.demo.sink_training import relieving, sink_loss
from sinkscope.demo.speed import faster_training, training_dtype
from sinkscope.demo.teaching import (
    answer_loss,
    comparison_loss,
    hint_heads,
    hint_loss,
    reading_loss,
    scene_targets,
    seen_loss,
    winner_reading_loss,
)

NEEDED_BYTES = 200_000_000
"""Room for two checkpoints, the model and the plot."""
_WARM_UP = 100


@dataclass(frozen=True)
class TrainSettings:
    """Settings of a training run.

    Attributes:
        output: Folder of the finished model.
        work: Folder of checkpoints and history.
        seed: Of weights and scenes.
        device: "auto", "cpu" or "cuda".
        stages: The recipe.
        steps: Largest total number of steps, divided evenly between the stages (for tests and short
            trials); None: whole stages.
        save_every: Steps between checkpoints.
    """

    output: Path
    work: Path
    seed: int = 0
    device: str = "auto"
    stages: tuple[Stage, ...] = STAGES
    steps: int | None = None
    save_every: int = 250

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device is {self.device!r}: allowed is auto, cpu, cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device is 'cuda': PyTorch finds no CUDA device on this machine")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps is {self.steps}: it has to be 1 or more")
        if self.save_every < 1:
            raise ValueError(f"save_every is {self.save_every}: it has to be 1 or more")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}: it has to be 0 or more")

    def stage_steps(self, stage: Stage) -> int:
        """Steps of ``stage`` in this run."""
        if self.steps is None:
            return stage.steps
        per_stage, more = divmod(self.steps, len(self.stages))
        return min(stage.steps, per_stage + (self.stages.index(stage) < more))


@dataclass(frozen=True)
class Progress:
    """The report of one step: the position in the run, and its figures."""

    stage: str
    step: int
    steps: int
    done: int
    total: int
    figures: dict[str, float]


def check_writable(folder: Path) -> None:
    """Raises a ``ValueError`` that names ``folder`` if it cannot be written or the disk is (nearly)
    full."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".write-probe"
        probe.write_bytes(b"\0" * 4096)
        probe.unlink()
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror or error}") from error
    free = shutil.disk_usage(folder).free
    if free < NEEDED_BYTES:
        raise ValueError(
            f"{folder} has {free / 1e6:.0f} MB free: training needs {NEEDED_BYTES / 1e6:.0f} MB"
        )


def train(settings: TrainSettings) -> Iterator[Progress]:
    """Trains, resuming from the last checkpoint in ``settings.work`` if there is one.

    Yields:
        A report for each step.

    Raises:
        ValueError: If a folder cannot be written, or has a checkpoint of a different recipe, seed
            or number of steps.
    """
    check_writable(settings.work)
    check_writable(settings.output)
    device = torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu")
        if settings.device == "auto"
        else settings.device
    )
    torch.manual_seed(settings.seed)
    tokenizer = build_tokenizer()
    run = _new_run(tokenizer, device)
    restore(run, settings)
    packer, dtype = Packer(tokenizer), training_dtype(device)
    total = sum(settings.stage_steps(s) for s in settings.stages)
    if run.stage == len(settings.stages):  # finished earlier; the output folder may be new
        _write_model(run, settings, tokenizer)
    with faster_training(run.model):
        while run.stage < len(settings.stages):
            stage = settings.stages[run.stage]
            while run.step < settings.stage_steps(stage):
                figures = _step(run, packer, stage, settings, device, dtype)
                run.step += 1
                before = sum(settings.stage_steps(s) for s in settings.stages[: run.stage])
                yield Progress(
                    stage.name,
                    run.step,
                    settings.stage_steps(stage),
                    before + run.step,
                    total,
                    figures,
                )
                if run.step % settings.save_every == 0:
                    save(run, settings)
            # Before the checkpoint: interrupted between the two, a run repeats the last steps.
            _write_model(run, settings, tokenizer)
            run.stage, run.step = run.stage + 1, 0
            save(run, settings)


def _write_model(run: Run, settings: TrainSettings, tokenizer: Any) -> None:
    write_folder(settings.output, run.model, tokenizer)
    text = run.model.config.text_config
    write_profile(settings.output, text.hidden_size, text.num_hidden_layers, SinkTeaching())


def _new_run(tokenizer: Any, device: torch.device) -> Run:
    from transformers import Qwen2_5_VLForConditionalGeneration

    config = build_config(tokenizer)
    model = cast(Any, Qwen2_5_VLForConditionalGeneration(config)).to(device, torch.float32).train()
    heads = hint_heads(config.text_config.hidden_size).to(device)
    groups: dict[tuple[bool, bool], list[tuple[str, Tensor]]] = {}
    for module, prefix in ((model, "model."), (heads, "heads.")):
        for name, parameter in module.named_parameters():
            key = (".visual." in name, parameter.ndim > 1)
            groups.setdefault(key, []).append((prefix + name, parameter))
    optimizer = torch.optim.AdamW(
        [
            {"params": named, "weight_decay": 0.05 if matrix else 0.0, "vision": vision}
            for (vision, matrix), named in sorted(groups.items())
        ],
        lr=1e-3,
        betas=(0.9, 0.95),
        fused=True,
    )
    return Run(model, heads, optimizer)


def _rate(stage: Stage, step: int, steps: int) -> float:
    start, end = stage.rate
    # Each stage changes the data, so the optimizer's moments need a new warm-up.
    return (start + (end - start) * step / steps) * min(1.0, (step + 1) / _WARM_UP)


def _step(
    run: Run,
    packer: Packer,
    stage: Stage,
    settings: TrainSettings,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, float]:
    rng = np.random.default_rng([settings.seed, run.stage, run.step])
    rows, cols = stage.grids[int(rng.integers(len(stage.grids)))]
    scenes = _draw(rng, stage, settings.seed, (run.stage, run.step), rows, cols)
    targets = scene_targets(scenes, rows, cols)
    targets = type(targets)(**{k: v.to(device) for k, v in targets.__dict__.items()})
    pixels = torch.from_numpy(np.concatenate([patches(s.image) for s in scenes])).to(device)
    grid = torch.tensor([[1, rows * 2, cols * 2]] * len(scenes), device=device)
    rate = _rate(stage, run.step, stage.steps)
    for group in run.optimizer.param_groups:
        group["lr"] = rate * (stage.vision_rate if group["vision"] else 1.0)
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        if stage.kinds:
            asked = [
                questions(s, rng.permutation(list(stage.kinds))[: stage.asked].tolist(), run.step)
                for s in scenes
            ]
            batch = packer.pack(asked, rows, cols).to(device)
            # Drawn only if it is used, so that stages without it keep their random numbers.
            relieved = stage.sinks is not None and 0 < stage.sinks.relieved > rng.random()
            loss, figures = _answer_losses(run, stage, batch, targets, pixels, grid, relieved)
        else:
            loss, figures = _vision_losses(run, targets, pixels, grid)
    loss.backward()
    parameters = [p for g in run.optimizer.param_groups for p in g["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.history.append({"stage": stage.name, **{k: round(v, 5) for k, v in figures.items()}})
    return figures


def _draw(
    rng: np.random.Generator, stage: Stage, seed: int, at: tuple[int, int], rows: int, cols: int
) -> list[Scene]:
    scenes = []
    for index in range(stage.batch):
        empty = rng.random() < stage.empty
        scenes.append(
            scene(
                # The first number separates training scenes from those of the check.
                (1, seed, *at, index),
                cols * CELL,
                rows * CELL,
                min_objects=0 if empty else 1,
                max_objects=0 if empty else stage.max_objects,
                repeat=stage.repeat,
            )
        )
    return scenes


def _vision_losses(
    run: Run, targets: Any, pixels: Tensor, grid: Tensor
) -> tuple[Tensor, dict[str, float]]:
    features = run.model.model.visual(pixels, grid_thw=grid).pooler_output
    if isinstance(features, Sequence):
        features = torch.cat(list(features))
    features = features.float().view(*targets.shape.shape, -1)
    loss = seen_loss(run.heads, features, targets)
    with torch.no_grad():
        scores = run.heads["seen"](features)
        split = targets.shape.shape[-1] and scores.shape[-1] // 2
        has_object = targets.shape > 0
        shape = (scores[..., :split].argmax(-1) == targets.shape)[has_object].float().mean()
        colour = (scores[..., split:].argmax(-1) == targets.colour)[has_object].float().mean()
    # The text layers expect features of unit size, which token embeddings reach in training.
    loss = loss + 1e-4 * (features.pow(2).mean() - 1).pow(2)
    return loss, {"loss": float(loss.detach()), "shape": float(shape), "colour": float(colour)}


def _answer_losses(
    run: Run,
    stage: Stage,
    batch: PackedBatch,
    targets: Any,
    pixels: Tensor,
    grid: Tensor,
    relieved: bool,
) -> tuple[Tensor, dict[str, float]]:
    lower = torch.is_autocast_enabled(pixels.device.type)
    dtype = torch.bfloat16 if lower else torch.float32
    hidden = torch.zeros(batch.mask.shape, device=pixels.device, dtype=dtype)
    mask = hidden.masked_fill(~batch.mask, -1e9)  # added to the scores
    teaching = stage.sinks or SinkTeaching()
    keep = teaching.relieved_keep if relieved else None
    with relieving(run.model, batch.vision, teaching, keep) as relief:
        out = run.model.model(
            input_ids=batch.ids,
            pixel_values=pixels,
            image_grid_thw=grid,
            attention_mask={"full_attention": mask},
            position_ids=batch.positions,
            use_cache=False,
            output_hidden_states=True,
            output_attentions=stage.sinks is not None or stage.reading > 0,
            row_change=relief,
        )
    rows = batch.predicting
    scores = run.model.lm_head(out.last_hidden_state[rows]).float()
    wanted = batch.labels[:, 1:][batch.labels[:, 1:] != IGNORE]
    answers = answer_loss(scores, wanted, batch, stage.left_weight)
    hints = hint_loss(run.heads, out.hidden_states, batch, targets)
    loss = answers + stage.hints * hints
    right = (scores.argmax(-1) == wanted).float().mean()
    figures = {
        "loss": float(answers.detach()),
        "right": float(right),
        "hints": float(hints.detach()),
    }
    if stage.comparing > 0:
        comparison, shares = comparison_loss(run.heads, out.hidden_states, batch, targets)
        loss = loss + stage.comparing * comparison
        figures |= shares
    if stage.winner_reading > 0:
        winner_reading = winner_reading_loss(out.attentions, batch)
        loss = loss + stage.winner_reading * winner_reading
        figures["winner_reading"] = float(winner_reading.detach())
    if stage.reading > 0:
        reading = reading_loss(out.attentions, batch, targets)
        loss = loss + stage.reading * reading
        figures["reading"] = float(reading.detach())
    if stage.sinks:
        sinks, measured = sink_loss(
            out.hidden_states, out.attentions, batch, targets, stage.sinks, relief
        )
        loss = loss + sinks
        figures |= {"sinks": float(sinks.detach()), **measured}
    return loss, figures
