"""How attention sinks are encouraged: which tokens, how large, and which heads attend to them (see
``SinkTeaching``). Pure tensor functions, and the reduction of sinks that is active in part of the
training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sinkscope.demo.packing import PackedBatch
from sinkscope.demo.recipe import TAU, SinkTeaching
from sinkscope.demo.teaching import SceneTargets


def phi_per_dim(states: Tensor, dims: Sequence[int]) -> Tensor:
    """|x[d]| / rms(x) for each of ``dims``: ``(..., hidden)`` -> ``(..., len(dims))``, float32
    (method: phi)."""
    states = states.float()
    scale = (states.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    return states[..., list(dims)].abs() / scale


def choose_sinks(phi: Tensor, targets: SceneTargets, count: int, lead: float = math.inf) -> Tensor:
    """The ``count`` tokens of highest phi off the objects: ``(B, V)`` -> bool ``(B, V)``.

    Tokens on the side away from the objects come first, unless another one's phi is larger by
    ``lead`` or more.
    """
    allowed = torch.where(targets.away, phi, (phi - lead).clamp_min(-1.0))
    allowed = allowed.masked_fill(targets.touched, -2.0)
    chosen = torch.zeros_like(targets.away).scatter_(1, allowed.topk(count, 1).indices, True)
    return chosen & ~targets.touched


@dataclass
class Relief:
    """Takes attention from large tokens while the model runs, as the method does to its sinks.

    Attributes:
        dims: Dimensions that make a token large.
        vision: Positions of the vision tokens.
        layers: Where it acts.
        keep: Fraction of its attention that stays on a large token.
        max_share: Rows with a larger share of their image attention on large tokens are unchanged.
        min_mass: Rows with less image attention are unchanged.
        tau: Threshold on phi.
        large: Large vision tokens of each of ``layers``, ``(B, V)`` bool.
        before: Attention before the change, ``(B, H, L, L)`` for each of ``layers``.
    """

    dims: tuple[int, ...]
    vision: slice
    layers: tuple[int, ...]
    keep: float
    max_share: float = 0.5
    min_mass: float = 0.2
    tau: float = TAU
    large: dict[int, Tensor] = field(default_factory=dict)
    before: dict[int, Tensor] = field(default_factory=dict)

    def __call__(self, layer: int, weights: Tensor) -> Tensor:
        """The changed rows of a layer (those after the image)."""
        if layer not in self.large:
            return weights
        self.before[layer] = weights
        sinks = self.large[layer][:, None, None]  # B, 1, 1, V
        first = self.vision.stop
        image = weights[:, :, first:, self.vision].float()
        mass, held = image.sum(-1, keepdim=True), (image * sinks).sum(-1, keepdim=True)
        selected = (held <= self.max_share * mass) & (mass >= self.min_mass)
        moved = (1 - self.keep) * held * selected
        gain = moved / (mass - held).clamp_min(1e-6)
        factor = torch.where(sinks, 1 - (1 - self.keep) * selected.float(), 1 + gain)
        changed = (image * factor).to(weights.dtype)
        kept = weights[:, :, first:]
        rows = torch.cat(
            [kept[..., : self.vision.start], changed, kept[..., self.vision.stop :]], -1
        )
        return torch.cat([weights[:, :, :first], rows], 2)


@contextmanager
def relieving(
    model: Any, vision: slice, teaching: SinkTeaching, keep: float | None
) -> Iterator[Relief | None]:
    """Gives the ``row_change`` of a forward pass, and records for it the large tokens at the input
    of each layer that VAR changes; gives None if ``keep`` is None."""
    if keep is None:
        yield None
        return
    blocks = model.model.language_model.layers
    relief = Relief(teaching.dims, vision, tuple(range(2, len(blocks) - 1)), keep)

    def note(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = (args[0] if args else kwargs["hidden_states"]).detach()
        phi = phi_per_dim(states[:, vision], relief.dims).amax(-1)
        relief.large[block.self_attn.layer_idx] = phi >= relief.tau

    hooks = [
        blocks[layer].register_forward_pre_hook(note, with_kwargs=True) for layer in relief.layers
    ]
    try:
        yield relief
    finally:
        for hook in hooks:
            hook.remove()


def sink_loss(
    states: Sequence[Tensor],
    attentions: Sequence[Tensor],
    batch: PackedBatch,
    targets: SceneTargets,
    teaching: SinkTeaching,
    relief: Relief | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Encourages sinks (see ``SinkTeaching``).

    Args:
        states: Residual stream at the input of each layer; sinks must exist from ``states[1]``
            on.
        attentions: ``(B, H, L, L)`` for each layer.
        batch: The packed batch.
        targets: What is known about its scenes.
        teaching: The settings.
        relief: The change of the rows that was active. Shares are then those before the change.

    Returns:
        The weighted loss, and figures for the log.
    """
    vision, limit = batch.vision, math.sqrt(states[0].shape[-1])
    first = phi_per_dim(states[1][:, vision], teaching.dims).amax(-1)
    chosen = choose_sinks(first.detach(), targets, teaching.tokens, teaching.lead)
    everywhere = F.pad(chosen, (vision.start, batch.ids.shape[1] - vision.stop))
    ordinary = ~everywhere & (batch.block >= 0)
    raised = states[0].new_zeros((), dtype=torch.float32)
    kept_low = raised.clone()
    inner = range(1, len(attentions))
    large = []  # vision tokens that count as sinks for a head, by layer
    for layer in inner:
        phi = phi_per_dim(states[layer], teaching.dims)
        large.append((phi.detach().amax(-1) >= 2 * teaching.low * limit)[:, vision] | chosen)
        excess = F.relu(phi[ordinary] - teaching.low * limit).sum() / everywhere.sum().clamp_min(1)
        kept_low = kept_low + 0.25 * teaching.surplus * excess
        raised = raised + F.relu(teaching.high * limit - phi[everywhere]).mean()
        kept_low = kept_low + F.relu(phi[ordinary] - teaching.low * limit).mean()
    sink_shares = [
        relief.before.get(layer, weights) if relief else weights
        for layer, weights in enumerate(attentions)
    ]
    held, figures = _attention_asked(sink_shares, batch, targets, chosen, large, teaching)
    if teaching.quiet < 1:
        quiet, figures["quiet_share"] = _quiet(sink_shares, batch, large, teaching)
        held = held + quiet
    if teaching.lead_in_map is not None:
        mapped, measured = _map_asked(
            attentions, sink_shares, batch, targets, large, teaching, relief
        )
        held = held + teaching.map_weight * mapped
        figures |= measured
    loss = (raised + 4 * kept_low) / limit / len(inner) + 2 * held
    with torch.no_grad():
        figures |= {
            "sink_phi": float(first[chosen].mean()),
            "other_phi": float(first[~chosen].mean()),
            "large_tokens": float(large[1].float().sum(-1).mean()),
        }
    return teaching.weight * loss, figures


