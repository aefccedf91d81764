"""Combines the samples of a validation: counts, means, intervals. Pure; the order has no effect.

Every mean is over samples, each counting once. Its interval comes from resampling the samples with
replacement (percentile bootstrap). Differences between sets are taken within each sample first, so
variation between samples cancels out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from sinkscope.models.info import ModelInfo
from sinkscope.models.profiles import SinkProfile
from sinkscope.sinks.validating.settings import ValidateSettings
from sinkscope.sinks.validating.validation import (
    Agreement,
    Estimate,
    HiddenSet,
    LayerAgreement,
    SampleEvidence,
    SetName,
    SweepPoint,
    Validation,
)
from sinkscope.sinks.validating.verdict import Evidence, judge, warnings_of

CONTROLS = ("random", "random_dims", "attended")


@dataclass(frozen=True)
class SweepRecord:
    """One sample at one tau of the sweep.

    Attributes:
        counts: see `evidence.counts`.
        hidden: share of the vision tokens that are flagged in any of the settings' layers.
        changes: `sinks` and `random`; empty if no tokens were hidden.
        selected: share of (head, query row) pairs that VAR would change.
    """

    counts: Tensor
    hidden: float
    changes: dict[str, float]
    selected: float


@dataclass(frozen=True)
class Record:
    """The results for one sample.

    Attributes:
        evidence: the part that tables show.
        counts: int64 (L, 5), see `evidence.counts`.
        attention: float64 (L,), share of the image's attention that flagged tokens receive.
        lift, random_lift: for flagged tokens, and for as many chosen by random dimensions.
        held, overlap: set name -> share of the image's attention received, share that is flagged.
        sweep: one entry for each tau.
    """

    evidence: SampleEvidence
    counts: Tensor
    attention: Tensor
    lift: float | None
    random_lift: float | None
    held: dict[str, float]
    overlap: dict[str, float]
    sweep: tuple[SweepRecord, ...]


def summarise(
    *,
    profile: SinkProfile,
    model: ModelInfo,
    settings: ValidateSettings,
    layers: Sequence[int],
    taus: Sequence[float],
    records: Sequence[Record],
    skipped: tuple[tuple[str, str], ...],
    wanted: int,
    found_on_them: int,
    known: bool,
) -> Validation:
    """The validation from all samples.

    Args:
        profile, model, settings: the profile, the model and the settings of the validation.
        layers: layers whose flags count.
        taus: thresholds of the sweep.
        records: at least one.
        skipped, wanted: as in `SampleSet`.
        found_on_them: number of samples that finding had used.
        known: whether it is known which samples finding used.
    """
    records = sorted(records, key=lambda record: record.evidence.id)
    agreed = agreement_by_layer(records)
    counted = [agreed[layer] for layer in layers]
    hidden, contrasts = _hidden(records, settings), _contrasts(records, settings)
    agreement = _agreement(records, agreed, settings)
    evidence = Evidence(
        samples=len(records),
        paired=sum("random" in record.evidence.changes for record in records),
        flagged=sum(layer.flagged_share for layer in counted) / len(counted),
        lift=agreement.lift,
        changes={one.name: one.change for one in hidden},
        contrasts=contrasts,
    )
    validation = Validation(
        profile=profile,
        model=model,
        settings=settings,
        samples=tuple(record.evidence for record in records),
        skipped=skipped,
        wanted=wanted,
        layers=agreed,
        agreement=agreement,
        hidden=hidden,
        contrasts=contrasts,
        sweep=tuple(_point(records, i, tau, layers) for i, tau in enumerate(taus)),
        verdict=judge(evidence, settings),
        warnings=(),
        held_out=not found_on_them,
        seconds=0.0,
    )
    return warnings_of(validation, layers, found_on_them, known)


def agreement_by_layer(records: Sequence[Record]) -> tuple[LayerAgreement, ...]:
    """Counts of all samples, layer by layer; every layer of the model."""
    tokens = sum(record.evidence.tokens for record in records)
    held = torch.stack([record.attention for record in records]).mean(0)
    return _by_layer(sum_counts([record.counts for record in records]), tokens, held.tolist())


def sum_counts(counts: Sequence[Tensor]) -> Tensor:
    """int64 (L, 5)."""
    return torch.stack(list(counts)).sum(0)


def estimate(values: Sequence[float], settings: ValidateSettings) -> Estimate:
    """Mean with its bootstrap interval; resampling depends only on seed and number of values."""
    given = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(settings.seed)
    # One resampling at a time: a matrix of samples x resamplings could be large.
    means = [
        given[generator.integers(len(given), size=len(given))].mean()
        for _ in range(settings.bootstrap)
    ]
    tail = (1 - settings.confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(float(given.mean()), float(low), float(high), len(given))


def _by_layer(
    counts: Tensor, tokens: int, attention: Sequence[float]
) -> tuple[LayerAgreement, ...]:
    agreements = []
    for layer, (row, held) in enumerate(zip(counts.tolist(), attention, strict=True)):
        flagged, high, top, flagged_high, flagged_top = row  # in the order of `evidence.counts`
        agreements.append(
            LayerAgreement(layer, tokens, flagged, high, top, flagged_high, flagged_top, held)
        )
    return tuple(agreements)


def _agreement(
    records: Sequence[Record], layers: Sequence[LayerAgreement], settings: ValidateSettings
) -> Agreement:
    micro = _together(layers)
    lifts = [record.lift for record in records if record.lift is not None]
    random = [record.random_lift for record in records if record.random_lift is not None]
    return Agreement(
        micro_precision=micro.precision,
        micro_recall=micro.recall,
        macro_precision=sum(layer.precision for layer in layers) / len(layers),
        macro_recall=sum(layer.recall for layer in layers) / len(layers),
        lift=estimate(lifts, settings) if lifts else None,
        random_lift=estimate(random, settings) if random else None,
    )


def _together(layers: Sequence[LayerAgreement]) -> LayerAgreement:
    """The summed counts of all layers, as if they were one layer."""
    return LayerAgreement(
        layer=-1,
        tokens=sum(layer.tokens for layer in layers),
        flagged=sum(layer.flagged for layer in layers),
        high=sum(layer.high for layer in layers),
        top=sum(layer.top for layer in layers),
        flagged_high=sum(layer.flagged_high for layer in layers),
        flagged_top=sum(layer.flagged_top for layer in layers),
        attention=sum(layer.attention for layer in layers) / len(layers),
    )


def _hidden(records: Sequence[Record], settings: ValidateSettings) -> tuple[HiddenSet, ...]:
    """One entry for each set that exists in some sample; empty if no token is flagged."""
    if not any("sinks" in record.evidence.changes for record in records):
        return ()
    hidden_sets = []
    names: tuple[SetName, ...] = get_args(SetName)
    for name in names:
        having = [record for record in records if name in record.evidence.changes]
        if having:
            sizes = [r.evidence.tokens if name == "image" else r.evidence.hidden for r in having]
            hidden_sets.append(
                HiddenSet(
                    name=name,
                    change=estimate([r.evidence.changes[name] for r in having], settings),
                    tokens=sum(sizes) / len(sizes),
                    attention=sum(r.held[name] for r in having) / len(having),
                    overlap=sum(r.overlap[name] for r in having) / len(having),
                )
            )
    return tuple(hidden_sets)


def _contrasts(records: Sequence[Record], settings: ValidateSettings) -> dict[str, Estimate]:
    contrasts = {}
    for name in CONTROLS:
        pairs = [record.evidence.changes for record in records if name in record.evidence.changes]
        if pairs:
            contrasts[name] = estimate([pair["sinks"] - pair[name] for pair in pairs], settings)
    return contrasts


def _point(records: Sequence[Record], index: int, tau: float, layers: Sequence[int]) -> SweepPoint:
    points = [record.sweep[index] for record in records]
    tokens = sum(record.evidence.tokens for record in records)
    counts = sum_counts([point.counts for point in points])
    every = _by_layer(counts, tokens, [0.0] * len(counts))
    together, counted = _together(every), [every[layer] for layer in layers]
    # Only samples that have both, so that the two means are comparable.
    pairs = [point.changes for point in points if "random" in point.changes]
    return SweepPoint(
        tau=tau,
        flagged=sum(layer.flagged_share for layer in counted) / len(counted),
        most=max(layer.flagged_share for layer in counted),
        precision=together.precision,
        recall=together.recall,
        hidden=sum(point.hidden for point in points) / len(points),
        sinks=sum(pair["sinks"] for pair in pairs) / len(pairs) if pairs else None,
        random=sum(pair["random"] for pair in pairs) / len(pairs) if pairs else None,
        samples=len(pairs),
        selected=sum(point.selected for point in points) / len(points),
    )
