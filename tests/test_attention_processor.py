"""Maps and shares from a small trace whose numbers can be computed by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from sinkscope.attention_processor import (
    combine,
    head_mean,
    image_share,
    patch_map,
    rare_sink_cells,
    sink_cells,
    sink_share,
    tokens_attending_to,
)
from sinkscope.capture.trace import GenerationTrace, LayerSinks
from sinkscope.config import Reduce
from sinkscope.models.views import one_view
from tests.capture.test_storage import small_trace


@pytest.fixture
def trace() -> GenerationTrace:
    """3 tokens, layers 0 and 3, 3 heads, one image of 2 x 3 cells at positions 2..7."""
    return small_trace()


def test_the_mean_over_all_layers_and_heads(trace: GenerationTrace) -> None:
    heat = patch_map(trace, 1)
    assert heat.values.shape == (2, 3)
    expected = trace.attention[1].float().mean(dim=(0, 1)).view(2, 3).numpy()
    np.testing.assert_allclose(heat.values, expected, rtol=1e-6)
    assert (heat.unit, heat.normalisation) == ("attention mass", "none")


def test_layers_are_named_as_in_the_model(trace: GenerationTrace) -> None:
    heat = patch_map(trace, 0, layers=[3], heads=[2])
    np.testing.assert_allclose(heat.values.reshape(-1), trace.attention[0, 1, 2].float())
    with pytest.raises(ValueError, match=r"layers is \[1\]; the trace holds layers 0, 3"):
        patch_map(trace, 0, layers=[1])
    with pytest.raises(ValueError, match=r"heads is \[\]"):
        patch_map(trace, 0, heads=[])


@pytest.mark.parametrize(("reduce", "pick"), [("max", np.max), ("min", np.min)])
def test_max_and_min_are_over_layers_and_heads(
    trace: GenerationTrace, reduce: str, pick: object
) -> None:
    heat = patch_map(trace, 2, reduce=reduce)  # type: ignore[arg-type]
    rows = trace.attention[2].float().numpy().reshape(6, 6)
    np.testing.assert_allclose(heat.values.reshape(-1), pick(rows, axis=0))  # type: ignore[operator]


def test_several_tokens_are_averaged(trace: GenerationTrace) -> None:
    both = patch_map(trace, range(2)).values
    single = [patch_map(trace, t).values for t in range(2)]
    np.testing.assert_allclose(both, np.mean(single, axis=0), rtol=1e-5)
    several = patch_map(trace, [0, 2], reduce="max").values
    maxima = [patch_map(trace, t, reduce="max").values for t in (0, 2)]
    np.testing.assert_allclose(several, np.mean(maxima, axis=0), rtol=1e-5)


def test_normalising(trace: GenerationTrace) -> None:
    share = patch_map(trace, 0, normalise=True)
    assert share.values.sum() == pytest.approx(1, abs=1e-6)
    assert share.unit == "share of image attention"


@pytest.mark.parametrize("reduce", ["mean", "max", "min"])
def test_a_value_that_is_missing_makes_the_map_miss_it(reduce: Reduce) -> None:
    rows = torch.rand(2, 3, 4, 5)
    whole = combine(rows, reduce)
    rows[:, 1, :, 2] = torch.nan  # in one layer
    got = combine(rows, reduce)
    assert got.isnan().tolist() == [False, False, True, False, False]
    torch.testing.assert_close(got[[0, 1, 3, 4]], whole[[0, 1, 3, 4]])


def test_two_images_have_their_own_columns(trace: GenerationTrace) -> None:
    grid = trace.layout.grids[0]
    layout = dataclasses.replace(
        trace.layout,
        grids=(
            one_view(2, 1, 2, 4, 2, grid.resized, grid.original),  # 2 tokens
            one_view(5, 1, 4, 4, 2, grid.resized, grid.original),  # 4 tokens
        ),
    )
    two = dataclasses.replace(trace, layout=layout)
    assert patch_map(two, 0, image=0).values.shape == (1, 2)
    second = patch_map(two, 0, image=1).values
    mean = two.attention[0].float().mean(dim=(0, 1))
    np.testing.assert_allclose(second.reshape(-1), mean[2:], rtol=1e-6)
    with pytest.raises(ValueError, match="image is 2"):
        patch_map(two, 0, image=2)


@pytest.mark.parametrize("token", [3, -1, [], [0, 9]])
def test_a_token_that_is_not_there(trace: GenerationTrace, token: object) -> None:
    with pytest.raises(ValueError, match="allowed: 0 to 2"):
        patch_map(trace, token)  # type: ignore[arg-type]


def test_an_empty_answer_has_no_token() -> None:
    with pytest.raises(ValueError, match="the answer is empty"):
        patch_map(small_trace(0), 0)


def test_shares(trace: GenerationTrace) -> None:
    assert torch.allclose(image_share(trace), trace.shares[..., 1])
    assert head_mean(trace).shape == (3, 2, 6)
    held = sink_share(trace)
    assert torch.equal(held[:, 0], torch.zeros(3, 3))  # no sinks known in layer 0
    rows = trace.attention[:, 1].float()
    assert torch.allclose(held[:, 1], (rows[..., 2] + rows[..., 5]) / rows.sum(-1))


def test_a_row_blind_to_the_image_has_no_sink_share(trace: GenerationTrace) -> None:
    blind = dataclasses.replace(trace, attention=torch.zeros_like(trace.attention))
    assert torch.equal(sink_share(blind), torch.zeros(3, 2, 3))
    assert patch_map(blind, 0, normalise=True).values.sum() == 0


def test_sinks_outside_the_image_are_no_columns(trace: GenerationTrace) -> None:
    text = dataclasses.replace(trace, sinks=(LayerSinks(3, (0, 9), (30.0, 30.0)),))
    assert torch.equal(sink_share(text), torch.zeros(3, 2, 3))


def test_sinks_of_few_layers(trace: GenerationTrace) -> None:
    assert sink_cells(trace) == (2, 5) and rare_sink_cells(trace) == ()  # in half of two layers
    assert rare_sink_cells(trace, (0, 1, 3)) == (2, 5)
    assert rare_sink_cells(trace, (3,)) == () and rare_sink_cells(trace, (0,)) == ()


def test_reverse_look_up(trace: GenerationTrace) -> None:
    looks = tokens_attending_to(trace, [1, 4], layers=[0])
    mass = trace.attention[:, 0].float()[..., [1, 4]].sum(-1).mean(-1)
    assert [look.token for look in looks] == mass.argsort(descending=True).tolist()
    assert [look.mass for look in looks] == pytest.approx(sorted(mass.tolist(), reverse=True))
    assert looks[0].text == f"w{looks[0].token}é"
    with pytest.raises(ValueError, match="at least one index from 0 to 5"):
        tokens_attending_to(trace, [6])
