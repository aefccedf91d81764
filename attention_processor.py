"""From a trace to maps and numbers: pure functions, no model, no drawing.

Everything here reads a `GenerationTrace` (or plain tensors) and returns new arrays. Layer and head
arguments are indices IN THE MODEL; a trace may hold only some of them, and asking for another one
is an error that says so.

`sink_score` and `sink_mask` are part of this module's public interface and defined in
`models.sink_score`.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sinkscope.capture.trace import MEAN_HEAD, GenerationTrace, PromptTrace
from sinkscope.config import Reduce
from sinkscope.models.family import PromptLayout
from sinkscope.models.views import ImageGrid
from sinkscope.setting.heads import Heads, heads_text, heads_words
from sinkscope.utils import index_ranges

if TYPE_CHECKING:  # a saved run's rows can be NumPy arrays (`capture.arrays`), which need no torch
    import torch

    from sinkscope.models.sink_score import sink_mask, sink_score

# Units whose values are summed if several views see a cell (`ImageGrid.on_cells`).
ADDS_UP = ("attention mass", "share of image attention")

# Objects with rows of attention: an answer's, or a prompt's own.
Rows = GenerationTrace | PromptTrace

__all__ = [
    "PatchMap",
    "TokenAttention",
    "head_mean",
    "image_share",
    "patch_map",
    "segment_share",
    "sink_mask",
    "sink_score",
    "sink_share",
    "tokens_attending_to",
]


def __getattr__(name: str) -> Any:
    """`sink_mask` and `sink_score`, imported when they are first used, because they need torch."""
    if name not in ("sink_mask", "sink_score"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sinkscope.models import sink_score

    return getattr(sink_score, name)


@dataclass(frozen=True)
class PatchMap:
    """Values on the grid of one image's vision tokens.

    Attributes:
        values: float32 (rows, columns); NaN is missing, which is not 0: a part of the image that no
            vision token sees, or whose tokens have no value.
        unit: what a value is: "attention mass" (share of the whole row's attention), "share of
            image attention", or another method's (`methods`).
        normalisation: of the values, in words; "none" if nothing.
        image: which image of the prompt.
        grid: where the cells are on the image.
        label: which tokens, layers and heads, in words.
        signed: values of either sign, which are drawn around 0.
    """

    values: np.ndarray
    unit: str
    normalisation: str
    image: int
    grid: ImageGrid
    label: str
    signed: bool = False


@dataclass(frozen=True)
class TokenAttention:
    """How much attention one answer token's row put on some cells."""

    token: int
    text: str
    mass: float


def patch_map(
    trace: Rows,
    token: int | Sequence[int],
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    reduce: Reduce = "mean",
    *,
    image: int = 0,
    normalise: bool = False,
    pairs: Heads | None = None,
) -> PatchMap:
    """The map of the attention that produced a token (row convention: `capture.trace`).

    Args:
        trace: a run, or the rows of a prompt's own tokens (`trace.prompt_rows`), whose row r is
            that AT its token; of tensors or of arrays (`capture.arrays`).
        token: index of a token, or several, whose maps are averaged.
        layers, heads: which to aggregate over, as indices in the model; None is all that were
            captured.
        reduce: how layers and heads are aggregated: mean, max or min of the raw attention mass.
        image: which image.
        normalise: divide by the image's total, so that the map sums to 1 (unit "share of image
            attention").
        pairs: (layer, head) of single heads, in the place of layers and heads.

    Raises:
        ValueError: a token, layer, head or image that the trace does not have; the text says what
            it has.
    """
    tokens = token_indices(trace, token)
    if not 0 <= image < len(trace.layout.grids):
        raise ValueError(
            f"image is {image}; the prompt has {len(trace.layout.grids)}, counted from 0."
        )
    rows = trace.attention[tokens]
    if pairs is None:
        rows = rows[:, slots_of("layer", trace.layers, layers)]
        rows = rows[:, :, slots_of("head", trace.heads, heads)]
    else:
        rows = for_heads(rows, trace.layers, trace.heads, pairs)
    rows = rows[..., trace.layout.columns(image)]
    values = combine(
        rows.astype(np.float32) if isinstance(rows, np.ndarray) else rows.float(), reduce
    )
    if normalise:
        total = values.sum()
        values = values / total if total > 0 else values
    return as_map(
        trace.layout.grids[image].on_cells(values),
        trace.layout,
        image,
        "share of image attention" if normalise else "attention mass",
        "divided by the image's total" if normalise else "none",
        map_label(trace, tokens, layers, heads, reduce, pairs),
    )


def for_heads(rows: Any, layers: Sequence[int], heads: Sequence[int], pairs: Heads) -> Any:
    """Single heads of rows (T, L, H, V), of tensors or arrays: (T, pairs, 1, V).

    Args:
        layers, heads: of the rows, indices in the model.
        pairs: (layer, head) of each.

    Raises:
        ValueError: the rows lack one; the text says what they have.
    """
    refuse_lacking(layers, heads, pairs)
    slots = [[layers.index(layer) for layer, _ in pairs], [heads.index(head) for _, head in pairs]]
    return rows[:, slots[0], slots[1]][:, :, None]


def refuse_lacking(layers: Sequence[int], heads: Sequence[int], pairs: Heads) -> None:
    """Refuse single heads that a run did not keep.

    Raises:
        ValueError: naming the first; the text says what there is.
    """
    if tuple(heads) == (MEAN_HEAD,):
        raise ValueError("The run kept only the mean over heads, so it has no single heads.")
    lacking = [one for one in pairs if one[0] not in layers or one[1] not in heads]
    if lacking or not pairs:
        raise ValueError(
            f"heads is {heads_text(lacking[:1]) or 'empty'}; the run kept layers "
            f"{_spell(layers)} and heads {_spell(heads)}."
        )


def combine(rows: torch.Tensor, reduce: Reduce) -> torch.Tensor:
    """Layers and heads by `reduce`, tokens by their mean: float32 (T, L, H, V) -> (V,).

    The result is missing (NaN) where a value is.
    """
    if reduce not in ("mean", "max", "min"):
        raise ValueError(f"reduce is {reduce!r}; allowed: mean, max, min.")
    if reduce == "mean":
        return rows.mean((0, 1, 2))
    if isinstance(rows, np.ndarray):
        return (rows.max((1, 2)) if reduce == "max" else rows.min((1, 2))).mean(0)
    best = rows.amax(dim=(1, 2)) if reduce == "max" else rows.amin(dim=(1, 2))
    return best.mean(dim=0)


def as_map(
    cells: torch.Tensor,
    layout: PromptLayout,
    image: int,
    unit: str,
    normalisation: str,
    label: str,
    *,
    signed: bool = False,
) -> PatchMap:
    """Values of the cells of one image's map, float32 (rows, columns), as a map."""
    values = np.asarray(cells).astype(np.float32)
    return PatchMap(values, unit, normalisation, image, layout.grids[image], label, signed)


def head_mean(trace: Rows) -> torch.Tensor:
    """Mean over heads: float32 (T, L, V)."""
    return trace.attention.float().mean(dim=2)


def segment_share(trace: Rows) -> torch.Tensor:
    """Attention mass on each prompt segment and on the answer so far: float32 (T, L, H, S + 1);
    sums to 1."""
    return trace.shares


def image_share(trace: Rows) -> torch.Tensor:
    """Attention mass on all images, including marks between their tokens if the family has any
    (ends of rows, names of tiles): float32 (T, L, H), from 0 to 1."""
    import torch

    on_images = torch.tensor(
        [segment.kind == "image" for segment in trace.layout.segments] + [False]
    )
    return trace.shares[..., on_images].sum(dim=-1)


def sink_share(trace: Rows) -> torch.Tensor:
    """Part of the image attention that the layer's own sinks hold: float32 (T, L, H), from 0 to 1.

    Zero if no sinks were found, and if a row sees nothing of the image.
    """
    import torch

    rows = trace.attention.float()
    held = torch.einsum("tlhv,lv->tlh", rows, sink_columns(trace).float())
    total = rows.sum(dim=-1)
    return torch.where(total > 0, held / total.clamp_min(1e-12), torch.zeros_like(total))


def tokens_attending_to(
    trace: Rows,
    cells: Sequence[int],
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    *,
    image: int = 0,
) -> list[TokenAttention]:
    """Reverse look-up: the answer tokens whose rows put most attention on some cells, most first.

    Args:
        cells: of the image's map, row-major; they select the vision tokens that see most of them
            (`ImageGrid.tokens_of`).
        layers, heads: averaged over these (indices in the model; None: all captured).
        image: which image.

    Raises:
        ValueError: no cell, or a cell, layer or head that the trace does not have.
    """
    if not 0 <= image < len(trace.layout.grids):
        raise ValueError(
            f"image is {image}; the prompt has {len(trace.layout.grids)}, counted from 0."
        )
    grid = trace.layout.grids[image]
    count = grid.rows * grid.columns
    if not cells or any(not 0 <= cell < count for cell in cells):
        raise ValueError(
            f"cells is {list(cells)!r}; allowed: at least one index from 0 to {count - 1}."
        )
    import torch

    columns = torch.tensor(grid.tokens_of(cells), dtype=torch.long)
    columns += trace.layout.columns(image).start
    rows = trace.attention[:, slots_of("layer", trace.layers, layers)][
        :, :, slots_of("head", trace.heads, heads)
    ]
    mass = rows[..., columns].float().sum(dim=-1).mean(dim=(1, 2))
    order = torch.argsort(mass, descending=True, stable=True).tolist()
    return [TokenAttention(t, trace.tokens[t].text, float(mass[t])) for t in order]


def token_indices(trace: Rows, token: int | Sequence[int]) -> list[int]:
    """The tokens as a list; ValueError for one that the trace does not have."""
    tokens = [operator.index(t) for t in (token if isinstance(token, Iterable) else [token])]
    count = len(trace.tokens)
    if not tokens or any(not 0 <= t < count for t in tokens):
        allowed = f"0 to {count - 1}" if count else "none, for the answer is empty"
        raise ValueError(f"token is {token!r}; allowed: {allowed}.")
    return tokens


def slots_of(what: str, captured: Sequence[int], wanted: Sequence[int] | None) -> list[int]:
    """Indices of the requested layers or heads among those that a trace holds (None: all)."""
    if wanted is None:
        return list(range(len(captured)))
    where = {index: slot for slot, index in enumerate(captured)}
    lacking = [index for index in wanted if index not in where]
    if lacking or not len(wanted):
        raise ValueError(
            f"{what}s is {list(wanted)!r}; the trace holds {what}s {_spell(captured)}."
        )
    return [where[index] for index in wanted]


def sink_cells(trace: Rows, layers: Sequence[int] | None = None, image: int = 0) -> tuple[int, ...]:
    """Cells of an image that are a sink in at least one of the layers (None: all captured)."""
    wanted = set(trace.layers if layers is None else layers)
    grid = trace.layout.grids[image]
    found = {p for sinks in trace.sinks if sinks.layer in wanted for p in sinks.positions}
    return grid.cells_of(k for k, p in enumerate(grid.positions) if p in found)


def rare_sink_cells(
    trace: Rows, layers: Sequence[int] | None = None, image: int = 0
) -> tuple[int, ...]:
    """Those of `sink_cells` that are a sink in fewer than half of the layers."""
    wanted = set(trace.layers if layers is None else layers)
    found = Counter(
        cell
        for sinks in trace.sinks
        if sinks.layer in wanted
        for cell in sink_cells(trace, (sinks.layer,), image)
    )
    return tuple(cell for cell in sorted(found) if found[cell] / len(wanted) < 0.5)


def sink_columns(trace: Rows) -> torch.Tensor:
    """bool (L, V): which vision tokens are sinks in which captured layer."""
    import torch

    column = {position: v for v, position in enumerate(trace.layout.vision_positions().tolist())}
    mask = torch.zeros(len(trace.layers), trace.layout.vision_tokens, dtype=torch.bool)
    slot = {layer: index for index, layer in enumerate(trace.layers)}
    for sinks in trace.sinks:
        if sinks.layer in slot:
            mask[slot[sinks.layer], [column[p] for p in sinks.positions if p in column]] = True
    return mask


def map_label(
    trace: Rows,
    tokens: Sequence[int],
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
    reduce: str,
    pairs: Heads | None = None,
) -> str:
    """Which tokens, layers and heads a map is of, in words."""
    words = "".join(trace.tokens[t].text for t in tokens)
    which = f"token {tokens[0]}" if len(tokens) == 1 else f"{len(tokens)} tokens"
    if pairs is not None:
        return f"{which} {words!r}, {reduce} over {heads_words(pairs)}"
    parts = (
        f"layers {_spell(trace.layers if layers is None else layers)}",
        f"heads {_spell(trace.heads if heads is None else heads)}",
    )
    return f"{which} {words!r}, {reduce} over {' and '.join(parts)}"


def _spell(indices: Sequence[int]) -> str:
    """0, 1, 2, 5 -> "0-2, 5"."""
    if tuple(indices) == (MEAN_HEAD,):
        return "(only their mean was kept)"
    return index_ranges(indices)
