"""`cut-edges`: which of the tokens that the answer attends to does it need?

Edges from chosen queries to chosen keys (sinks, ordinary tokens, the first token, or a region of
the first image) are cut in chosen layers, before the softmax: what is left of a row still sums
to 1. Measured is the change of the log-probability of each token of the answer, against as many
random ordinary tokens; for a region, against boxes of the same size that share no cell with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sinkscope.experiments.boxes import Box
from sinkscope.experiments.checks import check_layer
from sinkscope.experiments.controls import random_tokens
from sinkscope.experiments.lower_attention import token_chart
from sinkscope.experiments.result import Cell, Chart, Findings, Series, Table, number, numbers
from sinkscope.experiments.roles import group_names
from sinkscope.experiments.settings import CutEdgesSettings, StudySettings
from sinkscope.experiments.study import Case, Pass, Study
from sinkscope.interventions.edges import CutEdges
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle
from sinkscope.models.views import ImageGrid

MOST_ROWS = 400  # tokens of answers that are listed


@dataclass
class _Changes:
    """Change of each answer token, sample by sample: a few numbers each."""

    cut: list[Tensor] = field(default_factory=list)  # (T,)
    controls: list[Tensor] = field(default_factory=list)  # (draws, T)
    tokens: list[int] = field(default_factory=list)  # keys that were cut
    overlapping: list[str] = field(
        default_factory=list
    )  # samples whose other boxes overlap the region


@dataclass(frozen=True)
class _CutSets:
    """The keys cut in a sample: positions, those of each control, and whether the controls are
    boxes that share cells with the region."""

    keys: tuple[int, ...]
    controls: list[tuple[int, ...]]
    overlapping: bool = False


def check(handle: ModelHandle, settings: CutEdgesSettings, asked: StudySettings) -> None:
    """Refuse, before any pass, missing layers, a region without images, and keys that are not one
    of the study's groups."""
    for layer in settings.layers or ():
        check_layer(handle, layer)
    if settings.keys == "region" and not handle.family.sees_images:
        raise ValueError(
            f"keys is 'region', but {handle.info.id} is a text model and sees no images; allowed: "
            "sinks, ordinary, first."
        )
    token_names = asked.tokens
    if (
        settings.keys in ("ordinary", "first")
        and token_names is not None
        and settings.keys not in token_names
    ):
        raise ValueError(
            f"keys is {settings.keys!r}, but the groups of this study are "
            f"{', '.join(group_names(token_names))}; name it in tokens, or choose sinks, "
            "the first one."
        )


def run(study: Study, settings: CutEdgesSettings) -> Findings:
    """Run the experiment.

    Raises:
        ValueError: a region that holds no cell of an image or all of it, or too few ordinary tokens
            to draw controls from.
    """
    for case in study.cases if settings.region is None else ():
        key_sets = _named(study, settings, case)
        if len(_other_tokens(case, key_sets)) < len(key_sets):
            raise ValueError(
                f"{case.sample.id} has {len(_other_tokens(case, key_sets))} ordinary tokens for "
                f"the {len(key_sets)} of {settings.keys}; the control, as many random ones, needs "
                f"at least {len(key_sets)}."
            )
    study.plan(1)
    changes = _Changes()
    for case, inputs in study.prepared_cases("Cutting edges"):
        cut = _keys(study, settings, case, inputs)
        plain = study.forward_pass(case, inputs)
        before = _logs(study, settings, case, plain, ())
        changes.cut.append(_logs(study, settings, case, plain, cut.keys) - before)
        changes.controls.append(
            torch.stack([_logs(study, settings, case, plain, c) - before for c in cut.controls])
        )
        changes.tokens.append(len(cut.keys))
        if cut.overlapping:
            changes.overlapping.append(case.sample.id)
    return _findings(study, settings, changes)


def _logs(
    study: Study, settings: CutEdgesSettings, case: Case, plain: Pass, keys: tuple[int, ...]
) -> Tensor:
    """float64 (T,): log-probability of each answer token without the edges to some keys."""
    study.watch.check()
    end = case.length + len(case.answer) - 1
    first = case.first if settings.queries == "after_image" else 0
    cuts = [CutEdges((keys,), range(first, end), settings.layers)] if keys else []
    return study.repeat_pass(case, plain, (), cuts)[1]


def _keys(study: Study, settings: CutEdgesSettings, case: Case, inputs: PromptInputs) -> _CutSets:
    """The keys that are cut in a sample, and those of each control."""
    if settings.region is not None:
        return _region(
            inputs.layout.grids[0],
            settings.region,
            study.settings.controls,
            study.seed(case, 1),
        )
    key_sets = _named(study, settings, case)
    among = _other_tokens(case, key_sets)
    draws = range(study.settings.controls)
    return _CutSets(
        key_sets, [random_tokens(among, len(key_sets), study.seed(case, d + 1)) for d in draws]
    )


def _named(study: Study, settings: CutEdgesSettings, case: Case) -> tuple[int, ...]:
    """The group that is cut; `sinks` is the first one, whatever its name."""
    return case.groups[study.sink if settings.keys == "sinks" else settings.keys]


def _other_tokens(case: Case, positions: tuple[int, ...]) -> list[int]:
    """Ordinary tokens that are not cut themselves."""
    return [position for position in case.others if position not in positions]


