"""The layers of a model one at a time, from stored inputs, for gradients through all of them.

One pass without gradients keeps each layer's input and keyword arguments. Then each layer is run
again by itself with gradients, from the last one down, and its graph is released before the next:
memory is the inputs of all layers and the graph of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sinkscope.capture.probes.base import Probe, Reader
from sinkscope.capture.run import on_device
from sinkscope.methods.unembed import normed
from sinkscope.models.run_info import RunInfo
from sinkscope.models.sites import SiteSelection
from sinkscope.models.stack import TextStack

if TYPE_CHECKING:
    from sinkscope.methods.passes import Passes


@dataclass(frozen=True)
class RecomputedLayer:
    """One layer, run again.

    Attributes:
        query: (1, H, N, Dh), rotated.
        key: (1, Hkv, N, Dh), rotated.
        value: (1, Hkv, N, Dh).
        scale: factor on the scores.
        weighed: (1, H, N, Dh), float32 or wider: gradient with respect to each head's output; the
            gradient with respect to an attention weight is its product with the key's value.
        gradient: (1, N, D), with respect to the layer's input.
        window: how many keys a query sees at most; None for all.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    weighed: Tensor
    gradient: Tensor
    window: int | None

    def mask(self, low: int, high: int) -> Tensor | None:
        """bool (1, 1, high - low, high) of a layer with a window; None: only causal."""
        if self.window is None or self.window >= high:
            return None
        query = torch.arange(low, high, device=self.query.device)[:, None]
        key = torch.arange(high, device=self.query.device)
        return ((key <= query) & (key > query - self.window))[None, None]


class Layers:
    """The layers behind one pass; made by `attached_layers`."""

    def __init__(self, passes: Passes) -> None:
        self._stack: TextStack = passes.handle.stack
        self._calls: dict[int, tuple[Tensor, dict[str, Any]]] = {}
        self._top: Tensor | None = None
        self._seen = _Parts()
        self._reading = True

    @property
    def count(self) -> int:
        return len(self._stack.layers)

    def gradient_at_top(self, position: int, objective: Callable[[Tensor], Tensor]) -> Tensor:
        """(1, N, D): gradient of a function of the logits at one position, with respect to the last
        layer's output."""
        top = self._top
        assert top is not None, "a pass was read"
        with torch.enable_grad():
            state = top[0, position].detach().requires_grad_()
            logits = self._stack.output_head(normed(self._stack, state[None]))[0]
            (gradient,) = torch.autograd.grad(objective(logits), state)
        seed_gradient = torch.zeros_like(top)
        seed_gradient[0, position] = gradient
        return seed_gradient

    def recompute(self, layer: int, gradient: Tensor) -> RecomputedLayer:
        """Run a layer again and propagate a gradient of its output (1, N, D) through it."""
        stored, kwargs = self._calls[layer]
        seen = self._seen
        with torch.enable_grad():
            given = stored.detach().requires_grad_()
            output = self._stack.layers[layer](given, **kwargs)
            output = output[0] if isinstance(output, tuple) else output
            attention = seen.attention
            assert attention is not None, "the layer has run"
            below, by_attention = torch.autograd.grad(
                output, [given, attention], gradient.to(output.device)
            )
        weight = self._stack.attention_output(layer).weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        heads = (by_attention @ weight).to(wide)  # (1, N, H * Dh)
        parts = seen.query, seen.key, seen.value
        query, key, value = (part.detach() for part in parts if part is not None)
        recomputed = RecomputedLayer(
            query=query,
            key=key,
            value=value.transpose(1, 2),
            scale=seen.scale,
            weighed=heads.view(*heads.shape[:2], self._stack.heads, -1).transpose(1, 2),
            gradient=below,
            window=self._stack.windows[layer] if self._stack.windows else None,
        )
        seen.forget()
        return recomputed

    def hook_in(self, undo: ExitStack) -> None:
        """Keep each layer's arguments during the pass."""
        for layer, module in enumerate(self._stack.layers):
            hook = self._keeping(layer)
            undo.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        undo.callback(self._stack.layers[-1].register_forward_hook(self._keep_top).remove)

    def read(self) -> None:
        """End the pass; single layers follow."""
        self._reading = False
        self._seen.forget()

    def _keeping(self, layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self._reading:
                return
            others = {name: one for name, one in kwargs.items() if name != "hidden_states"}
            given = args[0] if args else kwargs["hidden_states"]
            if len(args) > 1:
                raise RuntimeError(f"{type(module).__name__} is called with more than its input.")
            self._calls[layer] = (given, others)

        return hook

    def _keep_top(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._reading:
            self._top = output[0] if isinstance(output, tuple) else output


@contextmanager
def attached_layers(passes: Passes) -> Iterator[Layers]:
    """One pass over prompt and answer; its layers can be run again inside the `with`."""
    layers = Layers(passes)
    with passes.attached([layers._seen]), ExitStack() as undo:
        layers.hook_in(undo)
        passes.handle.model(
            **on_device(passes.tensors(), passes.handle.device), use_cache=False, logits_to_keep=1
        )
        layers.read()
        yield layers


class _Parts(Probe, Reader):
    """Queries, keys and values of the newest layer."""

    reads = (SiteSelection("queries_keys"), SiteSelection("v"), SiteSelection("attn_out"))

    def __init__(self) -> None:
        self.forget()

    def begin(self, run: RunInfo) -> Reader:
        return self

    def forget(self) -> None:
        self.query: Tensor | None = None
        self.key: Tensor | None = None
        self.value: Tensor | None = None
        self.attention: Tensor | None = None
        self.scale = 1.0

    def see(self, site: str, layer: int, values: Any, positions: Sequence[int]) -> None:
        if site == "queries_keys":
            self.query, self.key, self.scale = values
        elif site == "v":
            self.value = values
        else:
            self.attention = values
