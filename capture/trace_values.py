"""A trace as plain values, and back: what the JSON part of its file holds (`capture.storage`).

Values from a file are checked before they become a trace: types, ranges, and that all parts agree
on tokens, layers, heads and patches. Code that uses a trace can rely on that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from sinkscope.capture.pictures import is_picture, unpacked
from sinkscope.capture.trace import (
    MEAN_HEAD,
    Alternative,
    GeneratedToken,
    GenerationTrace,
    LayerSinks,
    PromptToken,
    PromptTrace,
)
from sinkscope.capture.trace_file import Table, array_of
from sinkscope.capture.value_checks import (
    indices,
    mapping,
    number,
    pair,
    positions_in,
    run_settings,
    text,
    texts,
    var_report,
    whole,
    wholes,
)
from sinkscope.models.family import PromptLayout, Segment, SegmentKind
from sinkscope.models.info import ModelInfo
from sinkscope.models.views import ImageGrid, View, one_view, stretches

if TYPE_CHECKING:
    import torch

ROWS = ("attention", "shares", "entropy")
MOST_APART = 1 << 20  # non-adjacent vision tokens of a view: a file cannot make us list more
MOST_TOKENS = 1 << 22  # of a prompt: above all context lengths
MOST_VIEWS = 1000  # of an image; models have some dozen
MOST_CELLS = 1 << 22  # of the grid that an image's maps are on
VIEW_SIZES = ("rows", "columns", "frames", "merge")
PROMPTS = ("prompt_rows", "reference")  # fields that hold a PromptTrace or None


def values_of(trace: GenerationTrace) -> dict[str, Any]:
    """All of a trace except its tensors and images."""
    return {
        "tokens": [_values_of_token(token) for token in trace.tokens],
        "layout": _values_of_layout(trace.layout),
        "prompt": trace.prompt,
        "prompt_tokens": trace.prompt_tokens,
        "layers": trace.layers,
        "heads": trace.heads,
        "sinks": [dataclasses.asdict(sinks) for sinks in trace.sinks],
        "applied": trace.applied,
        "model": dataclasses.asdict(trace.model),
        "settings": dict(trace.settings),
        "seed": trace.seed,
        "finish": trace.finish_reason,
        "seconds": trace.seconds,
        "var": None if trace.var is None else dict(trace.var),
        "extra": dict(trace.extra),
        **{name: _values_of_rows(getattr(trace, name)) for name in PROMPTS},
    }


def trace_of(about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> GenerationTrace:
    """The trace; without images and rows of prompts where `tensors` has none.

    Raises:
        ValueError, KeyError, TypeError: the values are not those of a trace, or contradict each
            other.
    """
    layout = _layout(about["layout"])
    names = [f"image_{index}" for index in range(len(layout.grids))]
    images = [unpacked(name, np.asarray(tensors[name])) for name in names if name in tensors]
    trace = GenerationTrace(
        tokens=_tokens(about["tokens"]),
        layout=layout,
        images=tuple(images),
        prompt=text("prompt", about["prompt"]),
        prompt_tokens=texts("prompt_tokens", about["prompt_tokens"]),
        attention=tensors["attention"],
        layers=indices("layers", about["layers"]),
        heads=_heads(about["heads"]),
        shares=tensors["shares"],
        entropy=tensors["entropy"],
        sinks=_sinks(about["sinks"], layout),
        applied=texts("applied", about["applied"]),
        model=_model(about["model"]),
        settings=run_settings(about["settings"]),
        seed=whole("seed", about["seed"]),
        finish_reason=text("finish", about["finish"]),
        seconds=number("seconds", about["seconds"]),
        var=var_report(about["var"], layout),
        extra=mapping("extra", about["extra"]),
    )
    if len(trace.prompt_tokens) != layout.length:
        raise ValueError(
            f"it has {len(trace.prompt_tokens)} texts for a prompt of {layout.length} tokens"
        )
    stored = [name for name in PROMPTS if f"{name}_attention" in tensors]
    prompts: dict[str, Any] = {n: rows_of(n, about, tensors, trace) for n in stored}
    return dataclasses.replace(trace, **prompts)


def rows_of(
    name: str, about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], trace: GenerationTrace
) -> PromptTrace:
    """The rows of a prompt, `name` one of `PROMPTS`; errors as `trace_of`."""
    values = about[name]
    attention, shares, entropy = (tensors[f"{name}_{part}"] for part in ROWS)
    layout = _layout(values["layout"])
    return PromptTrace(
        positions=positions_in(f"{name}.positions", values["positions"], layout),
        tokens=tuple(
            PromptToken(whole("id", token["id"]), text("text", token["text"]))
            for token in values["tokens"]
        ),
        layout=layout,
        attention=attention,
        layers=trace.layers,
        heads=trace.heads,
        shares=shares,
        entropy=entropy,
        sinks=_sinks(values["sinks"], layout),
        model=trace.model,
        prompt=text("prompt", values["prompt"]),
    )


def check_tensors(about: Mapping[str, Any], table: Table) -> None:
    """Compare the tensors of a file with what its JSON part says about them.

    Raises:
        ValueError, KeyError, TypeError: as `trace_of`.
    """
    layout = _layout(about["layout"])
    layers = len(indices("layers", about["layers"]))
    heads = len(_heads(about["heads"]))
    tokens = len(about["tokens"])
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {}
    rows = [("", tokens, layout)]
    for name in PROMPTS:
        if about.get(name) is not None:
            values = about[name]
            count = len(values["positions"])
            if count != len(values["tokens"]) or list(values["positions"]) != sorted(
                set(values["positions"])
            ):
                raise ValueError(f"positions and tokens of its {name} do not fit each other")
            rows.append((f"{name}_", count, _layout(values["layout"])))
    for before, count, its in rows:
        size = (count, layers, heads)
        wanted[f"{before}attention"] = ("F16", (*size, its.vision_tokens))
        wanted[f"{before}shares"] = ("F32", (*size, len(its.segments) + 1))
        wanted[f"{before}entropy"] = ("F32", size)
    if about["version"] >= 2:
        wanted["head_mean"] = ("F32", (tokens, layers, layout.vision_tokens))
    pictures = [f"image_{index}" for index in range(len(layout.grids))]
    if unknown := sorted(set(table) - {*wanted, *pictures, "head_mean"}):
        raise ValueError(f"it has {unknown[0]!r}, which no trace has")
    for name, (dtype, shape) in wanted.items():
        if table[name] != (dtype, shape):
            stored_dtype, size_there = table[name]
            raise ValueError(
                f"its {name} is {stored_dtype} {list(size_there)}, where {dtype} "
                f"{list(shape)} should be"
            )
    for name in pictures:
        dtype, shape = table[name]
        if not is_picture(dtype, shape):
            raise ValueError(f"its {name} is {dtype} {list(shape)}, which is no RGB image")


def check_numbers(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse values that are not numbers.

    Raises:
        ValueError: naming the tensor, as the end of a sentence.
    """
    for name, tensor in tensors.items():
        array = tensor if isinstance(tensor, np.ndarray) else array_of(tensor)
        if not array.size or array.dtype.kind != "f":
            continue
        # Read as integers, finite numbers from 0 are those below the bits of infinity. There are
        # hardly others in a trace, and this takes a tenth of the time.
        bits, infinity = {2: (np.uint16, 0x7C00), 4: (np.uint32, 0x7F800000)}.get(
            array.itemsize, (None, 0)
        )
        if bits is not None and np.ascontiguousarray(array).view(bits).max() < infinity:
            continue
        if not np.isfinite(array).all():
            raise ValueError(f"its {name} has values that are not numbers")


