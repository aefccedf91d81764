"""The module that notebooks import: its names, the patch's checks and its label."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sinkscope import var_patch
from sinkscope.config import VARSettings
from sinkscope.models.family import PromptLayout, Segment
from sinkscope.models.info import ModelInfo
from sinkscope.models.views import one_view

MODEL = ModelInfo("m", "r", "f", "float32", "cpu", layers=6, heads=4, hidden_size=64)
SETTINGS = VARSettings(dims=(3, 40), tau=4.0)


def layout(images: int = 2) -> PromptLayout:
    """Five system tokens, then images of 2 x 3 tokens with one token between, then four more."""
    grids = tuple(
        one_view(5 + 7 * i, t=1, h=4, w=6, merge=2, resized=(56, 84), original=(56, 84))
        for i in range(images)
    )
    length = 5 + 7 * images + 4
    return PromptLayout(length, (Segment("system", 0, length),), grids)


def test_every_public_name_is_there() -> None:
    for name in var_patch.__all__:
        assert getattr(var_patch, name).__name__ == name


def test_patch_changes_rows_after_the_last_image_in_its_layers() -> None:
    var = var_patch.patch([None, SETTINGS], layout(), MODEL, new_tokens=3)
    assert [layer for layer in range(6) if var.acts_on(layer)] == [2, 3, 4]
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 23, 64, generator=generator)
    hidden[:, [2, 7, 14], 3] = 50.0
    var.observe(2, hidden, 0)
    weights = torch.softmax(torch.randn(2, 4, 23, 23, generator=generator), -1)
    new = var.rows(2, weights, 0)
    changed = (new != weights).any(-1)
    assert not changed[0].any()
    assert not changed[1, :, :18].any()  # the second image ends at 18
    assert changed[1, :, 18:].any()
    expected = torch.zeros(1, 23, dtype=torch.bool)
    expected[:, [2, 7, 14]] = True
    vision = torch.zeros(1, 23, dtype=torch.bool)
    vision[:, [*range(5, 11), *range(12, 18)]] = True
    dense = var_patch.redistribute(weights[1:], expected, vision, SETTINGS, 18)
    torch.testing.assert_close(new[1:], dense, rtol=0, atol=1e-7)
    assert torch.equal(
        changed[1:, :, 18:],
        var_patch.select_rows(weights[1:], expected, vision, SETTINGS)[:, :, 18:],
    )
    assert var.report(1).layers[0].positions == (2, 7, 14)


@pytest.mark.parametrize(
    ("change", "images", "complaint"),
    [
        ({"dims": (3, 64)}, 1, r"dims has \[64\].*0 to 63"),
        ({"tau": 8.5}, 1, "tau is 8.5.*no token could ever be a sink"),
        ({"layers": (5, 6)}, 1, r"layers has \[6\].*0 to 5"),
        ({}, 0, "The prompt has no image"),
    ],
)
def test_patch_refuses_what_cannot_work(
    change: dict[str, object], images: int, complaint: str
) -> None:
    own = dataclasses.replace(SETTINGS, **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=complaint):
        var_patch.patch([None, own], layout(images), MODEL, new_tokens=3)


def test_the_label_names_every_setting_that_matters() -> None:
    label = var_patch.describe(dataclasses.replace(SETTINGS, keep=0.3, dialect="paper"))
    assert label == (
        "VAR (paper): dims 3, 40, tau 4, keep 0.3, max sink share 0.5, min image mass 0.2"
    )
    control = var_patch.describe(dataclasses.replace(SETTINGS, control="random"))
    assert control.endswith(", control: random tokens")
