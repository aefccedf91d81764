"""Views of an image and the single map made from them, in hand-computed cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sinkscope.models.family import PromptLayout, Segment
from sinkscope.models.views import ImageGrid, View, one_view, stretches


def view(start: int, rows: int, columns: int, box: tuple[float, ...], kind: Any = "whole") -> View:
    return View(range(start, start + rows * columns), rows, columns, box, kind)  # type: ignore[arg-type]


def tiled() -> ImageGrid:
    """80 x 40 pixels: two tiles of 2 x 2 side by side, then a thumbnail of 1 x 3."""
    return ImageGrid(
        (
            View((3, 4, 6, 7), 2, 2, (0, 0, 40, 40), "tile"),
            View((10, 11, 13, 14), 2, 2, (40, 0, 80, 40), "tile"),
            view(17, 1, 3, (0, 0, 80, 40), "thumbnail"),
        ),
        (28, 56),
        (40, 80),
        marks=(2, 5, 8, 9, 12, 15, 16, 20),
    )


def test_one_view_is_its_cells_bit_for_bit() -> None:
    grid = one_view(5, 1, 4, 6, 2, (56, 84), (50, 80))
    values = torch.rand(6)
    values[2] = float("nan")
    for adds_up in (True, False):
        assert grid.on_cells(values, adds_up).flatten().equal(values) or torch.equal(
            grid.on_cells(values, adds_up).flatten().nan_to_num(-1), values.nan_to_num(-1)
        )
    assert (grid.rows, grid.columns, grid.tokens, grid.patches) == (2, 3, 6, 24)
    assert grid.positions == range(5, 11) and grid.after == 11 and grid.plain
    assert grid.cells_of((0, 4)) == (0, 4) and grid.tokens_of((1, 5)) == (1, 5)
    assert not grid.unseen().any()
    assert grid.boxes()[4].tolist() == [80 / 3, 25, 160 / 3, 50]
    layout = PromptLayout(12, (Segment("template", 0, 12),), (grid,))
    assert layout.on_cells(values) is values


def test_frames_share_cells() -> None:
    grid = one_view(0, 2, 2, 4, 2, (28, 56), (28, 56))
    assert grid.tokens == 4 and (grid.rows, grid.columns) == (1, 2)
    assert grid.on_cells(torch.tensor([1.0, 2.0, 10.0, 20.0])).tolist() == [[11.0, 22.0]]
    assert grid.cells_of((1, 3)) == (1,) and grid.tokens_of((1,)) == (1, 3)
    layout = PromptLayout(4, (Segment("image", 0, 4, 0),), (grid,))
    assert layout.cells == 2 and layout.cells_at() == {0: (0,), 1: (1,), 2: (0,), 3: (1,)}


def test_tiles_and_a_thumbnail() -> None:
    grid = tiled()
    assert (grid.rows, grid.columns, grid.tokens, grid.after) == (2, 4, 11, 21)
    assert grid.positions == (3, 4, 6, 7, 10, 11, 13, 14, 17, 18, 19)
    tiles = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8])
    values = torch.cat([tiles, torch.tensor([12.0, 0, 24])])
    # a thumbnail's token is 80 / 3 wide: 1 1/3 cells, in two rows; 12 is 4.5 and 1.5 a row
    added = grid.on_cells(values)
    expected = [[1 + 4.5, 2 + 1.5, 5 + 3.0, 6 + 9.0], [3 + 4.5, 4 + 1.5, 7 + 3.0, 8 + 9.0]]
    torch.testing.assert_close(added, torch.tensor(expected))
    assert float(added.sum()) == pytest.approx(float(values.sum()))
    # means, weighted by area: a cell's own token covers all of it, the thumbnail's too
    mean = grid.on_cells(values, adds_up=False)
    expected = [
        [(1 + 12) / 2, (2 + 12 / 3) / 2, (5 + 24 / 3) / 2, (6 + 24) / 2],
        [(3 + 12) / 2, (4 + 12 / 3) / 2, (7 + 24 / 3) / 2, (8 + 24) / 2],
    ]
    torch.testing.assert_close(mean, torch.tensor(expected))
    constant = grid.on_cells(torch.full((11,), 3.0), adds_up=False)
    torch.testing.assert_close(constant, torch.full((2, 4), 3.0))
    many = grid.on_cells(values.expand(5, 2, 11))
    assert many.shape == (5, 2, 2, 4) and torch.equal(many[3, 1], added)


def test_missing_where_no_token_has_a_value() -> None:
    grid, nan = tiled(), float("nan")
    values = torch.tensor([nan, 2, 3, 4, 5, 6, 7, 8, nan, 0, 24])
    made = grid.on_cells(values)
    assert made.isnan().tolist() == [[True, False, False, False], [False] * 4]
    assert float(made[0, 1]) == 2.0  # the thumbnail's part has no value
    mean = grid.on_cells(values, adds_up=False)
    assert mean.isnan().tolist() == made.isnan().tolist()
    assert float(mean[0, 1]) == pytest.approx((2 + 0 * 2 / 3) / (1 + 2 / 3))


def test_a_crop_leaves_the_rest_unseen() -> None:
    """LLaVA-1.5's way: the middle square of a wide image."""
    grid = ImageGrid((view(0, 2, 2, (20, 0, 60, 40)),), (336, 336), (40, 80))
    assert not grid.plain and (grid.rows, grid.columns) == (2, 4)
    made = grid.on_cells(torch.tensor([1.0, 2, 3, 4]))
    nan = float("nan")
    right = [[nan, 1, 2, nan], [nan, 3, 4, nan]]
    torch.testing.assert_close(made, torch.tensor(right), equal_nan=True)
    assert grid.unseen().tolist() == [[True, False, False, True]] * 2
    assert grid.cells_of((0, 3)) == (1, 6) and grid.tokens_of((2,)) == (1,)
    assert grid.tokens_of((0,)) == ()


