"""The ground truth of a scene, and the auxiliary losses. Pure tensor functions.

The auxiliary losses ("hints") use linear heads that are not part of the model. They teach (1) shape
and colour of each vision token, (2) its place in the picture, (3) colour and place of the object
that a shape word names, at the word itself, (4) the number of objects, at the counted noun, (5)
which of two named objects is further left, at the second name. Without (3), the model does not
learn to find the place of a named object, even with tens of thousands of images.
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
from sinkscope.demo.scenes import COLOURS, PLACES, SHAPES, Scene

_NAMED_LAYER = 3
_COUNT_LAYER = 4
_PLACE_LAYER = 2
_OTHER_LAYER, _COMPARED_LAYER = 4, 5
_READING_LAYERS = (3, 4)
_POINTING_LAYER = 3


@dataclass(frozen=True)
class SceneTargets:
    """What is known about each vision token and object of a batch.

    Attributes:
        shape: ``(B, V)``: 0 background, 1.. shape, -100 for a token with a small part of an object.
        colour: ``(B, V)``: the same for colour.
        place: ``(V,)``: the cell of the 3 x 3 layout.
        object_colour: ``(B, N)``: colour of each object, padded with -100.
        object_shape: ``(B, N)``: shape of each object, padded with -100.
        object_place: ``(B, N)``: place of each object, padded with -100.
        touched: ``(B, V)`` bool: whether any part of an object's box is in the token.
        covered: ``(B, N, V)``: 1 if the object covers more than a fifth of the token, else 0.
        inside: ``(B, N, V)`` bool: whether the token's centre is in the object's box.
        away: ``(B, V)`` bool: background on the side opposite to the objects.
    """

    shape: Tensor
    colour: Tensor
    place: Tensor
    object_colour: Tensor
    object_shape: Tensor
    object_place: Tensor
    touched: Tensor
    away: Tensor
    covered: Tensor
    inside: Tensor


def hint_heads(hidden: int) -> nn.ModuleDict:
    """The auxiliary heads; they are discarded after training."""
    return nn.ModuleDict(
        {
            "seen": nn.Linear(hidden, len(SHAPES) + len(COLOURS) + 2),
            "place": nn.Linear(hidden, len(PLACES)),
            "named": nn.Linear(hidden, len(COLOURS) + len(PLACES) + 2),
            "count": nn.Linear(hidden, len(NUMBERS)),
            "other": nn.Linear(hidden, len(SHAPES) + len(PLACES)),
            "compared": nn.Linear(hidden, len(SHAPES)),
        }
    )


def scene_targets(scenes: Sequence[Scene], rows: int, cols: int) -> SceneTargets:
    """The targets of the scenes; ``rows`` x ``cols`` is the grid of vision tokens."""
    per_scene = [_one_scene(s, rows, cols) for s in scenes]
    most = max(1, max(len(s.objects) for s in scenes))
    colours = np.full((len(scenes), most), IGNORE)
    shapes = np.full((len(scenes), most), IGNORE)
    places = np.full((len(scenes), most), IGNORE)
    for i, s in enumerate(scenes):
        for j, o in enumerate(s.objects):
            colours[i, j], places[i, j] = list(COLOURS).index(o.colour), o.cell
            shapes[i, j] = SHAPES.index(o.shape)
    covered = np.zeros((len(scenes), most, rows * cols), np.float32)
    inside = np.zeros((len(scenes), most, rows * cols), bool)
    for i, s in enumerate(scenes):
        covered[i, : len(s.objects)] = _cover(s, rows, cols).reshape(-1, rows * cols) > 0.2
        for j in range(len(s.objects)):
            inside[i, j] = inside_box(s, j, rows, cols)
    y, x = np.divmod(np.arange(rows * cols), cols)
    place = ((y + 0.5) / rows * 3).astype(int) * 3 + ((x + 0.5) / cols * 3).astype(int)
    stacked = [torch.from_numpy(np.stack(part)) for part in zip(*per_scene, strict=True)]
    return SceneTargets(
        shape=stacked[0],
        colour=stacked[1],
        place=torch.from_numpy(place),
        object_colour=torch.from_numpy(colours),
        object_shape=torch.from_numpy(shapes),
        object_place=torch.from_numpy(places),
        touched=stacked[2],
        away=stacked[3],
        covered=torch.from_numpy(covered),
        inside=torch.from_numpy(inside),
    )


def inside_box(scene: Scene, index: int, rows: int, cols: int) -> np.ndarray:
    """Tokens whose centre lies in the box of object ``index``: ``(V,)`` bool."""
    height, width = scene.owner.shape
    x0, y0, x1, y1 = scene.objects[index].box
    y, x = np.mgrid[0:rows, 0:cols]
    centre_x, centre_y = (x + 0.5) * width / cols, (y + 0.5) * height / rows
    inside: np.ndarray = (x0 <= centre_x) & (centre_x < x1) & (y0 <= centre_y) & (centre_y < y1)
    return inside.reshape(-1)


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
        # A token with only a corner of an object is neither that object nor background.
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
    """The 40 % of the background tokens farthest from the objects, on the opposite side; all tokens
    if there are none."""
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
    """Cross entropy of shape and colour, predicted from vision features ``(B, V, hidden)``."""
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


def comparison_loss(
    heads: nn.ModuleDict, states: Sequence[Tensor], batch: PackedBatch, targets: SceneTargets
) -> tuple[Tensor, dict[str, float]]:
    """Teaches "Which is further left, the star or the ring?" in two steps, both at the second shape
    word: first the shape and place of the other object, and one layer later the shape that is
    further left.

    Without it, the model names whatever object is leftmost, which is right where there are only the
    two: 97 % of such questions were answered, 81 % of those about scenes with four objects. With
    the second step alone, the word was still at chance after 300 steps.

    Returns:
        The sum of the cross entropies, and the share of these words that are right in each step;
        0 and no shares if no such question is asked.
    """
    row, at = (batch.compared != IGNORE).nonzero(as_tuple=True)
    if not len(row):
        return states[0].new_zeros((), dtype=torch.float32), {}
    first, second = batch.compared[row, at], batch.named[row, at]
    shape, place = targets.object_shape[row, first], targets.object_place[row, first]
    left = place % 3 < targets.object_place[row, second] % 3
    winner = torch.where(left, shape, targets.object_shape[row, second])
    split = len(SHAPES)
    other = heads["other"](states[_OTHER_LAYER][row, at].float())
    compared = heads["compared"](states[_COMPARED_LAYER][row, at].float())
    loss = F.cross_entropy(other[:, :split], shape) + F.cross_entropy(other[:, split:], place)
    with torch.no_grad():
        right = {
            "other": float((other[:, split:].argmax(-1) == place).float().mean()),
            "compared": float((compared.argmax(-1) == winner).float().mean()),
        }
    return loss + F.cross_entropy(compared, winner), right


def answer_loss(scores: Tensor, wanted: Tensor, batch: PackedBatch, left_weight: float) -> Tensor:
    """Cross entropy of the answers' tokens, those of "further left" answers weighted.

    Args:
        scores: ``(N, vocabulary)`` of the rows in ``batch.predicting``.
        wanted: ``(N,)`` token ids.
        batch: The packed batch.
        left_weight: Weight of a token of a "further left" answer; 1: as any other.
    """
    if left_weight == 1:
        return F.cross_entropy(scores, wanted)
    weights = torch.where(comparing_rows(batch)[batch.predicting], left_weight, 1.0)
    return (weights * F.cross_entropy(scores, wanted, reduction="none")).sum() / weights.sum()


def comparing_rows(batch: PackedBatch) -> Tensor:
    """``(B, L)`` bool: rows of the answers to "further left" questions."""
    compared = batch.compared.gather(1, batch.focus.clamp_min(0)) != IGNORE
    return (batch.focus >= 0) & compared


def winner_reading_loss(attentions: Sequence[Tensor], batch: PackedBatch) -> Tensor:
    """Teaches the last head of the last layer to attend, from the rows of a "further left" answer,
    to the second shape word, which holds the winner by then (`comparison_loss`).

    In the layers before, these rows are required to attend to the image.

    Args:
        attentions: ``(B, H, L, L)`` for each layer.
        batch: The packed batch.

    Returns:
        The mean negative log of the attention there; 0 if no such question is asked.
    """
    row, at = comparing_rows(batch).nonzero(as_tuple=True)
    if not len(row):
        return attentions[-1].new_zeros((), dtype=torch.float32)
    weights = attentions[-1][row, -1, at, batch.focus[row, at]].float()
    return -(weights + 1e-3).log().mean()


def reading_loss(attentions: Sequence[Tensor], batch: PackedBatch, targets: SceneTargets) -> Tensor:
    """Teaches three heads where to attend; without it, training stays on a plateau for long.

    The last heads of layers 3 and 4 are taught to attend, from each row that predicts an answer, to
    the word that the question is about. The first head of layer 3 is taught to attend to an object
    from the rows that predict its shape.

    Args:
        attentions: ``(B, H, L, L)`` for each layer.
        batch: The packed batch.
        targets: What is known about its scenes.

    Returns:
        The mean negative log of the attention at these targets.
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