def _values_of_token(token: GeneratedToken) -> dict[str, Any]:
    return {k: v for k, v in dataclasses.asdict(token).items() if k != "piece" or v}


def _values_of_rows(rows: PromptTrace | None) -> dict[str, Any] | None:
    """The values of a prompt's rows in a file, in addition to their tensors and the trace's
    values."""
    if rows is None:
        return None
    return {
        "positions": rows.positions,
        "tokens": [dataclasses.asdict(token) for token in rows.tokens],
        "layout": _values_of_layout(rows.layout),
        "sinks": [dataclasses.asdict(sinks) for sinks in rows.sinks],
        "prompt": rows.prompt,
    }


def _tokens(values: Iterable[Mapping[str, Any]]) -> tuple[GeneratedToken, ...]:
    tokens = tuple(
        GeneratedToken(
            token["id"],
            token["text"],
            token["probability"],
            token["rank"],
            tuple(
                [Alternative(a["id"], a["text"], a["probability"]) for a in token["alternatives"]]
            ),
            text("piece", token.get("piece", "")),
        )
        for token in values
    )
    # All of one field at once: there are thousands of them.
    all_of_them: list[GeneratedToken | Alternative] = [
        *tokens,
        *(a for t in tokens for a in t.alternatives),
    ]
    wholes("id", [token.id for token in all_of_them])
    wholes("rank", [token.rank for token in tokens])
    texts("text", [token.text for token in all_of_them])
    chances = [token.probability for token in all_of_them]
    if set(map(type, chances)) - {float, int} or (
        chances and not (min(chances) >= 0 and max(chances) <= 1.001)  # rounded, in old files
    ):
        raise ValueError("it has probabilities that are not numbers from 0 to 1")
    return tokens


