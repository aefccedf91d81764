"""Which parts of an image its vision tokens see: views, and the one grid of the image's maps.

Families show an image in different ways: once as a whole, as tiles in rows with a thumbnail before
or after them, with marks between the rows. All of that is a list of views: the prompt positions of
a view's tokens in reading order, and the box of the image that they cover. Nothing above `models`
finds a patch in the prompt by counting from an offset.

Several views are drawn as one map by ONE rule (`on_cells`, docs/method.md "Views"): the map's grid
covers the whole image and is as fine as its finest view; each token is spread over the cells that
its box covers, by area.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from sinkscope.setting.checks import shown

if TYPE_CHECKING:
    from torch import Tensor

ViewKind = Literal["whole", "tile", "thumbnail"]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the original image
LEAST_COVER = 1e-9  # a cell covered by less counts as not seen: rounding


@dataclass(frozen=True)
class View:
    """A grid of vision tokens over a part of an image.

    Attributes:
        positions: prompt positions of its tokens, rising, row by row (frame by frame): a range if
            they are contiguous.
        rows, columns: of the grid; each token covers one cell of it.
        box: what the grid covers, in pixels of the original image. It may be less than the image
            (a crop: the rest is never seen) or reach over its edge (padding).
        kind: the whole image at the grid's own resolution, one of several tiles, or a small version
            of the whole image in addition to tiles.
        frames: of a video, tokens of one cell follow each other by frames.
        merge: patches of the vision tower that make one token, per side.

    Raises:
        ValueError: positions that are not as many as cells, or do not rise; an empty box; an
            unknown kind.
    """

    positions: range | tuple[int, ...]
    rows: int
    columns: int
    box: Box
    kind: ViewKind = "whole"
    frames: int = 1
    merge: int = 1

    def __post_init__(self) -> None:
        if min(self.rows, self.columns, self.frames, self.merge) < 1:
            raise ValueError("rows, columns, frames and merge are whole numbers from 1.")
        where = self.positions
        if len(where) != self.tokens:
            raise ValueError(
                f"A view of {self.frames} x {self.rows} x {self.columns} has {self.tokens} tokens, "
                f"but {len(where)} positions."
            )
        if isinstance(where, range):
            rising = where.step == 1 and where.start >= 0
        else:
            rising = all(a < b for a, b in zip((-1, *where), where, strict=False))
        if not rising:
            raise ValueError("positions of a view are rising whole numbers from 0.")
        x0, y0, x1, y1 = self.box
        if not (x0 < x1 and y0 < y1):
            raise ValueError(f"box is {self.box}; allowed: x0 < x1 and y0 < y1.")
        if self.kind not in get_args(ViewKind):
            raise ValueError(
                f"kind is {shown(self.kind)}; allowed: {', '.join(get_args(ViewKind))}."
            )

    @property
    def tokens(self) -> int:
        return self.frames * self.rows * self.columns

    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Edges of its columns and rows in pixels: float64 (columns + 1), (rows + 1)."""
        x0, y0, x1, y1 = self.box
        x = x0 + np.arange(self.columns + 1, dtype=np.float64) * (x1 - x0) / self.columns
        y = y0 + np.arange(self.rows + 1, dtype=np.float64) * (y1 - y0) / self.rows
        return x, y


