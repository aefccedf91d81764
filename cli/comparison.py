"""A comparison without and with VAR in numbers and words, for `compare`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import typer

from sinkscope.attention_extractor import Comparison
from sinkscope.attention_processor import head_mean
from sinkscope.capture.decoding import is_sampled
from sinkscope.capture.trace import GenerationTrace
from sinkscope.cli.drawing import answer_of, find_tokens
from sinkscope.cli.tables import Column, print_table
from sinkscope.drawing.run_values import comparison_values, run_values, token_shares
from sinkscope.drawing.text import visible

FORMAT, VERSION = "sinkscope-comparison", 1


def most_changed_token(pair: Comparison) -> int:
    """The word whose map VAR changed most, among those with the same text before them.

    The change is the sum of the absolute differences of the two maps, each the mean over the
    captured layers and heads. Tokens after the first difference are not candidates, because their
    rows belong to different texts; punctuation and control tokens such as `<|im_end|>` only if
    there is no word.

    Raises:
        ValueError: an answer is empty.
    """
    count = min(len(pair.baseline.tokens), len(pair.var.tokens))
    if pair.first_difference is not None:
        count = min(count, pair.first_difference + 1)  # the first differing token has the same past
    if count == 0:
        raise ValueError("An answer is empty, so there is no map to compare.")
    plain, changed = (head_mean(trace)[:count].mean(dim=1) for trace in (pair.baseline, pair.var))
    change = (changed - plain).abs().sum(dim=-1).tolist()
    words = [t for t in range(count) if _is_word(pair.baseline.tokens[t].text)]
    return max(words or range(count), key=change.__getitem__)


def _is_word(text: str) -> bool:
    return any(c.isalnum() for c in text) and not (text.startswith("<") and text.endswith(">"))


def chosen_tokens(pair: Comparison, wanted: str | None) -> list[int]:
    """The tokens that `--token` names; without it, the one whose map VAR changed most.

    Raises:
        ValueError: there is no such token in one of the answers.
    """
    if wanted is None:
        return [most_changed_token(pair)]
    tokens = find_tokens(pair.baseline, wanted)
    if tokens[-1] >= len(pair.var.tokens):
        raise ValueError(
            f"token is {wanted}, which is token {tokens[-1]}; the answer with VAR has only "
            f"{len(pair.var.tokens)}, from 0."
        )
    return tokens


def print_comparison(pair: Comparison) -> None:
    """Both answers, their first difference, the numbers of each token, and what VAR did."""
    typer.echo(f"Baseline: {answer_of(pair.baseline)}")
    typer.echo(f"VAR:      {answer_of(pair.var)}\n")
    for sentence in difference_sentences(pair):
        typer.echo(sentence)
    typer.echo("")
    _print_tokens(pair)
    typer.echo("")
    report = pair.var.var or {}
    if not report.get("changed"):
        typer.secho(report.get("reason") or "VAR changed nothing.", fg="yellow", bold=True)
    else:
        typer.echo(var_sentence(report))
    for warning in report.get("warnings", ()):
        typer.secho(f"Warning: {warning}", fg="yellow", bold=True)
    _print_layers(report)


def difference_sentences(pair: Comparison) -> Iterator[str]:
    """The two texts, compared in words."""
    plain, changed, first = pair.baseline.tokens, pair.var.tokens, pair.first_difference
    if pair.same_text:
        yield "Same text: VAR was given the baseline's answer, token by token."
    elif first is None:
        yield "Both answers are the same text."
    elif first < min(len(plain), len(changed)):
        yield (
            f"The answers differ from token {first} on: the baseline says "
            f"{visible(plain[first].text)!r} (probability {plain[first].probability:.1%}), "
            f"VAR says {visible(changed[first].text)!r} ({changed[first].probability:.1%})."
        )
    else:
        ends, goes_on = ("baseline", "VAR") if len(plain) < len(changed) else ("VAR", "baseline")
        yield (
            f"The answers are the same up to token {first - 1}; there the {ends} run ends and "
            f"the {goes_on} run goes on."
        )
    if first is not None and is_sampled(pair.baseline):
        yield "The answers are sampled, so they can part by chance as well (greedy ones cannot)."
    change = pair.log_probability_change
    if change and (pair.var.var or {}).get("changed"):  # otherwise the rest is rounding
        most = max(range(len(change)), key=lambda t: abs(change[t]))
        yield (
            f"Log-probability of the common text: {sum(change):+.3f} nats under VAR; most at token "
            f"{most} {visible(plain[most].text)!r} ({change[most]:+.3f})."
        )


def _print_tokens(pair: Comparison) -> None:
    plain, changed = token_shares(pair.baseline), token_shares(pair.var)
    change = pair.log_probability_change
    sides = (
        *(plain.image, changed.image),
        *(plain.sinks, changed.sinks),
        *(_probabilities(pair.baseline), _probabilities(pair.var)),
    )
    names = ("image", "held by sinks", "probability")
    rows = [
        (
            str(t),
            *(f"{side[t]:.1%}" if t < len(side) else "-" for side in sides),
            f"{change[t]:+.3f}" if t < len(change) else "-",
            _texts(pair, t),
        )
        for t in range(max(len(plain.image), len(changed.image)))
    ]
    columns = [Column(f"{name}\n{side}") for name in names for side in ("plain", "VAR")]
    print_table([Column("token"), *columns, Column("log-p\nchange"), Column("text")], rows)


def _probabilities(trace: GenerationTrace) -> list[float]:
    return [token.probability for token in trace.tokens]


def _texts(pair: Comparison, t: int) -> str:
    sides = [
        visible(trace.tokens[t].text) if t < len(trace.tokens) else "(ended)"
        for trace in (pair.baseline, pair.var)
    ]
    return sides[0] if sides[0] == sides[1] else " | ".join(sides)


def var_sentence(report: Mapping[str, Any]) -> str:
    """VAR's report in a sentence."""
    layers = report["layers"]
    acted = [layer for layer in layers if layer["moved"] > 0]
    rows = np.mean([layer["selected"] for layer in layers])
    mass = np.mean([layer["moved"] for layer in layers])
    return (
        f"VAR changed {rows:.1%} of the rows of attention that it may change, in {len(acted)} of "
        f"{len(layers)} layers, and moved {mass:.2%} of a row's attention on average."
    )


def _print_layers(report: Mapping[str, Any]) -> None:
    if not report.get("layers"):
        return
    typer.echo("")
    names = ("layer", "sinks", "of the image", "largest phi", "rows changed", "attention moved")
    print_table(
        [Column(name) for name in names],
        [
            (
                str(layer["layer"]),
                str(len(layer["positions"])),
                f"{layer['flagged']:.1%}",
                f"{layer['largest_score']:.2f}",
                f"{layer['selected']:.1%}",
                f"{layer['moved']:.2%}",
            )
            for layer in report["layers"]
        ],
    )


def comparison_file(pair: Comparison, source: str) -> dict[str, Any]:
    """The content of a .json file of a comparison.

    Args:
        pair: the comparison.
        source: where the sink dimensions are from.
    """
    about = run_values(pair.baseline)
    captured = {name: about.pop(name) for name in ("layers", "heads")}
    return {
        "format": FORMAT,
        "version": VERSION,
        **about,
        "captured": captured,
        **comparison_values(pair),
        "sink_dimensions": source,
    }