def _region(grid: ImageGrid, region: tuple[float, ...], draws: int, seed: int) -> _CutSets:
    """Tokens whose cell has its centre in the region, and those of random boxes of the same size:
    as many cells of the map's grid, each position once. The boxes share no cell with the region if
    there is any such position; if the region is too large for that, they may."""
    region_cells = _inside(grid, region)
    rows = [row for row in range(grid.rows) if region[1] <= (row + 0.5) / grid.rows < region[3]]
    columns = [
        column
        for column in range(grid.columns)
        if region[0] <= (column + 0.5) / grid.columns < region[2]
    ]
    if not region_cells or not rows or not columns:
        raise ValueError(
            f"region is {region}, which contains the centre of none of the image's {grid.rows} x "
            f"{grid.columns} cells; give a larger one."
        )
    box = Box(rows[0], columns[0], len(rows), len(columns))
    places = [
        other
        for top in range(grid.rows - box.rows + 1)
        for left in range(grid.columns - box.columns + 1)
        if (other := Box(top, left, box.rows, box.columns)) != box
    ]
    if not places:
        raise ValueError(
            f"region is {region}: the image of {grid.rows} x {grid.columns} cells has no other box "
            f"of {box.rows} x {box.columns} cells to compare it with; give a smaller one."
        )
    apart = [place for place in places if not place.meets(box)]
    among = apart or places
    order = torch.randperm(len(among), generator=torch.Generator().manual_seed(seed)).tolist()
    drawn = [_inside(grid, _shares(grid, among[index])) for index in order[:draws]]
    return _CutSets(region_cells, drawn, overlapping=not apart)


def _shares(grid: ImageGrid, box: Box) -> tuple[float, ...]:
    """A box as x0, y0, x1, y1 in shares of the image's sides."""
    ends = (box.column, box.row, box.column + box.columns, box.row + box.rows)
    sides = (grid.columns, grid.rows, grid.columns, grid.rows)
    return tuple(end / side for end, side in zip(ends, sides, strict=True))


def _inside(grid: ImageGrid, region: tuple[float, ...]) -> tuple[int, ...]:
    """Positions of the tokens, in any view of the image, whose cell has its centre in a box that is
    given in shares of the image's sides."""
    height, width = grid.original
    cells = []
    for view in grid.views:
        x, y = view.edges()
        columns = [i for i, c in enumerate((x[:-1] + x[1:]) / 2 / width) if _in(c, region[0::2])]
        rows = [i for i, c in enumerate((y[:-1] + y[1:]) / 2 / height) if _in(c, region[1::2])]
        cells += [
            view.positions[(frame * view.rows + row) * view.columns + column]
            for frame in range(view.frames)
            for row in rows
            for column in columns
        ]
    return tuple(sorted(cells))


def _in(centre: float, ends: tuple[float, ...]) -> bool:
    return ends[0] <= centre < ends[1]


def _findings(study: Study, settings: CutEdgesSettings, changes: _Changes) -> Findings:
    resampling = study.resampling
    changes_of_cut = torch.stack([change.mean() for change in changes.cut])
    others = torch.stack([draws.mean() for draws in changes.controls])
    cut, control = resampling.mean(changes_of_cut), resampling.mean(others)
    apart = resampling.mean(changes_of_cut - others)
    word = "as many boxes of the same size" if settings.region else "as many random tokens"
    if apart.high < 0:
        end = "The answer needs them more than these."
    elif apart.low > 0:
        end = "The answer needs them less than these."
    else:
        end = "This is not a clear difference."
    mean = sum(changes.tokens) / len(changes.tokens)
    sentences = (
        f"Without the edges to {settings.keys} ({mean:.3g} tokens per sample) the answer's "
        f"log-probability changes by {cut} nats per token, without those to {word} by {control}; "
        f"the difference is {apart}. {end}"
    )
    rows = [
        (name, *(number(value) for value in (one.value, one.low, one.high)))
        for name, one in ((settings.keys, cut), (word, control), ("difference", apart))
    ]
    summary = Table(
        "change",
        "Change of the answer's log-probability, nats per token",
        ("cut", "change", "low", "high"),
        tuple(rows),
        note=f"Queries: {settings.queries}; layers: {_layers(settings)}.",
    )
    values = {"change": number(cut.value), "control": number(control.value)}
    charts = (_by_place(settings, changes), _bars(settings, rows))
    notes = []
    if changes.overlapping:
        some = ", ".join(changes.overlapping[:3]) + (", ..." if changes.overlapping[3:] else "")
        notes.append(
            f"In {len(changes.overlapping)} of {len(study.cases)} samples every other box of "
            f"this size overlaps the region, so the control's boxes share cells with it: {some}. "
            "A smaller region leaves room for boxes that do not."
        )
    return Findings(
        (sentences,), (summary, _tokens(study, changes)), charts, values=values, notes=tuple(notes)
    )


def _layers(settings: CutEdgesSettings) -> str:
    return "all" if settings.layers is None else ", ".join(map(str, settings.layers))


def _tokens(study: Study, changes: _Changes) -> Table:
    """Each token of each answer, with its percentile among the controls: 0 if every control costs
    it less."""
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
        y_label="nats per token",
        note="Bars: bootstrap intervals over samples.",
    )
