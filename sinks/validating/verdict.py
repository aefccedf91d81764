"""The result of a validation in words: one of eight words, the reason, and the thresholds.

A profile marks sinks if its tokens attract attention AND carry little information. The first is
measured by attention, by which the dimensions may have been chosen; the second is not, so it weighs
more. If the samples are not conclusive, the verdict says so and is never positive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sinkscope.sinks.validating.settings import ValidateSettings
from sinkscope.sinks.validating.validation import Estimate, Validation, Verdict, Word
from sinkscope.utils import number_of

FEW = 0.5  # precision or recall below this gives a warning


@dataclass(frozen=True)
class Evidence:
    """The values that the verdict is based on.

    Attributes:
        samples: number of samples read.
        paired: number of samples with flagged tokens and as many others to compare.
        flagged: share of the vision tokens flagged, mean over the settings' layers and samples.
        lift: see `Agreement.lift`.
        changes: set name -> change of the answer's log-probability when it is hidden.
        contrasts: see `Validation.contrasts`.
    """

    samples: int
    paired: int
    flagged: float
    lift: Estimate | None
    changes: Mapping[str, Estimate]
    contrasts: Mapping[str, Estimate]


def judge(evidence: Evidence, settings: ValidateSettings) -> Verdict:
    """Put the values of a validation into words."""
    word, text = _judge(evidence, settings)
    return Verdict(word, text, thresholds(settings))


def thresholds(settings: ValidateSettings) -> tuple[str, ...]:
    """Every threshold of the verdict, by name and value."""
    level = f"{settings.confidence:.0%} interval"
    return (
        f"min_samples = {settings.min_samples}: samples with flagged tokens and as many others",
        f"max_flagged = {settings.max_flagged:.0%} of the vision tokens, mean over layers",
        f"min_lift = {settings.min_lift:g}: the {level} of the flagged tokens' attention, in "
        "multiples of the average vision token's, lies above it",
        f"margin = {settings.margin:g} nats per answer token: the {level} of the change when sinks "
        f"are hidden, alone and against random tokens, lies above -{settings.margin:g}; hiding the "
        f"whole image must change more than that",
    )


def _judge(evidence: Evidence, settings: ValidateSettings) -> tuple[Word, str]:
    if evidence.samples < settings.min_samples:
        return "too few samples", (
            f"{_samples(evidence.samples)} could be used; with fewer than {settings.min_samples} "
            "nothing can be said for or against the profile."
        )
    if evidence.flagged == 0 or evidence.lift is None:
        return "flags nothing", (
            f"No vision token of {_samples(evidence.samples)} has a score above tau, so VAR "
            "would do "
            "nothing with this profile: tau is too high, or the dimensions are not this model's."
        )
    if evidence.flagged > settings.max_flagged:
        return "flags too much", (
            f"{evidence.flagged:.0%} of the vision tokens are flagged (at most "
            f"{settings.max_flagged:.0%} make sense): tau is too low, or the dimensions are large "
            "on ordinary tokens."
        )
    if evidence.paired < settings.min_samples:
        return "too few samples", (
            f"{evidence.paired} of {_samples(evidence.samples)} have flagged tokens and as "
            "many others "
            f"to compare them with; with fewer than {settings.min_samples} nothing can be said "
            "for or against the profile."
        )
    lift = f"{evidence.lift.value:.1f} times [{evidence.lift.low:.1f}, {evidence.lift.high:.1f}]"
    drawn = f"A flagged token draws {lift} the attention of the average vision token"
    sinks, beside = evidence.changes["sinks"], evidence.contrasts["random"]
    hidden = (
        f"hiding them changes the answer by {sinks} nats per token, {beside} against random tokens"
    )
    if evidence.lift.high < settings.min_lift:
        return "not sinks", f"{drawn}: these tokens do not collect attention; {hidden}."
    if evidence.lift.low <= settings.min_lift:
        return "undecided", (
            f"{drawn}: with so many samples it remains open whether this is more than "
            f"{settings.min_lift:g} times; {hidden}."
        )
    return _by_masking(evidence, settings, drawn, hidden)


def _by_masking(
    evidence: Evidence, settings: ValidateSettings, drawn: str, hidden: str
) -> tuple[Word, str]:
    """The verdict for tokens that do attract attention."""
    sinks, beside = evidence.changes["sinks"], evidence.contrasts["random"]
    image, margin = evidence.changes["image"], settings.margin
    if beside.high < -margin:
        return "contradicted", (
            f"{drawn}, but {hidden}: the answers need these tokens more than others. They carry "
            "meaning, or the model relies on the attention they take (hiding gives it to others); "
            "in either case they are not shown to be dispensable."
        )
    if image.high >= -margin:
        return "attention only", (
            f"{drawn}, but hiding the whole image changes the answer by {image} nats per token: on "
            "these samples the answers do not show what a vision token means."
        )
    if beside.low <= -margin:
        return "undecided", (
            f"{drawn}; {hidden}: with so many samples it remains open whether the answers need "
            "them more than random tokens."
        )
    if sinks.high < -margin and beside.low <= 0:
        return "attention only", (
            f"{drawn}; {hidden}: the answers need them no more than random tokens, but hardly "
            "less, and more than a token without meaning."
        )
    if sinks.low <= -margin and beside.low <= 0:
        return "undecided", (
            f"{drawn}; {hidden}: no more than random tokens, but with so many samples it remains "
            "open whether the answers need them at all."
        )
    missed = "hardly need them" if sinks.low > -margin else "need them less than random tokens"
    return "confirmed", (
        f"{drawn}, and {hidden}, while hiding the whole image changes it by {image.value:+.3f}: "
        f"they collect attention and the answers {missed}."
    )


def _samples(count: int) -> str:
    return number_of(count, "sample")


def warnings_of(
    validation: Validation, layers: Sequence[int], found_on_them: int, known: bool
) -> Validation:
    """The same validation with warnings that a reader should know besides its verdict.

    Args:
        validation: without warnings.
        layers: layers whose flags count.
        found_on_them: number of samples that finding had used.
        known: whether it is known which samples finding used.
    """
    settings, agreed, notes = validation.settings, validation.agreement, []
    if found_on_them:
        notes.append(
            f"{found_on_them} of the samples {'was' if found_on_them == 1 else 'were'} used in "
            "finding the profile, so this is no evidence for it."
        )
    elif not known:
        notes.append(
            "It is not known on which samples the profile was found; if these are among them, this "
            "is no evidence for it."
        )
    if len(validation.samples) < validation.wanted:
        notes.append(
            f"{_samples(len(validation.samples))} could be used; {validation.wanted} were "
            "asked for."
        )
    if validation.skipped:
        first = "; ".join(reason for _, reason in validation.skipped[:3])
        more = f"; and {len(validation.skipped) - 3} more" if len(validation.skipped) > 3 else ""
        verb = "was" if len(validation.skipped) == 1 else "were"
        notes.append(f"{_samples(len(validation.skipped))} {verb} skipped: {first}{more}")
    crowded = [
        validation.layers[i]
        for i in layers
        if validation.layers[i].flagged_share > settings.max_flagged
    ]
    if crowded:
        worst = max(crowded, key=lambda layer: layer.flagged_share)
        notes.append(
            f"In {len(crowded)} of {len(layers)} layers more than {settings.max_flagged:.0%} of "
            f"the vision tokens are flagged ({worst.flagged_share:.0%} in layer {worst.layer})."
        )
    if agreed.lift is not None:
        if agreed.micro_precision < FEW:
            notes.append(
                f"Only {agreed.micro_precision:.0%} of the flagged tokens get high attention in "
                f"their layer, all layers counted{_range(validation, 'precision')}."
            )
        if agreed.micro_recall < FEW:
            notes.append(
                f"Only {agreed.micro_recall:.0%} of the tokens with the most attention are flagged,"
                f" all layers counted{_range(validation, 'recall')}: the others are sinks "
                "that these "
                "dimensions miss, or the model looks at them for what they show."
            )
        if agreed.random_lift is not None and agreed.random_lift.high >= agreed.lift.low:
            notes.append(
                "Random dimensions pick tokens of about as much attention "
                f"({agreed.random_lift.value:.1f} times the average)."
            )
    others = [one for one in validation.hidden if one.name in ("random", "random_dims", "attended")]
    if others and all(one.change.high >= -settings.margin for one in others):
        notes.append(
            "Hiding as many other tokens is not shown to change the answers either, so on these "
            "samples hiding tells sinks from other tokens by little."
        )
    short = sum("random" not in s.changes and s.hidden > 0 for s in validation.samples)
    if short:
        notes.append(
            f"In {_samples(short)} more than half of the vision tokens are flagged, so there are "
            "not as many others to compare with."
        )
    return replace(validation, warnings=tuple(notes))


def _range(validation: Validation, name: str) -> str:
    """The worst and the best layer in which something is flagged, in brackets."""
    values = [(getattr(one, name), one.layer) for one in validation.layers if one.flagged]
    if len(values) < 2:
        return ""
    (low, first), (high, second) = min(values), max(values)
    return f" (from {low:.0%} in layer {first} to {high:.0%} in layer {second})"
