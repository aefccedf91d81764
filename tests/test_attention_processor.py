"""Maps and shares from a small trace whose numbers can be worked out by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from attention_processor import (
    head_mean,
    image_share,
    patch_map,
    relative_map,
    sink_share,
    tokens_looking_at,
)
from capture.trace import GenerationTrace, LayerSinks
from tests.capture.test_storage import prompt_trace, small_trace


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


def test_a_relative_map_is_divided_by_the_generic_prompts(trace: GenerationTrace) -> None:
    reference = prompt_trace(trace, 1)
    row = torch.tensor([0.4, 0.1, 0.1, 0.0, 0.2, 0.1], dtype=torch.float16)  # its mean is 0.15
    reference = dataclasses.replace(reference, attention=row.expand(1, 2, 3, 6))
    run = dataclasses.replace(trace, reference=reference, prompt_rows=prompt_trace(trace, 2))
    heat = relative_map(run, 1, layers=[3], heads=[2])
    own = trace.attention[1, 1, 2].float().numpy()
    divisor = np.array([0.4, 0.1, 0.1, 0.015, 0.2, 0.1])  # never below a tenth of the mean
    np.testing.assert_allclose(heat.values.ravel(), own / divisor, rtol=2e-3)
    assert heat.unit == "times the generic prompt"
    assert "'of this'" in heat.normalisation
    of_prompt = relative_map(run, 0, of_prompt=True).values.ravel()
    assert run.prompt_rows is not None
    rows = run.prompt_rows.attention[0].float().mean(dim=(0, 1)).numpy()
    np.testing.assert_allclose(of_prompt, rows / divisor, rtol=2e-3)
    # Against itself it is 1 wherever the floor does not reach.
    same = dataclasses.replace(run, attention=reference.attention.expand(3, 2, 3, 6))
    np.testing.assert_allclose(relative_map(same, 0).values.ravel(), [1, 1, 1, 0, 1, 1], rtol=1e-6)


def test_where_there_is_nothing_to_divide_by(trace: GenerationTrace) -> None:
    with pytest.raises(ValueError, match="generated without reference=True"):
        relative_map(trace, 0)
    told = dataclasses.replace(trace, extra={"no_reference": "it was stopped"})
    with pytest.raises(ValueError, match="no generic prompt to compare with: it was stopped"):
        relative_map(told, 0)
    blind = dataclasses.replace(
        prompt_trace(trace, 1), attention=torch.zeros(1, 2, 3, 6, dtype=torch.float16)
    )
    run = dataclasses.replace(trace, reference=blind)
    assert (relative_map(run, 0).values == 0).all()  # a row that saw nothing of the image
    with pytest.raises(ValueError, match="no rows of its prompt"):
        relative_map(run, 0, of_prompt=True)


@pytest.mark.parametrize(("h", "w"), [(2, 12), (6, 4), (2, 2), (4, 12)])  # half as many rows, ...
def test_maps_of_other_patches_are_never_divided(trace: GenerationTrace, h: int, w: int) -> None:
    (grid,) = trace.layout.grids
    other = dataclasses.replace(grid, h=h, w=w)
    layout = dataclasses.replace(trace.layout, grids=(other,))
    reference = dataclasses.replace(
        prompt_trace(trace, 1),
        layout=layout,
        attention=torch.ones(1, 2, 3, other.tokens, dtype=torch.float16),
    )
    run = dataclasses.replace(trace, reference=reference, prompt_rows=prompt_trace(trace, 2))
    wrong = rf"cut into other patches \({h // 2} x {w // 2}\) than the run's own \(2 x 3\)"
    for of_prompt in (False, True):
        with pytest.raises(ValueError, match=wrong):
            relative_map(run, 0, of_prompt=of_prompt)
    further = dataclasses.replace(grid, start=grid.start + 3)  # a longer system message before it
    moved = dataclasses.replace(
        prompt_trace(trace, 1), layout=dataclasses.replace(trace.layout, grids=(further,))
    )
    assert relative_map(dataclasses.replace(trace, reference=moved), 0).values.shape == (2, 3)


def test_several_tokens_are_averaged(trace: GenerationTrace) -> None:
    both = patch_map(trace, range(2)).values
    single = [patch_map(trace, t).values for t in range(2)]
    np.testing.assert_allclose(both, np.mean(single, axis=0), rtol=1e-5)
    several = patch_map(trace, [0, 2], reduce="max").values
    maxima = [patch_map(trace, t, reduce="max").values for t in (0, 2)]
    np.testing.assert_allclose(several, np.mean(maxima, axis=0), rtol=1e-5)


def test_normalising_and_leaving_sinks_out(trace: GenerationTrace) -> None:
    share = patch_map(trace, 0, normalise=True)
    assert share.values.sum() == pytest.approx(1, abs=1e-6)
    assert share.unit == "share of image attention"
    clean = patch_map(trace, 0, layers=[3], exclude_sinks=True)
    assert clean.values.reshape(-1)[[2, 5]].tolist() == [0, 0]  # positions 4 and 7, span from 2
    assert (clean.values.reshape(-1)[[0, 1, 3, 4]] > 0).all()
    other = patch_map(trace, 0, layers=[0], exclude_sinks=True)
    np.testing.assert_allclose(other.values, patch_map(trace, 0, layers=[0]).values)
    assert clean.normalisation == "sinks set to 0"


def test_two_images_have_their_own_columns(trace: GenerationTrace) -> None:
    grid = trace.layout.grids[0]
    layout = dataclasses.replace(
        trace.layout,
        grids=(
            dataclasses.replace(grid, h=2, w=4),  # 2 tokens
            dataclasses.replace(grid, start=5, h=4, w=4),  # 4 tokens
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


def test_reverse_look_up(trace: GenerationTrace) -> None:
    looks = tokens_looking_at(trace, [1, 4], layers=[0])
    mass = trace.attention[:, 0].float()[..., [1, 4]].sum(-1).mean(-1)
    assert [look.token for look in looks] == mass.argsort(descending=True).tolist()
    assert [look.mass for look in looks] == pytest.approx(sorted(mass.tolist(), reverse=True))
    assert looks[0].text == f"w{looks[0].token}é"
    with pytest.raises(ValueError, match="at least one index from 0 to 5"):
        tokens_looking_at(trace, [6])
