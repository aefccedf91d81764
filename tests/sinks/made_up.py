"""Findings and a validation with made-up numbers, for tests that need no model."""

from __future__ import annotations

import math

import numpy as np

from sinkscope.models.info import ModelInfo
from sinkscope.models.profiles import SinkProfile
from sinkscope.sinks.finding.findings import (
    Candidate,
    Findings,
    Interval,
    LayerCandidate,
    LayerFinding,
    Origin,
    TauPoint,
    UsedSample,
)
from sinkscope.sinks.settings import FindSettings
from sinkscope.sinks.validating.settings import ValidateSettings
from sinkscope.sinks.validating.validation import (
    Agreement,
    Estimate,
    HiddenSet,
    LayerAgreement,
    SampleEvidence,
    SweepPoint,
    Validation,
    Verdict,
)

DIMS = (458, 2570)
TAU = 20.0
EDGES = tuple(float(e) for e in np.geomspace(0.25, 64, 49))


def info(layers: int = 8) -> ModelInfo:
    return ModelInfo("owner/name", "abc", "fam", "float32", "cpu", layers, 4, 4096)


def findings(layers: int = 8, found: bool = True) -> Findings:
    """Sinks on `DIMS` from layer 2 to the last but one; dimension 7 is always on, 9 belongs to the
    first token. With `found` false: the same candidates, but none is a sink dimension."""
    sinks = range(2, layers - 1) if found else range(0)
    each = tuple(_layer(layer, layer in sinks) for layer in range(layers))
    taus = np.linspace(2, 60, 30)
    sweep = tuple(
        TauPoint(float(t), _above(t, 40), _above(t, 3), 0.02 * _above(t, 40) + 0.9 * _above(t, 3),
                 tuple(_above(t, 3 + layer / 4) for layer in range(layers)))
        for t in taus
    )  # fmt: skip
    return Findings(
        model=info(layers),
        settings=FindSettings(),
        samples=tuple(UsedSample(f"img{i:02}.png", f"f{i}", (f"d{i}",)) for i in range(30)),
        skipped=(("broken.png", "broken.png is damaged."),),
        wanted=31,
        dims=DIMS if found else (),
        tau=TAU if found else None,
        tau_gap=(8.0, 32.0) if found else None,
        reason="Dimensions 458 and 2570 stand out." if found else "No dimension stands out.",
        notes=("img has 30 usable samples; 31 were asked for.",),
        min_magnitude=12.8,
        layers=each,
        sink_layers=tuple(sinks),
        candidates=(
            *(_candidate(d, "sink" if found else "none", tuple(sinks)) for d in DIMS),
            _candidate(7, "always on", ()),
            _candidate(9, "first token", ()),
        ),
        first_token_dims=(9, 458),
        always_on=(7,),
        sweep=sweep if found else (),
        phi_edges=EDGES if found else (),
        origins=(Origin(0, 12, 0.1), Origin(2, 108, 0.9)) if found else (),
        stability=0.97,
        seconds=12.5,
    )


def validation(layers: int = 8, hides: bool = True) -> Validation:
    """A confirmed profile; with `hides` false, one that flags nothing."""
    profile = SinkProfile("owner/name", "fam", 4096, layers, DIMS, TAU, "made up", "medium")
    sets = (("sinks", 0.01, 9.0, 0.41), ("random", -0.12, 9.0, 0.03),
            ("random_dims", -0.1, 9.0, 0.05), ("attended", -0.6, 9.0, 0.2),
            ("image", -4.2, 250.0, 1.0))  # fmt: skip
    return Validation(
        profile=profile,
        model=info(layers),
        settings=ValidateSettings(),
        samples=tuple(
            SampleEvidence(f"s{i}", 250, 9, "a star", False, -0.4, {"sinks": 0.01, "random": -0.1})
            for i in range(12)
        ),
        skipped=(),
        wanted=12,
        layers=tuple(
            LayerAgreement(n, 3000, 110, 140, 90, 100, 80, 0.4) if 2 <= n < layers - 1
            else LayerAgreement(n, 3000, 0, 20, 0, 0, 0, 0.0)
            for n in range(layers)
        ),
        agreement=Agreement(0.91, 0.89, 0.93, 0.9, estimate(8.0), estimate(1.2)),
        hidden=tuple(
            HiddenSet(name, estimate(change), tokens, mass, 0.1)  # type: ignore[arg-type]
            for name, change, tokens, mass in sets
        )
        if hides
        else (),
        contrasts={name: estimate(0.1) for name, *_ in sets[1:4]} if hides else {},
        sweep=tuple(
            SweepPoint(tau, _above(tau, 10) * 0.2, _above(tau, 12), 1 - _above(tau, 14),
                       _above(tau, 40), 0.03, 0.01 if hides else None,
                       -0.1 if hides else None, 10, _above(tau, 25))
            for tau in (10.0, 15.0, 20.0, 25.0, 40.0)
        ),
        verdict=Verdict("confirmed", "Hiding them leaves the answer as it was.", ("margin 0.05",)),
        warnings=("12 samples are few.",),
        held_out=True,
        seconds=30.0,
    )  # fmt: skip


def estimate(value: float) -> Estimate:
    return Estimate(value, value - 0.04, value + 0.05, 12)


def _above(tau: float, middle: float) -> float:
    return 1 / (1 + math.exp((tau - middle) / 3))


def _counts(centre: float, total: int) -> tuple[int, ...]:
    middle = np.sqrt(np.asarray(EDGES[1:]) * np.asarray(EDGES[:-1]))
    weights = np.exp(-(np.log(middle / centre) ** 2) / 0.05)
    return tuple(int(n) for n in np.rint(total * weights / weights.sum()))


def _layer(layer: int, has_sinks: bool) -> LayerFinding:
    sink = _counts(40, 120) if has_sinks else tuple(0 for _ in EDGES[1:])
    figures = {458: (40.0, 2.0), 2570: (25.0, 1.5), 7: (30.0, 29.0)}
    return LayerFinding(
        layer=layer,
        samples=30 if has_sinks else 0,
        sink_tokens=120 if has_sinks else 0,
        ordinary_tokens=7000,
        ratio=14.0 if has_sinks else 1.3,
        candidates=tuple(
            LayerCandidate(dim, high, Interval(high - 2, high + 2), low, 0.3, low * 2, high / low,
                           Interval(high / low - 1, high / low + 1), 45.0, 1.0, 80.0, 4.0, 0.97,
                           0.9, has_sinks and dim in DIMS)
            for dim, (high, low) in figures.items()
            if has_sinks or dim == 7
        ),
        first_token=(9, 458),
        always_on=(7,),
        sink_phi=sink,
        ordinary_phi=_counts(2 + layer / 8, 7000),
        vision_phi=_counts(2 + layer / 8, 7120),
    )  # fmt: skip


def _candidate(dim: int, kind: str, layers: tuple[int, ...]) -> Candidate:
    sink, ordinary = (40.0, 2.0) if dim in DIMS else (30.0, 29.0) if dim == 7 else (1.0, 1.0)
    return Candidate(
        dim=dim, kind=kind, reason=f"{dim} is {kind}.", layers=layers, run=layers,  # type: ignore[arg-type]
        layer=layers[0] if layers else 0, sink=sink, sink_interval=Interval(sink - 2, sink + 2),
        ordinary=ordinary, contrast=sink / ordinary,
        contrast_interval=Interval(0.9 * sink / ordinary, 1.1 * sink / ordinary), first=45.0,
        text=1.0, prominence=80.0, consistency=0.97, massive=0.9, on_first_token=True,
        stability=0.98,
    )  # fmt: skip
