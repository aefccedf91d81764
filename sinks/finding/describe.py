"""Tables and sentences of the findings, made from the results of `reduce` and `decide`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sinkscope.interventions.var.report import MANY_FLAGGED
from sinkscope.sinks.finding.calibrate import Calibration, Histograms
from sinkscope.sinks.finding.decide import Decision, runs
from sinkscope.sinks.finding.findings import (
    Candidate,
    Interval,
    Kind,
    LayerCandidate,
    LayerFinding,
    Origin,
    TauPoint,
)
from sinkscope.sinks.finding.reduce import Totals, Tracked
from sinkscope.sinks.settings import FindSettings
from sinkscope.utils import index_ranges

FEW_SAMPLES = 8  # with fewer samples, intervals and halves say little


def describe_overall(
    total: Totals,
    values: Tracked,
    decision: Decision,
    first: Tensor,
    settings: FindSettings,
    magnitude: float,
) -> tuple[Candidate, ...]:
    """All tracked dimensions: found ones first, then by contrast.

    Args:
        first: bool (L, D): where the prompt's first token has the dimension.
        magnitude: least m.
    """
    needed = min(settings.min_layers, len(total.layers))
    result = []
    for column, dim in enumerate(values.dims):
        passes = decision.passes[:, column].tolist()
        contrast = [
            # a contrast of tiny values is meaningless and must not select the layer to show
            float(total.contrast[row, dim]) if total.sink[row, dim] >= 1 else 0.0
            for row in range(len(total.layers))
        ]
        low, high = max(runs(passes), key=lambda run: run[1] - run[0], default=(0, 0))
        candidates = range(low, high) if low < high else range(len(total.layers))
        row = max(candidates, key=lambda r: (contrast[r], float(total.sink[r, dim]), -r))
        first_layers = runs(first[:, dim].tolist())
        on_first = any(stop - start >= needed for start, stop in first_layers)
        always = float((total.ordinary[:, dim] >= magnitude).double().mean()) >= 0.5
        kind: Kind = (
            "sink"
            if bool(decision.found[column])
            else "always on"
            if always
            else "first token"
            if on_first
            else "none"
        )
        candidate = _layer_candidate(total, decision, row, column, dim)
        result.append(
            Candidate(
                dim=dim,
                kind=kind,
                reason=_why(kind, candidate, total.layers[row], high - low, settings, magnitude),
                layers=tuple(
                    layer for layer, good in zip(total.layers, passes, strict=True) if good
                ),
                run=total.layers[low:high],
                layer=total.layers[row],
                sink=candidate.sink,
                sink_interval=candidate.sink_interval,
                ordinary=candidate.ordinary,
                contrast=candidate.contrast,
                contrast_interval=candidate.contrast_interval,
                first=candidate.first,
                text=candidate.text,
                prominence=candidate.prominence,
                consistency=candidate.consistency,
                massive=candidate.massive,
                on_first_token=on_first,
                stability=_finite(decision.stability[column]),
            )
        )
    return tuple(
        sorted(result, key=lambda c: (c.kind != "sink", -c.contrast * (c.sink >= 1), c.dim))
    )


def describe_layers(
    total: Totals,
    values: Tracked,
    decision: Decision,
    first: Tensor,
    magnitude: float,
    overall: Sequence[Candidate],
    histogram: Histograms | None,
) -> tuple[LayerFinding, ...]:
    """The same dimensions, layer by layer."""
    column = {dim: i for i, dim in enumerate(values.dims)}
    findings = []
    for row, layer in enumerate(total.layers):
        candidates = [_layer_candidate(total, decision, row, column[c.dim], c.dim) for c in overall]
        massive_first = first[row].nonzero()[:, 0].tolist()
        findings.append(
            LayerFinding(
                layer=layer,
                samples=int(total.with_sinks[row]),
                sink_tokens=int(total.sink_tokens[row]),
                ordinary_tokens=int(total.ordinary_tokens[row]),
                ratio=float(total.ratio[row]),
                candidates=tuple(
                    sorted(candidates, key=lambda c: (-c.contrast * (c.sink >= 1), c.dim))
                ),
                first_token=tuple(
                    sorted(massive_first, key=lambda d: (-float(total.first[row, d]), d))
                ),
                always_on=tuple((total.ordinary[row] >= magnitude).nonzero()[:, 0].tolist()),
                sink_phi=_counts(histogram.sinks[row]) if histogram else (),
                ordinary_phi=_counts(histogram.ordinary[row]) if histogram else (),
                vision_phi=_counts(histogram.vision[row]) if histogram else (),
            )
        )
    return tuple(findings)


def reason_for(
    dims: Sequence[int],
    overall: Sequence[Candidate],
    total: Totals,
    settings: FindSettings,
    magnitude: float,
) -> str:
    """One sentence: what marks the sinks, or why nothing does."""
    by = _CHOSEN_BY[settings.tokens_by]
    if dims:
        candidates = [c for dim in dims for c in overall if c.dim == dim]
        reasons = "; ".join(
            f"{c.dim} reaches {c.sink:.1f} times the rms of a sink token and stands out "
            f"{c.contrast:.1f} times as far as on ordinary vision tokens, in {c.consistency:.0%} "
            f"of the samples (layer {c.layer}; found in layers {index_ranges(c.layers)})"
            for c in candidates
        )
        what = "Dimension" if len(dims) == 1 else "Dimensions"
        mark = "marks" if len(dims) == 1 else "mark"
        return f"{what} {_list(dims)} {mark} the model's sinks: {reasons}."
    if not any(total.with_sinks >= settings.min_consistency * total.samples):
        most = int(total.with_sinks.max())
        return (
            f"No sink dimension was found: in no layer does a vision token stand out by {by} "
            f"(min_ratio {settings.min_ratio:g}) in {settings.min_consistency:.0%} of the samples; "
            f"at most in {most} of {total.samples}."
        )
    best = next((c for c in overall if c.kind == "none"), None)
    nearest = "no dimension is large on them" if best is None else f"the nearest, {best.reason}"
    return (
        f"No sink dimension was found: some vision tokens stand out by {by}, but no dimension "
        f"marks them (at least {magnitude:.1f} times the token's rms is needed); {nearest}."
    )


def notes_on(
    dims: Sequence[int],
    overall: Sequence[Candidate],
    calibration: Calibration | None,
    points: Sequence[TauPoint],
    sources: Sequence[Origin],
    settings: FindSettings,
    total: Totals,
    same: float | None,
) -> tuple[str, ...]:
    """What a user has to know about the result, as sentences."""
    notes = []
    if total.samples < FEW_SAMPLES:
        notes.append(
            f"With {total.samples} sample{'' if total.samples == 1 else 's'} intervals and "
            "stability say little; 30 are recommended."
        )
    count = sum(c.kind == "sink" for c in overall)
    if count > len(dims):
        notes.append(
            f"{count} dimensions pass; the {len(dims)} of highest contrast are taken (max_dims)."
        )
    if calibration is not None:
        flagged = next(p.flagged for p in points if p.tau == calibration.tau)
        notes.append(
            f"tau {calibration.tau:g} lies in the middle between {calibration.gap[0]:g} and "
            f"{calibration.gap[1]:g}; it flags {calibration.sinks:.0%} of the sink tokens and "
            f"{calibration.ordinary:.1%} of the ordinary vision tokens in these layers, and "
            f"{flagged:.1%} of all vision tokens in all layers."
        )
        if calibration.sinks - calibration.ordinary < 0.8:
            notes.append(
                "The scores of sink tokens and ordinary ones overlap, so no tau parts them well."
            )
        if flagged > MANY_FLAGGED:
            notes.append("That is too many for a sink; be careful with this profile.")
        first = next((o for o in sources if o.layer == 0), None)
        if first is not None and first.share >= 0.5:
            notes.append(
                f"{first.share:.0%} of the sinks are sinks already at the input of layer 0: they "
                "come from the vision tower."
            )
        shared = [c.dim for c in overall if c.dim in dims and c.on_first_token]
        if shared:
            notes.append(f"The prompt's first token has {_list(shared)} as well.")
    if dims and same is not None and same < 0.8:
        notes.append(
            f"Only in {same:.0%} of random halves are exactly these found again; use more samples."
        )
    return tuple(notes)


_CHOSEN_BY = {
    "received": "the attention it receives from later tokens",
    "after_image": "the attention it receives from the text after the image",
    "last_row": "the attention it receives from the last prompt token",
    "norm": "its norm",
}


def _layer_candidate(
    total: Totals, decision: Decision, row: int, column: int, dim: int
) -> LayerCandidate:
    return LayerCandidate(
        dim=dim,
        sink=float(total.sink[row, dim]),
        sink_interval=Interval(
            float(decision.sink_low[row, column]), float(decision.sink_high[row, column])
        ),
        ordinary=float(total.ordinary[row, dim]),
        ordinary_spread=float(total.ordinary_spread[row, dim]),
        ordinary_max=float(total.ordinary_max[row, dim]),
        contrast=float(total.contrast[row, dim]),
        contrast_interval=Interval(
            float(decision.contrast_low[row, column]), float(decision.contrast_high[row, column])
        ),
        first=float(total.first[row, dim]),
        text=float(total.text[row, dim]),
        prominence=float(total.prominence[row, dim]),
        ordinary_prominence=float(total.ordinary_prominence[row, dim]),
        consistency=float(total.consistency[row, dim]),
        massive=float(total.massive[row, dim]),
        passes=bool(decision.passes[row, column]),
    )


def _why(
    kind: Kind,
    candidate: LayerCandidate,
    layer: int,
    run: int,
    settings: FindSettings,
    magnitude: float,
) -> str:
    """Why a dimension has its kind."""
    if kind == "sink":
        return f"{candidate.dim} passes in {run} consecutive layers"
    if kind == "always on":
        return (
            f"{candidate.dim} is large on every vision token (on ordinary ones "
            f"{candidate.ordinary:.1f} "
            "times their rms), so it marks none"
        )
    what = (
        f"{candidate.dim} in layer {layer}, reaches {candidate.sink:.1f} times the token's "
        "rms (lower end "
        f"{candidate.sink_interval.low:.1f}; {magnitude:.1f} needed) and "
        f"{candidate.prominence:.0f} times "
        f"its background ({settings.min_prominence:g} needed), {candidate.contrast:.1f} "
        "times as far as "
        f"on ordinary tokens (lower end {candidate.contrast_interval.low:.1f}; "
        f"{settings.min_contrast:g} needed), in {candidate.consistency:.0%} of the samples "
        f"({settings.min_consistency:.0%} needed)"
    )
    if candidate.passes:
        what += f"; it passes in {run} consecutive layers ({settings.min_layers} needed)"
    if kind == "first token":
        return (
            f"{candidate.dim} is large on the prompt's first token, not on sinks of the "
            f"images: {what}"
        )
    return what


def _counts(counts: Tensor) -> tuple[int, ...]:
    return tuple(int(count) for count in counts)


def _finite(value: Tensor) -> float | None:
    return None if bool(value.isnan()) else float(value)


def _list(dims: Sequence[int]) -> str:
    texts = [str(dim) for dim in dims]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
