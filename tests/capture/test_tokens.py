"""Statistics of several tokens computed together equal those of each computed alone."""

from __future__ import annotations

import pytest
import torch

from sinkscope.capture import tokens as weighing
from sinkscope.capture.tokens import batch_statistics, token_statistics


@pytest.mark.parametrize("at_once", [1, 7, 64])
@pytest.mark.parametrize("vocabulary", [3, 50])
def test_together_as_alone(at_once: int, vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weighing, "TOKENS_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20, vocabulary, generator=generator)
    chosen = torch.randint(0, vocabulary, (20,), generator=generator).tolist()
    alone = [token_statistics(row, token) for row, token in zip(logits, chosen, strict=True)]
    for ours, own in zip(batch_statistics(logits, chosen), alone, strict=True):
        assert (ours.ids, ours.rank) == (own.ids, own.rank)
        assert ours.log_probability == pytest.approx(own.log_probability, abs=1e-6)
        assert ours.log_probabilities == pytest.approx(own.log_probabilities, abs=1e-6)
    assert max(one.rank for one in alone) >= min(vocabulary, 6) - 1  # also beyond the alternatives
    assert batch_statistics(logits[:0], []) == []
