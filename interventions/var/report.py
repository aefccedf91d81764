"""What VAR did in a run, layer by layer, or why it did nothing."""

from __future__ import annotations

from dataclasses import dataclass

from sinkscope.config import VARSettings

MANY_FLAGGED = 0.3  # above this share of vision tokens, "sink" has lost its meaning


@dataclass(frozen=True)
class LayerReport:
    """One decoder layer in which VAR acted.

    Attributes:
        layer: index in the model.
        positions, scores: the tokens acted on, prompt positions and their sink scores phi: the
            sinks, or in the control the random tokens in place of the visual ones.
        largest_score: of any prompt position.
        flagged: share of the vision tokens that are sinks, 0 to 1, in the control as well.
        selected: share of (head, query row) pairs that were changed, of those that may be.
        moved: mean attention mass taken from sinks, over the rows that may change, 0 to 1.
    """

    layer: int
    positions: tuple[int, ...]
    scores: tuple[float, ...]
    largest_score: float
    flagged: float
    selected: float
    moved: float
    missing: int = 0  # in the control: visual sinks without another token as a replacement


@dataclass(frozen=True)
class VARReport:
    """What VAR did in a run.

    Attributes:
        layers: one report for each layer in which VAR was allowed to act.
        changed: whether any row of any layer was changed.
        reason: why nothing was changed, in words; else "".
        warnings: what a reader of the result should know, in words.
    """

    layers: tuple[LayerReport, ...]
    changed: bool
    reason: str
    warnings: tuple[str, ...]


def make_report(layers: tuple[LayerReport, ...], settings: VARSettings) -> VARReport:
    """Summarise the layers in numbers and words."""
    changed = any(layer.moved > 0 for layer in layers)
    crowded = [layer for layer in layers if layer.flagged > MANY_FLAGGED]
    warnings = []
    if crowded:
        worst = max(crowded, key=lambda layer: layer.flagged)
        warnings.append(
            f"In {len(crowded)} of {len(layers)} layers more than {MANY_FLAGGED:.0%} of the "
            f"image's tokens are flagged as sinks ({worst.flagged:.0%} in layer {worst.layer}): "
            f"tau = {settings.tau:g} is too low for this model."
        )
    short = [layer for layer in layers if layer.missing]
    if short:
        worst = max(short, key=lambda layer: layer.missing)
        warnings.append(
            f"In {len(short)} of {len(layers)} layers the image has fewer other tokens than sinks, "
            f"so the control acts on fewer tokens ({worst.missing} fewer in layer {worst.layer})."
        )
    reason = "" if changed else _why_nothing(layers, settings, bool(crowded))
    return VARReport(layers, changed, reason, tuple(warnings))


def _why_nothing(layers: tuple[LayerReport, ...], settings: VARSettings, crowded: bool) -> str:
    if settings.keep == 1:
        return "VAR changed nothing: keep is 1, so every sink keeps all of its attention."
    if not layers:
        return "VAR changed nothing: it was not allowed to act in any layer."
    if not any(layer.positions or layer.missing for layer in layers):
        best = max(layers, key=lambda layer: layer.largest_score)
        return (
            f"VAR changed nothing: no token is a sink. The largest sink score is "
            f"{best.largest_score:.2f} (layer {best.layer}), tau is {settings.tau:g}."
        )
    if settings.dialect == "official" and not any(layer.flagged for layer in layers):
        return (
            "VAR changed nothing: all sinks are outside the image, and the dialect official does "
            "not change such layers (paper does)."
        )
    if settings.control == "random" and not any(layer.positions for layer in layers):
        return (
            "VAR changed nothing: every token of the image is a sink, so the control finds no "
            "other to take; raise tau."
        )
    if crowded:
        return (
            "VAR changed nothing: so many tokens are flagged as sinks that no head looks mostly at "
            "others; raise tau."
        )
    which = "" if settings.heads is None else "of those that it may change "
    return (
        f"VAR changed nothing: sinks were found, but no head {which}qualified. A head must put at "
        "least "
        f"{settings.min_image_mass:g} of its attention on the image (min_image_mass) and at most "
        f"{settings.max_sink_share:g} of that on sinks (max_sink_share)."
    )