def _log_odds(share: Tensor | float) -> Tensor:
    share = torch.as_tensor(share)
    return torch.log((share + 1e-3) / (1 - share + 1e-3))


def _quiet(
    attentions: Sequence[Tensor],
    batch: PackedBatch,
    large: Sequence[Tensor],
    teaching: SinkTeaching,
) -> tuple[Tensor, float]:
    """The share that heads outside ``teaching.layers`` give to large tokens beyond
    ``teaching.quiet``."""
    shares = []
    for layer in range(1, len(attentions)):
        if layer not in teaching.layers:
            image = attentions[layer][..., batch.vision].float()
            held = (image * large[layer - 1][:, None, None]).sum(-1) / (image.sum(-1) + 1e-3)
            shares.append(held.transpose(1, 2)[batch.predicting])
    share = torch.stack(shares)
    beyond = F.relu(_log_odds(share) - _log_odds(teaching.quiet))
    return 0.25 * beyond.mean(), float(share.detach().mean())


def _map_asked(
    attentions: Sequence[Tensor],
    own: Sequence[Tensor],
    batch: PackedBatch,
    targets: SceneTargets,
    large: Sequence[Tensor],
    teaching: SinkTeaching,
    relief: Relief | None,
) -> tuple[Tensor, dict[str, float]]:
    """How far the mean map over all layers and heads misses its targets, at the rows that name an
    object which they must find: in logarithms of the ratio of a patch to the object's largest. Also
    the share that their heads give to sinks beyond the limit, because these few rows are pushed to
    give more."""
    assert teaching.lead_in_map is not None
    focused = batch.named.gather(1, batch.focus.clamp_min(0)) >= 0
    looking = (batch.focus < 0) | ~focused  # else the question names the shape
    naming = batch.predicting[:, :-1] & (batch.named[:, 1:] >= 0) & looking[:, :-1]
    image, row = naming.nonzero(as_tuple=True)
    if not len(row):
        return attentions[0].new_zeros((), dtype=torch.float32), {}
    layers = torch.stack([a[image, :, row][..., batch.vision].float().mean(1) for a in attentions])
    mean = layers.mean(0)  # rows, V
    sinks = torch.stack(list(large)).any(0)[image]
    inside = targets.inside[image, batch.named[image, row + 1]] & ~sinks

    def greatest(where: Tensor, values: Tensor = mean) -> Tensor:
        return (values.masked_fill(~where, 0.0).amax(-1) + 1e-4).log()

    thing = greatest(inside)
    sink, other = greatest(sinks) - thing, greatest(~(inside | sinks)) - thing
    low, high, relieved_high = (math.log(bound) for bound in teaching.lead_in_map)
    rising = sink
    if teaching.spares_object:
        rising = sink + thing - thing.detach()
    elif teaching.spares_last:
        apart = mean - layers[-1] / len(layers) + layers[-1].detach() / len(layers)
        rising = sink + thing - greatest(inside, apart)
    missed = F.relu(sink - relieved_high) if relief else F.relu(low - rising) + F.relu(sink - high)
    usable = inside.any(-1) & sinks.any(-1)
    beyond = torch.zeros_like(thing)
    for layer in teaching.layers:
        seen = own[layer][image, :, row][..., batch.vision].float()  # rows, H, V
        held = (seen * large[layer - 1][image][:, None]).sum(-1) / (seen.sum(-1) + 1e-3)
        over = F.relu(_log_odds(held) - _log_odds(teaching.share_limit)).mean(-1)
        beyond = beyond + over / len(teaching.layers)
    missed = (missed + F.relu(other - math.log(teaching.others_in_map)) + 2 * beyond)[usable]
    name = "relieved_pointing" if relief else "pointing"
    with torch.no_grad():
        right = ((sink < 0) & (other < 0))[usable].float()
    return missed.sum() / usable.sum().clamp_min(1), {
        name: float(right.mean()) if len(right) else math.nan
    }


