"""The types of an evaluation: questions, protocols, judgements, metrics.

A task reads a data set into `Question`s. A `Protocol` defines the prompt and how an answer is
judged; the same task has several (`fixed`, `lmms-eval`, ...). A judge gives a `Judgement` of one
answer, a metric turns the judgements of a run into figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from typing import Protocol as Interface

from PIL import Image

Picture = Callable[[], Image.Image]
"""Opens one image; raises ValueError, with the reason, if it is missing or damaged."""


@dataclass(frozen=True)
class Question:
    """One question of a task, as in its data, before a protocol makes a prompt of it.

    Attributes:
        id: unique in the task, and the same in every run over the same data.
        text: the question as in the data.
        pictures: its images, in the order of the data.
        truth: the right answer, as the task's judges take it: a letter, a text, a tuple of
            annotators' answers, a set of objects. Only plain values: it is written to JSON.
        options: (letter, text) of a multiple choice; else empty.
        category: BLINK's part, POPE's subset, MME's category; "" if there is none.
        cluster: questions that share an image or a pair have the same one: they are resampled
            together and stay in one shard. By default the question's own id.
        fields: whatever else prompts, judges or metrics need; plain values.
        system: a system prompt that replaces the protocol's; None: there is none.
    """

    id: str
    text: str
    pictures: tuple[Picture, ...]
    truth: Any
    options: tuple[tuple[str, str], ...] = ()
    category: str = ""
    cluster: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None

    def __post_init__(self) -> None:
        if not self.cluster:
            object.__setattr__(self, "cluster", self.id)


@dataclass(frozen=True)
class Faulty:
    """A row of a task's data that cannot be used: it is recorded, and the run is not complete.

    Attributes:
        id: as `Question.id`.
        reason: what is wrong, one sentence.
        category, cluster: as far as they are known; else empty.
    """

    id: str
    reason: str
    category: str = ""
    cluster: str = ""

    def __post_init__(self) -> None:
        if not self.cluster:
            object.__setattr__(self, "cluster", self.id)


@dataclass(frozen=True)
class Judgement:
    """A judge's result for one answer.

    Attributes:
        score: from 0 to 1; the judge decides the score of a wrong or unparsable answer.
        extraction: the parsed answer (a letter, "yes", the normalised text); None if it could not
            be parsed.
        details: what a metric needs in addition to the score; plain values.
    """

    score: float
    extraction: str | None
    details: Mapping[str, Any] = field(default_factory=dict)


class Judge(Interface):
    """Judges answers; keeps no state between them."""

    @property
    def name(self) -> str: ...

    def judge(self, answer: str, question: Question) -> Judgement: ...


@dataclass(frozen=True)
class Judged:
    """One answer with its question's index in the data and its judgement: the input of metrics.

    `truth`, `category`, `cluster` and `fields` are the question's.
    """

    id: str
    truth: Any
    category: str
    cluster: str
    judgement: Judgement
    fields: Mapping[str, Any] = field(default_factory=dict)


class Metric(Interface):
    """Figures of a whole run from its judged answers.

    `independent` says that the first figure is the mean of right-or-wrong items that do not depend
    on each other: then Wilson intervals and McNemar's test hold. Otherwise the whole metric is
    recomputed on resampled clusters.
    """

    @property
    def name(self) -> str: ...

    @property
    def independent(self) -> bool: ...

    def figures(self, judged: Sequence[Judged]) -> dict[str, float]:
        """Name of a figure -> its value; the first is the one that methods are compared by."""
        ...


@dataclass(frozen=True)
class Protocol:
    """How a task's questions are asked and judged.

    Attributes:
        name: `fixed`, `lmms-eval`, `vlmevalkit` or `var-paper`.
        prompt: the text that follows the images. All images come before it, in order.
        judge, metric: of its answers.
        system: a system prompt; None leaves the model's own, "" is an empty one.
        max_new_tokens: limit of an answer, in tokens.
        min_pixels, max_pixels: bounds on a resized image's area; None leaves the processor's own.
        decoding: `ours` (greedy) or `checkpoint` (as generation_config.json says).
        note: differences from its source, shown in the report.
    """

    name: str
    prompt: Callable[[Question], str]
    judge: Judge
    metric: Metric
    system: str | None = None
    max_new_tokens: int = 16
    min_pixels: int | None = None
    max_pixels: int | None = None
    decoding: str = "ours"
    note: str = ""
