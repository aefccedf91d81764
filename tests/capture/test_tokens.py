"""Tokens that are weighed together are weighed as each by itself."""

from __future__ import annotations

import pytest
import torch

from sinkscope.capture import tokens as weighing
from sinkscope.capture.tokens import weigh, weigh_all


@pytest.mark.parametrize("at_once", [1, 7, 64])
@pytest.mark.parametrize("vocabulary", [3, 50])
def test_together_as_alone(at_once: int, vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weighing, "WEIGHED_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20, vocabulary, generator=generator)
    chosen = torch.randint(0, vocabulary, (20,), generator=generator).tolist()
    alone = [weigh(row, token) for row, token in zip(logits, chosen, strict=True)]
    for ours, own in zip(weigh_all(logits, chosen), alone, strict=True):
        assert (ours.ids, ours.rank) == (own.ids, own.rank)
        assert ours.own == pytest.approx(own.own, abs=1e-6)
        assert ours.logs == pytest.approx(own.logs, abs=1e-6)
    assert max(one.rank for one in alone) >= min(vocabulary, 6) - 1  # behind the alternatives too
    assert weigh_all(logits[:0], []) == []
