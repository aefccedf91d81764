"""The result of a validation: frozen dataclasses, and their file.

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
from sinkscope.utils import write_bytes_atomically

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
        samples: number of samples.
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
    among them that finding would have taken for sinks (`top_percent`). Tokens that are high but not
    top count neither as errors of precision nor of recall.

    Attributes:
        layer: index in the model; the residual stream at its input and its attention are compared.
        tokens: number of vision tokens.
        flagged, high, top: number of these tokens.
        flagged_high, flagged_top: number of tokens that are both.
        attention: share of the image's attention that flagged tokens receive, mean over samples,
            0 to 1.
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
        """Share of the flagged tokens that are high. If none is flagged: 1 if none is top either,
        otherwise 0."""
        return self.flagged_high / self.flagged if self.flagged else float(not self.top)

    @property
    def recall(self) -> float:
        """Share of the top tokens that are flagged. If none is top: 1 if none is flagged either,
        otherwise 0."""
        return self.flagged_top / self.top if self.top else float(not self.flagged)


@dataclass(frozen=True)
class Agreement:
    """All layers together.

    Attributes:
        micro_precision, micro_recall: from the summed counts of the layers.
        macro_precision, macro_recall: mean over ALL layers, also those in which nothing is flagged.
        lift: attention of a flagged token in multiples of the average vision token's, in the layers
            where any is flagged; None if there are none.
        random_lift: the same for the tokens chosen by random dimensions.
    """

    micro_precision: float
    micro_recall: float
    macro_precision: float
    macro_recall: float
    lift: Estimate | None
    random_lift: Estimate | None


@dataclass(frozen=True)
class HiddenSet:
    """The effect of hiding one set of vision tokens on the answer.

    Attributes:
        name: `sinks`: the flagged ones; `random`: as many others; `random_dims`: as many, those
            with the highest score under random dimensions; `attended`: as many, the most attended
            among the others; `image`: all vision tokens.
        change: change of the answer's log-probability, nats per answer token; negative: less
            probable.
        tokens: number of hidden tokens, mean over samples.
        attention: share of the image's attention that the set receives, mean over the settings'
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
    """One sample: the content of its row in a table.

    Attributes:
        id: the sample's id.
        tokens, hidden: number of vision tokens, and how many of them were hidden as sinks.
        answer: text of the answer.
        own: true if the model gave the answer.
        log_probability: of the answer with nothing hidden, nats per token.
        changes: set name -> change in nats per token; only `sinks` and `image` if no control of
            the same size exists, only `image` if nothing is flagged.
        question, where, system, history: what was asked, and where it comes from, as in
            `sinks.samples.Sample`; empty in files written before these were stored.
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
        flagged: share of the vision tokens flagged, mean over `layers`.
        most: the same in the layer where it is largest.
        precision, recall: micro, over all layers.
        hidden: share of the vision tokens that were hidden, mean over the sweep's samples.
        sinks, random: mean change when they are hidden, nats per token; None if no sample has any.
        samples: number of samples that these two are means over.
        selected: share of the (head, query row) pairs after the image that VAR would change, with
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
    """The result of validating a profile.

    Attributes:
        profile: the profile.
        model: the model it was validated on.
        settings: the settings.
        samples: one entry for each used sample, sorted by id.
        skipped: (id, reason) of those that could not be used.
        wanted: the requested number of samples.
        layers: one entry for each layer of the model.
        agreement: all layers together.
        hidden: one entry for each set, in the order of `SetName`; empty if nothing is flagged.
        contrasts: change when sinks are hidden minus change when the named set is hidden, paired
            by sample: `random`, `random_dims`, `attended`.
        sweep: in rising order of tau.
        verdict: the result in words.
        warnings: what a reader of the result should know.
        held_out: false if finding had used some of the samples.
        seconds: duration of the run.
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
        """Write it as JSON; if the process is killed meanwhile, the old file stays intact.

        Raises:
            OSError: the folder is missing or not writable, or the disk is full.
        """
        values = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_bytes_atomically(path, text.encode())

    @staticmethod
    def open(path: Path) -> Validation:
        """Read a file written by `save`.

        Raises:
            ValueError: the file cannot be read, or is not a validation.
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