def test_padding_is_no_part_of_the_image() -> None:
    """A square around a wide image: the rows above and below see nothing."""
    grid = ImageGrid((view(0, 4, 4, (0, -20, 80, 60)),), (336, 336), (40, 80))
    assert (grid.rows, grid.columns) == (2, 4)
    made = grid.on_cells(torch.arange(16.0))
    torch.testing.assert_close(made, torch.arange(4.0, 12).view(2, 4))
    assert grid.cells_of((0,)) == () and grid.cells_of((4,)) == (0,)
    half = ImageGrid((view(0, 2, 2, (0, -20, 80, 60)),), (336, 336), (40, 80))
    made = half.on_cells(torch.tensor([1.0, 2, 4, 8]))  # each sees 20 of its 40 pixels
    assert (half.rows, half.columns) == (1, 2)
    torch.testing.assert_close(made, torch.tensor([[5.0, 10.0]]))


def test_a_map_of_a_tile_that_ends_before_its_edge() -> None:
    """OneVision's tiles do not see their last pixels: there is a gap between two tiles."""
    grid = ImageGrid(
        (view(0, 2, 2, (0, 0, 36, 36), "tile"), view(4, 2, 2, (40, 0, 76, 36), "tile")),
        (36, 76),
        (40, 80),
    )
    made = grid.on_cells(torch.arange(8.0))
    assert float(made.nansum()) == pytest.approx(28.0)
    assert made.shape == (2, 4)


@pytest.mark.parametrize("seed", range(20))
def test_random_views_keep_the_mass_and_find_themselves(seed: int) -> None:
    random = np.random.default_rng(seed)
    height, width = (int(n) for n in random.integers(20, 300, 2))
    down, across = (int(n) for n in random.integers(1, 4, 2))
    rows, columns = (int(n) for n in random.integers(2, 7, 2))
    views, at = [], 0
    for r in range(down):
        for c in range(across):
            box = (width * c / across, height * r / down)
            box += (width * (c + 1) / across, height * (r + 1) / down)
            views.append(view(at, rows, columns, box, "tile"))
            at += rows * columns + 1
    views.append(view(at, 3, 2, (0, 0, width, height), "thumbnail"))
    grid = ImageGrid(tuple(views), (1, 1), (height, width))
    assert (grid.rows, grid.columns) == (
        max(down * rows, 3),
        max(across * columns, 2),
    )
    values = torch.rand(grid.tokens, dtype=torch.float64)
    assert float(grid.on_cells(values).sum()) == pytest.approx(float(values.sum()))
    assert not grid.unseen().any()
    mean = grid.on_cells(values, adds_up=False)
    assert float(mean.min()) >= float(values.min()) and float(mean.max()) <= float(values.max())
    for token in random.integers(0, grid.tokens, 5).tolist():
        alone = torch.zeros(grid.tokens)
        alone[token] = 1
        reached = set(grid.on_cells(alone).flatten().nonzero()[:, 0].tolist())
        cells = grid.cells_of((token,))
        assert cells and set(cells) <= reached
        assert all(token in grid.tokens_of((cell,)) for cell in cells)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": 3}, "has 6 tokens, but 4 positions"),
        ({"positions": (4, 3, 6, 7)}, "rising whole numbers"),
        ({"positions": range(0, 8, 2)}, "rising whole numbers"),
        ({"box": (0.0, 0.0, 0.0, 1.0)}, "allowed: x0 < x1"),
        ({"kind": "half"}, "allowed: whole, tile, thumbnail"),
        ({"merge": 0}, "whole numbers from 1"),
    ],
)
def test_views_that_are_none(change: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {
        "positions": (3, 4, 6, 7),
        "rows": 2,
        "columns": 2,
        "box": (0.0, 0.0, 1.0, 1.0),
    }
    View(**given)
    with pytest.raises(ValueError, match=words):
        View(**{**given, **change})


def test_an_image_of_views_in_disorder() -> None:
    first, second = view(0, 1, 2, (0, 0, 1, 1)), view(4, 1, 2, (0, 0, 1, 1))
    ImageGrid((first, second), (1, 1), (1, 1))
    third = view(5, 1, 2, (0, 0, 1, 1))
    for wrong in ((second, first), (), (first, first), (second, third)):
        with pytest.raises(ValueError, match="needs views whose positions rise"):
            ImageGrid(wrong, (1, 1), (1, 1))


def test_stretches() -> None:
    assert stretches((3, 4, 6, 7, 8, 20)) == [range(3, 5), range(6, 9), range(20, 21)]
    assert stretches(range(2, 9)) == [range(2, 9)]
    assert stretches(()) == stretches(range(3, 3)) == []
    layout = PromptLayout(30, (Segment("template", 0, 30),), (tiled(),))
    pairs = [(c.start, c.stop, p.start, p.stop) for c, p in layout.vision_stretches()]
    assert pairs == [
        (0, 2, 3, 5),
        (2, 4, 6, 8),
        (4, 6, 10, 12),
        (6, 8, 13, 15),
        (8, 11, 17, 20),
    ]
    assert layout.vision_positions().tolist() == list(tiled().positions)
    assert layout.after_images == 21 and layout.cells == 8
    assert PromptLayout(3, (Segment("user", 0, 3),), ()).after_images == 0
