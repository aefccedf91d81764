"""Each method that reads the model equals its dense reimplementation in float64 (tiny model)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sinkscope.methods.agcam import AGCAM
from sinkscope.methods.base import MapStack, Method
from sinkscope.methods.chefer import Chefer
from sinkscope.methods.explain import explain
from sinkscope.methods.gradient_attention import GradientAttention
from sinkscope.methods.logit_lens import LogitLens
from sinkscope.methods.rollout import Rollout
from sinkscope.methods.tam import TokenActivation
from sinkscope.methods.value_weighted import ValueWeighted
from tests.methods.conftest import World
from tests.methods.dense import gradients

pytestmark = pytest.mark.tiny

ONE, SOME = (2,), (0, 2, 4)


def stack_of(world: World, method: Method, tokens: tuple[int, ...] = SOME) -> MapStack:
    return explain(world.run, tokens, method, session=world.passes)


def same(stack: MapStack, expected: list[torch.Tensor]) -> None:
    """The stack's slots equal the expected parts, one for each token, each (..., V)."""
    want = torch.stack([one.detach() for one in expected])
    assert want.abs().max() > 0
    want = want.reshape(-1, want.shape[-1])
    scale = float(want.abs().max())
    np.testing.assert_allclose(stack.values, want, rtol=2e-4, atol=2e-6 * scale)


def test_the_pass_predicts_the_run(world: World) -> None:
    for token in range(len(world.run.tokens)):
        log = world.seen.logits[world.at(token)].detach().log_softmax(-1)
        assert int(log.argmax()) == world.id(token)
        assert float(log.max().exp()) == pytest.approx(
            world.run.tokens[token].probability, rel=1e-4
        )


@pytest.mark.parametrize("residual", [0.5, 0.2])
def test_rollout(world: World, residual: float) -> None:
    size = world.seen.logits.shape[0]
    rolled = torch.eye(size, dtype=torch.float64)
    for weights in world.seen.weights:
        mixed = residual * torch.eye(size) + (1 - residual) * weights.detach().mean(0)
        rolled = mixed / mixed.sum(-1, keepdim=True) @ rolled
    expected = [rolled[world.at(t), world.vision] for t in SOME]
    stack = stack_of(world, Rollout(residual))
    same(stack, expected)
    assert stack.axes == (("token", SOME),)


def test_value_weighted(world: World) -> None:
    apart, together = [], []
    for t in SOME:
        by_head, by_layer = [], []
        for layer, weights in enumerate(world.seen.weights):
            values, row = world.seen.values[layer], weights[:, world.at(t)]
            heads, _, width = values.shape
            parts = world.dense.output_weight(layer).view(-1, heads, width)
            read = torch.einsum("hn,hnd,ohd->hno", row, values, parts)[:, world.vision]
            by_head.append(read.norm(dim=-1))
            by_layer.append(read.sum(0).norm(dim=-1))
        apart.append(torch.stack(by_head))
        together.append(torch.stack(by_layer))
    same(stack_of(world, ValueWeighted()), apart)
    same(stack_of(world, ValueWeighted("together")), together)


@pytest.mark.parametrize("of", ["log_p", "logit"])
def test_gradient_attention_and_agcam(world: World, of: str) -> None:
    product, cam = [], []
    for t in SOME:
        place = world.at(t)
        found = gradients(world.seen, place, world.id(t), logit=of == "logit")
        rows = [g[:, place, world.vision].clamp_min(0) for g in found]
        product.append(
            torch.stack(
                [
                    w[:, place, world.vision] * g
                    for w, g in zip(world.seen.weights, rows, strict=True)
                ]
            )
        )
        cam.append(
            torch.stack(
                [
                    g * s[:, place, world.vision].sigmoid()
                    for s, g in zip(world.seen.scores, rows, strict=True)
                ]
            )
        )
    same(stack_of(world, GradientAttention(of)), product)  # type: ignore[arg-type]
    same(stack_of(world, AGCAM(of)), cam)  # type: ignore[arg-type]


def test_logit_lens(world: World) -> None:
    probability, rank = [], []
    for t in SOME:
        logits = [world.dense.unembedded(out[world.vision]) for out in world.seen.out]
        probability.append(torch.stack([one.softmax(-1)[:, world.id(t)] for one in logits]))
        rank.append(torch.stack([(one > one[:, [world.id(t)]]).sum(-1).double() for one in logits]))
    same(stack_of(world, LogitLens()), probability)
    same(stack_of(world, LogitLens("rank")), rank)
    assert stack_of(world, LogitLens("rank")).unit == "rank"


def rank_gaussian(image: np.ndarray) -> np.ndarray:
    """Cell by cell, as in the paper."""
    padded = np.pad(image, 1, mode="reflect")
    out = np.zeros_like(image)
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            window = np.sort(padded[row : row + 3, column : column + 3].ravel())
            if window.mean() > 0:
                sigma = window.std() / window.mean()
                kernel = np.exp(-(np.arange(-4, 5) ** 2) / (2 * sigma**2))
                out[row, column] = (window * kernel).sum() / kernel.sum()
    return out


@pytest.mark.parametrize("smooth", [True, False])
def test_tam(world: World, smooth: bool) -> None:
    logits = world.dense.unembedded(world.seen.out[-1]).clamp_min(0).detach().numpy()
    (user,) = (s for s in world.run.layout.segments if s.kind == "user")
    words = [(world.inputs.token_ids[p], p) for p in range(user.start, user.stop)]
    (grid,) = world.run.layout.grids
    expected = []
    for t in SOME:
        context = words + [(world.id(k), world.at(k)) for k in range(t)]
        own = logits[world.vision, world.id(t)]
        different = [(one, place) for one, place in context if one != world.id(t)]
        weight = np.array([logits[place, world.id(t)] for _, place in different])
        if weight.sum() > 0:
            maps = np.stack([logits[world.vision, one] for one, _ in different])
            interference = (weight / weight.sum()) @ maps
            factor = np.linalg.lstsq(interference[:, None], own, rcond=None)[0][0]
            own = np.maximum(own - factor * interference, 0)
        if smooth:
            own = rank_gaussian(own.reshape(grid.rows, grid.columns)).ravel()
        expected.append(torch.from_numpy(own))
    same(stack_of(world, TokenActivation(smooth)), expected)


@pytest.mark.parametrize("of", ["log_p", "logit"])
def test_chefer(world: World, of: str) -> None:
    expected = []
    for t in SOME:
        found = gradients(world.seen, world.at(t), world.id(t), logit=of == "logit")
        relevance = torch.eye(len(found[0][0]), dtype=torch.float64)
        for weights, gradient in zip(world.seen.weights, found, strict=True):
            relevance = relevance + (gradient * weights).clamp_min(0).mean(0) @ relevance
        relevance = relevance - torch.eye(len(relevance))
        expected.append(relevance[world.at(t), world.vision])
    same(stack_of(world, Chefer(of)), expected)  # type: ignore[arg-type]
