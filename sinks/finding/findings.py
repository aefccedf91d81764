"""The result of finding sink dimensions: plain frozen values, saved and opened as JSON.

Everything that the plots, the page and the guide show is here; nothing here needs the model or
torch. m is |x[d]| / rms(x) of a token's residual stream at a layer's input, in float32; phi is the
largest m over the sink dimensions. In every "mean over samples" each sample counts once.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sinkscope.models.info import ModelInfo
from sinkscope.models.profiles import SinkProfile
from sinkscope.sinks.settings import FindSettings
from sinkscope.untrusted import dataclass_from, read_json
from sinkscope.utils import write_bytes_atomically

FORMAT = "sinkscope-findings-1"
Kind = Literal["sink", "first token", "always on", "none"]


@dataclass(frozen=True)
class Interval:
    """Bootstrap interval over samples, at `FindSettings.confidence`."""

    low: float
    high: float


@dataclass(frozen=True)
class LayerCandidate:
    """One dimension in one layer.

    Attributes:
        dim: index into the residual stream.
        sink, sink_interval: mean m on the sink tokens.
        ordinary: mean m on the ordinary vision tokens.
        ordinary_spread: standard deviation of m over them, mean over samples.
        ordinary_max: the largest m on any of them.
        contrast, contrast_interval: `prominence` / `ordinary_prominence`.
        first: mean m on the first token of the prompt.
        text: mean over samples of the largest m on any other token outside the images.
        prominence, ordinary_prominence: mean of |x[d]| / background on the sink tokens and on
            ordinary ones; the background is the rms over all dimensions but the token's 16 largest.
        consistency: share of all samples in which the thresholds hold.
        massive: share of the sink tokens on which this dimension is a massive activation after Sun
            et al. (|x[d]| >= 100 and >= 1000 times the token's median).
        passes: whether all thresholds hold in this layer.
    """

    dim: int
    sink: float
    sink_interval: Interval
    ordinary: float
    ordinary_spread: float
    ordinary_max: float
    contrast: float
    contrast_interval: Interval
    first: float
    text: float
    prominence: float
    ordinary_prominence: float
    consistency: float
    massive: float
    passes: bool


@dataclass(frozen=True)
class LayerFinding:
    """One measured layer.

    Attributes:
        layer: index in the model; everything is measured at its input and by its attention.
        samples: number of samples in which at least one vision token stands out.
        sink_tokens, ordinary_tokens: how many were counted, over all samples.
        ratio: mean over samples of the largest attention received by a vision token, in multiples
            of its image's median (of the norm, if tokens were chosen by the norm).
        candidates: the dimensions of `Findings.candidates`, the highest contrast first.
        first_token: dimensions that are massive on the prompt's first token, the largest first.
        always_on: dimensions that are massive on ordinary vision tokens.
        sink_phi, ordinary_phi: counts of these tokens by phi, in the bins of
            `Findings.phi_edges`; empty if no dimension was found. The lowest bins of
            `ordinary_phi` are bounds, not exact: a phi below a token's 16th largest m is counted
            at that m.
        vision_phi: the same over all vision tokens.
    """

    layer: int
    samples: int
    sink_tokens: int
    ordinary_tokens: int
    ratio: float
    candidates: tuple[LayerCandidate, ...]
    first_token: tuple[int, ...]
    always_on: tuple[int, ...]
    sink_phi: tuple[int, ...] = ()
    ordinary_phi: tuple[int, ...] = ()
    vision_phi: tuple[int, ...] = ()

    def candidate(self, dim: int) -> LayerCandidate | None:
        """This layer's values for one dimension, or None if it is not a candidate."""
        return next((c for c in self.candidates if c.dim == dim), None)


@dataclass(frozen=True)
class Candidate:
    """One dimension over all layers. Its values are those of the layer `layer`.

    Attributes:
        dim: index into the residual stream.
        kind: `sink`; `first token`: massive on the prompt's first token and on no sink of an image;
            `always on`: as large on ordinary vision tokens; `none`: below a threshold.
        reason: why it has this kind, in words.
        layers: the layers where it passes.
        run: the longest run of consecutive layers among them.
        layer: the layer of that run in which its contrast is highest; if there is no run, the
            one of all layers.
        sink, sink_interval, ordinary, contrast, contrast_interval, first, text, consistency,
            prominence, massive: as in `LayerCandidate`, in `layer`.
        on_first_token: whether it is massive on the first token as well.
        stability: share of random halves of the samples in which it is found again; None with
            fewer than 4 samples.
    """

    dim: int
    kind: Kind
    reason: str
    layers: tuple[int, ...]
    run: tuple[int, ...]
    layer: int
    sink: float
    sink_interval: Interval
    ordinary: float
    contrast: float
    contrast_interval: Interval
    first: float
    text: float
    prominence: float
    consistency: float
    massive: float
    on_first_token: bool
    stability: float | None


@dataclass(frozen=True)
class TauPoint:
    """The shares that one threshold would flag (phi > tau), over the layers `Findings.layers`.

    Attributes:
        tau: the threshold.
        sinks: share of the sink tokens that it flags, in the layers where sinks were found.
        ordinary: share of the ordinary vision tokens, in these layers.
        flagged: share of all vision tokens in all layers.
        by_layer: share of all vision tokens, layer by layer.
    """

    tau: float
    sinks: float
    ordinary: float
    flagged: float
    by_layer: tuple[float, ...]


@dataclass(frozen=True)
class Origin:
    """Where sinks come from: the first layer at whose input a token's phi exceeds tau.

    Attributes:
        layer: 0: the output of the vision tower. Layer l > 0: the output of layer l - 1, or of
            an earlier layer that was not measured.
        tokens: number of sink tokens (each counted once, in however many layers it is a sink).
        share: their share of all sink tokens.
    """

    layer: int
    tokens: int
    share: float


@dataclass(frozen=True)
class UsedSample:
    """A sample that finding used: validation refuses it.

    Attributes:
        id: its name.
        fingerprint: `Sample.fingerprint`, of pixels and prompt.
        images: `Sample.digests`, of each image's pixels.
        question, answer, where, system, history: what was asked, and where it came from, as in
            `sinks.samples.Sample`; empty in files written before these were stored.
    """

    id: str
    fingerprint: str
    images: tuple[str, ...]
    question: str = ""
    answer: str | None = None
    where: str = ""
    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Findings:
    """The result of `sinks.finding.find.find`.

    Attributes:
        model: the model.
        settings: the settings.
        samples: the samples that were used, sorted by id.
        skipped, wanted: as in `SampleSet`.
        dims: the sink dimensions, in rising order; empty if none was found.
        tau: the calibrated threshold on phi; None if none was found.
        tau_gap: the scores (low, high) that tau is the middle of.
        reason: one sentence: why these dimensions, or why none.
        notes: what a user has to know, as sentences.
        min_magnitude: least m on sink tokens for this hidden size.
        layers: the measured layers.
        sink_layers: those in which a dimension of `dims` passes.
        candidates: dimensions worth showing, found ones first, then by contrast.
        first_token_dims: dimensions massive on the prompt's first token, whether or not on images.
        always_on: dimensions massive on ordinary vision tokens in most layers.
        sweep: in rising order of tau; empty if none was found.
        phi_edges: edges of the bins of the histograms in `layers`; empty if none was found.
        origins: by layer; empty if none was found.
        stability: share of random halves in which exactly `dims` are found again; None with fewer
            than 4 samples.
        seconds: duration of the run.
    """

    model: ModelInfo
    settings: FindSettings
    samples: tuple[UsedSample, ...]
    skipped: tuple[tuple[str, str], ...]
    wanted: int
    dims: tuple[int, ...]
    tau: float | None
    tau_gap: tuple[float, float] | None
    reason: str
    notes: tuple[str, ...]
    min_magnitude: float
    layers: tuple[LayerFinding, ...]
    sink_layers: tuple[int, ...]
    candidates: tuple[Candidate, ...]
    first_token_dims: tuple[int, ...]
    always_on: tuple[int, ...]
    sweep: tuple[TauPoint, ...]
    phi_edges: tuple[float, ...]
    origins: tuple[Origin, ...]
    stability: float | None
    seconds: float

    @property
    def found(self) -> tuple[Candidate, ...]:
        """The candidates of `dims`, in their order."""
        return tuple(c for dim in self.dims for c in self.candidates if c.dim == dim)

    @property
    def sample_ids(self) -> tuple[str, ...]:
        """Names of the used samples."""
        return tuple(sample.id for sample in self.samples)

    @property
    def from_vision_tower(self) -> float | None:
        """Share of the sink tokens that are already sinks at the input of layer 0; None if none was
        found or that layer was not measured."""
        if not self.origins or self.layers[0].layer != 0:
            return None
        return sum(origin.share for origin in self.origins if origin.layer == 0)

    @property
    def confidence(self) -> Literal["high", "medium", "low"]:
        """Confidence of a profile made from this: high with at least 20 samples and the same
        dimensions in 95 % of the halves and in 80 % of the samples; medium with at least 8 samples,
        80 % and 50 %; otherwise low."""
        weakest = min((c.consistency for c in self.found), default=0.0)
        stable = self.stability or 0.0
        if len(self.samples) >= 20 and stable >= 0.95 and weakest >= 0.8:
            return "high"
        return "medium" if len(self.samples) >= 8 and stable >= 0.8 and weakest >= 0.5 else "low"

    def sentence(self) -> str:
        """The outcome in words."""
        return " ".join((self.reason, *self.notes))

    def profile(self, model: str | None = None, note: str = "") -> SinkProfile:
        """A profile of the found dimensions, to be written by `sinks.profile_file.write_profile`.

        Args:
            model: name of the model in the profile; by default the name it was loaded by.
            note: what a user of the profile should know, in addition to the outcome.

        Raises:
            ValueError: no sink dimension was found, so there is nothing to write.
        """
        if not self.dims or self.tau is None:
            raise ValueError(f"There is no profile to write: {self.reason}")
        stable = "" if self.stability is None else f", stable in {self.stability:.0%} of halves"
        return SinkProfile(
            model=model or self.model.id,
            family=self.model.family,
            hidden_size=self.model.hidden_size,
            layers=self.model.layers,
            dims=self.dims,
            tau=self.tau,
            source=f"found by SinkScope on {len(self.samples)} samples{stable}, "
            f"at revision {self.model.revision}",
            confidence=self.confidence,
            note=" ".join(filter(None, (note, self.sentence()))),
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in the JSON file."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    def save(self, path: Path) -> None:
        """Write JSON; the file is either complete or not written."""
        text = json.dumps(self.as_dict(), ensure_ascii=False, indent=1, allow_nan=False)
        write_bytes_atomically(path, text.encode())

    @staticmethod
    def open(path: Path) -> Findings:
        """Read a file written by `save`.

        Raises:
            ValueError: the file cannot be read or contains something else.
        """
        values = read_json(path, "The findings")
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(f"The file {path.name} holds no findings of the format {FORMAT}.")
        try:
            return dataclass_from(Findings, {k: v for k, v in values.items() if k != "format"})
        except ValueError as error:
            raise ValueError(f"The findings {path.name} are damaged: {error}.") from error
