"""Boxes of cells: their position, and the boxes they are compared with."""

from __future__ import annotations

import pytest

from sinkscope.experiments.boxes import ENOUGH, Box, box_around, grid_of, other_boxes
from sinkscope.models.family import PromptLayout, Segment
from sinkscope.models.views import ImageGrid, View, one_view


def layout(rows: int = 6, columns: int = 8, images: int = 2) -> PromptLayout:
    """Images with 10 x 10 pixels per cell, one after the other from position 5 on."""
    tokens = rows * columns
    grids = tuple(
        one_view(
            5 + k * (tokens + 3), 1, 2 * rows, 2 * columns, 2, (0, 0), (10 * rows, 10 * columns)
        )
        for k in range(images)
    )
    length = 5 + images * (tokens + 3)
    return PromptLayout(length, (Segment("user", 0, length),), grids)


def test_positions_are_row_major_from_the_images_start() -> None:
    box = Box(2, 1, 2, 3, image=1)
    start = layout().grids[1].positions[0]
    assert box.positions(layout()) == tuple(start + r * 8 + c for r in (2, 3) for c in (1, 2, 3))
    assert box.pixels(layout().grids[1]) == (10, 20, 40, 40)


def test_of_an_image_in_several_views_a_box_is_all_tokens_that_see_it() -> None:
    """2 x 2 tokens, followed by one token of a small version that sees everything."""
    fine = View(range(3, 7), 2, 2, (0, 0, 20, 20), "tile")
    small = View(range(8, 9), 1, 1, (0, 0, 20, 20), "thumbnail")
    grid = ImageGrid((fine, small), (20, 20), (20, 20))
    tiled = PromptLayout(10, (Segment("user", 0, 10),), (grid,))
    assert (grid.rows, grid.columns) == (2, 2)
    assert Box(0, 1).positions(tiled) == (4, 8)
    assert Box(1, 0, 1, 2).positions(tiled) == (5, 6, 8)


def test_the_pixels_of_all_cells_tile_an_image_whose_cells_are_not_whole_pixels() -> None:
    grid = one_view(0, 1, 6, 10, 2, (84, 140), (47, 83))
    owner: dict[tuple[int, int], int] = {}
    for row in range(3):
        for column in range(5):
            x0, y0, x1, y1 = Box(row, column).pixels(grid)
            for x in range(x0, x1):
                for y in range(y0, y1):
                    owner[x, y] = owner.get((x, y), 0) + 1
    assert len(owner) == 47 * 83 and set(owner.values()) == {1}


def test_a_box_around_pixels_has_every_cell_that_they_touch() -> None:
    assert box_around(layout(), (10, 20, 20, 30)) == Box(2, 1)
    assert box_around(layout(), (9.5, 19, 20.5, 30), image=1) == Box(1, 0, 2, 3, image=1)
    assert box_around(layout(), (0, 0, 80, 60)) == Box(0, 0, 6, 8)


@pytest.mark.parametrize("pixels", [(0, 0, 0, 5), (-1, 0, 5, 5), (0, 0, 81, 5), (5, 5, 4, 9)])
def test_pixels_that_are_not_on_the_image_are_refused(
    pixels: tuple[float, float, float, float],
) -> None:
    with pytest.raises(
        ValueError, match=r"box is .*; allowed: x0,y0,x1,y1 with 0 <= x0 < x1 <= 80"
    ):
        box_around(layout(), pixels)


@pytest.mark.parametrize(
    ("box", "words"),
    [
        (Box(0, 0, image=2), "image is 2; allowed: 0 to 1"),
        (Box(5, 0, 2, 1), "The box has rows 5 to 6; allowed: rows from 0 to 5"),
        (Box(0, -1), "The box has columns -1 to -1; allowed: columns from 0 to 7"),
        (Box(0, 0, 1, 0), "The box has columns 0 to -1"),
    ],
)
def test_boxes_that_are_not_there_are_refused(box: Box, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        grid_of(layout(), box)
    with pytest.raises(ValueError, match="no image"):
        grid_of(layout(images=0), box)


def test_other_boxes_share_no_cell_with_the_box_and_are_of_its_size() -> None:
    box = Box(0, 0, 2, 2, image=1)
    others = other_boxes(layout(), box, 1000, 0)
    cells = set(box.positions(layout()))
    assert not others.overlapping
    assert others.places == len(others.boxes) == len(set(others.boxes)) == 5 * 7 - 4
    for other in others.boxes:
        assert (other.rows, other.columns, other.image) == (2, 2, 1)
        assert not cells & set(other.positions(layout()))


def test_every_place_is_as_likely_as_another_and_the_seed_decides() -> None:
    box, counts = Box(2, 3), dict[Box, int]()
    for seed in range(2000):
        for other in other_boxes(layout(), box, 10, seed).boxes:
            counts[other] = counts.get(other, 0) + 1
    assert len(counts) == 47 and box not in counts
    mean = 2000 * 10 / 47
    assert max(abs(n - mean) for n in counts.values()) < 5 * mean**0.5
    assert other_boxes(layout(), box, 10, 1) == other_boxes(layout(), box, 10, 1)
    assert other_boxes(layout(), box, 10, 1) != other_boxes(layout(), box, 10, 2)


def test_where_too_few_lie_apart_every_other_place_counts() -> None:
    box = Box(1, 2, 4, 4)  # 2 x 3 places around it overlap with it
    others = other_boxes(layout(), box, 64, 0)
    assert others.overlapping and others.places == 3 * 5 - 1 < ENOUGH
    assert box not in others.boxes
    with pytest.raises(ValueError, match="A box of 6 x 8 cells has no other place on this image"):
        other_boxes(layout(), Box(0, 0, 6, 8), 64, 0)
