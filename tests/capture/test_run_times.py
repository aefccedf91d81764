"""The predicted time of a run: first an estimate, then based on the times of finished runs."""

from __future__ import annotations

import gc
import math
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from sinkscope.capture import run_times as timing
from sinkscope.capture.run_times import RunTimes, Work, expected_seconds
from sinkscope.models.family import PromptLayout
from sinkscope.models.views import one_view
from sinkscope.models.vision_cost import vision_attention

QWEN = SimpleNamespace(
    depth=32,
    hidden_size=1280,
    fullatt_block_indexes=[7, 15, 23, 31],
    window_size=112,
    patch_size=14,
)


class Model(nn.Module):
    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers, self.embeddings = layers, nn.Embedding(50, 16)
        self.head = nn.Linear(16, 50)
        self.vision = nn.Linear(30, 30)
        self.config = SimpleNamespace(vision_config=QWEN)


class Handle(SimpleNamespace):
    """A namespace that can be referenced weakly, like a real handle."""


def handle() -> Any:
    model = Model(nn.ModuleList(nn.Linear(16, 16) for _ in range(3)))
    stack = SimpleNamespace(layers=model.layers, hidden_size=16, output_head=model.head)
    return Handle(model=model, stack=stack, embeddings=model.embeddings.weight)


def layout(side: int, more: int = 20) -> PromptLayout:
    """A prompt with one square image of this many patches per side."""
    grid = one_view(5, 1, side, side, 2, (14 * side, 14 * side), (14 * side, 14 * side))
    return PromptLayout(grid.tokens + more, (), (grid,))


