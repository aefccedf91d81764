"""`cut-edges`: which of what the answer's tokens can look at do they need?

Edges from chosen queries to chosen keys (sinks, ordinary tokens, the first token, or a region of
the first image) are cut in chosen layers, before the softmax: what is left of a row still sums
to 1. Measured is the change of the log-probability of each token of the answer, against as many
random ordinary tokens, or boxes of the same size for a region.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sinkscope.experiments.controls import random_tokens
from sinkscope.experiments.lower_attention import token_chart
from sinkscope.experiments.result import Cell, Chart, Findings, Series, Table, number, numbers
from sinkscope.experiments.settings import CutEdgesSettings
from sinkscope.experiments.study import Case, Pass, Study
from sinkscope.interventions.edges import CutEdges
from sinkscope.models.family import PromptInputs
from sinkscope.models.views import ImageGrid

MOST_ROWS = 400  # tokens of answers that are listed


@dataclass
class _Changes:
    """Change of each answer token, sample by sample: a few numbers each."""

    cut: list[Tensor] = field(default_factory=list)  # (T,)
    controls: list[Tensor] = field(default_factory=list)  # (draws, T)
    tokens: list[int] = field(default_factory=list)  # keys that were cut


def run(study: Study, settings: CutEdgesSettings) -> Findings:
    """Run the experiment.

    Raises:
        ValueError: a layer that the model does not have, a region without an image or without a
            vision token in it, or nothing to draw controls from.
    """
    for layer in settings.layers or ():
        study.check_layer(layer)
    study.plan(1)
    changes = _Changes()
    for case, inputs in study.each("Cutting edges"):
        keys, controls = _keys(study, settings, case, inputs)
        plain = study.passed(case, inputs)
        before = _logs(study, settings, case, plain, ())
        changes.cut.append(_logs(study, settings, case, plain, keys) - before)
        changes.controls.append(
            torch.stack([_logs(study, settings, case, plain, c) - before for c in controls])
        )
        changes.tokens.append(len(keys))
    return _findings(study, settings, changes)


def _logs(
    study: Study, settings: CutEdgesSettings, case: Case, plain: Pass, keys: tuple[int, ...]
) -> Tensor:
    """float64 (T,): log-probability of each answer token without the edges to some keys."""
    study.watch.check()
    end = case.length + len(case.answer) - 1
    first = case.first if settings.queries == "after_image" else 0
    cuts = [CutEdges((keys,), range(first, end), settings.layers)] if keys else []
    return study.again(case, plain, (), cuts)[1]


def _keys(
    study: Study, settings: CutEdgesSettings, case: Case, inputs: PromptInputs
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """The keys that are cut in a sample, and those of each control."""
    draws = [study.seed(case, draw + 1) for draw in range(study.settings.controls)]
    if settings.region is not None:
        if not inputs.layout.grids:
            raise ValueError(
                f"keys is 'region', but {case.sample.id} has no image; allowed: sinks, ordinary, "
                "first."
            )
        return _region(inputs.layout.grids[0], settings.region, draws)
    own = case.groups.get(settings.keys, ())
    if settings.keys == "sinks" and study.sink != "sinks":
        own = case.groups[study.sink]  # the first group is the sink, whatever its name
    if not own:
        raise ValueError(
            f"keys is {settings.keys!r}, but the groups of this study are "
            f"{', '.join(study.names)}; name it in tokens."
        )
    among = [position for position in case.others if position not in own]
    if len(among) < len(own):
        raise ValueError(
            f"{case.sample.id} has {len(among)} ordinary tokens, too few to draw {len(own)} from."
        )
    return own, [random_tokens(among, len(own), seed) for seed in draws]


def _region(
    grid: ImageGrid, region: tuple[float, ...], seeds: list[int]
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Tokens whose cell has its centre in the region, and those of random boxes of the same size:
    as many cells of the map's grid."""
    own = _inside(grid, region)
    rows = [row for row in range(grid.rows) if region[1] <= (row + 0.5) / grid.rows < region[3]]
    columns = [
        column
        for column in range(grid.columns)
        if region[0] <= (column + 0.5) / grid.columns < region[2]
    ]
    if not own or not rows or not columns:
        raise ValueError(
            f"region is {region}, which holds no centre of one of the image's {grid.rows} x "
            f"{grid.columns} cells; give a larger one."
        )
    places = [
        (top, left)
        for top in range(grid.rows - len(rows) + 1)
        for left in range(grid.columns - len(columns) + 1)
        if (top, left) != (rows[0], columns[0])
    ]
    if not places:
        raise ValueError(f"region is {region}: the image has no other box of this size.")
    made = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        top, left = places[int(torch.randint(len(places), (1,), generator=generator))]
        right, bottom = left + len(columns), top + len(rows)
        sides = (grid.columns, grid.rows, grid.columns, grid.rows)
        box = (left, top, right, bottom)
        made.append(_inside(grid, tuple(e / n for e, n in zip(box, sides, strict=True))))
    return own, made


