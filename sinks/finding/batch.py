"""Statistics of a batch of samples in a form suited to GPUs: all samples at once, few kernel
launches per layer, and nothing is read back before the forward pass is over.

The results are those of `sinks.finding.measure`, which on a CPU processes one sample after the
other in small blocks. Here the batch stays one tensor: positions that are not vision tokens of a
sample, and padding, have the weight 0. Means over chosen tokens are products of such weights with
m, computed as one matrix product per block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sinkscope.models.family import PromptLayout
from sinkscope.sinks.finding.relative import MASSIVE, MASSIVE_RATIO, background, relative
from sinkscope.sinks.finding.stats import TOP
from sinkscope.sinks.received import block_bytes, first_query_of
from sinkscope.sinks.settings import FindSettings

ORDINARY, SINKS, FIRST = range(3)  # rows of weights
CAUSAL_BLOCKS = 4  # blocks of queries, at least: each block sees only the keys before its end
FEWEST_QUERIES = 256  # but no block has fewer queries than this


class BatchReducer:
    """Statistics of all samples of one batch, layer by layer.

    Args:
        layouts: layouts of the samples' prompts.
        length: length of the batch; shorter prompts are padded on the left.
        layers: indices of the model's layers that will be passed to `reduce`.
        hidden_size: D.
        settings: how tokens are chosen.
    """

    def __init__(
        self,
        layouts: Sequence[PromptLayout],
        length: int,
        layers: Sequence[int],
        hidden_size: int,
        settings: FindSettings,
    ) -> None:
        self._layouts, self._length, self._settings = tuple(layouts), length, settings
        self._layers, self._size = tuple(sorted(layers)), hidden_size
        self._places = [_Places.of(layout, length) for layout in layouts]
        self._most = max(len(places.vision) for places in self._places)
        self._by_device: dict[torch.device, _DeviceBatch] = {}
        self._where: dict[int, torch.device] = {}

    def reduce(self, layer: int, hidden: Tensor, query: Tensor, key: Tensor, scale: float) -> None:
        """`hidden` (B, N, D), `query` (B, H, N, Dh), `key` (B, Hkv, N, Dh)."""
        device = hidden.device
        if device not in self._by_device:
            self._by_device[device] = _DeviceBatch(self, device)
        self._where[layer] = device
        self._by_device[device].reduce(layer, hidden.detach(), query.detach(), key.detach(), scale)

    def statistics(self) -> list[dict[str, Tensor]]:
        """All statistics of each sample, with layers as the first axis, on the CPU. Copies once
        from each device."""
        held = {device: reducer.read() for device, reducer in self._by_device.items()}
        rows = [(self._where[layer], self._layers.index(layer)) for layer in sorted(self._where)]
        statistics = []
        for sample, places in enumerate(self._places):
            sample_values: dict[str, Tensor] = {}
            for name in next(iter(held.values())):
                parts = torch.stack([held[device][name][row, sample] for device, row in rows])
                sample_values[name] = parts[:, : len(places.vision)] if name in OF_TOKENS else parts
            statistics.append({name: tensor.contiguous() for name, tensor in sample_values.items()})
        return statistics


OF_TOKENS = ("received", "ratio", "group", "rms", "top_dims", "top_values")


class _Places:
    """Positions of the parts of one sample in the batch.

    Attributes:
        pad: number of padding positions before the sample.
        vision: positions of its vision tokens, image by image.
        images: number of vision tokens of each image.
        text: bool (N,): neither vision token, first token nor padding.
    """

    def __init__(self, pad: int, vision: Tensor, images: tuple[int, ...], text: Tensor) -> None:
        self.pad, self.vision, self.images, self.text = pad, vision, images, text

    @staticmethod
    def of(layout: PromptLayout, length: int) -> _Places:
        pad = length - layout.length
        spans = [(where.start + pad, where.stop + pad) for _, where in layout.vision_stretches()]
        vision = torch.cat([torch.arange(low, high) for low, high in spans])
        text = torch.ones(length, dtype=torch.bool)
        text[vision] = False
        text[: pad + 1] = False
        return _Places(pad, vision, tuple(grid.tokens for grid in layout.grids), text)


class _DeviceBatch:
    """The batch on one device: constants and measurements."""

    def __init__(self, owner: BatchReducer, device: torch.device) -> None:
        self._settings, self._layers = owner._settings, owner._layers
        places, length, most = owner._places, owner._length, owner._most
        batch, count, size = len(places), len(owner._layers), owner._size
        self._length, self._padded = length, max(one.pad for one in places)
        # One extra column per sample and one extra cell at the very end stand for missing tokens.
        vision = torch.full((batch, most), length)
        cells, belongs, rows = [], [], []
        for row, one in enumerate(places):
            vision[row, : len(one.vision)] = one.vision
            before = row * most
            for tokens in one.images:
                cells.append(torch.arange(before, before + tokens))
                belongs.append(row)
                rows.append(tokens)
                before += tokens
        widest = max(rows)
        padded = torch.full((len(cells), widest), batch * most)
        for row, cell in enumerate(cells):
            padded[row, : len(cell)] = cell
        counts = torch.tensor(rows)[:, None]
        kept = [max(1, int(tokens * self._settings.top_percent / 100)) for tokens in rows]
        pads = torch.tensor([one.pad for one in places])[:, None]
        by = self._settings.tokens_by
        firsts = [
            first_query_of(by, layout.length, layout.after_images) for layout in owner._layouts
        ]
        first = torch.tensor(firsts)[:, None] + pads
        position = torch.arange(length)[None]
        # A wanted query is weighted by the number of keys that it sees.
        sees = (position - pads + 1).clamp_(min=0) * (position >= first)
        later = (length - 1 - torch.maximum(position, first - 1)).clamp_(min=1)
        one_hot = torch.zeros(batch, length + 1)
        one_hot.scatter_(1, pads, 1.0)

        def put(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        self._first_query = int(first.min())
        self._vision, self._cells = put(vision), put(padded)
        self._vision_there = put(vision < length)
        self._in_image = put(padded < batch * most)
        self._low, self._high = put((counts - 1) // 2), put(counts // 2)
        self._kept = max(kept)
        self._among = put(torch.arange(self._kept)[None] < torch.tensor(kept)[:, None])
        self._image_of = put(torch.tensor(belongs))
        self._sees, self._later = put(sees.to(torch.float32)), put(later.to(torch.float32))
        self._first = put(one_hot)
        self._text = put(torch.stack([one.text for one in places]).to(torch.float32)[..., None])
        self._padding = put(position < pads)  # (B, N)
        self._after: Tensor | None = None  # (n, n): key after query
        # For each vision token: its position among all tokens of all samples.
        flat = (vision + torch.arange(batch)[:, None] * length).flatten()
        self._flat = put(torch.cat([flat, torch.zeros(1, dtype=flat.dtype)]))

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(count, batch, *shape, dtype=dtype, device=device)

        top = min(TOP, size)
        self._sums = zeros(6, size)  # sums by the weights' rows, of m and of m / background
        self._square = zeros(size)
        self._maximum = zeros(2, size)  # over ordinary tokens, over the text
        self._massive = zeros(size, dtype=torch.int32)
        self._received, self._ratio = zeros(most), zeros(most)
        self._group = zeros(most, dtype=torch.uint8)
        self._rms = zeros(most)
        self._top_dims, self._top_values = zeros(most, top, dtype=torch.int32), zeros(most, top)

    def read(self) -> dict[str, Tensor]:
        """All results on the CPU, each (L, B, ...)."""
        held = (
            self._sums,
            self._square,
            self._maximum,
            self._massive,
            self._received,
            self._ratio,
            self._rms,
            self._top_dims,
            self._top_values,
            self._group,
        )
        data = torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in held]).cpu()
        back, low = [], 0
        for tensor in held:
            high = low + tensor.nbytes
            back.append(data[low:high].view(tensor.dtype).view(tensor.shape))
            low = high
        sums, square, maximum, massive, received, ratio, rms, dims, values, group = back
        return {
            "ordinary": sums[:, :, ORDINARY],
            "sink": sums[:, :, SINKS],
            "first": sums[:, :, FIRST],
            "ordinary_prominence": sums[:, :, 3 + ORDINARY],
            "prominence": sums[:, :, 3 + SINKS],
            "first_prominence": sums[:, :, 3 + FIRST],
            "ordinary_square": square,
            "ordinary_max": maximum[:, :, 0],
            "text_max": maximum[:, :, 1],
            "massive": massive,
            "received": received,
            "ratio": ratio,
            "group": group,
            "rms": rms,
            "top_dims": dims,
            "top_values": values,
        }

    def reduce(self, layer: int, hidden: Tensor, query: Tensor, key: Tensor, scale: float) -> None:
        """Process one layer of all samples."""
        at = self._layers.index(layer)
        weights, top, sinks = self._choose(at, self._scores(hidden, query, key, scale))
        batch, length, _ = hidden.shape
        kept = self._top_values.shape[-1]
        rms = hidden.new_zeros(batch, length + 1, dtype=torch.float32)
        values = hidden.new_zeros(batch, length + 1, kept, dtype=torch.float32)
        dims = hidden.new_zeros(batch, length + 1, kept, dtype=torch.int32)
        step = max(1, block_bytes(hidden.device) // 2 // (batch * hidden.shape[-1] * 4))
        for low in range(0, length, step):
            span = slice(low, min(low + step, length))
            self._block(at, hidden[:, span], span, weights[..., span], (rms, values, dims))
        self._rms[at] = rms.gather(1, self._vision)
        several = self._vision[..., None].expand(-1, -1, kept)
        self._top_values[at] = values.gather(1, several)
        self._top_dims[at] = dims.gather(1, several)
        self._count_massive(at, hidden, top, sinks)

    def _scores(self, hidden: Tensor, query: Tensor, key: Tensor, scale: float) -> Tensor:
        """float32 (B, N): the scores by which tokens are chosen."""
        if self._settings.tokens_by == "norm":
            norms: Tensor = torch.linalg.vector_norm(hidden.to(torch.float32), dim=-1)
            return norms
        batch, heads, length, width = query.shape
        kv_heads = key.shape[1]
        total = torch.zeros(batch, length, dtype=torch.float32, device=query.device)
        keys = (key.to(torch.float32) * scale).reshape(-1, length, width).transpose(1, 2)
        most = block_bytes(query.device) // (batch * heads * length * 4)
        step = max(1, min(most, max(FEWEST_QUERIES, -(-length // CAUSAL_BLOCKS))))
        for low in range(self._first_query, length, step):
            high = min(low + step, length)
            block = query.new_empty(batch, heads, high - low, width, dtype=torch.float32)
            block.copy_(query[:, :, low:high])
            if low < self._padded:  # values at padding may be NaN
                block.masked_fill_(self._padding[:, None, low:high, None], 0.0)
            rows = torch.bmm(block.view(batch * kv_heads, -1, width), keys[..., :high])
            rows = rows.view(batch, heads, high - low, high)
            if self._padded:
                hidden_keys = self._padding[:, None, None, : min(self._padded, high)]
                # The smallest number, not -inf: rows of padding must stay finite.
                least = torch.finfo(rows.dtype).min
                rows[..., : hidden_keys.shape[-1]].masked_fill_(hidden_keys, least)
            rows[..., low:high].masked_fill_(self._later_keys(high - low), float("-inf"))
            rows = torch.softmax(rows, dim=-1)
            rows[..., low:high].diagonal(dim1=-2, dim2=-1).zero_()
            sees = self._sees[:, None, low:high].expand(-1, heads, -1).reshape(batch, 1, -1)
            total[:, :high] += torch.bmm(sees, rows.view(batch, -1, high))[:, 0]
        return total / (self._later * heads)

    def _later_keys(self, size: int) -> Tensor:
        """bool (size, size)."""
        if self._after is None or len(self._after) < size:
            self._after = torch.ones(size, size, dtype=torch.bool, device=self._sees.device).triu_(
                1
            )
        return self._after[:size, :size]

    def _choose(self, at: int, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The vision tokens that stand out, as defined by `sinks.received.choose`.

        Args:
            at: index of the layer.
            scores: float32 (B, N), at least 0.

        Returns:
            weights (B, 3, N + 1) of the ordinary tokens, those that stand out, and the first; the
            cells (images, k) of the highest scores; and bool (images, k): which stand out.
        """
        batch, most = self._vision.shape
        nothing = scores.new_zeros(batch, 1)
        vision_scores = torch.cat([scores, nothing], 1).gather(1, self._vision) * self._vision_there
        self._received[at] = vision_scores
        vision_scores = torch.cat([vision_scores.flatten(), nothing[0]])[self._cells]
        vision_scores = torch.where(self._in_image, vision_scores, -1.0)
        falling, order = torch.sort(vision_scores, dim=1, descending=True, stable=True)
        median = (falling.gather(1, self._low) + falling.gather(1, self._high)) / 2
        ratio = vision_scores / median.clamp(min=torch.finfo(vision_scores.dtype).tiny)
        above = ratio >= self._settings.min_ratio
        order = order[:, : self._kept]
        top = self._cells.gather(1, order).where(self._among, batch * most)
        sinks = above.gather(1, order) & self._among
        flat = vision_scores.new_zeros(3, batch * most + 1)
        flat[0].scatter_(0, self._cells.flatten(), ratio.flatten())
        flat[1].scatter_(0, self._cells.flatten(), (~above).to(vision_scores.dtype).flatten())
        flat[2].scatter_(0, top.flatten(), sinks.to(vision_scores.dtype).flatten())
        ratio, ordinary, standing = flat[:, :-1].view(3, batch, most)
        self._ratio[at] = ratio * self._vision_there
        self._group[at] = torch.add(ordinary, standing, alpha=2)
        chosen = torch.stack([ordinary, standing], 1) * self._vision_there[:, None]  # (B, 2, V)
        chosen = chosen / chosen.sum(-1, keepdim=True).clamp(min=1)
        weights = vision_scores.new_zeros(batch, 2, self._length + 1)
        weights.scatter_(2, self._vision[:, None].expand(-1, 2, -1), chosen)
        return torch.cat([weights, self._first[:, None]], 1), top, sinks

    def _block(
        self,
        at: int,
        hidden: Tensor,
        span: slice,
        weights: Tensor,
        out: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        """Positions `span` of all samples: hidden (B, n, D), weights (B, 3, n)."""
        states = hidden.to(torch.float32)
        if span.start < self._padded:  # values at padding may be NaN
            states = states.masked_fill(self._padding[:, span, None], 0.0)
        m, rms = relative(states)
        values, dims = m.topk(out[1].shape[-1], dim=-1)
        for into, part in zip(out, (rms, values, dims), strict=True):
            into[:, span] = part
        under = background(m, dims)
        both = torch.cat([weights, weights / under[:, None]], 1)
        self._sums[at] += torch.bmm(both, m)
        text = (m * self._text[:, span]).amax(1)
        m.mul_((weights[:, ORDINARY] > 0)[..., None])
        largest = torch.stack([m.amax(1), text], 1)
        torch.maximum(self._maximum[at], largest, out=self._maximum[at])
        self._square[at] += torch.bmm(weights[:, ORDINARY, None], m.square_())[:, 0]

    def _count_massive(self, at: int, hidden: Tensor, top: Tensor, sinks: Tensor) -> None:
        """On how many of the tokens that stand out each dimension is a massive activation."""
        places = self._flat[top.flatten()].clamp(max=hidden.shape[0] * hidden.shape[1] - 1)
        size = hidden.reshape(-1, hidden.shape[-1])[places].to(torch.float32).abs()
        median = size.median(-1, keepdim=True).values
        massive = (size >= MASSIVE) & (size >= MASSIVE_RATIO * median) & sinks.view(-1, 1)
        counts = massive.view(*top.shape, -1).sum(1, dtype=torch.int32)
        self._massive[at].index_add_(0, self._image_of, counts)
