"""The two sink criteria: definition, float32 inside, strict or not, blocks, and refusals."""

from __future__ import annotations

import math

import pytest
import torch

from sinkscope.models import sink_score as sinks
from sinkscope.models.sink_score import massive_activations, sink_mask, sink_score


def test_score_by_hand() -> None:
    """x = (3, -4, 0, 0): mean of squares 25 / 4, so the score of -4 is 4 / 2.5 = 1.6."""
    x = torch.tensor([[3.0, -4.0, 0.0, 0.0]])
    assert sink_score(x, (1, 2)).item() == pytest.approx(1.6, abs=1e-6)
    assert sink_score(x, (0,)).item() == pytest.approx(1.2, abs=1e-6)


def test_score_never_exceeds_the_root_of_the_hidden_size() -> None:
    x = torch.zeros(1, 64)
    x[0, 7] = 1e4
    assert sink_score(x, (7,)).item() == pytest.approx(math.sqrt(64), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_dtype_is_scored_in_float32(dtype: torch.dtype) -> None:
    """3000 squared is infinite in float16, and infinite RMS would mean a score of 0."""
    x = torch.full((2, 64), 0.5)
    x[1, 7] = 3000.0
    score = sink_score(x.to(dtype), (7,))
    assert score.dtype == torch.float32
    torch.testing.assert_close(score, sink_score(x, (7,)), rtol=1e-2, atol=0)
    assert score[1] > 7.9


def test_only_the_paper_counts_a_score_that_equals_tau() -> None:
    x = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(0))
    tau = float(sink_score(x, (3, 4))[0, 5])
    official = sink_mask(x, (3, 4), tau, "official")
    paper = sink_mask(x, (3, 4), tau, "paper")
    assert not official[0, 5] and paper[0, 5]
    assert (official ^ paper).sum() == 1


def test_long_prompts_are_scored_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 50, 16, generator=torch.Generator().manual_seed(0))
    whole = sink_score(x, (1, 2))
    monkeypatch.setattr(sinks, "BLOCK_TOKENS", 7)
    assert torch.equal(sink_score(x, (1, 2)), whole)
    assert whole.shape == (2, 3, 50)
    assert sink_score(x[0, 0, 0], (1, 2)).shape == ()


def test_massive_activations_need_size_and_contrast() -> None:
    x = torch.full((4, 33), 0.05)
    x[0, 7] = 120.0  # large and 2400 times the median
    x[1, 7] = 90.0  # contrast alone
    x[2] = 1.0
    x[2, 7] = 120.0  # size alone
    assert massive_activations(x).tolist() == [True, False, False, False]
    assert massive_activations(x, dims=(7, 8)).tolist() == [True, False, False, False]
    assert not massive_activations(x, dims=(8,)).any()


@pytest.mark.parametrize("dims", [(), (64,), (-1,)])
def test_dims_outside_the_hidden_size_are_refused(dims: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"dims is .*allowed.*0 to 63"):
        sink_score(torch.zeros(1, 64), dims)
    with pytest.raises(ValueError, match="dims is"):
        massive_activations(torch.zeros(1, 64), dims)


def test_other_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="hidden has shape"):
        sink_score(torch.zeros(2, 8, dtype=torch.long), (1,))
    with pytest.raises(ValueError, match="hidden has shape"):
        sink_score(torch.tensor(1.0), (0,))
    with pytest.raises(ValueError, match="dialect is 'other'"):
        sink_mask(torch.zeros(1, 8), (1,), 2.0, "other")  # type: ignore[arg-type]
