"""`sink-tokens`: which words do the sinks decode to, and do these words identify them?

Logit lens: the residual stream at each layer's input, through the model's final norm and output
head. Sinks tend to decode to a few fixed words whatever the image shows. The words most frequent
among the sinks of one half of the samples make a detector that uses no attention:

    score(token) = max over these words of the lens's log-probability

It is judged on the other half: AUC of sinks against ordinary tokens, layer by layer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sinkscope.capture.probes.base import Probe, Reader
from sinkscope.experiments.bootstrap import Resampling
from sinkscope.experiments.result import Chart, Findings, Series, Table, number, numbers
from sinkscope.experiments.settings import SinkTokensSettings, StudySettings
from sinkscope.experiments.study import Case, Study
from sinkscope.experiments.verdict import Specific, specific, verdict
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle
from sinkscope.models.run_info import RunInfo
from sinkscope.models.sites import SiteSelection
from sinkscope.models.stack import TextStack

ROWS = 32  # tokens whose logits exist at once
LISTED = 3  # words per layer in the table


def check(handle: ModelHandle, settings: SinkTokensSettings, asked: StudySettings) -> None:
    """Refuse, before any pass, a family that names no final norm."""
    if handle.stack.final_norm is None:
        raise ValueError(
            f"The family {handle.info.family} names no final norm, so there is no logit lens; "
            "allowed: all other experiments."
        )


def run(study: Study, settings: SinkTokensSettings) -> Findings:
    """Run the experiment."""
    study.plan(2)
    words = [Counter() for _ in range(study.layers)]  # type: list[Counter[int]]
    every = [Counter() for _ in range(study.layers)]  # type: list[Counter[int]]
    stack = study.handle.stack
    for case, inputs in study.prepared_cases("Reading words"):
        lens = Lens(stack, case.groups[study.sink])
        seen = study.forward_pass(case, inputs, [lens]).session[lens]
        for layer, (tops, _) in seen.items():
            every[layer].update(tops)
            if case.index % 2 == 0:
                words[layer].update(tops)
    chosen = [_most_common(one, settings.words) for one in words]
    halves = (_Scores(study.layers), _Scores(study.layers))
    for case, inputs in study.prepared_cases("Scoring tokens"):
        halves[case.index % 2].add(study, case, inputs, chosen)
    return _findings(study, settings, chosen, every, halves)


@dataclass(frozen=True, eq=False)
class Lens(Probe):
    """The logit lens at a few tokens, reduced layer by layer; `session[probe]` is layer ->
    (the most probable word of each token, float64 (n,) score).

    Attributes:
        stack: of the model.
        positions: rising.
        words: of each layer; the score is the largest log-probability among them. None: that of the
            most probable word.
    """

    stack: TextStack
    positions: tuple[int, ...]
    words: tuple[tuple[int, ...], ...] | None = None

    def begin(self, run: RunInfo) -> Reader:
        return _Reading(self)


class _Reading(Reader):
    def __init__(self, probe: Lens) -> None:
        self.reads = (SiteSelection("block_in", None, probe.positions),)
        self._probe = probe
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}

    def see(self, site: str, layer: int, values: Any, positions: Sequence[int]) -> None:
        stack, words = self._probe.stack, self._probe.words
        assert stack.final_norm is not None
        tops, scores = [], []
        for low in range(0, len(positions), ROWS):
            logits = stack.output_head(stack.final_norm(values[:1, low : low + ROWS]))[0]
            work = logits.to(torch.promote_types(logits.dtype, torch.float32))
            logs = torch.log_softmax(work, dim=-1)
            best = logs.max(-1)
            tops.append(best.indices)
            word_logs = best.values if words is None else logs[:, list(words[layer])].amax(-1)
            scores.append(word_logs)
        self._seen[layer] = torch.cat(tops), torch.cat(scores)

    def result(self) -> dict[int, tuple[list[int], Tensor]]:
        return {
            layer: (tops.tolist(), scores.cpu().double())
            for layer, (tops, scores) in sorted(self._seen.items())
        }


def _most_common(counted: Counter[int], count: int) -> list[int]:
    """The most frequent, ties by the smaller id."""
    return [word for word, _ in sorted(counted.items(), key=lambda item: (-item[1], item[0]))][
        :count
    ]


@dataclass
class _Scores:
    """Scores of one half's tokens, by layer."""

    layers: int
    sinks: list[list[Tensor]] = field(init=False)
    ordinary: list[list[Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        self.sinks = [[] for _ in range(self.layers)]
        self.ordinary = [[] for _ in range(self.layers)]

    def add(self, study: Study, case: Case, inputs: PromptInputs, chosen: list[list[int]]) -> None:
        sinks = set(case.groups[study.sink])
        positions = tuple(sorted({*sinks, *case.others}))
        mask = torch.tensor([position in sinks for position in positions])
        lens = Lens(study.handle.stack, positions, tuple(map(tuple, chosen)))
        seen = study.forward_pass(case, inputs, [lens]).session[lens]
        for layer, (_, scores) in seen.items():
            self.sinks[layer].append(scores[mask])
            self.ordinary[layer].append(scores[~mask])

    def judged(self, study: Study, layer: int) -> Specific:
        """Sinks against ordinary tokens."""
        asked = study.settings
        samples = len(self.sinks[layer])
        resampling = Resampling(samples, asked.bootstrap, asked.confidence, asked.seed)
        return specific(self.sinks[layer], self.ordinary[layer], resampling)


def _findings(
    study: Study,
    settings: SinkTokensSettings,
    chosen: list[list[int]],
    every: list[Counter[int]],
    halves: tuple[_Scores, _Scores],
) -> Findings:
    fitted = [halves[0].judged(study, layer) for layer in range(study.layers)]
    tested = [halves[1].judged(study, layer) for layer in range(study.layers)]
    best = max(range(study.layers), key=lambda layer: (_auc(fitted[layer]), -layer))
    rows = []
    for layer in range(study.layers):
        total = sum(every[layer].values())
        common = _most_common(every[layer], LISTED)
        rows.append(
            (
                layer,
                " | ".join(_word(study, word) for word in common),
                every[layer][common[0]] / total,
                len(every[layer]),
                number(fitted[layer].auc.value),
                number(tested[layer].auc.value),
                number(tested[layer].auc.low),
                number(tested[layer].auc.high),
            )
        )
    table = Table(
        "words",
        f"What {study.sink} decode to at each layer's input",
        ("layer", "words", "share_of_first", "different", "auc_fit", "auc", "auc_low", "auc_high"),
        tuple(rows),
        note="auc: of the detector, on the samples that its words were not chosen from.",
    )
    first = _most_common(every[best], 1)[0]
    share = every[best][first] / sum(every[best].values())
    summary = (
        f"At the input of layer {best}, {share:.0%} of {study.sink} decode to "
        f"{_word(study, first)}. The {len(chosen[best])} most frequent words tell sinks from "
        f"ordinary tokens with AUC {tested[best].auc} on samples that they were not chosen from.",
    )
    judged = verdict(study.settings, f"words of layer {best}", None, tested[best], len(study.cases))
    values = {
        "layer": best,
        "words": chosen[best],
        "texts": [study.handle.tokenizer.decode([word]) for word in chosen[best]],
        "auc": number(tested[best].auc.value),
    }
    layers = tuple(range(study.layers))
    charts = (
        Chart(
            "auc",
            "Sinks against ordinary tokens, by their words",
            "lines",
            layers,
            (
                Series(
                    "other half",
                    numbers([one.auc.value for one in tested]),
                    numbers([one.auc.low for one in tested]),
                    numbers([one.auc.high for one in tested]),
                    "changed",
                ),
                Series("half that chose", numbers([one.auc.value for one in fitted]), role="plain"),
            ),
            x_label="layer (at its input)",
            y_label="AUC",
            note="Band: bootstrap interval over samples.",
        ),
        Chart(
            "share",
            "Sinks that decode to the most frequent word",
            "lines",
            layers,
            (Series(study.sink, tuple(float(row[2]) for row in rows), role=study.sink),),
            x_label="layer (at its input)",
            y_label="share",
        ),
    )
    return Findings(summary, (table,), charts, judged, values)


def _auc(specific: Specific) -> float:
    return specific.auc.value if math.isfinite(specific.auc.value) else -1.0


def _word(study: Study, word: int) -> str:
    """A token's text, quoted; its id if it has no text of its own."""
    text = study.handle.tokenizer.decode([word], clean_up_tokenization_spaces=False)
    return repr(text) if text and "\ufffd" not in text else f"token {word}"
