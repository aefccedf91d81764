"""Scores of a map against a mask: by hand, by chance, for a perfect map and for a blank one."""

from __future__ import annotations

import numpy as np
import pytest

from sinkscope.evaluation.explanations.controls import CONTROLS, control_map
from sinkscope.evaluation.explanations.scores import (
    auc,
    energy_inside,
    filled,
    mask_on_cells,
    nss,
    object_iou,
    otsu,
    pointing,
    scored,
)
from sinkscope.models.views import ImageGrid, one_view

TRUTH = np.array([[True, True, False], [False, False, False]])


def grid(rows: int = 4, columns: int = 5, original: tuple[int, int] = (80, 100)) -> ImageGrid:
    return one_view(2, 1, 2 * rows, 2 * columns, 2, (28 * rows, 28 * columns), original)


def test_scores_by_hand() -> None:
    values = np.array([[0.5, 0.1, 0.2], [0.1, 0.1, 0.0]])
    assert pointing(values, TRUTH) == 1.0
    assert energy_inside(values, TRUTH) == pytest.approx(0.6)
    mean, spread = values.mean(), values.std()
    assert nss(values, TRUTH) == pytest.approx((0.3 - mean) / spread)
    # 0.5 beats all four; 0.1 beats 0.0, ties with two, loses against 0.2: (4 + 1 + 1) / 8
    assert auc(values, TRUTH) == pytest.approx(6 / 8)
    assert otsu(values.ravel()) == 0.2 and object_iou(values, TRUTH) == 0.5


def test_a_perfect_map_scores_one() -> None:
    for truth in (TRUTH, ~TRUTH):
        made = scored(truth.astype(np.float32), truth)
        assert made.pop("nss") > 0.7
        assert set(made.values()) == {1.0}
    # and the wrong one nothing
    made = scored((~TRUTH).astype(float), TRUTH)
    assert made["pointing"] == made["energy"] == made["auc"] == made["obj_iou"] == 0 > made["nss"]


@pytest.mark.parametrize("value", [0.0, 0.3, -2.0, float("nan"), 1e-30, 1e30])
def test_a_blank_map_is_never_above_chance(value: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        truth = rng.random((5, 6)) < rng.uniform(0.05, 0.95)
        if truth.all() or not truth.any():
            continue
        made = scored(np.full((5, 6), value), truth)
        assert made["pointing"] <= truth.mean() + 1e-12
        assert made["energy"] <= truth.mean() + 1e-12
        assert made["auc"] == 0.5 and made["nss"] == 0.0 and made["obj_iou"] == 0.0


def test_random_maps_score_chance() -> None:
    found: dict[str, list[float]] = {}
    drawn = grid()
    truth = np.zeros((4, 5), dtype=bool)
    truth[1:3, 1:4] = True
    for k in range(4000):
        for name, value in scored(control_map("random", drawn, f"t{k}", 0), truth).items():
            found.setdefault(name, []).append(value)
    means = {name: float(np.mean(values)) for name, values in found.items()}
    assert means["pointing"] == pytest.approx(0.3, abs=0.03)
    assert means["energy"] == pytest.approx(0.3, abs=0.01)
    assert means["auc"] == pytest.approx(0.5, abs=0.01)
    assert means["nss"] == pytest.approx(0.0, abs=0.03)


def test_scores_do_not_depend_on_unit_or_offset() -> None:
    rng = np.random.default_rng(1)
    values, truth = rng.random((4, 5)), rng.random((4, 5)) < 0.4
    plain, other = scored(values, truth), scored(values * 1e-6, truth)
    assert plain == pytest.approx(other)
    moved = scored(values * 3 - 7, truth)
    assert all(moved[n] == pytest.approx(plain[n]) for n in ("pointing", "nss", "auc", "obj_iou"))


def test_missing_values_count_as_the_smallest() -> None:
    values = np.array([[np.nan, 0.4], [0.2, 0.1]])
    assert filled(values).tolist() == [0.1, 0.4, 0.2, 0.1]
    truth = np.array([[True, False], [False, False]])
    assert pointing(values, truth) == 0.0 and auc(values, truth) == pytest.approx(0.5 / 3)
    with pytest.raises(ValueError, match="infinite"):
        scored(np.array([[np.inf, 0.0]]), np.array([[True, False]]))


def test_auc_equals_counting_pairs() -> None:
    rng = np.random.default_rng(2)
    values, truth = rng.integers(0, 4, 40).astype(float), rng.random(40) < 0.3
    pairs = [np.sign(a - b) / 2 + 0.5 for a in values[truth] for b in values[~truth]]
    assert auc(values, truth) == pytest.approx(np.mean(pairs))


def test_a_mask_on_the_grid() -> None:
    mask = np.zeros((80, 100), dtype=bool)
    mask[20:40, 20:60] = True  # cells of 20 x 20: row 1, columns 1 and 2
    made = mask_on_cells(mask, grid())
    assert np.argwhere(made).tolist() == [[1, 1], [1, 2]]
    mask[40:49, 20:60] = True  # 9 of 20 pixel rows of the next row of cells: less than half
    assert mask_on_cells(mask, grid()).sum() == 2
    mask[49, 20:60] = True
    assert mask_on_cells(mask, grid()).sum() == 4
    small = np.zeros((80, 100), dtype=bool)
    small[18:22, 37:43] = True  # across four cells, most of it in none
    assert np.argwhere(mask_on_cells(small, grid())).tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]


def test_a_mask_where_cells_are_no_whole_pixels() -> None:
    odd = grid(3, 4, (50, 70))  # cells of 17.5 x 16.67 pixels
    rng = np.random.default_rng(3)
    mask = rng.random((50, 70)) < 0.4
    fine = np.kron(mask, np.ones((6, 6)))  # 300 x 420: cells are 100 x 105 there
    covered = fine.reshape(3, 100, 4, 105).mean(axis=(1, 3))
    expected = covered >= covered.max() / 2 - 1e-9
    np.testing.assert_array_equal(mask_on_cells(mask, odd), expected)


def test_masks_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="100 x 81 pixels and its image 100 x 80"):
        mask_on_cells(np.ones((81, 100), dtype=bool), grid())
    with pytest.raises(ValueError, match="empty"):
        mask_on_cells(np.zeros((80, 100), dtype=bool), grid())


def test_controls_are_the_same_each_time() -> None:
    for name in CONTROLS:
        one, other = (control_map(name, grid(), "a", 1) for _ in range(2))
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(
        control_map("random", grid(), "a", 1), control_map("random", grid(), "b", 1)
    )
    centre = control_map("centre_prior", grid(5, 5), "a", 0)
    assert centre.argmax() == 12 and centre[2, 2] == 1.0
    np.testing.assert_allclose(centre, centre[::-1, ::-1])
