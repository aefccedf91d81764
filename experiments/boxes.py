"""Boxes of an image's cells, and other boxes of the same size to compare one with.

Cells are those of the image's map (`ImageGrid.boxes`): what one vision token covers, if the image
has a single view. Rows and columns count from 0.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sinkscope.models.family import PromptLayout
from sinkscope.models.views import ImageGrid

ENOUGH = 20
"""With fewer other boxes there is no 95th percentile; overlapping boxes are then allowed."""


class Region(Protocol):
    """Some cells of an image."""

    def positions(self, layout: PromptLayout) -> tuple[int, ...]:
        """Prompt positions of the vision tokens that see them."""
        ...


@dataclass(frozen=True)
class Box:
    """A rectangle of cells on one image.

    Attributes:
        row, column: its first cell, counted from 0.
        rows, columns: how many cells it has each way.
        image: which image of the prompt, from 0.
    """

    row: int
    column: int
    rows: int = 1
    columns: int = 1
    image: int = 0

    @property
    def cells(self) -> int:
        return self.rows * self.columns

    def meets(self, other: Box) -> bool:
        """Whether they share a cell."""
        return (
            self.image == other.image
            and self.row < other.row + other.rows
            and other.row < self.row + self.rows
            and self.column < other.column + other.columns
            and other.column < self.column + self.columns
        )

    def positions(self, layout: PromptLayout) -> tuple[int, ...]:
        """Prompt positions of the vision tokens that see its cells (`ImageGrid.tokens_of`)."""
        grid = grid_of(layout, self)
        cells = [
            row * grid.columns + column
            for row in range(self.row, self.row + self.rows)
            for column in range(self.column, self.column + self.columns)
        ]
        return tuple(grid.positions[token] for token in grid.tokens_of(cells))

    def pixels(self, grid: ImageGrid) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1 on the original image: the pixels whose centre is in a cell."""
        height, width = grid.original

        def edge(cell: int, cells: int, size: int) -> int:
            return math.ceil(cell * size / cells - 0.5)

        return (
            edge(self.column, grid.columns, width),
            edge(self.row, grid.rows, height),
            edge(self.column + self.columns, grid.columns, width),
            edge(self.row + self.rows, grid.rows, height),
        )

    def words(self) -> str:
        """Its position, in words."""
        if self.cells == 1:
            return f"patch {self.row}, {self.column}"
        rows, columns = (
            f"{what} {first}" if count == 1 else f"{what}s {first}–{first + count - 1}"
            for what, first, count in (
                ("row", self.row, self.rows),
                ("column", self.column, self.columns),
            )
        )
        return f"{rows}, {columns}"


def grid_of(layout: PromptLayout, box: Box) -> ImageGrid:
    """The grid of the box's image.

    Raises:
        ValueError: there is no such image, or the box is not on its grid.
    """
    if not layout.grids:
        raise ValueError("The prompt has no image; there is no region to test.")
    if not 0 <= box.image < len(layout.grids):
        raise ValueError(f"image is {box.image}; allowed: 0 to {len(layout.grids) - 1}.")
    grid = layout.grids[box.image]
    for what, first, count, cells in (
        ("row", box.row, box.rows, grid.rows),
        ("column", box.column, box.columns, grid.columns),
    ):
        if count < 1 or first < 0 or first + count > cells:
            raise ValueError(
                f"The box has {what}s {first} to {first + count - 1}; allowed: {what}s from 0 to "
                f"{cells - 1} of image {box.image}, at least one."
            )
    return grid


def box_around(
    layout: PromptLayout, pixels: tuple[float, float, float, float], image: int = 0
) -> Box:
    """The smallest box with every cell that a rectangle on the original image touches.

    Args:
        layout: of the prompt.
        pixels: x0, y0, x1, y1 on the original image, x1 and y1 exclusive.
        image: which image of the prompt, from 0.

    Raises:
        ValueError: no such image, or the rectangle is empty or not on it.
    """
    grid = grid_of(layout, Box(0, 0, image=image))
    height, width = grid.original
    x0, y0, x1, y1 = pixels
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(
            f"box is {x0:g},{y0:g},{x1:g},{y1:g}; allowed: x0,y0,x1,y1 with 0 <= x0 < x1 <= {width}"
            f" and 0 <= y0 < y1 <= {height}, in pixels of image {image}."
        )
    column, row = int(x0 * grid.columns / width), int(y0 * grid.rows / height)
    return Box(
        row,
        column,
        math.ceil(y1 * grid.rows / height) - row,
        math.ceil(x1 * grid.columns / width) - column,
        image,
    )


@dataclass(frozen=True)
class OtherBoxes:
    """Boxes of one size to compare a box with.

    Attributes:
        boxes: in random order, each position once.
        places: number of possible positions.
        overlapping: they may share cells with the box, because too few do not.
    """

    boxes: tuple[Box, ...]
    places: int
    overlapping: bool


def other_boxes(layout: PromptLayout, box: Box, count: int, seed: int) -> OtherBoxes:
    """Boxes of the same rows x columns at uniformly random other places of the same image.

    Boxes that share a cell with the box are left out, because they would test a part of the box
    itself. If fewer than `ENOUGH` positions remain, every position except the box's own is allowed.
    No position is drawn twice: with at most `count` positions all are used, and the percentile is
    that of all.

    Raises:
        ValueError: the box is not on its image, or the image has no other position for it.
    """
    grid = grid_of(layout, box)
    everywhere = [
        other
        for row in range(grid.rows - box.rows + 1)
        for column in range(grid.columns - box.columns + 1)
        if (other := Box(row, column, box.rows, box.columns, box.image)) != box
    ]
    if not everywhere:
        raise ValueError(
            f"A box of {box.rows} x {box.columns} cells has no other place on this image of "
            f"{grid.rows} x {grid.columns}, so there is nothing to compare it with; allowed: a "
            "smaller box."
        )
    apart = [other for other in everywhere if not other.meets(box)]
    overlapping = len(apart) < min(ENOUGH, len(everywhere))
    places: Sequence[Box] = everywhere if overlapping else apart
    drawn = random.Random(seed).sample(places, min(count, len(places)))
    return OtherBoxes(tuple(drawn), len(places), overlapping)
