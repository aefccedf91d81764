"""The output of the `sinks` verbs: tables for a terminal, with the figures behind each decision."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import typer

from sinkscope.cli.tables import Column, print_table
from sinkscope.utils import index_ranges, number_of

if TYPE_CHECKING:
    from sinkscope.models.profiles import SinkProfile
    from sinkscope.sinks.finding.findings import Candidate, Findings, TauPoint
    from sinkscope.sinks.samples import SampleSet
    from sinkscope.sinks.validating.validation import Validation

WIDTH = 98
MOST_SKIPPED = 20  # samples that are named
MOST_CANDIDATES = 6  # shown besides the ones taken


def print_sample_notes(given: SampleSet) -> None:
    """On standard error: the number of samples and an example, the skipped ones with their reasons,
    and notes."""
    typer.echo(f"{number_of(len(given.samples), 'sample')} from {given.source}", err=True)
    if len(given.samples) < given.wanted:
        typer.secho(f"{given.wanted} were asked for.", fg="yellow", err=True)
    if given.samples and (first := given.samples[0]).where:
        answer = "no answer" if first.answer is None else f"answer {_quoted(first.answer)}"
        typer.echo(f"For instance, {first.where}: {_quoted(first.prompt)}, {answer}", err=True)
    for name, reason in given.skipped[:MOST_SKIPPED]:
        typer.secho(f"Skipped {name}: {reason}", fg="yellow", err=True)
    if (more := len(given.skipped) - MOST_SKIPPED) > 0:
        typer.secho(f"Skipped {more} more.", fg="yellow", err=True)
    for remark in given.remarks:
        typer.secho(remark, fg="yellow", err=True)


def print_findings(findings: Findings) -> None:
    """The outcome, the candidates, tau with what it flags, and where the sinks come from."""
    model = findings.model
    typer.echo(
        f"{model.id} ({model.family}, hidden size {model.hidden_size}, {model.layers} layers), "
        f"{len(findings.samples)} samples, {findings.seconds:.1f} s"
    )
    _say([findings.reason])
    # Those with their own verdict before those below a threshold, the largest first.
    rest = sorted(
        (c for c in findings.candidates if c.dim not in findings.dims),
        key=lambda c: (c.kind == "none", -c.sink),
    )
    shown = [*findings.found, *rest[:MOST_CANDIDATES]]
    if shown:
        typer.echo("")
        _table(
            (
                *("dim", "verdict", "contrast", "interval", "on sinks", "ordinary"),
                *("samples", "halves", "layers"),
            ),
            [_candidate(c) for c in shown],
        )
        if len(rest) > MOST_CANDIDATES:
            typer.echo(f"and {len(rest) - MOST_CANDIDATES} weaker candidates")
        for candidate in rest:
            if candidate.kind != "none":
                _say([f"{candidate.reason}."])
    typer.echo("")
    if findings.dims:
        stable = (
            ""
            if findings.stability is None
            else f", the same in {findings.stability:.0%} of halves"
        )
        typer.echo(f"dims {list(findings.dims)}, confidence {findings.confidence}{stable}")
        typer.echo(f"tau  {findings.tau:g}")
        _table(
            ("tau", "of the sink tokens", "of ordinary ones", "of all vision tokens"),
            [
                (f"{p.tau:g}", f"{p.sinks:.1%}", f"{p.ordinary:.2%}", f"{p.flagged:.2%}")
                for p in _around(findings)
            ],
        )
    for note in findings.notes:
        _say([note])
    if findings.first_token_dims:
        _say(
            [
                "Large on the prompt's first token: "
                f"{', '.join(map(str, findings.first_token_dims))}."
            ]
        )
    if findings.origins:
        where = "; ".join(f"{o.share:.0%} {_arises(findings, o.layer)}" for o in findings.origins)
        _say([f"The sinks arise: {where}."])


def print_validation(validation: Validation) -> None:
    """The verdict first, then its evidence."""
    typer.echo(f"Verdict: {validation.verdict.word}")
    _say([validation.verdict.text])
    _say([f"Thresholds: {'; '.join(validation.verdict.thresholds)}."])
    for warning in validation.warnings:
        typer.secho(textwrap.fill(warning, WIDTH), fg="yellow")
    both = validation.agreement
    typer.echo(
        f"\nAgreement with attention, {len(validation.samples)} samples, all "
        f"{len(validation.layers)} layers: "
        f"precision {both.micro_precision:.1%}, recall {both.micro_recall:.1%} (mean over layers "
        f"{both.macro_precision:.1%}, {both.macro_recall:.1%})"
    )
    for name, lift in (("flagged", both.lift), ("random dimensions'", both.random_lift)):
        if lift is not None:
            typer.echo(
                f"  a {name} token gets {lift.value:.1f} times the average vision token's "
                f"attention [{lift.low:.1f}, {lift.high:.1f}]"
            )
    _table(
        ("layer", "flagged", "draw attention", "precision", "recall", "their attention"),
        [
            (
                *(str(n.layer), f"{n.flagged_share:.1%}", f"{n.high / max(1, n.tokens):.1%}"),
                *(f"{n.precision:.0%}", f"{n.recall:.0%}", f"{n.attention:.0%}"),
            )
            for n in validation.layers
        ],
    )
    if validation.hidden:
        typer.echo("\nChange of the answer's log-probability when hidden, nats per token")
        _table(
            ("hidden", "tokens", "attention", "change [interval]", "flagged minus these"),
            [
                (
                    *(part.name, f"{part.tokens:.1f}", f"{part.attention:.0%}", str(part.change)),
                    str(validation.contrasts.get(part.name, "")),
                )
                for part in validation.hidden
            ],
        )
    typer.echo("\nOther thresholds")
    _table(
        ("tau", "flagged", "worst layer", "precision", "recall", "sinks hidden", "random", "VAR"),
        [
            (
                f"{p.tau:.3g}{' *' if p.tau == validation.profile.tau else ''}",
                *(f"{p.flagged:.1%}", f"{p.most:.1%}", f"{p.precision:.0%}", f"{p.recall:.0%}"),
                *("" if v is None else f"{v:+.3f}" for v in (p.sinks, p.random)),
                f"{p.selected:.0%}",
            )
            for p in validation.sweep
        ],
    )


def print_profile(profile: SinkProfile) -> None:
    """One profile, whole."""
    typer.echo(f"{profile.model} ({profile.family})")
    typer.echo(f"  hidden size  {profile.hidden_size}, {profile.layers} layers")
    typer.echo(f"  dims         {', '.join(map(str, profile.dims))}")
    typer.echo(f"  tau          {profile.tau:g}")
    typer.echo(f"  confidence   {profile.confidence}")
    for name, text in (("source", profile.source), ("note", profile.note)):
        if text:
            typer.echo(
                textwrap.fill(
                    text,
                    WIDTH,
                    initial_indent=f"  {name:<13}",
                    subsequent_indent=" " * 15,
                )
            )


def print_profiles(profiles: Iterable[SinkProfile]) -> None:
    """One line each."""
    _table(
        ("model", "hidden", "layers", "dims", "tau", "confidence"),
        [
            (
                *(p.model, str(p.hidden_size), str(p.layers)),
                *(", ".join(map(str, p.dims)), f"{p.tau:g}", p.confidence),
            )
            for p in profiles
        ],
    )


def _candidate(c: Candidate) -> tuple[str, ...]:
    interval = f"[{c.contrast_interval.low:.1f}, {c.contrast_interval.high:.1f}]"
    return (
        *(str(c.dim), c.kind, f"{c.contrast:.1f}", interval, f"{c.sink:.1f}", f"{c.ordinary:.2f}"),
        *(f"{c.consistency:.0%}", "" if c.stability is None else f"{c.stability:.0%}"),
        index_ranges(c.layers),
    )


def _around(findings: Findings) -> list[TauPoint]:
    """The sweep from half to one and a half times tau: what each value would flag."""
    if findings.tau is None:
        return []
    wanted = [findings.tau * factor for factor in (0.5, 0.75, 1.0, 1.25, 1.5)]
    nearest = [min(findings.sweep, key=lambda p: abs(p.tau - tau)) for tau in wanted]
    return list(dict.fromkeys(nearest))


def _arises(findings: Findings, layer: int) -> str:
    """The part of the model whose output is first visible at the input of a layer."""
    if layer == 0:
        return "in the vision tower"
    before = [other.layer for other in findings.layers if other.layer < layer]
    if not before:
        return f"before layer {layer}, the first that was looked at"
    return (
        f"in layer {layer - 1}"
        if before[-1] == layer - 1
        else (f"in layers {before[-1]}-{layer - 1}")
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need; numbers to the right, the first and last to the left."""
    columns = [
        Column(head, left=index == 0 or not _number_like(rows, index))
        for index, head in enumerate(heads)
    ]
    print_table(columns, rows)


def _number_like(rows: Sequence[Sequence[str]], column: int) -> bool:
    return all(not row[column] or row[column][0] in "+-0123456789[" for row in rows)


def _quoted(text: str) -> str:
    """A text on one line, cut where it is long."""
    return repr(textwrap.shorten(text, 80, placeholder=" ..."))


def _say(texts: Iterable[str]) -> None:
    for text in texts:
        typer.echo(textwrap.fill(text, WIDTH))