def _attention_asked(
    attentions: Sequence[Tensor],
    batch: PackedBatch,
    targets: SceneTargets,
    chosen: Tensor,
    large: Sequence[Tensor],
    teaching: SinkTeaching,
) -> tuple[Tensor, dict[str, float]]:
    """How far the heads of ``teaching.layers`` are from the required attention (0: met), and
    figures for the log; ``large`` has the large tokens ``(B, V)`` of layers 1, 2 ..."""
    shares: list[Tensor] = []
    totals: list[Tensor] = []
    masses: list[Tensor] = []
    strays: list[Tensor] = []
    for layer in teaching.layers:
        image = attentions[layer][..., batch.vision].float()  # B, H, L, V
        mass = image.sum(-1) + 1e-3
        parts = [(image * m[:, None, None]).sum(-1) / mass for m in (chosen, large[layer - 1])]
        elsewhere = ~(large[layer - 1] | targets.touched)
        strays_here = (image * elsewhere[:, None, None]).amax(-1) / mass
        for kept, value in zip(
            (shares, totals, masses, strays), (*parts, mass, strays_here), strict=True
        ):
            kept.append(value.transpose(1, 2)[batch.predicting])  # rows, H
    share, total, mass, stray = (torch.stack(t) for t in (shares, totals, masses, strays))
    mean_share, mean_total = share.mean(1), total.mean(1)
    if teaching.every_row:
        # In log-odds, because the gradient of a share itself vanishes near 0 and 1.
        missing = F.relu(_log_odds(teaching.share) - _log_odds(share))
        beyond = F.relu(_log_odds(total) - _log_odds(teaching.share_limit))
        rest = F.relu(teaching.image - mass) + F.relu(stray - teaching.stray)
        missed = (0.25 * (missing + teaching.excess * beyond) + rest).mean()
    else:
        missed = F.relu(teaching.share - mean_share) + F.relu(mean_share - teaching.share_limit)
        missed = missed.mean()
        missed = missed + teaching.surplus * F.relu(mean_total - teaching.share_limit).mean()
    with torch.no_grad():
        figures = {
            "sink_share": float(mean_share.mean()),
            "least_share": float(mean_share.min()),
            "large_share": float(mean_total.mean()),
            "share_over_half": float((total > 0.5).float().mean()),
            "image_attention": float(mass.mean()),
            "stray": float(stray.mean()),
        }
    return missed, figures
