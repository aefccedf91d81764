"""Attention received by each key of a prompt: exact, without a matrix of all pairs.

    received(j) = 1 / |Q_j| * sum over q in Q_j of n_q * mean over heads of a(q, j)

Q_j are the wanted query rows AFTER position j: attention of a token to itself does not count. n_q
is the number of keys that row q can see. The factor n_q turns attention into multiples of uniform
attention and removes the bias of causal attention: a row that sees 10 keys gives each a tenth on
average, a row that sees 1000 a thousandth. Without it early tokens would look like sinks in any
model. A model with uniform rows has received = 1 everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.models.kernels import pack
from sinkscope.sinks.settings import TokensBy


def block_bytes(device: torch.device) -> int:
    """Size limit of one temporary tensor: small beside a forward pass, but on a GPU large enough to
    keep its kernels efficient."""
    return 1 << 21 if device.type == "cpu" else 1 << 26


def received(query: Tensor, key: Tensor, scale: float, first_query: int = 0) -> Tensor:
    """Attention received by each key from the later queries, see above.

    Args:
        query: (H, N, D) rotated queries of one sequence without padding, any floating dtype.
        key: (Hkv, N, D) rotated keys of the same positions.
        scale: factor on the scores.
        first_query: rows before this position are not counted.

    Returns:
        float32 (N,), in multiples of uniform attention; 0 if no wanted row comes later.
    """
    heads, length, _ = query.shape
    kv_heads = key.shape[0]
    total = torch.zeros(length, dtype=torch.float32, device=query.device)
    row_bytes = heads * length * 4
    step = max(1, min(length, block_bytes(query.device) // row_bytes))
    # In float32, as inside a fused kernel: half-precision products round, float16 ones overflow.
    keys = key.to(torch.float32).transpose(1, 2)
    for low in range(first_query, length, step):
        high = min(low + step, length)
        block = pack(query[None, :, low:high].to(torch.float32), kv_heads)[0]
        rows = torch.matmul(block, keys[..., :high]).mul_(scale).view(heads, high - low, high)
        square = rows[..., low:high]  # the only keys that are hidden from some rows of the block
        square.masked_fill_(_later(high - low, rows.device), float("-inf"))
        rows = torch.softmax(rows, dim=-1)
        rows[..., low:high].diagonal(dim1=-2, dim2=-1).zero_()
        visible = torch.arange(low + 1, high + 1, dtype=torch.float32, device=rows.device)
        # One product of a vector with all rows of all heads: the sum makes no copy of them.
        total[:high] += visible.repeat(heads) @ rows.view(-1, high)
    position = torch.arange(length, device=query.device)
    later = (length - 1 - torch.clamp(position, min=first_query - 1)).clamp_(min=1)
    return total / (later * heads)


def first_query_of(tokens_by: TokensBy, length: int, after_image: int) -> int:
    """The first query row that counts.

    Args:
        tokens_by: `FindSettings.tokens_by`.
        length: length of the prompt.
        after_image: position after the last vision token.
    """
    if tokens_by == "last_row":
        return length - 1
    return after_image if tokens_by == "after_image" else 0


@dataclass(frozen=True)
class Choice:
    """Which vision tokens stand out.

    Attributes:
        ratio: float32 (V,): each token's score in multiples of the median of its image.
        sinks: bool (V,): the top tokens of an image that also reach the least ratio.
        ordinary: bool (V,): tokens below the least ratio. A token may be neither.
        top: int64: the tokens with the highest scores, as many per image as may be chosen; `sinks`
            are among them.
    """

    ratio: Tensor
    sinks: Tensor
    ordinary: Tensor
    top: Tensor


def choose(scores: Tensor, tokens: tuple[int, ...], top_percent: float, min_ratio: float) -> Choice:
    """Choose the vision tokens that stand out, image by image.

    Args:
        scores: float32 (V,), at least 0; e.g. attention received.
        tokens: vision tokens of each image; their sum is V.
        top_percent: the most tokens to choose, in percent of an image's tokens; at least one.
        min_ratio: least multiple of the image's median.
    """
    ratios, tops, before = [], [], 0
    for count in tokens:
        image_scores = scores[before : before + count]
        falling, order = torch.sort(image_scores, descending=True, stable=True)
        median = (falling[(count - 1) // 2] + falling[count // 2]) / 2
        ratios.append(image_scores / median.clamp(min=torch.finfo(image_scores.dtype).tiny))
        tops.append(order[: max(1, int(count * top_percent / 100))] + before)
        before += count
    ratio, top = torch.cat(ratios), torch.cat(tops)
    above = ratio >= min_ratio
    sinks = torch.zeros_like(above)
    sinks[top] = above[top]
    return Choice(ratio, sinks, ~above, top)


def _later(size: int, device: torch.device) -> Tensor:
    """bool (size, size): key after query."""
    return torch.ones(size, size, dtype=torch.bool, device=device).triu_(1)