@dataclass(frozen=True)
class ImageGrid:
    """One image: its views, and the grid of its maps.

    Attributes:
        views: in prompt order; their positions rise from view to view.
        resized: (height, width) in pixels that the model saw.
        original: (height, width) in pixels of the image as given, after its EXIF rotation.
        marks: prompt positions of the image that show no pixels: ends of rows, names of tiles. They
            are in the image's segment but in no map.

    Raises:
        ValueError: no view, or positions of views that do not rise.
    """

    views: tuple[View, ...]
    resized: tuple[int, int]
    original: tuple[int, int]
    marks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        pairs = pairwise(self.views)
        rising = all(one.positions[-1] < other.positions[0] for one, other in pairs)
        if not self.views or not rising:
            raise ValueError("An image needs views whose positions rise from one to the next.")

    @property
    def plain(self) -> bool:
        """Whether one view covers exactly the image, so that its cells are the map's."""
        height, width = self.original
        return len(self.views) == 1 and self.views[0].box == (0, 0, width, height)

    @property
    def rows(self) -> int:
        """Rows of the grid that maps are on."""
        return self._count(self.original[0], 1)

    @property
    def columns(self) -> int:
        """Columns of the grid that maps are on."""
        return self._count(self.original[1], 0)

    def _count(self, size: int, axis: int) -> int:
        """Cells along an axis: those of the finest view, as many as the whole image has of them."""
        if self.plain:
            return self.views[0].rows if axis else self.views[0].columns
        counts = [
            (view.rows if axis else view.columns) * size / (view.box[axis + 2] - view.box[axis])
            for view in self.views
        ]
        return max(1, round(max(counts)))

    @property
    def tokens(self) -> int:
        """Number of vision tokens, of all views."""
        return sum(view.tokens for view in self.views)

    @property
    def patches(self) -> int:
        """Number of patches that the vision tower is given for them."""
        return sum(view.tokens * view.merge**2 for view in self.views)

    @property
    def positions(self) -> Sequence[int]:
        """Prompt positions of the vision tokens, rising: a range if they are contiguous."""
        if len(self.views) == 1:
            return self.views[0].positions
        return tuple(position for view in self.views for position in view.positions)

    @property
    def after(self) -> int:
        """The first prompt position after the image."""
        return max(self.views[-1].positions[-1], *self.marks, -1) + 1

    def boxes(self) -> np.ndarray:
        """Box of each of the map's cells on the ORIGINAL image: float64 (rows * columns, 4) as x0,
        y0, x1, y1 in pixels.

        The boxes tile the image without gap or overlap; neighbours share exactly the same float
        edge.
        """
        x, y = self._edges()
        y0, x0 = np.meshgrid(y[:-1], x[:-1], indexing="ij")
        y1, x1 = np.meshgrid(y[1:], x[1:], indexing="ij")
        return np.stack([x0, y0, x1, y1], axis=-1).reshape(-1, 4)

    def unseen(self) -> np.ndarray:
        """The map's cells that no vision token sees: bool (rows, columns)."""
        import torch  # imported late, as in all of this file: a saved run is drawn without it

        hidden: np.ndarray = np.isnan(self.on_cells(torch.zeros(self.tokens)).numpy())
        return hidden

    def on_cells(self, values: Tensor, adds_up: bool = True) -> Tensor:
        """Values of the vision tokens (..., tokens) on the map's grid (..., rows, columns).

        Each token's box is cut at the image's edges; its part of a cell is the share of area.

        - What adds up, as attention mass does: a token's value is divided among the cells that its
          box covers, and the shares of all views are added. The sum over the map is the sum over
          the tokens, except those that see only padding.
        - What does not (a ratio): a cell has the mean of the tokens that cover it, by area.
        - A cell is missing (NaN) if no token with a value covers it.
        - Frames are added up.

        If one view covers exactly the image, cells are tokens and values are unchanged.
        """
        lead = values.shape[:-1]
        if self.plain:
            view = self.views[0]
            return values.reshape(*lead, view.frames, view.rows, view.columns).sum(-3)
        if isinstance(values, np.ndarray):  # of a saved run; rare, and needs no second rule
            import torch

            return self.on_cells(torch.from_numpy(values), adds_up).numpy()
        x, y = self._edges()
        total: Tensor | None = None
        cover: Tensor | None = None
        before = 0
        for view in self.views:
            part = values[..., before : before + view.tokens]
            before += view.tokens
            part = part.view(*lead, view.frames, view.rows, view.columns).sum(dim=-3)
            own_x, own_y = view.edges()
            across = _overlap(own_x, x, adds_up).to(values.device)  # (columns of the view, of map)
            down = _overlap(own_y, y, adds_up).to(values.device)
            present = ~part.isnan()
            spread = down.T @ part.nan_to_num(0.0).double() @ across
            area = (down > 0).T.double() @ present.double() @ (across > 0).double()
            if not adds_up:
                area = down.T @ present.double() @ across
            total = spread if total is None else total + spread
            cover = area if cover is None else cover + area
        assert total is not None and cover is not None, "an image has a view"
        cells = total if adds_up else total / cover.clamp_min(LEAST_COVER)
        return cells.masked_fill(cover <= LEAST_COVER, float("nan")).to(values.dtype)

    def cells_of(self, tokens: Iterable[int]) -> tuple[int, ...]:
        """The map's cells, row-major and rising, that these vision tokens see most of: for each
        token the cells that it covers by at least half; if there are none, the one it covers most.

        Args:
            tokens: indices among the image's vision tokens.
        """
        cells: set[int] = set()
        for token in tokens:
            view, cell = self._cell(token)
            if self.plain:
                cells.add(cell)
                continue
            own_x, own_y = view.edges()
            row, column = divmod(cell, view.columns)
            x, y = self._edges()
            shares = np.outer(
                _shares(y, own_y[row], own_y[row + 1]), _shares(x, own_x[column], own_x[column + 1])
            ).ravel()
            if shares.max() > LEAST_COVER:
                cells.update(np.flatnonzero(shares >= min(0.5, shares.max())).tolist())
        return tuple(sorted(cells))

    def tokens_of(self, cells: Iterable[int]) -> tuple[int, ...]:
        """The vision tokens that `cells_of` finds in any of these cells, rising; of frames all."""
        wanted = set(cells)
        if self.plain:
            size = self.rows * self.columns
            return tuple(
                frame * size + cell
                for frame in range(self.views[0].frames)
                for cell in sorted(wanted)
            )
        return tuple(k for k in range(self.tokens) if wanted.intersection(self.cells_of((k,))))

    def _cell(self, token: int) -> tuple[View, int]:
        """The view of a token and the cell in it, row-major; frames share cells."""
        for view in self.views:
            if token < view.tokens:
                return view, token % (view.rows * view.columns)
            token -= view.tokens
        raise ValueError(f"The image has {self.tokens} vision tokens, counted from 0.")

    def _edges(self) -> tuple[np.ndarray, np.ndarray]:
        height, width = self.original
        x = np.arange(self.columns + 1, dtype=np.float64) * width / self.columns
        y = np.arange(self.rows + 1, dtype=np.float64) * height / self.rows
        return x, y