def times(first: float, each: float, count: int) -> list[float]:
    return [first + each * index for index in range(count)]


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds per multiplication, instead of the probe; tests may change it."""
    seconds = [2e-8]
    monkeypatch.setattr(timing, "_seconds_per_product", lambda layers, rows: seconds[0])
    return seconds


def test_without_runs_it_is_an_estimate(speed: list[float]) -> None:
    run_times, model = RunTimes(), handle()
    work = Work(layout(20), 10)
    for known in (None, run_times):
        seconds, measured = expected_seconds(model, work, known)
        assert seconds > 0 and not measured
    pair, _ = expected_seconds(model, Work(layout(20), 10, 2))
    forced, _ = expected_seconds(model, Work(layout(20), 10, 2, True))
    assert seconds == forced < pair < 2 * seconds


def test_the_same_run_again_takes_what_it_took(speed: list[float]) -> None:
    run_times, model = RunTimes(), handle()
    work = Work(layout(144), 64)  # about 4 megapixels
    estimated, _ = expected_seconds(model, work, run_times)
    run_times.note(model, work, 15.0, times(100.0, 0.05, 64))
    for other in (speed[0], 7 * speed[0]):  # the probe no longer matters
        speed[0] = other
        seconds, measured = expected_seconds(model, work, run_times)
        assert measured and seconds == pytest.approx(15.0 + 0.05)
    assert abs(estimated - 15) > 1
    # Twice the new tokens: the prompt takes as long as before, each token as long as measured.
    longer, _ = expected_seconds(model, Work(work.layout, 128), run_times)
    assert longer == pytest.approx(15.05 + 64 * 0.05, rel=0.02)


def test_another_size_follows_from_the_work(speed: list[float]) -> None:
    run_times, model = RunTimes(), handle()
    large, smaller = Work(layout(100), 0), Work(layout(80), 0)
    ratio = expected_seconds(model, smaller)[0] / expected_seconds(model, large)[0]
    assert 0.8**4 < ratio < 0.8**2  # attention is quadratic in the patches, the rest linear
    run_times.note(model, Work(large.layout, 1), 16.0, times(16.0, 0, 1))
    seconds, measured = expected_seconds(model, smaller, run_times)
    assert measured and seconds == pytest.approx(16 * ratio)


def test_a_small_run_says_little_about_a_large_one(speed: list[float]) -> None:
    """A tenth of a second of fixed costs must not become minutes."""
    run_times, model = RunTimes(), handle()
    tiny, large = Work(layout(8), 0), Work(layout(144), 0)
    estimated = [expected_seconds(model, work)[0] for work in (tiny, large)]
    assert estimated[1] > 100 * estimated[0]
    run_times.note(model, Work(tiny.layout, 1), 8 * estimated[0], times(1.0, 0, 1))
    assert expected_seconds(model, large, run_times) == (pytest.approx(estimated[1]), False)
    # But at least as long as a smaller run, and at most as long as a larger one.
    run_times.note(model, Work(tiny.layout, 1), 5 * estimated[1], times(1.0, 0, 1))
    assert expected_seconds(model, large, run_times) == (pytest.approx(5 * estimated[1]), False)
    other = RunTimes()
    other.note(model, Work(large.layout, 1), 0.5 * estimated[0], times(1.0, 0, 1))
    assert expected_seconds(model, tiny, other) == (pytest.approx(0.5 * estimated[0]), False)


def test_the_nearest_runs_of_its_kind_count(speed: list[float]) -> None:
    run_times, model = RunTimes(), handle()
    size = layout(40)
    for seconds in (3.0, 2.0, 9.0):
        run_times.note(model, Work(size, 1), seconds, times(seconds, 0, 1))
    for _ in range(3):
        run_times.note(model, Work(layout(50), 1), 1000.0, times(1000.0, 0, 1))
    alone, _ = expected_seconds(model, Work(size, 0), run_times)
    assert alone == pytest.approx(3.0)  # the median: one was disturbed
    # None of this kind, so runs of the other kind give the machine's speed.
    pair, measured = expected_seconds(model, Work(size, 0, 2), run_times)
    assert measured and pair == pytest.approx(3.0)
    run_times.note(model, Work(size, 1, 2), 4.0, times(4.0, 0, 1))
    assert expected_seconds(model, Work(size, 0, 2), run_times)[0] == pytest.approx(4.0)
    assert expected_seconds(model, Work(size, 0), run_times)[0] == pytest.approx(3.0)


def test_only_so_many_runs_are_remembered(speed: list[float]) -> None:
    run_times, model = RunTimes(), handle()
    work = Work(layout(40), 1)
    for seconds in [50.0] * 5 + [1.0] * timing.REMEMBERED:
        run_times.note(model, work, seconds, times(seconds, 0, 1))
    assert {run.prompt_seconds for run in run_times._finished} == {1.0}


def test_a_run_without_tokens_says_nothing(speed: list[float]) -> None:
    run_times, model = RunTimes(), handle()
    run_times.note(model, Work(layout(40), 0), 3.0, [])
    assert not expected_seconds(model, Work(layout(40), 5), run_times)[1]


def test_another_model_begins_anew_and_none_is_kept_in_memory(speed: list[float]) -> None:
    run_times, first, second = RunTimes(), handle(), handle()
    work = Work(layout(40), 1)
    run_times.note(first, work, 3.0, times(3.0, 0, 1))
    assert expected_seconds(first, work, run_times)[1]
    assert not expected_seconds(second, work, run_times)[1]
    alive = weakref.ref(second)
    del second
    gc.collect()
    assert alive() is None


def test_the_least_disturbed_probe_counts(speed: list[float]) -> None:
    run_times, model = RunTimes(), handle()
    work = Work(layout(40), 5)
    quiet, _ = expected_seconds(model, work, run_times)
    speed[0] *= 5  # another run has begun
    assert expected_seconds(model, work, run_times)[0] == quiet
    assert expected_seconds(model, work)[0] > quiet


def test_the_vision_towers_attention_grows_with_the_square() -> None:
    def cost(side: int, **changes: Any) -> tuple[int, int]:
        vision = SimpleNamespace(**{**vars(QWEN), **changes})
        return vision_attention(SimpleNamespace(vision_config=vision), layout(side).grids)

    patches, width = 40 * 40, 1280
    assert cost(40) == (32, 2 * width * (4 * patches**2 + 28 * patches * 64))
    assert cost(40, fullatt_block_indexes=None) == (32, 2 * width * 32 * patches**2)
    assert cost(40, fullatt_block_indexes=[]) == (32, 2 * width * 32 * patches * 64)
    assert cost(4)[1] == 2 * width * 32 * 16**2  # a window is at most as large as the image
    assert vision_attention(SimpleNamespace(), layout(4).grids) == (0, 0)
    assert vision_attention(SimpleNamespace(vision_config=None), ()) == (0, 0)


def test_the_probe_multiplies_what_is_there() -> None:
    seconds, measured = expected_seconds(handle(), Work(layout(4), 3))
    assert 3 * 3 * timing.LAYER_SECONDS <= seconds < math.inf and not measured
