"""Runs the finished model on many scenes at once and records its answers, attention and residual
stream.

Answers are checked by teacher forcing: a greedy answer equals the expected one exactly if each of
its tokens, the end token included, is the most likely one after the expected tokens before it. So
one forward pass over packed questions gives the same verdict as generating each answer, at a
fraction of the cost; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sinkscope.demo.folder import CELL, patches
from sinkscope.demo.packing import IGNORE, PackedBatch, Packer
from sinkscope.demo.questions import Question, questions
from sinkscope.demo.scenes import Scene, scene
from sinkscope.demo.speed import masked_attention

CHECK_SIZES: tuple[tuple[int, int], ...] = (
    (168, 168),
    (196, 140),
    (196, 196),
    (140, 196),
    (168, 224),
)
"""Widths and heights of the held-out scenes, used one after the other."""
_ATTENTION = "demo_check"
_BATCH = 10

RowChange = Callable[[int, Tensor], Tensor]
"""(layer, weights (B, H, L, L)) -> weights: an intervention on the attention rows, applied while
the model runs."""


@dataclass(frozen=True)
class Observed:
    """The result of one forward pass over a group of scenes.

    Attributes:
        scenes: The scenes, all of one size.
        question_sets: The questions of each.
        batch: The packed rows.
        rows: Rows of the grid of vision tokens.
        cols: Columns of it.
        right: ``(B, L)`` bool: whether this row's most likely next token is the expected one.
        states: Residual stream at the input of each layer, ``(B, L, hidden)`` each.
        attentions: ``(B, H, L, L)`` for each layer.
    """

    scenes: tuple[Scene, ...]
    question_sets: tuple[tuple[Question, ...], ...]
    batch: PackedBatch
    rows: int
    cols: int
    right: Tensor
    states: tuple[Tensor, ...]
    attentions: tuple[Tensor, ...]

    def verdicts(self) -> Iterator[tuple[Question, bool]]:
        """Each question, and whether the model's greedy answer is exactly the expected one."""
        for i, question_sets in enumerate(self.question_sets):
            for number, question in enumerate(question_sets, 1):
                rows = (self.batch.block[i] == number) & self.batch.predicting[i]
                yield question, bool(self.right[i][rows].all())


@dataclass(frozen=True)
class Subject:
    """The model, its tokenizer, and the packer of its questions."""

    model: Any
    tokenizer: Any
    packer: Packer

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return int(self.model.config.text_config.num_hidden_layers)


def load_subject(folder: Path) -> Subject:
    """Loads the bundled folder (float32, CPU) with an attention function that returns its
    weights."""
    from transformers import (
        AttentionInterface,
        AutoTokenizer,
        Qwen2_5_VLForConditionalGeneration,
    )

    if not (folder / "model.safetensors").exists():
        raise ValueError(f"{folder} holds no model: make one with `sinkscope demo train`")
    AttentionInterface.register(_ATTENTION, masked_attention)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    model.config.text_config._attn_implementation = _ATTENTION
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Subject(model, tokenizer, Packer(tokenizer))


def held_out_scenes(
    first_seed: int,
    count: int,
    *,
    min_objects: int = 1,
    background: str = "any",
    sizes: Sequence[tuple[int, int]] = CHECK_SIZES,
) -> list[Scene]:
    """Scenes that no training run has seen (their seeds begin with another number), with the widths
    and heights of ``sizes`` one after the other."""
    scenes = []
    for index in range(count):
        width, height = sizes[index % len(sizes)]
        most = 4 if min_objects else 0
        scenes.append(
            scene(
                (2, first_seed + index),
                width,
                height,
                min_objects=min_objects,
                max_objects=most,
                background=background,
            )
        )
    return scenes


# Scenes for finding and validating sinks: their numbers come after those that the model card is
# measured on (`demo.check`), with a block for each seed.
FIRST_SINK_SCENE, SINK_SCENES = 40_000_000, 10_000


def sink_scenes(seed: int, count: int) -> list[tuple[int, Scene]]:
    """Scenes for finding and validating sinks, each with its number. They are neither trained on
    nor measured in the model card, and differ between seeds.

    Raises:
        ValueError: `count` is out of range.
    """
    if not 1 <= count <= SINK_SCENES:
        raise ValueError(f"count is {count}; allowed: 1 to {SINK_SCENES}.")
    first = FIRST_SINK_SCENE + seed * SINK_SCENES
    return list(enumerate(held_out_scenes(first, count), first))


def observe(
    subject: Subject, scenes: Sequence[Scene], kinds: Sequence[str], seed: int = 0
) -> Iterator[Observed]:
    """Runs the model over ``scenes`` in groups of one size.

    Args:
        subject: From ``load_subject``.
        scenes: Their sides must be multiples of 28.
        kinds: Questions to ask about each.
        seed: Of the questions.
    """
    by_size: dict[tuple[int, ...], list[Scene]] = {}
    for picture in scenes:
        by_size.setdefault(picture.image.shape, []).append(picture)
    for group in by_size.values():
        for start in range(0, len(group), _BATCH):
            part = tuple(group[start : start + _BATCH])
            question_sets = tuple(tuple(questions(s, kinds, seed)) for s in part)
            yield _forward(subject, part, question_sets, None)


def observe_changed(subject: Subject, seen: Observed, row_change: RowChange) -> Observed:
    """The same scenes and questions again, under an intervention on the attention rows.

    The intervention may be made from ``seen.states``: vision tokens come before every row that VAR
    changes, so their states are the same in both passes.
    """
    return _forward(subject, seen.scenes, seen.question_sets, row_change)


@torch.no_grad()
def _forward(
    subject: Subject,
    scenes: tuple[Scene, ...],
    question_sets: tuple[tuple[Question, ...], ...],
    row_change: RowChange | None,
) -> Observed:
    height, width = scenes[0].image.shape[:2]
    rows, cols = height // CELL, width // CELL
    batch = subject.packer.pack(question_sets, rows, cols)
    added = torch.zeros(batch.mask.shape).masked_fill(~batch.mask, torch.finfo(torch.float32).min)
    out = subject.model.model(
        input_ids=batch.ids,
        pixel_values=torch.from_numpy(np.concatenate([patches(s.image) for s in scenes])),
        image_grid_thw=torch.tensor([[1, rows * 2, cols * 2]] * len(scenes)),
        attention_mask={"full_attention": added},
        position_ids=batch.positions,
        use_cache=False,
        output_hidden_states=True,
        output_attentions=True,
        row_change=row_change,
    )
    wanted = torch.nn.functional.pad(batch.labels[:, 1:], (0, 1), value=IGNORE)
    best = subject.model.lm_head(out.last_hidden_state).argmax(-1)
    return Observed(
        scenes,
        question_sets,
        batch,
        rows,
        cols,
        best == wanted,
        tuple(out.hidden_states[: subject.layers]),
        tuple(out.attentions),
    )
