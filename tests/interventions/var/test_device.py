"""VAR reads only tensors on the device, so that a decode step can be recorded as a graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sinkscope.config import VARSettings
from sinkscope.interventions.var.intervention import VARIntervention
from sinkscope.models.run_info import Step

PROMPT, NEW, HIDDEN, LAYERS, LAYER = 40, 4, 16, 6, 3
SETTINGS = VARSettings(dims=(2, 9), tau=2.0, keep=0.3, max_sink_share=0.9, min_image_mass=0.1)


def stage(*settings: VARSettings | None, device: str = "cpu") -> VARIntervention:
    """A run whose prompt has been processed."""
    vision = torch.zeros(PROMPT, dtype=torch.bool)
    vision[4:30] = True
    var = VARIntervention(settings, vision, LAYERS, PROMPT + NEW)
    hidden = torch.randn(len(settings), PROMPT, HIDDEN, generator=torch.Generator().manual_seed(0))
    hidden[:, [1, 8, 12], 2] = 30.0
    var.observe(LAYER, hidden.to(device), 0)
    return var


def rows(keys: int, batch: int = 1, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(2 * torch.randn(batch, 3, 1, keys, generator=generator), -1)


@pytest.mark.parametrize("dialect", ["official", "paper"])
@pytest.mark.parametrize("batch", [1, 2])
def test_rows_read_nothing_on_the_host(dialect: str, batch: int) -> None:
    """Tensors on `meta` have no values: reading one, or needing a shape that depends on values,
    fails."""
    own = replace(SETTINGS, dialect=dialect)
    mixed = replace(SETTINGS, dialect="paper", keep=0.9)
    var = stage(*(own, mixed, None)[:batch], device="meta")
    for position in (PROMPT, PROMPT + 1):
        out = var.rows(LAYER, rows(position + 1, batch).to("meta"), position)
        assert out.shape == (batch, 3, 1, position + 1)
    prefill = torch.empty(batch, 3, PROMPT, PROMPT, device="meta")
    assert var.rows(LAYER, prefill, 0).shape == prefill.shape


@pytest.mark.parametrize(
    "read",
    [
        lambda t: bool(t.any()),
        lambda t: float(t.sum()),
        lambda t: t.tolist(),
        lambda t: t.cpu().numpy(),
        lambda t: t[t > 0].sum(),
    ],
)
def test_the_guard_sees_a_reader(read: object) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        read(torch.empty(3, device="meta"))  # type: ignore[operator]


class Counted(TorchDispatchMode):
    """Counts operations that launch a kernel on a GPU: all but those that only make a view."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        views = func.is_view or func.overloadpacket in (
            torch.ops.aten.slice,
            torch.ops.aten.detach,
            torch.ops.aten.promote_types,
        )
        self.names += [] if views else [str(func)]
        return func(*args, **(kwargs or {}))


def test_a_decode_step_takes_few_operations() -> None:
    """On a GPU a step is limited by launches, so their number must not grow."""
    var = stage(SETTINGS, None)
    var.rows(LAYER, rows(PROMPT + 1, 2), PROMPT)
    weights = rows(PROMPT + 2, 2)
    with Counted() as first:
        var.rows(LAYER, weights, PROMPT + 1)
    with Counted() as again:  # another layer of the same step
        var.rows(LAYER, weights, PROMPT + 1)
    assert len(again.names) <= 20, again.names
    assert len(first.names) == len(again.names) + 1, "the step's positions are made once"


def test_other_settings_in_the_same_tensors() -> None:
    """New settings are written into the tensors that a recorded step reads."""
    var, weights = stage(SETTINGS, None), rows(PROMPT + 1, 2)
    first = var.rows(LAYER, weights, PROMPT)
    state = var._state[LAYER]
    assert state.groups is not None
    held = [*vars(state.groups).values(), state.sinks, state.moved]
    held += [v for limits in var._parameters._made.values() for v in vars(limits).values()]
    before = [t.data_ptr() for t in held if isinstance(t, Tensor)]
    for other in (
        replace(SETTINGS, keep=0.8),
        replace(SETTINGS, tau=1.0),
        replace(SETTINGS, max_sink_share=0.01),
        replace(SETTINGS, min_image_mass=0.99),
        replace(SETTINGS, control="random", seed=5),
    ):
        var.change(0, other)
        new = var.rows(LAYER, weights, PROMPT)
        assert torch.equal(new, stage(other, None).rows(LAYER, weights, PROMPT))
        assert not torch.equal(new, first)
    var.change(0, None)
    assert torch.equal(var.rows(LAYER, weights, PROMPT), weights)
    var.change(0, SETTINGS)
    assert torch.equal(var.rows(LAYER, weights, PROMPT), first)
    assert [t.data_ptr() for t in held if isinstance(t, Tensor)] == before


@pytest.mark.parametrize("change", [{"dims": (3,)}, {"layers": (1,)}, {"dialect": "paper"}])
def test_what_is_fixed_cannot_change(change: dict[str, object]) -> None:
    var = stage(SETTINGS, None)
    with pytest.raises(ValueError, match=f"^{next(iter(change))} cannot change during a run"):
        var.change(0, replace(SETTINGS, **change))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="row is 1; VAR was not asked for"):
        var.change(1, SETTINGS)


class Advancing(Step):
    """As in a recorded step: one tensor that is advanced in place."""

    def __init__(self) -> None:
        super().__init__()
        self.tensor = torch.tensor([PROMPT])

    def positions(self, first: int, count: int, device: torch.device, origin: int = 0) -> Tensor:
        return self.tensor - origin


def test_what_is_recorded_goes_where_the_steps_own_tensor_says() -> None:
    vision = torch.zeros(PROMPT, dtype=torch.bool)
    vision[4:30] = True
    step = Advancing()
    var = VARIntervention([SETTINGS], vision, LAYERS, PROMPT + NEW, step=step)
    other = stage(SETTINGS)
    hidden = torch.randn(1, PROMPT, HIDDEN, generator=torch.Generator().manual_seed(0))
    hidden[:, [1, 8, 12], 2] = 30.0
    var.observe(LAYER, hidden, 0)
    for index in range(NEW):
        weights = rows(PROMPT + NEW, seed=index)
        step.tensor.fill_(PROMPT + index)
        # A recorded step passes the same position each time; only the tensor is read.
        var.rows(LAYER, weights, PROMPT)
        other.rows(LAYER, weights, PROMPT + index)
    assert var.report() == other.report()
    assert other.report().layers[0].moved > 0


@pytest.fixture
def graphs() -> Iterator[None]:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    yield


@pytest.mark.usefixtures("graphs")
def test_a_recorded_graph_follows_other_settings() -> None:
    var = stage(SETTINGS, None, device="cuda")
    weights = rows(PROMPT + 1, 2).cuda()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            var.rows(LAYER, weights, PROMPT)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = var.rows(LAYER, weights, PROMPT)
    for other in (replace(SETTINGS, keep=0.8), replace(SETTINGS, tau=1.0), None, SETTINGS):
        var.change(0, other)
        graph.replay()
        expected = stage(other, None).rows(LAYER, weights.cpu(), PROMPT) if other else weights.cpu()
        torch.testing.assert_close(out.cpu(), expected, rtol=0, atol=1e-6)
