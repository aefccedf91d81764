"""Two stored runs side by side: one answer of each, shown by the same inspector.

A pair has no file of its own. Its id names both runs (`<id>.baseline~<id>.var`). So exactly those
who may see both runs may see the pair, and a link to it works as long as both runs exist.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sinkscope.capture.decoding import shown_settings
from sinkscope.capture.trace import MEAN_HEAD, GenerationTrace, PromptTrace
from sinkscope.drawing.view import same_grids, same_images
from sinkscope.setting import list_text
from sinkscope.web.runs.store import LABELS, Run, RunStore

SIDES = ("a", "b")
LONGEST_NAME = 24  # characters of a run's name that fit above a figure
_PAIR = re.compile(
    r"([A-Za-z0-9_-]{16,64})\.(baseline|var)~([A-Za-z0-9_-]{16,64})\.(baseline|var)\Z"
)


def find_run(
    store: RunStore, run_id: object, names: object = None, described: bool = True
) -> Run | None:
    """The run or the pair of runs that an id names; None if one of them does not exist (any more).

    Args:
        store: the stored runs.
        run_id: as sent by a browser; may be anything.
        names: this browser's names for the two runs of a pair.
        described: whether a pair should say what differs; not needed for its maps only.

    Raises:
        ValueError: the two runs cannot be shown side by side; the text says why.
    """
    hit = _PAIR.match(run_id) if isinstance(run_id, str) else None
    if hit is None:
        return store.get(run_id)
    runs = store.get(hit[1]), store.get(hit[3])
    if runs[0] is None or runs[1] is None or hit[2] not in runs[0].traces:
        return None
    if hit[4] not in runs[1].traces:
        return None
    return pair_of((runs[0], hit[2]), (runs[1], hit[4]), _names(names), described)


def pair_of(
    left: tuple[Run, str],
    right: tuple[Run, str],
    names: tuple[str, str] = ("", ""),
    described: bool = True,
) -> Run:
    """One answer of each of two runs as one run of kind "pair".

    Args:
        left, right: a run, and which of its answers (`baseline` or `var`).
        names: names of the runs; a side without a name is called by its letter.
        described: whether to compare images and settings too.

    Returns:
        A run with the traces `a` and `b`, which hold the same layers and heads of the model. Its
        `about` has `remarks` (what differs, in sentences), `settings` (of both, as [what, a, b]),
        `one_photo`, and `comparable`: whether a difference of the two maps is meaningful.

    Raises:
        ValueError: the models differ in layers or heads, or the runs have none in common.
    """
    traces = _same_rows(left[0].traces[left[1]], right[0].traces[right[1]])
    sides = zip(SIDES, (left, right), names, strict=True)
    return Run(
        dict(zip(SIDES, traces, strict=True)),
        kind="pair",
        created=max(left[0].created, right[0].created),
        id=f"{left[0].id}.{left[1]}~{right[0].id}.{right[1]}",
        labels={letter: _label(letter, side, name) for letter, side, name in sides},
        about=_about(*traces) if described else {},
    )


def _label(letter: str, side: tuple[Run, str], name: str) -> str:
    run, variant = side
    words = [letter.upper(), *([name] if name else [])]
    if len(run.traces) > 1:
        words.append(LABELS[variant].lower() if variant == "baseline" else LABELS[variant])
    return " · ".join(words)


def _names(names: object) -> tuple[str, str]:
    given = list(names) if isinstance(names, list | tuple) else []
    cut = [" ".join(n.split()) if isinstance(n, str) else "" for n in (*given, "", "")[:2]]
    cut = [n if len(n) <= LONGEST_NAME else f"{n[: LONGEST_NAME - 1]}…" for n in cut]
    return cut[0], cut[1]


# --- the same rows on both sides ------------------------------------------------------------------


def _same_rows(a: GenerationTrace, b: GenerationTrace) -> tuple[GenerationTrace, GenerationTrace]:
    """Both traces, reduced to the layers and heads that both of them contain."""
    if (a.model.layers, a.model.heads) != (b.model.layers, b.model.heads):
        raise ValueError(
            f"{a.model.id} has {a.model.layers} layers of {a.model.heads} heads and {b.model.id} "
            f"{b.model.layers} of {b.model.heads}: one choice of layers and heads cannot be made "
            "in both, so these two runs cannot stand side by side."
        )
    if (MEAN_HEAD in a.heads) != (MEAN_HEAD in b.heads):
        a, b = _mean_of_heads(a), _mean_of_heads(b)
    layers = tuple(n for n in a.layers if n in b.layers)
    heads = tuple(n for n in a.heads if n in b.heads)
    for what, common in (("layer", layers), ("head", heads)):
        if not common:
            raise ValueError(
                f"The two runs kept no {what} in common, so they cannot be shown side by side."
            )
    return _part(a, layers, heads), _part(b, layers, heads)


_ROWS = ("attention", "shares", "entropy")


def _rows_changed(trace: GenerationTrace, change: Any, **fields: Any) -> GenerationTrace:
    """The trace with `change` applied to each tensor whose second and third axes are layer and
    head, also in the rows of its prompts."""

    def changed(rows: Any) -> Any:
        tensors = {name: change(getattr(rows, name), rows) for name in _ROWS}
        return dataclasses.replace(rows, **tensors, **fields)

    prompts: dict[str, Any] = {
        name: changed(rows)
        for name in ("prompt_rows", "reference")
        if isinstance(rows := getattr(trace, name), PromptTrace)
    }
    result: GenerationTrace = dataclasses.replace(changed(trace), **prompts)
    return result


def _mean_of_heads(trace: GenerationTrace) -> GenerationTrace:
    if MEAN_HEAD in trace.heads:
        return trace

    def mean(tensor: torch.Tensor, rows: Any) -> torch.Tensor:
        return tensor.float().mean(dim=2, keepdim=True).to(tensor.dtype)

    return _rows_changed(trace, mean, heads=(MEAN_HEAD,))


def _part(
    trace: GenerationTrace, layers: tuple[int, ...], heads: tuple[int, ...]
) -> GenerationTrace:
    if (trace.layers, trace.heads) == (layers, heads):
        return trace  # the usual case: do not copy the attention

    def cut(tensor: torch.Tensor, rows: Any) -> torch.Tensor:
        slots = [rows.layers.index(n) for n in layers], [rows.heads.index(n) for n in heads]
        return tensor[:, slots[0]][:, :, slots[1]]

    return _rows_changed(trace, cut, layers=layers, heads=heads)


# --- what differs, in words -----------------------------------------------------------------------


def _about(a: GenerationTrace, b: GenerationTrace) -> dict[str, Any]:
    remarks = []
    same_image = same_images(a, b)
    settings = _settings(a, b, same_image)
    same_grid = same_grids(a, b)
    if not same_image:
        remarks.append("These runs have different images, so there is no difference map.")
    elif not same_grid:
        remarks.append(
            f"The model saw {_grids(a)} in A and {_grids(b)} in B, so there is no difference "
            "map; the cursor is at the same place of the picture."
        )
    # If one side has no VAR, "applied" says so; listing all its settings would hide the rest.
    different = [
        what
        for what, left, right in settings
        if left != right and not (what.startswith("VAR ") and "–" in (left, right))
    ]
    remarks.append(
        f"What differs between A and B: {', '.join(different)}."
        if different
        else "A and B have the same prompt and settings."
    )
    return {
        "one_photo": same_image,
        "comparable": same_image and same_grid,
        "remarks": remarks,
        "settings": [list(row) for row in settings],
    }


def _grids(trace: GenerationTrace) -> str:
    return " and ".join(f"{g.columns} × {g.rows} patches" for g in trace.layout.grids)


def _settings(
    a: GenerationTrace, b: GenerationTrace, same_image: bool
) -> list[tuple[str, str, str]]:
    """(what, in a, in b) for everything that defines a run, in the order of a reader's interest."""
    rows = [
        ("prompt", a.prompt, b.prompt),
        ("image", _sizes(a), _sizes(b) + ("" if same_image else ", another picture")),
        ("patches", _grids(a), _grids(b)),
        ("applied", _applied(a), _applied(b)),
        ("model", _model(a), _model(b)),
        ("device", _device(a), _device(b)),
    ]
    shown = shown_settings(a), shown_settings(b)
    rows += _both("", *shown, ("layers", "heads", "reference", "prompt_rows"))
    left, right = ((t.var or {}).get("settings") or {} for t in (a, b))
    rows += _both("VAR ", left, right, ())
    return rows


def _sizes(trace: GenerationTrace) -> str:
    return " and ".join(f"{i.width} × {i.height} px" for i in trace.images)


def _applied(trace: GenerationTrace) -> str:
    return "; ".join(trace.applied) or "nothing"


def _model(trace: GenerationTrace) -> str:
    return f"{trace.model.id} @ {trace.model.revision}"


def _device(trace: GenerationTrace) -> str:
    return f"{trace.model.device}, {trace.model.dtype}"


def _both(
    prefix: str, a: Mapping[str, Any], b: Mapping[str, Any], without: Sequence[str]
) -> list[tuple[str, str, str]]:
    names = [n for n in dict.fromkeys((*a, *b)) if n not in without]
    rows = [(f"{prefix}{n}", _setting_text(a.get(n)), _setting_text(b.get(n))) for n in names]
    return [row for row in rows if row[1:] != ("–", "–")]


def _setting_text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list | tuple):
        return list_text(value)
    return str(value)