def _layout(values: Mapping[str, Any]) -> PromptLayout:
    length = whole("length", values["length"])
    if length > MOST_TOKENS:
        raise ValueError(f"its prompt should have {length} tokens; allowed: {MOST_TOKENS}")
    layout = PromptLayout(
        length=length,
        segments=tuple(Segment(**segment) for segment in values["segments"]),
        grids=tuple(_grid(grid, length) for grid in values["grids"]),
    )
    at = 0
    for segment in layout.segments:
        if segment.kind not in get_args(SegmentKind) or segment.start != at:
            raise ValueError("the segments of its prompt do not follow each other")
        at = whole("stop", segment.stop, at)
        if segment.image is not None and not (
            0 <= whole("image", segment.image) < len(layout.grids)
        ):
            raise ValueError(f"its prompt speaks of image {segment.image}, which it does not have")
    if at != layout.length:
        raise ValueError(f"the segments of its prompt end at {at}, the prompt at {layout.length}")
    if any(grid.after > layout.length for grid in layout.grids) or any(
        one.after > other.positions[0] for one, other in pairwise(layout.grids)
    ):
        raise ValueError("the patches of its images do not lie in its prompt, one image by one")
    return layout


def _values_of_layout(layout: PromptLayout) -> dict[str, Any]:
    """A layout as plain values; positions as stretches of neighbours."""
    grids = [
        {
            "views": [
                {
                    **{name: getattr(view, name) for name in VIEW_SIZES},
                    "positions": [[run.start, run.stop] for run in stretches(view.positions)],
                    "box": view.box,
                    "kind": view.kind,
                }
                for view in grid.views
            ],
            "resized": grid.resized,
            "original": grid.original,
            "marks": grid.marks,
        }
        for grid in layout.grids
    ]
    segments = [dataclasses.asdict(segment) for segment in layout.segments]
    return {"length": layout.length, "segments": segments, "grids": grids}


def _grid(values: Mapping[str, Any], length: int) -> ImageGrid:
    """An image; before format 5 it was one view at neighbouring positions."""
    resized, original = (pair(name, values[name]) for name in ("resized", "original"))
    if "views" not in values:
        start = whole("start", values["start"])
        t, h, w, merge = (whole(name, values[name], 1) for name in ("t", "h", "w", "merge"))
        if t * h * w > length * merge**2:  # before this many positions are created
            raise ValueError("the patches of its images do not lie in its prompt, one image by one")
        return _drawable(one_view(start, t, h, w, merge, resized, original))
    views = tuple(_view(view, length) for view in values["views"])
    marks = wholes("marks", values["marks"])
    return _drawable(ImageGrid(views, resized, original, marks))


def _drawable(grid: ImageGrid) -> ImageGrid:
    """Refuse views whose map would have more cells than any image: it is made cell by cell."""
    rows, columns = grid.rows, grid.columns
    if rows * columns > MOST_CELLS or len(grid.views) > MOST_VIEWS:
        raise ValueError(f"the map of an image should have {rows} x {columns} cells")
    return grid


def _view(values: Mapping[str, Any], length: int) -> View:
    runs = [range(*wholes("positions", run)) for run in values["positions"]]
    count = sum(len(run) for run in runs)
    apart = len(runs) > 1 and count > MOST_APART
    if apart or any(len(run) < 1 or run.stop > length for run in runs):
        raise ValueError("the patches of its images do not lie in its prompt, one image by one")
    x0, y0, x1, y1 = (number("box", edge, -math.inf) for edge in values["box"])
    return View(
        positions=runs[0] if len(runs) == 1 else tuple(p for run in runs for p in run),
        box=(x0, y0, x1, y1),
        kind=text("kind", values["kind"]),  # type: ignore[arg-type]  # `View` checks the kind
        **{name: whole(name, values[name], 1) for name in VIEW_SIZES},
    )


def _sinks(values: Iterable[Mapping[str, Any]], layout: PromptLayout) -> tuple[LayerSinks, ...]:
    sinks = []
    for one in values:
        positions = positions_in("sinks", one["positions"], layout)
        scores = tuple(number("scores", score, -math.inf) for score in one["scores"])
        if len(scores) != len(positions):
            raise ValueError("it has sinks without a score")
        sinks.append(LayerSinks(whole("layer", one["layer"]), positions, scores))
    return tuple(sinks)


def _model(values: Mapping[str, Any]) -> ModelInfo:
    model = ModelInfo(**values)
    for field in dataclasses.fields(model):
        check: Callable[[str, Any], Any] = whole if field.type == "int" else text
        check(f"model.{field.name}", getattr(model, field.name))
    return model


def _heads(values: Any) -> tuple[int, ...]:
    return (MEAN_HEAD,) if list(values) == [MEAN_HEAD] else indices("heads", values)