def _inside(grid: ImageGrid, region: tuple[float, ...]) -> tuple[int, ...]:
    """Positions of the tokens, in any view of the image, whose cell has its centre in a box that is
    given in shares of the image's sides."""
    height, width = grid.original
    found = []
    for view in grid.views:
        x, y = view.edges()
        columns = [i for i, c in enumerate((x[:-1] + x[1:]) / 2 / width) if _in(c, region[0::2])]
        rows = [i for i, c in enumerate((y[:-1] + y[1:]) / 2 / height) if _in(c, region[1::2])]
        found += [
            view.positions[(frame * view.rows + row) * view.columns + column]
            for frame in range(view.frames)
            for row in rows
            for column in columns
        ]
    return tuple(sorted(found))


def _in(centre: float, ends: tuple[float, ...]) -> bool:
    return ends[0] <= centre < ends[1]


def _findings(study: Study, settings: CutEdgesSettings, changes: _Changes) -> Findings:
    resampling = study.resampling
    own = torch.stack([change.mean() for change in changes.cut])
    others = torch.stack([draws.mean() for draws in changes.controls])
    cut, control = resampling.mean(own), resampling.mean(others)
    apart = resampling.mean(own - others)
    word = "as many boxes of the same size" if settings.region else "as many random tokens"
    if apart.high < 0:
        end = "The answer needs them more than these."
    elif apart.low > 0:
        end = "The answer needs them less than these."
    else:
        end = "That is no clear difference."
    mean = sum(changes.tokens) / len(changes.tokens)
    said = (
        f"Without the edges to {settings.keys} ({mean:.3g} tokens a sample) the answer's "
        f"log-probability changes by {cut} nats a token, without those to {word} by {control}; the "
        f"difference is {apart}. {end}"
    )
    rows = [
        (name, *(number(value) for value in (one.value, one.low, one.high)))
        for name, one in ((settings.keys, cut), (word, control), ("difference", apart))
    ]
    summary = Table(
        "change",
        "Change of the answer's log-probability, nats a token",
        ("cut", "change", "low", "high"),
        tuple(rows),
        note=f"Queries: {settings.queries}; layers: {_layers(settings)}.",
    )
    values = {"change": number(cut.value), "control": number(control.value)}
    charts = (_by_place(settings, changes), _bars(settings, rows))
    return Findings((said,), (summary, _tokens(study, changes)), charts, values=values)


def _layers(settings: CutEdgesSettings) -> str:
    return "all" if settings.layers is None else ", ".join(map(str, settings.layers))


def _tokens(study: Study, changes: _Changes) -> Table:
    """Each token of each answer, with its percentile among the controls: 0 where no control costs
    it as much."""
    rows: list[tuple[Cell, ...]] = []
    tokenizer = study.handle.tokenizer
    for case, cut, draws in zip(study.cases, changes.cut, changes.controls, strict=True):
        below = ((draws < cut).double() + (draws == cut).double() / 2).mean(0)
        for index, token in enumerate(case.answer):
            if len(rows) == MOST_ROWS:
                break
            rows.append(
                (
                    case.sample.id,
                    index,
                    str(tokenizer.decode([token], clean_up_tokenization_spaces=False)),
                    float(cut[index]),
                    float(draws[:, index].mean()),
                    float(below[index]),
                )
            )
    return Table(
        "tokens",
        "Each token of the answers",
        ("sample", "place", "token", "change", "control", "percentile"),
        tuple(rows),
        keys=2,
        note="percentile: share of the controls that cost the token more (ties count half).",
    )


def _by_place(settings: CutEdgesSettings, changes: _Changes) -> Chart:
    longest = max(len(one) for one in changes.cut)

    def mean(values: list[Tensor]) -> Tensor:
        padded = torch.full((len(values), longest), float("nan"), dtype=torch.float64)
        for row, one in zip(padded, values, strict=True):
            row[: len(one)] = one
        return padded.nanmean(0)

    return token_chart(
        "by_place",
        "What each token of the answer loses",
        {
            settings.keys: mean(changes.cut),
            "random": mean([draws.mean(0) for draws in changes.controls]),
        },
    )


def _bars(settings: CutEdgesSettings, rows: list[tuple[Cell, ...]]) -> Chart:
    columns = list(zip(*(row[1:] for row in rows[:2]), strict=True))
    y, low, high = (numbers([float("nan") if v is None else float(v) for v in c]) for c in columns)
    return Chart(
        "change",
        "Change of the answer's log-probability",
        "bars",
        (settings.keys, "random"),
        (Series("change", y, low, high),),
        x_label="edges that are cut",
        y_label="nats a token",
        note="Bars: bootstrap intervals over samples.",
    )
