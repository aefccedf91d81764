"""COCO's run-length masks against hand-made masks, and against a new version of its encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sinkscope.evaluation.explanations.run_length import read_run_length
from sinkscope.evaluation.explanations.settings import ScoreSettings
from sinkscope.evaluation.explanations.targets import targets_of

# 3 rows, 4 columns; column by column: 0 1 1 | 1 0 0 | 0 0 0 | 0 1 0
MASK = np.array([[0, 1, 0, 0], [1, 0, 0, 1], [1, 0, 0, 0]], dtype=bool)
COUNTS = [1, 3, 6, 1, 1]
# 1 -> "1", 3 -> "3", 6 -> "6", then differences: 1 - 3 = -2 -> 11110 is 30, "N"; 1 - 6 = -5 -> "K"
TEXT = "136NK"


def counts_of(mask: np.ndarray) -> list[int]:
    runs, last = [0], False
    for value in mask.ravel(order="F"):
        if bool(value) != last:
            runs.append(0)
            last = bool(value)
        runs[-1] += 1
    return runs


def text_of(counts: list[int]) -> str:
    """`rleToString` of maskApi.c."""
    made = ""
    for i, own in enumerate(counts):
        x, more = own - (counts[i - 2] if i > 2 else 0), True
        while more:
            c = x & 0x1F
            x >>= 5
            more = x != -1 if c & 0x10 else x != 0
            made += chr((c | 0x20 if more else c) + 48)
    return made


@pytest.mark.parametrize("counts", [COUNTS, TEXT, TEXT.encode()])
def test_by_hand(counts: Any) -> None:
    assert counts_of(MASK) == COUNTS and text_of(COUNTS) == TEXT
    np.testing.assert_array_equal(read_run_length({"size": [3, 4], "counts": counts}), MASK)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_encoded_comes_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.random((7, 5)) < 0.5, np.ones((60, 90))).astype(bool)
    mask[:: seed + 2] = rng.random(mask.shape[1]) < 0.5
    size, counts = list(mask.shape), counts_of(mask)
    for own in (counts, text_of(counts)):
        np.testing.assert_array_equal(read_run_length({"size": size, "counts": own}), mask)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"size": [3, 4], "counts": [1, 3]}, "of 3 x 4 has runs of 4 pixels; allowed: 12"),
        ({"size": [3, 4], "counts": [13, -1]}, "whole numbers from 0"),
        ({"size": [3, 4], "counts": "136N"}, "has runs of 11 pixels"),
        ({"size": [3, 4], "counts": "136NKq"}, "allowed: COCO run lengths as text"),
        ({"size": [3, 4], "counts": "136NP"}, "end within a number"),
        ({"size": [3, 4], "counts": "o" * 40}, "allowed: COCO run lengths as text"),
        ({"size": [3], "counts": COUNTS}, r"size \[3\]; allowed: \[height, width\]"),
        ({"size": [1 << 20, 1 << 20], "counts": COUNTS}, "pixels"),
        ({"size": [3, 4]}, "counts 'None'"),
    ],
)
def test_what_is_no_mask_is_refused(made: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_run_length(made)


def coco(folder: Path, *segmentations: tuple[Any, int]) -> Path:
    Image.new("RGB", (4, 3)).save(folder / "a.png")
    objects = [
        {
            "image_id": 1,
            "category_id": 7,
            "bbox": [0, 0, 1, 1],
            "segmentation": own,
            "iscrowd": crowd,
        }
        for own, crowd in segmentations
    ]
    made = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": objects,
    }
    (folder / "instances_val.json").write_text(json.dumps(made))
    return folder


def test_single_and_crowd_masks_are_one_target(tmp_path: Path) -> None:
    other = np.zeros((3, 4), dtype=bool)
    other[0, 2:] = True
    data = coco(
        tmp_path,
        ({"size": [3, 4], "counts": TEXT}, 0),
        ({"size": [3, 4], "counts": counts_of(other)}, 1),
        ([], 0),  # a box
    )
    (target,) = targets_of(ScoreSettings(data=str(data)))
    image, mask = target.load()
    box = np.zeros((3, 4), dtype=bool)
    box[0, 0] = True
    np.testing.assert_array_equal(mask, MASK | other | box)
    assert image.size == (4, 3) and target.word == "cat"


def test_a_mask_of_another_size_names_the_image(tmp_path: Path) -> None:
    (target,) = targets_of(
        ScoreSettings(data=str(coco(tmp_path, ({"size": [4, 3], "counts": COUNTS}, 0))))
    )
    with pytest.raises(ValueError, match=r"a\.png: a run-length mask has size \[4, 3\]; allowed.*"):
        target.load()
