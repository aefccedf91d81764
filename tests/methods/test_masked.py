"""Occlusion and region search equal dense reimplementations in float64 (the tiny model)."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from sinkscope.jobs.job import Stopped
from sinkscope.methods import masked
from sinkscope.methods.explain import explain
from sinkscope.methods.occlusion import Occlusion
from sinkscope.methods.passes import Passes, passes_of
from sinkscope.methods.region_search import RegionSearch
from sinkscope.methods.superpixels import regions
from tests.methods.conftest import World

pytestmark = pytest.mark.tiny


def log_p(world: World, cut: list[int], inputs: Any = None) -> torch.Tensor:
    """(T,) of all answer tokens, without the edges of some cells, or for another prompt."""
    tensors = world.passes.tensors(inputs)
    positions = [world.vision[cell] for cell in cut]
    seen = world.dense.read(tensors, positions, world.run.layout.after_images)
    logs = seen.logits.detach().log_softmax(-1)
    count = len(world.run.tokens)
    return torch.stack([logs[world.at(t), world.id(t)] for t in range(count)])


@pytest.fixture(autouse=True)
def small_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several passes, the last of which is not full."""
    monkeypatch.setitem(masked.BATCH_TOKENS, "cpu", 60)


def test_edges_cut(world: World) -> None:
    grid = world.run.layout.grids[0]
    plain = log_p(world, [])
    drops = torch.stack([plain - log_p(world, [cell]) for cell in range(len(world.vision))], dim=1)
    stack = explain(world.run, (0, 3), "occlusion_edges", session=world.passes)
    np.testing.assert_allclose(stack.values, drops[[0, 3]], rtol=1e-4, atol=1e-9)
    assert stack.signed and stack.unit == "nats lost" and float(drops.min()) < 0 < drops.max()
    # windows of 2 x 2: a cell has the mean over those that cover it
    total, cover = np.zeros((grid.rows, grid.columns)), np.zeros((grid.rows, grid.columns))
    for top in range(grid.rows - 1):
        for left in range(grid.columns - 1):
            cells = [r * grid.columns + c for r in (top, top + 1) for c in (left, left + 1)]
            drop = float((plain - log_p(world, cells))[3])
            total[top : top + 2, left : left + 2] += drop
            cover[top : top + 2, left : left + 2] += 1
    stack = explain(world.run, 3, Occlusion("edges", 2), session=world.passes)
    np.testing.assert_allclose(stack.map().values, total / cover, rtol=1e-4, atol=1e-9)


def test_pixels_grey(world: World) -> None:
    grid = world.run.layout.grids[0]
    image, boxes = world.run.images[0], grid.boxes()
    drops = []
    for cell in range(len(boxes)):
        grey = image.copy()
        x0, y0, x1, y1 = (int(edge) for edge in np.round(boxes[cell]))
        ImageDraw.Draw(grey).rectangle((x0, y0, x1 - 1, y1 - 1), fill=(127, 127, 127))
        inputs = world.handle.prepare([grey], world.run.prompt)
        drops.append(log_p(world, []) - log_p(world, [], inputs))
    stack = explain(world.run, "answer", "occlusion_pixels", session=world.passes)
    np.testing.assert_allclose(stack.values, torch.stack(drops, 1), rtol=1e-4, atol=1e-8)
    assert np.asarray(image).shape == (84, 140, 3) and (np.asarray(image) != 127).any()


@pytest.mark.parametrize("tokens", [(2,), (1, 3)])
def test_region_search(world: World, tokens: tuple[int, ...]) -> None:
    grid, image = world.run.layout.grids[0], world.run.images[0]
    label = regions(image, grid, 5)
    count = int(label.max()) + 1
    cells = [np.flatnonzero(label == one).tolist() for one in range(count)]
    everything = list(range(len(world.vision)))

    def p(hidden: list[int]) -> float:
        return float(log_p(world, hidden).exp()[list(tokens)].mean())

    chosen: list[int] = []
    reached = [p(everything) + 1 - p([])]
    while len(chosen) < count:
        best, value = -1, -np.inf
        for one in range(count):
            if one in chosen:
                continue
            kept = [cell for each in (*chosen, one) for cell in cells[each]]
            now = p([cell for cell in everything if cell not in kept]) + 1 - p(kept)
            if now > value:
                best, value = one, now
        chosen.append(best)
        reached.append(value)
    expected = np.zeros(len(everything))
    for step, one in enumerate(chosen, start=1):
        expected[cells[one]] = sum(
            abs(reached[k] - reached[k - 1]) for k in range(step + 1, count + 1)
        )
    stack = explain(world.run, tokens, RegionSearch(5), session=world.passes)
    np.testing.assert_allclose(stack.values[0], expected, rtol=1e-3, atol=1e-8)
    assert stack.axes == ((("token", tokens),) if len(tokens) == 1 else ())
    assert stack.map().values.shape == (grid.rows, grid.columns)


def test_regions_follow_colours() -> None:
    """Two halves of different colours are never in the same region."""
    pixels = np.zeros((84, 140, 3), dtype=np.uint8)
    pixels[:, :56] = (200, 30, 30)
    pixels[:, 56:] = (30, 30, 200)
    from sinkscope.models.views import one_view

    grid = one_view(0, 1, 6, 10, 2, (84, 140), (84, 140))
    label = regions(Image.fromarray(pixels), grid, 4).reshape(3, 5)
    assert not set(label[:, :2].ravel()) & set(label[:, 2:].ravel())
    assert sorted(set(label.ravel())) == list(range(int(label.max()) + 1)) and label.max() >= 1


@pytest.mark.parametrize("method", ["occlusion_edges", "occlusion_pixels", "region_search"])
def test_progress_and_stop(world: World, method: str) -> None:
    reports: list[tuple[int, int, str]] = []
    stop = threading.Event()
    passes = passes_of(world.handle, world.run, world.inputs, stop=stop)

    def progress(done: int, total: int, text: str) -> None:
        reports.append((done, total, text))
        if len(reports) == 3:
            stop.set()

    with pytest.raises(Stopped) as stopped:
        explain(world.run, 1, method, session=passes, progress=progress)
    assert len(reports) == 3 and reports[0][0] == 0 and 0 < reports[2][0] < reports[2][1]
    assert stopped.value.total == reports[0][1]
    assert not world.handle.lock.locked()
    # and nothing is left attached
    explain(world.run, 1, "rollout", session=Passes(world.handle, world.run, world.inputs))
