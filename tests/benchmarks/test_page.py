"""`benchmarks page` measures what it reports, with small sizes; the times are not tested."""

from __future__ import annotations

import pytest

from sinkscope.benchmarks import page
from tests.loops import elsewhere


def test_weight_of_all_that_is_ours() -> None:
    ours = page.weight()
    assert 20_000 < ours["sent"] < 150_000  # all tabs together
    assert ours["sent"] < ours["bytes"]


@pytest.mark.browser
def test_a_whole_measurement(chromium: str) -> None:
    small = page.Sizes(layers=3, heads=2, tokens=6, side=4, streamed=40, opened=1)
    result = elsewhere(page.measure, small)
    assert result["opening"]["worst"] > 0
    assert result["repaint"]["requests"] == 0
    assert len(result["streaming"]["quarters"]) == 4
    assert all(quarter > 0 for quarter in result["streaming"]["quarters"])
    assert set(result["large"]) == {"ready", "tokens", *page.SLIDERS}
    assert result["large"]["layer-to"]["longest_computed"] > 0
    assert "40 tokens" in page.table(result) and "dragging head-to" in page.table(result)