def one_view(
    start: int,
    t: int,
    h: int,
    w: int,
    merge: int,
    resized: tuple[int, int],
    original: tuple[int, int],
) -> ImageGrid:
    """An image that is seen once, as a whole, by contiguous tokens in the prompt (Qwen).

    Args:
        start: prompt position of the first token.
        t, h, w: frames, and rows and columns of the vision tower's patches.
        merge: patches that make one token, per side.
        resized, original: as in `ImageGrid`.
    """
    rows, columns = h // merge, w // merge
    positions = range(start, start + t * rows * columns)
    box = (0.0, 0.0, float(original[1]), float(original[0]))
    view = View(positions, rows, columns, box, frames=t, merge=merge)
    return ImageGrid((view,), resized, original)


def stretches(positions: Iterable[int]) -> list[range]:
    """Rising positions as contiguous ranges, in order."""
    if isinstance(positions, range):
        return [positions] if positions else []
    ranges: list[range] = []
    for position in positions:
        if ranges and position == ranges[-1].stop:
            ranges[-1] = range(ranges[-1].start, position + 1)
        else:
            ranges.append(range(position, position + 1))
    return ranges


def _shares(edges: np.ndarray, low: float, high: float) -> np.ndarray:
    """For each cell between these edges, the share inside [low, high]: float64 (cells)."""
    inside = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
    shares: np.ndarray = np.clip(inside, 0, None) / np.diff(edges)
    return shares


def _overlap(token_edges: np.ndarray, edges: np.ndarray, adds_up: bool) -> Tensor:
    """The overlap of a view's cells with the map's along an axis: float64 (of the view, of the
    map).

    Of each cell of the view, the shares of its part inside the image (they add up to 1, or are all
    0 for a cell outside); or of each cell of the map, the share that is covered.
    """
    inside = np.clip(
        np.minimum(token_edges[1:, None], edges[None, 1:])
        - np.maximum(token_edges[:-1, None], edges[None, :-1]),
        0,
        None,
    )
    if adds_up:
        whole = inside.sum(1, keepdims=True)
        shares = np.divide(inside, whole, out=np.zeros_like(inside), where=whole > 0)
    else:
        shares = inside / np.diff(edges)[None]
    shares[shares < LEAST_COVER] = 0
    import torch

    return torch.from_numpy(shares)
