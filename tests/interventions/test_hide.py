"""Hidden keys: masks by hand, and rows of a running model. `tests/sinks/test_masking.py` compares
whole answers with dense attention."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from sinkscope.capture.probes.rows import Rows
from sinkscope.capture.session import attached
from sinkscope.interventions.hide import HideKeys
from sinkscope.models.family import PromptLayout, Segment
from sinkscope.models.info import ModelInfo
from sinkscope.models.loading import load_model
from sinkscope.models.run_info import RunInfo

MODEL = ModelInfo("m", "r", "f", "float32", "cpu", layers=2, heads=1, hidden_size=8)


def run_of(length: int, batch: int = 1) -> RunInfo:
    layout = PromptLayout(length, (Segment("user", 0, length),), ())
    return RunInfo(MODEL, (layout,) * batch, length, 2, torch.device("cpu"))


def test_a_mask_by_hand() -> None:
    """Key 1 is hidden from later queries; its own query sees it, and no query sees later keys."""
    hides = HideKeys(torch.tensor([[False, True, False]])).begin(run_of(3))
    mask = hides.mask(0, range(4), 4, torch.device("cpu"))
    assert mask.shape == (1, 1, 4, 4)
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]
    later = hides.mask(1, range(3, 4), 6, torch.device("cpu"))  # decode, in a longer static cache
    assert later[0, 0].int().tolist() == [[1, 0, 1, 1, 0, 0]]


def test_queries_before_the_first_see_everything() -> None:
    hidden = torch.tensor([[True, False, False]])
    hides = HideKeys(hidden, first_query=2).begin(run_of(3))
    mask = hides.mask(0, range(3), 3, torch.device("cpu"))
    assert mask[0, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]


def test_each_layer_and_each_row_its_own() -> None:
    hidden = torch.zeros(2, 2, 3, dtype=torch.bool)
    hidden[0, 1, 0] = hidden[1, 0, 1] = True
    hides = HideKeys(hidden).begin(run_of(3, batch=2))
    for layer in (0, 1):
        mask = hides.mask(layer, range(3), 3, torch.device("cpu"))
        assert bool(mask[0, 0, 2, 0]) == (layer != 1)
        assert bool(mask[1, 0, 2, 1]) == (layer != 0)


@pytest.mark.parametrize(
    "hidden",
    [torch.zeros(1, 3), torch.zeros(2, 3, dtype=torch.bool), torch.zeros(1, 4, dtype=torch.bool)],
)
def test_wrong_shapes_are_refused(hidden: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"hidden has shape .*; allowed: bool \(1, 3\) or"):
        HideKeys(hidden).begin(run_of(3))


@pytest.mark.tiny
def test_rows_are_a_softmax_over_what_remains(tiny_folder: Path, photo: Image.Image) -> None:
    handle = load_model(str(tiny_folder), device="cpu", dtype="float32")
    inputs = handle.prepare([photo.resize((112, 84))], "What is there?")
    start, end = inputs.layout.grids[0].positions[0], inputs.layout.length
    hidden = torch.zeros(1, end, dtype=torch.bool)
    hidden[0, [start, start + 3]] = True
    plain, rows = (Rows((0,), (start, start + 3, end - 1)) for _ in range(2))
    with attached(handle, inputs, [plain]) as before:
        handle.model(**inputs.tensors)
    with attached(handle, inputs, [rows], [HideKeys(hidden)]) as after:
        handle.model(**inputs.tensors)
    for position in (start, start + 3, end - 1):
        left = before[plain][0, position].clone()
        gone = [key for key in (start, start + 3) if key < position]
        left[..., gone] = 0
        left = left / left.sum(-1, keepdim=True)
        torch.testing.assert_close(after[rows][0, position], left, rtol=0, atol=1e-6)
