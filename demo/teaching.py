"""The losses of the training: the answers, the look-up hints, and the encouragement of sinks. Pure
tensor functions.

The hints are read by throw-away linear heads which are not part of the model. They teach (1) shape
and colour of each vision token, (2) its place in the picture, (3) colour and place of the thing
that a shape word names, at the word itself, (4) how many there are, at the counted noun. Without
(3), the look-up from a name to its place is a plateau that tens of thousands of images do not
leave.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sinkscope.demo.packing import IGNORE, PackedBatch
from sinkscope.demo.questions import ABSENT, NUMBERS
from sinkscope.demo.recipe import SinkTeaching
from sinkscope.demo.scenes import COLOURS, PLACES, SHAPES, Scene

_NAMED_LAYER = 3
_COUNT_LAYER = 4
_PLACE_LAYER = 2
_READING_LAYERS = (3, 4)
_POINTING_LAYER = 3


@dataclass(frozen=True)
class SceneTargets:
    """What is known about each vision token and object of a batch.

    Attributes:
        shape: ``(B, V)``: 0 background, 1.. shape, -100 for a token with little of an object in it.
        colour: ``(B, V)``: the same for colour.
        place: ``(V,)``: the cell of the 3 x 3 layout.
        object_colour: ``(B, N)``: colour of each object, padded with -100.
        object_place: ``(B, N)``: place of each object, padded with -100.
        touched: ``(B, V)`` bool: any part of an object's box reaches the token.
        covered: ``(B, N, V)``: 1 where an object covers a fifth of the token or more, else 0.
        away: ``(B, V)`` bool: background on the side opposite to the objects.
    """

    shape: Tensor
    colour: Tensor
    place: Tensor
    object_colour: Tensor
    object_place: Tensor
    touched: Tensor
    away: Tensor
    covered: Tensor


def hint_heads(hidden: int) -> nn.ModuleDict:
    """The throw-away heads."""
    return nn.ModuleDict(
        {
            "seen": nn.Linear(hidden, len(SHAPES) + len(COLOURS) + 2),
            "place": nn.Linear(hidden, len(PLACES)),
            "named": nn.Linear(hidden, len(COLOURS) + len(PLACES) + 2),
            "count": nn.Linear(hidden, len(NUMBERS)),
        }
    )


def scene_targets(scenes: Sequence[Scene], rows: int, cols: int) -> SceneTargets:
    """Reads the targets off the scenes; ``rows`` x ``cols`` is the grid of vision tokens."""
    per_scene = [_one_scene(s, rows, cols) for s in scenes]
    most = max(1, max(len(s.objects) for s in scenes))
    colours = np.full((len(scenes), most), IGNORE)
    places = np.full((len(scenes), most), IGNORE)
    for i, s in enumerate(scenes):
        for j, o in enumerate(s.objects):
            colours[i, j], places[i, j] = list(COLOURS).index(o.colour), o.cell
    covered = np.zeros((len(scenes), most, rows * cols), np.float32)
    for i, s in enumerate(scenes):
        covered[i, : len(s.objects)] = _cover(s, rows, cols).reshape(-1, rows * cols) > 0.2
    y, x = np.divmod(np.arange(rows * cols), cols)
    place = ((y + 0.5) / rows * 3).astype(int) * 3 + ((x + 0.5) / cols * 3).astype(int)
    stacked = [torch.from_numpy(np.stack(part)) for part in zip(*per_scene, strict=True)]
    return SceneTargets(
        shape=stacked[0],
        colour=stacked[1],
        place=torch.from_numpy(place),
        object_colour=torch.from_numpy(colours),
        object_place=torch.from_numpy(places),
        touched=stacked[2],
        away=stacked[3],
        covered=torch.from_numpy(covered),
    )


def _one_scene(
    scene: Scene, rows: int, cols: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    height, width = scene.owner.shape
    cell_h, cell_w = height // rows, width // cols
    touched = np.zeros((rows, cols), bool)
    shape, colour = np.zeros((rows, cols), np.int64), np.zeros((rows, cols), np.int64)
    if scene.objects:
        cover = _cover(scene, rows, cols)
        best, most = cover.argmax(0), cover.max(0)
        names = np.array([1 + SHAPES.index(o.shape) for o in scene.objects])
        shades = np.array([1 + list(COLOURS).index(o.colour) for o in scene.objects])
        # A token with a mere corner of an object is neither that object nor background.
        shape = np.where(most > 0.2, names[best], np.where(most > 0.04, IGNORE, 0))
        colour = np.where(most > 0.2, shades[best], np.where(most > 0.04, IGNORE, 0))
        for o in scene.objects:
            x0, y0, x1, y1 = o.box
            touched[y0 // cell_h : -(-y1 // cell_h), x0 // cell_w : -(-x1 // cell_w)] = True
    away = _opposite_side(scene, rows, cols, touched)
    return shape.reshape(-1), colour.reshape(-1), touched.reshape(-1), away.reshape(-1)


def _cover(scene: Scene, rows: int, cols: int) -> np.ndarray:
    """Share of each token that each object covers: ``(N, rows, cols)``."""
    height, width = scene.owner.shape
    tiles = scene.owner.reshape(rows, height // rows, cols, width // cols)
    shares = [(tiles == i + 1).mean((1, 3)) for i in range(len(scene.objects))]
    return np.stack(shares) if shares else np.zeros((0, rows, cols))


def _opposite_side(scene: Scene, rows: int, cols: int, touched: np.ndarray) -> np.ndarray:
    """Untouched tokens in the 40 % that lie farthest opposite to the objects; all where there are
    none."""
    free = ~touched
    if not scene.objects or not free.any():
        return free if free.any() else np.ones_like(free)
    height, width = scene.owner.shape
    centre_x = np.mean([(o.box[0] + o.box[2]) / 2 / width - 0.5 for o in scene.objects])
    centre_y = np.mean([(o.box[1] + o.box[3]) / 2 / height - 0.5 for o in scene.objects])
    if math.hypot(centre_x, centre_y) < 0.04:  # balanced: no side is opposite
        return free
    y, x = np.mgrid[0:rows, 0:cols]
    along = ((x + 0.5) / cols - 0.5) * centre_x + ((y + 0.5) / rows - 0.5) * centre_y
    result: np.ndarray = free & (along <= np.quantile(along[free], 0.4))
    return result


def seen_loss(heads: nn.ModuleDict, features: Tensor, targets: SceneTargets) -> Tensor:
    """Cross entropy of shape and colour, read off the vision features ``(B, V, hidden)``."""
    scores = heads["seen"](features.float()).flatten(0, 1)
    split = len(SHAPES) + 1
    return _entropy(scores[:, :split], targets.shape) + _entropy(scores[:, split:], targets.colour)


def hint_loss(
    heads: nn.ModuleDict, states: Sequence[Tensor], batch: PackedBatch, targets: SceneTargets
) -> Tensor:
    """The sum of all hints; ``states`` are the residual stream at the input of each layer, ``(B, L,
    hidden)``."""
    loss = seen_loss(heads, states[0][:, batch.vision], targets)
    tokens = states[_PLACE_LAYER][:, batch.vision].float()
    place = targets.place[None].expand(tokens.shape[0], -1)
    loss = loss + 0.5 * _entropy(heads["place"](tokens).flatten(0, 1), place)
    marked = batch.named >= ABSENT
    if marked.any():
        row = marked.nonzero()[:, 0]
        index = batch.named[marked]
        absent = index == ABSENT
        pick = index.clamp_min(0)
        colour = targets.object_colour[row, pick].masked_fill(absent, len(COLOURS))
        where = targets.object_place[row, pick].masked_fill(absent, len(PLACES))
        scores = heads["named"](states[_NAMED_LAYER][marked].float())
        split = len(COLOURS) + 1
        loss = loss + _entropy(scores[:, :split], colour) + _entropy(scores[:, split:], where)
    counted = batch.counts != IGNORE
    if counted.any():
        scores = heads["count"](states[_COUNT_LAYER][counted].float())
        loss = loss + 0.5 * _entropy(scores, batch.counts[counted])
    return loss


def reading_loss(attentions: Sequence[Tensor], batch: PackedBatch, targets: SceneTargets) -> Tensor:
    """Shows two heads where to read: the way to an answer through attention alone is a long
    plateau.

    The last head of layers 3 and 4 is asked to look, from each row that predicts an answer, at the
    word that the question is about. The first head of layer 3 is asked to look at an object from
    the rows that predict its shape.

    Args:
        attentions: ``(B, H, L, L)`` for each layer.
        batch: The packed batch.
        targets: What is known about its scenes.

    Returns:
        The mean negative log of the attention that is where it should be.
    """
    loss = attentions[0].new_zeros((), dtype=torch.float32)
    image, row = (batch.focus >= 0).nonzero(as_tuple=True)
    if len(row):
        for layer in _READING_LAYERS:
            weights = attentions[layer][image, -1, row, batch.focus[image, row]].float()
            loss = loss - (weights + 1e-3).log().mean()
    # The row before a shape word in an answer.
    naming = batch.predicting[:, :-1] & (batch.named[:, 1:] >= 0) & (batch.focus[:, :-1] < 0)
    image, row = naming.nonzero(as_tuple=True)
    if len(row):
        thing = targets.covered[image, batch.named[image, row + 1]]  # rows, V
        weights = attentions[_POINTING_LAYER][image, 0, row][:, batch.vision].float()
        loss = loss - ((weights * thing).sum(-1) + 1e-3).log().mean()
    return loss


def _entropy(scores: Tensor, wanted: Tensor) -> Tensor:
    return F.cross_entropy(scores, wanted.reshape(-1), ignore_index=IGNORE)


def phi_per_dim(states: Tensor, dims: Sequence[int]) -> Tensor:
    """|x[d]| / rms(x) for each of ``dims``: ``(..., hidden)`` -> ``(..., len(dims))``, float32
    (method: phi)."""
    states = states.float()
    scale = (states.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    return states[..., list(dims)].abs() / scale


def choose_sinks(phi: Tensor, targets: SceneTargets, count: int, lead: float = math.inf) -> Tensor:
    """The ``count`` tokens of highest phi off the objects: ``(B, V)`` -> bool ``(B, V)``.

    A token on the side away from the objects goes first, unless another one's phi is greater by
    ``lead`` or more.
    """
    allowed = torch.where(targets.away, phi, (phi - lead).clamp_min(-1.0))
    allowed = allowed.masked_fill(targets.touched, -2.0)
    chosen = torch.zeros_like(targets.away).scatter_(1, allowed.topk(count, 1).indices, True)
    return chosen & ~targets.touched


def sink_loss(
    states: Sequence[Tensor],
    attentions: Sequence[Tensor],
    batch: PackedBatch,
    targets: SceneTargets,
    teaching: SinkTeaching,
) -> tuple[Tensor, dict[str, float]]:
    """Encourages sinks (see ``SinkTeaching``).

    Args:
        states: Residual stream at the input of each layer; ``states[1]`` is where sinks have to
            exist first.
        attentions: ``(B, H, L, L)`` for each layer.
        batch: The packed batch.
        targets: What is known about its scenes.
        teaching: The settings.

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
    large = []  # vision tokens that a head may take for sinks, layer by layer
    for layer in inner:
        phi = phi_per_dim(states[layer], teaching.dims)
        large.append((phi.detach().amax(-1) >= 2 * teaching.low * limit)[:, vision] | chosen)
        excess = F.relu(phi[ordinary] - teaching.low * limit).sum() / everywhere.sum().clamp_min(1)
        kept_low = kept_low + 0.25 * teaching.surplus * excess
        raised = raised + F.relu(teaching.high * limit - phi[everywhere]).mean()
        kept_low = kept_low + F.relu(phi[ordinary] - teaching.low * limit).mean()
    held, figures = _attention_asked(attentions, batch, targets, chosen, large, teaching)
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


def _attention_asked(
    attentions: Sequence[Tensor],
    batch: PackedBatch,
    targets: SceneTargets,
    chosen: Tensor,
    large: Sequence[Tensor],
    teaching: SinkTeaching,
) -> tuple[Tensor, dict[str, float]]:
    """What the heads of ``teaching.layers`` miss of the attention asked of them (0: nothing), and
    figures for the log; ``large`` holds the large tokens ``(B, V)`` of layers 1, 2 ..."""
    shares, totals, masses, strays = [], [], [], []
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
        # In log-odds: the gradient of a share itself vanishes where it is near nothing or all.
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
