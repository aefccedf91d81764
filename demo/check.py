"""Measures the bundled model on scenes that it was not trained on: answers, attention, sinks.

``check`` returns plain numbers, which ``--json`` prints and the model card is made from.
Redistribution (VAR) is in parts above this one, so it is passed in as a function.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sinkscope.demo.folder import CELL
from sinkscope.demo.measure import (
    Observed,
    RowChange,
    Subject,
    held_out_scenes,
    load_subject,
    observe,
    observe_changed,
)
from sinkscope.demo.packing import PackedBatch
from sinkscope.demo.questions import KINDS, questions
from sinkscope.demo.recipe import TAU, SinkTeaching
from sinkscope.demo.scenes import PLACES, Scene
from sinkscope.demo.sink_training import phi_per_dim
from sinkscope.demo.teaching import inside_box

TOGETHER = ("describe", "what", "colour", "exist")
"""The question types whose accuracy is also given together."""
_LOOKING = ("describe", "what")
_CONTROL_DRAWS = 10

GRIDS: tuple[tuple[int, int], ...] = ((5, 5), (7, 7), (8, 8), (7, 13), (10, 10))
"""Rows and columns of vision tokens for which "describe" is measured on its own."""

MakeRowChange = Callable[[PackedBatch, tuple[Tensor, ...]], RowChange]


@dataclass(frozen=True)
class CheckSettings:
    """What is measured.

    Attributes:
        folder: The model.
        scenes: Number of held-out scenes.
        first_seed: Of the held-out scenes; the best head is chosen on other scenes.
        dims: Sink dimensions.
        tau: Sink threshold on phi.
    """

    folder: Path
    scenes: int = 500
    first_seed: int = 0
    dims: tuple[int, ...] = SinkTeaching().dims
    tau: float = TAU

    def __post_init__(self) -> None:
        if self.scenes < 5:
            raise ValueError(f"scenes is {self.scenes}: it has to be 5 or more")
        if self.first_seed < 0:
            raise ValueError(f"first_seed is {self.first_seed}: it has to be 0 or more")


def check(
    settings: CheckSettings,
    changes: Mapping[str, MakeRowChange] | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Measures everything.

    Args:
        settings: What to measure.
        changes: Interventions on the attention rows by name (VAR with its settings, its control);
            answers and attention are measured under each as well.
        report: Called with scenes done and in total.

    Returns:
        Nested dictionaries of numbers and names.

    Raises:
        ValueError: If the folder holds no model.
    """
    subject = load_subject(settings.folder)
    held = held_out_scenes(settings.first_seed, settings.scenes)
    others = held_out_scenes(settings.first_seed + 10_000_000, max(10, settings.scenes // 5))
    extra, per_grid = max(5, settings.scenes // 10), max(5, settings.scenes // 2)
    changes = changes or {}
    total = len(others) + (1 + len(changes)) * len(held) + 2 * extra + len(GRIDS) * per_grid
    done = 0

    def count(seen: Observed) -> None:
        nonlocal done
        done += len(seen.scenes)
        report(done, total)

    choosing = _TargetAttention()
    for seen in observe(subject, others, _LOOKING):
        choosing.add(seen)
        count(seen)
    best = choosing.best_head()
    guess = _guesses(settings)
    answers, looking, sinks = _Answers(guess), _TargetAttention(), _Sinks(settings, subject)
    changed = {name: (_Answers(guess), _TargetAttention(), _Compared()) for name in changes}
    for seen in observe(subject, held, KINDS):
        answers.add(seen)
        looking.add(seen)
        sinks.add(seen)
        count(seen)
        for name, make in changes.items():
            again = observe_changed(subject, seen, make(seen.batch, seen.states))
            changed[name][0].add(again)
            changed[name][1].add(again)
            changed[name][2].add(seen, again)
            count(again)
    return {
        "scenes": settings.scenes,
        "first_seed": settings.first_seed,
        "answers": answers.figures(),
        "describe_by_grid": {
            f"{rows} x {cols}": _describe_on(
                subject, settings.first_seed + 40_000_000, per_grid, rows, cols, count
            )
            for rows, cols in GRIDS
        },
        "without_objects": {
            kind: _nothing(subject, settings.first_seed + 20_000_000, extra, kind, count)
            for kind in ("texture", "photo")
        },
        "looking": looking.figures(best) | {"chosen_on_scenes": len(others)},
        "sinks": sinks.figures(),
        "changed": {
            name: {
                "answers": own_answers.figures(),
                "looking": own_looking.figures(best),
                "verdicts": compared.figures(),
            }
            for name, (own_answers, own_looking, compared) in changed.items()
        },
    }


def _describe_on(
    subject: Subject, seed: int, count: int, rows: int, cols: int, seen: Callable[[Observed], None]
) -> dict[str, Any]:
    """Exact match of "describe" on one grid of vision tokens."""
    right = []
    scenes = held_out_scenes(seed, count, sizes=((cols * CELL, rows * CELL),))
    for group in observe(subject, scenes, ("describe",)):
        right += [verdict for _, verdict in group.verdicts()]
        seen(group)
    return {"scenes": len(right), "exact": float(np.mean(right))}


def _nothing(
    subject: Subject, seed: int, count: int, background: str, seen: Callable[[Observed], None]
) -> dict[str, Any]:
    """How often a scene without objects is described by "nothing."."""
    right = []
    for group in observe(
        subject, held_out_scenes(seed, count, min_objects=0, background=background), ("describe",)
    ):
        right += [verdict for _, verdict in group.verdicts()]
        seen(group)
    return {"scenes": len(right), "nothing": float(np.mean(right))}


def _guesses(settings: CheckSettings) -> dict[str, str]:
    """The most frequent answer to each question: the best guess of someone who knows the question
    and the statistics of the scenes, but not the picture."""
    common: dict[str, Counter[str]] = defaultdict(Counter)
    for other in held_out_scenes(settings.first_seed + 30_000_000, 5 * settings.scenes):
        for asked in questions(other, KINDS):
            common[asked.prompt][asked.answer] += 1
    return {prompt: seen.most_common(1)[0][0] for prompt, seen in common.items()}


class _Answers:
    """Exact match by question type, for the model and for guessing."""

    def __init__(self, guess: Mapping[str, str]) -> None:
        self._guess = guess
        self._right: dict[str, list[bool]] = defaultdict(list)
        self._guessed: dict[str, list[bool]] = defaultdict(list)

    def add(self, seen: Observed) -> None:
        for question, verdict in seen.verdicts():
            self._right[question.kind].append(verdict)
            self._guessed[question.kind].append(self._guess.get(question.prompt) == question.answer)

    def figures(self) -> dict[str, Any]:
        table = {
            kind: {
                "questions": len(self._right[kind]),
                "exact": float(np.mean(self._right[kind])),
                "guessing": float(np.mean(self._guessed[kind])),
            }
            for kind in KINDS
        }
        together = [v for kind in TOGETHER for v in self._right[kind]]
        return {
            "by_type": table,
            "together": {"types": list(TOGETHER), "exact": float(np.mean(together))},
        }


class _Compared:
    """How many verdicts an intervention changes, and in which direction."""

    def __init__(self) -> None:
        self._pairs: Counter[tuple[bool, bool]] = Counter()

    def add(self, plain: Observed, changed: Observed) -> None:
        for (_, before), (_, after) in zip(plain.verdicts(), changed.verdicts(), strict=True):
            self._pairs[before, after] += 1

    def figures(self) -> dict[str, int]:
        return {
            "questions": self._pairs.total(),
            "wrong_before": self._pairs[False, True] + self._pairs[False, False],
            "mended": self._pairs[False, True],
            "broken": self._pairs[True, False],
        }


class _TargetAttention:
    """Where attention is, at the rows that predict a word naming an object in "describe" and "what"
    answers."""

    def __init__(self) -> None:
        self._hits: list[Tensor] = []  # (layers, heads) each
        self._shares: list[Tensor] = []
        self._mean: list[bool] = []
        self._mean_share: list[float] = []
        self._chance: list[float] = []

    def add(self, seen: Observed) -> None:
        weights = torch.stack(seen.attentions)[..., seen.batch.vision]  # layers, B, H, L, V
        for i, asked in enumerate(seen.question_sets):
            wanted = {n for n, q in enumerate(asked, 1) if q.kind in _LOOKING}
            boxes = [_inside(seen.scenes[i], j, seen.rows, seen.cols) for j in range(9)]
            named = seen.batch.named[i]
            for row in seen.batch.predicting[i].nonzero()[:, 0].tolist():
                index, question = int(named[row + 1]), int(seen.batch.block[i, row])
                if index < 0 or question not in wanted:
                    continue
                inside, row_weights = boxes[index], weights[:, i, :, row]  # layers, H, V
                assert inside is not None
                self._hits.append(inside[row_weights.argmax(-1)])
                self._shares.append((row_weights * inside).sum(-1) / row_weights.sum(-1))
                mean = row_weights.mean((0, 1))
                self._mean.append(bool(inside[mean.argmax()]))
                self._mean_share.append(float(mean[inside].sum() / mean.sum()))
                self._chance.append(float(inside.float().mean()))

    def best_head(self) -> tuple[int, int]:
        rate = torch.stack(self._hits).float().mean(0)
        return divmod(int(rate.argmax()), rate.shape[1])

    def figures(self, head: tuple[int, int]) -> dict[str, Any]:
        rate = torch.stack(self._hits).float().mean(0)
        share = torch.stack(self._shares).mean(0)
        return {
            "tokens": len(self._mean),
            "chance": float(np.mean(self._chance)),
            "best_head": {
                "layer": head[0],
                "head": head[1],
                "pointing": float(rate[head]),
                "share_in_box": float(share[head]),
            },
            "mean_map_pointing": float(np.mean(self._mean)),
            "mean_map_share_in_box": float(np.mean(self._mean_share)),
            "mean_of_heads_pointing": float(rate.mean()),
        }


def _inside(scene: Scene, index: int, rows: int, cols: int) -> Tensor | None:
    """Vision tokens whose centre lies in the box of object ``index``: ``(V,)`` bool."""
    if index >= len(scene.objects):
        return None
    return torch.from_numpy(inside_box(scene, index, rows, cols))


class _Sinks:
    """Sink tokens layer by layer, and the same for random dimensions of the same number."""

    def __init__(self, settings: CheckSettings, subject: Subject) -> None:
        self._settings = settings
        hidden = int(subject.model.config.text_config.hidden_size)
        self._limit = math.sqrt(hidden)
        free = np.setdiff1d(np.arange(hidden), settings.dims)
        rng = np.random.default_rng(0)
        self._control = [
            rng.choice(free, len(settings.dims), replace=False).tolist()
            for _ in range(_CONTROL_DRAWS)
        ]
        self._rows: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self._places: Counter[str] = Counter()
        self._images: list[bool] = []

    def add(self, seen: Observed) -> None:
        tau, vision = self._settings.tau, seen.batch.vision
        for layer, states in enumerate(seen.states):
            phi = phi_per_dim(states, self._settings.dims).amax(-1)
            control = [phi_per_dim(states[:, vision], d).amax(-1) for d in self._control]
            for i, picture in enumerate(seen.scenes):
                out = self._rows[layer]
                image = phi[i, vision]
                flagged = image >= tau
                text = torch.cat([phi[i, : vision.start], phi[i, vision.stop :]])
                text = text[_outside(seen, i)]
                count = int(flagged.sum())
                held = seen.attentions[layer][i][:, seen.batch.predicting[i]][..., vision]
                held = held.sum(1) / held.sum((1, 2))[:, None]  # heads, V: share of image attention
                out["tokens"].append(count)
                out["share_of_tokens"].append(count / len(image))
                out["ordinary"].append(float(image[~flagged].max()) if count < len(image) else 0.0)
                ordinary = image[~flagged]
                out["ordinary_below_half"].append(float((ordinary < tau / 2).float().mean()))
                out["text"].append(float(text.max()))
                if count:
                    share = float(held.mean(0)[flagged].sum())
                    out["phi"].append(float(image[flagged].mean()))
                    out["held"].append(share)
                    out["times_uniform"].append(share / (count / len(image)))
                    out["on_object"].append(float(_covered(picture, seen)[flagged].any()))
                for other in control:
                    out["control_share_of_tokens"].append(float((other[i] >= tau).float().mean()))
                    top = other[i].topk(max(1, count)).indices
                    held_top = float(held.mean(0)[top].sum())
                    out["control_times_uniform"].append(held_top / (len(top) / len(image)))
                if layer == 2:
                    self._note_places(flagged, seen)

    def _note_places(self, flagged: Tensor, seen: Observed) -> None:
        self._images.append(bool(flagged.any()))
        for token in flagged.nonzero()[:, 0].tolist():
            y, x = divmod(token, seen.cols)
            cell = int((y + 0.5) / seen.rows * 3) * 3 + int((x + 0.5) / seen.cols * 3)
            self._places[PLACES[cell]] += 1

    def figures(self) -> dict[str, Any]:
        layers = []
        for layer, out in sorted(self._rows.items()):
            row = {name: float(np.mean(v)) for name, v in out.items()}
            row["ordinary_99"] = float(np.quantile(out["ordinary"], 0.99))
            row["text_99"] = float(np.quantile(out["text"], 0.99))
            layers.append({"layer": layer, **row})
        sinks = sum(self._places.values())
        return {
            "dims": list(self._settings.dims),
            "tau": self._settings.tau,
            "greatest_possible_phi": self._limit,
            "images_with_sinks": float(np.mean(self._images)),
            "places": {p: self._places[p] / max(1, sinks) for p in PLACES},
            "layers": layers,
            "control": f"{_CONTROL_DRAWS} draws of {len(self._settings.dims)} random dimensions",
        }


def _outside(seen: Observed, i: int) -> Tensor:
    """Text positions that are not padding, in the order of a row without its vision tokens."""
    block = seen.batch.block[i]
    vision = seen.batch.vision
    return torch.cat([block[: vision.start], block[vision.stop :]]) >= 0


def _covered(scene: Scene, seen: Observed) -> Tensor:
    """Vision tokens with a noticeable part (over 2 %) of an object in them: ``(V,)`` bool."""
    height, width = scene.owner.shape
    tiles = scene.owner.reshape(seen.rows, height // seen.rows, seen.cols, width // seen.cols)
    return torch.from_numpy(((tiles > 0).mean((1, 3)) > 0.02).reshape(-1))
