"""What a validation found: frozen dataclasses, and their file.

docs/method.md, "Validating a profile", has every definition. `sinks.validating.validate` makes a
`Validation`, `sinks.validating.verdict` puts it into words.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sinkscope.models.info import ModelInfo
from sinkscope.models.profiles import SinkProfile
from sinkscope.sinks.validating.settings import ValidateSettings
from sinkscope.untrusted import dataclass_from, read_json
from sinkscope.utils import write_atomically

FORMAT, VERSION = "sinkscope-validation", 1
SetName = Literal["sinks", "random", "random_dims", "attended", "image"]
Word = Literal[
    "confirmed",
    "attention only",
    "undecided",
    "contradicted",
    "not sinks",
    "flags nothing",
    "flags too much",
    "too few samples",
]


@dataclass(frozen=True)
class Estimate:
    """A mean over samples with its bootstrap interval.

    Attributes:
        value: the mean.
        low, high: percentile interval at the settings' confidence.
        samples: how many it is a mean over.
    """

    value: float
    low: float
    high: float
    samples: int

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclass(frozen=True)
class LayerAgreement:
    """Flagged tokens against high-attention tokens in one layer, all samples together.

    `high` tokens have at least `min_ratio` times the median of their image; `top` ones are those
    among them that finding would have taken for sinks (`top_percent`). Tokens between the two are
    held against nobody.

    Attributes:
        layer: index in the model; counts are of its input's residual stream and its attention.
        tokens: vision tokens looked at.
        flagged, high, top: how many of them are.
        flagged_high, flagged_top: how many are both.
        attention: share of the image's attention that flagged tokens hold, mean over samples, 0
            to 1.
    """

    layer: int
    tokens: int
    flagged: int
    high: int
    top: int
    flagged_high: int
    flagged_top: int
    attention: float

    @property
    def flagged_share(self) -> float:
        return self.flagged / self.tokens

    @property
    def precision(self) -> float:
        """Share of the flagged tokens that are high; where none is flagged: 1 if none is top
        either, else 0."""
        return self.flagged_high / self.flagged if self.flagged else float(not self.top)

    @property
    def recall(self) -> float:
        """Share of the top tokens that are flagged; where none is top: 1 if none is flagged
        either, else 0."""
        return self.flagged_top / self.top if self.top else float(not self.flagged)


@dataclass(frozen=True)
class Agreement:
    """All layers together.

    Attributes:
        micro_precision, micro_recall: of the layers' counts, summed.
        macro_precision, macro_recall: mean over ALL layers, also those in which nothing is flagged.
        lift: attention of a flagged token in multiples of the average vision token's, in the layers
            where any is flagged; None where none is.
        random_lift: the same for the tokens that random dimensions pick.
    """

    micro_precision: float
    micro_recall: float
    macro_precision: float
    macro_recall: float
    lift: Estimate | None
    random_lift: Estimate | None


@dataclass(frozen=True)
class HiddenSet:
    """What hiding one set of vision tokens does to the answer.

    Attributes:
        name: `sinks`: the flagged ones; `random`: as many others; `random_dims`: as many, those
            with the highest score under random dimensions; `attended`: as many, the most attended
            among the others; `image`: all vision tokens.
        change: of the answer's log-probability, nats per answer token; negative: less probable.
        tokens: how many are hidden, mean over samples.
        attention: share of the image's attention that the set holds, mean over the settings'
            `layers` and samples.
        overlap: share of the set that is flagged, mean over samples.
    """

    name: SetName
    change: Estimate
    tokens: float
    attention: float
    overlap: float


@dataclass(frozen=True)
class SampleEvidence:
    """One sample: what its row in a table shows.

    Attributes:
        id: the sample's.
        tokens, hidden: vision tokens, and how many of them were hidden as sinks.
        answer: its text; `own` is true where the model gave it.
        own: see there.
        log_probability: of the answer with nothing hidden, nats per token.
        changes: set name -> change in nats per token; `sinks` alone and `image` where no control of
            the same size exists, `image` alone where nothing is flagged.
        question, where, system, history: what was asked, and where it stands, as in
            `sinks.samples.Sample`; empty in files of before these were kept.
    """

    id: str
    tokens: int
    hidden: int
    answer: str
    own: bool
    log_probability: float
    changes: dict[str, float]
    question: str = ""
    where: str = ""
    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class SweepPoint:
    """The same profile at another tau.

    Attributes:
        tau: the threshold.
        flagged: share of the vision tokens flagged, mean over `layers`; `most` in its worst layer.
        most: see there.
        precision, recall: micro, over all layers.
        hidden: share of the vision tokens that hiding took, mean over the sweep's samples.
        sinks, random: mean change when they are hidden, nats per token; None if no sample has any.
        samples: how many these two are means over.
        selected: share of the (head, query row) pairs behind the image that VAR would change, with
            its default settings, mean over the layers in which it acts.
    """

    tau: float
    flagged: float
    most: float
    precision: float
    recall: float
    hidden: float
    sinks: float | None
    random: float | None
    samples: int
    selected: float


@dataclass(frozen=True)
class Verdict:
    """The result in words.

    Attributes:
        word: one of `Word`.
        text: one or two sentences that say why.
        thresholds: each threshold that was used, in words, with its value.
    """

    word: Word
    text: str
    thresholds: tuple[str, ...]


@dataclass(frozen=True)
class Validation:
    """What validating a profile found.

    Attributes:
        profile: the profile.
        model: what it was validated on.
        settings: with what.
        samples: one entry a sample used, sorted by id.
        skipped: (id, reason) of those that could not be used.
        wanted: how many were asked for.
        layers: one entry a layer of the model.
        agreement: all layers together.
        hidden: one entry a set, in the order of `SetName`; empty where nothing is flagged.
        contrasts: change when sinks are hidden minus change when the named set is, paired by
            sample: `random`, `random_dims`, `attended`.
        sweep: rising in tau.
        verdict: in words.
        warnings: what a reader of the result should know.
        held_out: false where finding had used some of the samples.
        seconds: how long it took.
    """

    profile: SinkProfile
    model: ModelInfo
    settings: ValidateSettings
    samples: tuple[SampleEvidence, ...]
    skipped: tuple[tuple[str, str], ...]
    wanted: int
    layers: tuple[LayerAgreement, ...]
    agreement: Agreement
    hidden: tuple[HiddenSet, ...]
    contrasts: dict[str, Estimate]
    sweep: tuple[SweepPoint, ...]
    verdict: Verdict
    warnings: tuple[str, ...]
    held_out: bool
    seconds: float

    def save(self, path: Path) -> None:
        """Write it as JSON; a kill in the middle leaves the old file whole.

        Raises:
            OSError: the folder is missing or not writable, or the disk is full.
        """
        values = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(path, lambda file: file.write(text.encode()))

    @staticmethod
    def open(path: Path) -> Validation:
        """Read what `save` wrote.

        Raises:
            ValueError: the file cannot be read, or is no validation.
        """
        values = read_json(path, "The validation")
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(f"{path.name} is not a validation of a sink profile.")
        if values.get("version") != VERSION:
            raise ValueError(
                f"The validation {path.name} has version {values.get('version')!r}; "
                f"allowed: {VERSION}."
            )
        try:
            about = ("format", "version")
            return dataclass_from(Validation, {k: v for k, v in values.items() if k not in about})
        except ValueError as error:
            raise ValueError(f"The validation {path.name} is damaged: {error}.") from error
