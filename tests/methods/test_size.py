"""No method makes a tensor of heads x N x N, with Qwen's layout or with tiles and marks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sinkscope.attention_extractor import generate
from sinkscope.benchmarks.memory import peak_extra, supported
from sinkscope.config import GenerationSettings
from sinkscope.methods import chefer
from sinkscope.methods.explain import METHODS, explain
from sinkscope.methods.layerwise import RecomputedLayer
from sinkscope.methods.passes import passes_of
from sinkscope.models import attention
from tests.methods.conftest import World
from tests.models.fake_family import make_handle

pytestmark = pytest.mark.tiny

FROM_MODEL = [method.name for method in METHODS if method.needs != "trace"]


class Largest(TorchDispatchMode):
    """The largest tensor made by any operation in which two axes are about N long."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length, self.most = length, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, torch.Tensor):
                long = [n for n in one.shape if self.length - 4 <= n <= self.length + 8]
                if len(long) >= 2:
                    self.most = max(self.most, one.numel())
        return made


@pytest.mark.parametrize("name", [one for one in FROM_MODEL if one != "var"])
def test_no_tensor_of_all_pairs(world: World, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = world.run.images[0].resize((280, 252))  # 90 vision tokens
    inputs = world.handle.prepare([image], "Where?")
    run = generate(world.handle, inputs, GenerationSettings(max_new_tokens=2))
    session = passes_of(world.handle, run, inputs)
    monkeypatch.setattr(attention, "CHUNK", 8)
    monkeypatch.setattr(chefer, "BLOCK_BYTES", 1 << 12)
    length = len(session.ids)
    with Largest(length) as seen:
        explain(run, 1, name, session=session)
    # a mask of N x N is one value a pair, whatever the heads; heads x N x N is four
    assert seen.most <= (length + 8) ** 2, (name, seen.most, length)


def test_the_watch_sees_a_dense_matrix(world: World) -> None:
    with Largest(40) as seen:
        torch.einsum("hnd,hmd->hnm", torch.ones(4, 40, 8), torch.ones(4, 40, 8))
    assert seen.most >= 4 * 40 * 40


def test_a_family_with_tiles_and_marks() -> None:
    handle = make_handle()
    pixels = np.zeros((70, 90, 3), dtype=np.uint8)
    pixels[10:30, 50:80] = (250, 10, 10)
    inputs = handle.prepare([Image.fromarray(pixels)], "What is there?")
    run = generate(handle, inputs, GenerationSettings(max_new_tokens=3))
    session = passes_of(handle, run, inputs)
    grid = run.layout.grids[0]
    assert not grid.plain and len(grid.views) > 1
    for name in FROM_MODEL:
        if name == "var":
            continue
        stack = explain(run, (0, 2) if name != "region_search" else 2, name, session=session)
        heat = stack.map().values
        assert heat.shape == (grid.rows, grid.columns), name
        assert np.isfinite(heat[~grid.unseen()]).all() and heat[~grid.unseen()].std() > 0, name


@pytest.mark.slow
@pytest.mark.skipif(not supported("cpu"), reason="peaks are measured on Linux")
@pytest.mark.parametrize("name", ["rollout", "chefer"])
def test_memory_beside_a_plain_forward_pass(name: str) -> None:
    """The requirement: at N = 1024 at most 3 times the memory of a plain forward pass."""
    plain, peak = (
        peak_extra(way, "small", "cpu", "float32", 1024, 1, returned_at_once=True)
        for way in ("forward", name)
    )
    assert peak <= 3 * plain, (peak, plain)


def test_rows_of_a_layer_with_a_window() -> None:
    """Chefer's blocks of rows see what the model's own sliding window lets them see."""
    some = torch.zeros(1, 2, 10, 4)
    again = RecomputedLayer(some, some, some, 1.0, some, some, window=3)
    assert again.mask(0, 3) is None  # only causal
    mask = again.mask(4, 7)
    assert mask is not None and mask.shape == (1, 1, 3, 7)
    for row, query in enumerate(range(4, 7)):
        assert mask[0, 0, row].nonzero()[:, 0].tolist() == [query - 2, query - 1, query]
