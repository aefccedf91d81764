"""The parts of a loaded text decoder by role: layers, projections, norms, and its sizes.

A family adapter builds a `TextStack` once, when a model is loaded. Probes and interventions find
the module of a site in it; experiments find weights in it, always oriented as (out, in), however a
module stores them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from sinkscope.models.sites import HookPoint

Find = Callable[[Any], HookPoint]


@dataclass(frozen=True)
class Norm:
    """A norm over the hidden axis; calling it is the model's own.

    `rms`: x / sqrt(mean(x^2) + eps) * weight (arXiv 1910.07467). `layer`: the same of x - mean(x),
    plus bias (arXiv 1607.06450).

    Attributes:
        kind: `rms` or `layer`.
        module: the model's.
        eps: added under the root.
    """

    kind: Literal["rms", "layer"]
    module: nn.Module
    eps: float

    @property
    def weight(self) -> Tensor:
        """Factor of each dimension (D,), often called gamma."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)  # torch types it as Tensor or Module
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The bias of each dimension (D,); None for an RMS norm."""
        bias: Tensor | None = getattr(self.module, "bias", None)
        return bias

    def __call__(self, values: Tensor) -> Tensor:
        normed: Tensor = self.module(values)
        return normed


@dataclass(frozen=True)
class Projection:
    """A linear map, independent of how its module stores it.

    Attributes:
        module: the model's.
        transposed: the module stores (in, out), as transformers' Conv1D does.
    """

    module: nn.Module
    transposed: bool = False

    @property
    def weight(self) -> Tensor:
        """(out, in), a view of the model's own.

        Raises:
            ValueError: the weight is packed, as quantised ones are.
        """
        weight = self.module.weight
        assert isinstance(weight, Tensor)  # torch types it as Tensor or Module
        if not weight.is_floating_point() or weight.dim() != 2 or weight.itemsize == 1:
            raise ValueError(
                f"The weight of {type(self.module).__name__} is {weight.dtype}, packed by a "
                "quantisation; this needs plain weights (float32, bfloat16 or float16)."
            )
        return weight.T if self.transposed else weight

    @property
    def bias(self) -> Tensor | None:
        """(out,), or None."""
        bias: Tensor | None = getattr(self.module, "bias", None)
        return bias

    def __call__(self, values: Tensor) -> Tensor:
        output: Tensor = self.module(values)
        return output


@dataclass(frozen=True)
class MLP:
    """The MLP of a decoder layer: down(act(gate(x)) * up(x)), or down(act(fc(x))) without a gate.

    Attributes:
        down: hidden x inner: what is added to the residual stream of z, its input.
        act: the activation.
        gate, up: inner x hidden, of a gated MLP; else None.
        fc: inner x hidden, of one without a gate; else None.
        norm: the norm before the MLP.
    """

    down: Projection
    act: Callable[[Tensor], Tensor]
    norm: Norm
    gate: Projection | None = None
    up: Projection | None = None
    fc: Projection | None = None

    @property
    def gated(self) -> bool:
        return self.gate is not None

    def inner(self, values: Tensor) -> Tensor:
        """z of the MLP's input (after its norm): (..., hidden) -> (..., inner)."""
        if self.gate is not None and self.up is not None:
            return self.act(self.gate(values)) * self.up(values)
        assert self.fc is not None, "an MLP has a gate and up, or fc"
        return self.act(self.fc(values))


@dataclass(frozen=True)
class TextStack:
    """The parts of a loaded model that capture and interventions hook into, and its sizes.

    Attributes:
        language_model: called once per forward pass, with `inputs_embeds` by keyword, or with
            `input_ids` by keyword or as its first argument; passes its other keyword arguments down
            to attention.
        layers: the decoder layers in order.
        output_head: maps hidden states to logits (B, n, vocabulary).
        hidden_size, heads, kv_heads: sizes, from the loaded config.
        points: site (`models.sites`) -> where it is in a decoder layer.
        windows: of each layer, how many keys a query sees at most, including itself; None for all.
        mlp_of: the MLP of a layer, by role; None if the family does not define it.
        output_of: the attention's output projection of a layer, by role, whose input is the
            concatenated heads (H * Dh); None if the family does not define it.
        final_norm: before the output head.
        parallel: attention and MLP both read the layer's input, and both are added to it:
            block_in + attn_out + mlp_out. Else the MLP reads block_in + attn_out.
        head_size: width of one head.
        longest: maximum number of positions, if they are learned (GPT-2); else None.
    """

    language_model: nn.Module
    layers: Sequence[Any]
    output_head: nn.Module
    hidden_size: int
    heads: int
    kv_heads: int
    points: Mapping[str, Find] = field(default_factory=dict)
    windows: Sequence[int | None] = ()
    mlp_of: Callable[[Any], MLP] | None = None
    output_of: Callable[[Any], Projection] | None = None
    final_norm: Norm | None = None
    parallel: bool = False
    head_size: int = 0
    longest: int | None = None

    @property
    def unembedding(self) -> Tensor:
        """(vocabulary, hidden): what the output head multiplies the normed residual stream by."""
        return Projection(self.output_head).weight

    def point(self, site: str, layer: int) -> HookPoint:
        """The module that has a site's role in a layer.

        Raises:
            ValueError: the family has no such site, or the model no such layer.
        """
        if site not in self.points:
            raise ValueError(f"site is {site!r}; this model has {', '.join(self.points)}.")
        return self.points[site](self._layer(layer))

    def mlp(self, layer: int) -> MLP:
        """The MLP of a layer: its projections and norm.

        Raises:
            ValueError: the model has no such layer, or its family does not say.
        """
        if self.mlp_of is None:
            raise ValueError("This model's family does not say what its MLPs are made of.")
        return self.mlp_of(self._layer(layer))

    def attention_output(self, layer: int) -> Projection:
        """What a layer's attention multiplies the outputs of its heads by: hidden x (H * Dh).

        Raises:
            ValueError: the model has no such layer, or its family does not say.
        """
        if self.output_of is None:
            raise ValueError("This model's family does not say where attention's output is made.")
        return self.output_of(self._layer(layer))

    def _layer(self, layer: int) -> nn.Module:
        if not 0 <= layer < len(self.layers):
            raise ValueError(
                f"layers has {layer}; this model has layers 0 to {len(self.layers) - 1}."
            )
        decoder_layer: nn.Module = self.layers[layer]
        return decoder_layer
