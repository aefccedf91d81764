"""What one sample says about sinks: one plain forward pass, reduced layer by layer while it runs.

1. `measure` prepares the samples, pads them on the left to one batch, and runs the model once with
   a probe that sees the residual stream at each layer's input and the layer's rotated queries and
   keys.
2. For each layer and each sample separately (only its own positions, so that the batch cannot
   matter; on a GPU all samples at once, `sinks.finding.batch`) it computes: the attention received
   by each key (`sinks.received`); the vision tokens that stand out by it; m = |x[d]| / rms(x)
   averaged over these, over the ordinary ones, at the first token and over the text; and for each
   vision token its rms and its 16 largest m.
3. The layer's tensors are released. The result is a `SampleStats`: a pure function of the model,
   the sample and the settings in `sinks.settings.MEASURING`.

From the 16 largest m of each token, phi for any few dimensions can be computed later wherever it
matters. So dimensions and tau come from the same single pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sinkscope.capture.probes.base import Probe, Reader
from sinkscope.capture.session import attached
from sinkscope.models import kernels
from sinkscope.models.family import PromptInputs, PromptLayout
from sinkscope.models.loading import ModelHandle
from sinkscope.models.run_info import RunInfo
from sinkscope.models.sites import SiteSelection
from sinkscope.sinks.finding.batch import BatchReducer
from sinkscope.sinks.finding.relative import MASSIVE, MASSIVE_RATIO, background, relative
from sinkscope.sinks.finding.stats import TOP, SampleStats
from sinkscope.sinks.received import block_bytes, choose, first_query_of, received
from sinkscope.sinks.samples import Sample
from sinkscope.sinks.settings import AUTO_SAMPLES, AUTO_TOKENS, FindSettings


@dataclass(frozen=True)
class Unusable:
    """A sample that cannot be prepared, and why."""

    id: str
    reason: str


def measure(
    handle: ModelHandle, samples: Sequence[Sample], settings: FindSettings
) -> list[SampleStats | Unusable]:
    """Pass samples through the model once and reduce what the probe sees of each.

    Args:
        handle: the model; its lock is taken.
        samples: one batch. If the settings give no batch size, it is split into passes of
            `AUTO_TOKENS` (padding included), and measured one by one if memory runs out.
        settings: how tokens are chosen, and in which layers.

    Returns:
        One result per sample, in their order: statistics, or why there are none.

    Raises:
        ValueError: `layers` does not fit the model, the model's attention has a sliding window
            shorter than the prompt, or a value in the model is not finite.
        torch.OutOfMemoryError: the batch does not fit.
    """
    results: list[SampleStats | Unusable] = []
    usable: list[tuple[Sample, PromptInputs]] = []
    for sample in samples:
        try:
            prompt = handle.prepare(
                sample.open_images(),
                sample.prompt,
                sample.system,
                max_pixels=settings.max_pixels,
                history=sample.history,
            )
        except ValueError as error:  # of the image or the prompt
            results.append(Unusable(sample.id, str(error)))
        else:
            usable.append((sample, prompt))
    if usable and settings.batch_size is not None:
        results += _forward(handle, usable, settings)
    elif usable:
        for some in _passes(usable):
            results += _as_it_fits(handle, some, settings)
    place = {sample.id: index for index, sample in enumerate(samples)}
    return sorted(results, key=lambda result: place[result.id])


def samples_at_once(settings: FindSettings, device: torch.device) -> int:
    """How many samples to pass to `measure` together."""
    if settings.batch_size is not None:
        return settings.batch_size
    return 1 if kernels.is_on_host(device) else AUTO_SAMPLES


def _passes(
    usable: Sequence[tuple[Sample, PromptInputs]],
) -> list[list[tuple[Sample, PromptInputs]]]:
    """Groups of neighbours whose batch, padding included, has at most `AUTO_TOKENS`; or of one."""
    passes: list[list[tuple[Sample, PromptInputs]]] = []
    longest = 0
    for one in usable:
        longest = max(longest, one[1].layout.length)
        if not passes or longest * (len(passes[-1]) + 1) > AUTO_TOKENS:
            passes.append([])
            longest = one[1].layout.length
        passes[-1].append(one)
    return passes


def _as_it_fits(
    handle: ModelHandle, some: Sequence[tuple[Sample, PromptInputs]], settings: FindSettings
) -> list[SampleStats]:
    """Measure all together, or one by one if together they do not fit on the device."""
    try:
        return _forward(handle, some, settings)
    except torch.OutOfMemoryError:
        if len(some) == 1:
            raise
    torch.cuda.empty_cache()  # here, where the exception no longer references the pass
    return [_forward(handle, [one], settings)[0] for one in some]


def _forward(
    handle: ModelHandle, usable: Sequence[tuple[Sample, PromptInputs]], settings: FindSettings
) -> list[SampleStats]:
    prompts = [prompt for _, prompt in usable]
    layers = settings.looked_at(handle.info.layers)
    tensors, length = _batch(prompts)
    check_window(handle, length)
    probe = LayerStatistics(settings, layers)
    with handle.lock, attached(handle, prompts, [probe]) as session:
        given = {name: tensor.to(handle.device) for name, tensor in tensors.items()}
        handle.model(**given, use_cache=False, logits_to_keep=1)
    statistics = session[probe].statistics()
    statistics_of = [
        SampleStats(
            id=sample.id,
            fingerprint=sample.fingerprint(),
            images=sample.digests,
            layers=layers,
            grids=tuple((grid.rows, grid.columns) for grid in prompt.layout.grids),
            **sample_statistics,
        )
        for (sample, prompt), sample_statistics in zip(usable, statistics, strict=True)
    ]
    for stats in statistics_of:
        _check_finite(stats)
    return statistics_of


@dataclass(frozen=True)
class LayerStatistics(Probe):
    """Statistics of each batch row: `session[probe].statistics()`, once the pass is over.

    Attributes:
        settings: how tokens are chosen.
        layers: the layers to measure.
    """

    settings: FindSettings
    layers: tuple[int, ...]

    def begin(self, run: RunInfo) -> Reader:
        size = run.model.hidden_size
        if kernels.is_on_host(run.device):
            one_by_one = _OneByOne(run.layouts, run.length, size, self.settings)
            return _Watcher(one_by_one, self.layers)
        batch = BatchReducer(run.layouts, run.length, self.layers, size, self.settings)
        return _Watcher(batch, self.layers)


class _Watcher(Reader):
    """Pairs the residual stream of a layer with its queries and keys."""

    def __init__(self, reducer: _OneByOne | BatchReducer, layers: tuple[int, ...]) -> None:
        self.reads = (SiteSelection("block_in", layers), SiteSelection("queries_keys", layers))
        self._reducer = reducer
        self._hidden: Tensor | None = None

    def see(self, site: str, layer: int, values: Any, positions: Sequence[int]) -> None:
        """Receives the residual stream first, then queries and keys of the same layer."""
        if site == "block_in":
            self._hidden = values  # costs no memory: the layer still holds this tensor
            return
        hidden, self._hidden = self._hidden, None
        assert hidden is not None
        self._reducer.reduce(layer, hidden, *values)

    def result(self) -> _OneByOne | BatchReducer:
        return self._reducer


class _OneByOne:
    """Passes each sample its part of each layer: for CPUs, where small blocks are fast."""

    def __init__(
        self, layouts: Sequence[PromptLayout], length: int, size: int, settings: FindSettings
    ) -> None:
        self._samples = [_Reducer(layout, size, settings) for layout in layouts]
        self._length = length

    def reduce(self, layer: int, hidden: Tensor, query: Tensor, key: Tensor, scale: float) -> None:
        """`hidden` (B, N, D), `query` (B, H, N, Dh), `key` (B, Hkv, N, Dh)."""
        for row, sample in enumerate(self._samples):
            pad = self._length - sample.length
            sample.reduce(layer, hidden[row, pad:], query[row, :, pad:], key[row, :, pad:], scale)

    def statistics(self) -> list[dict[str, Tensor]]:
        """All statistics of each sample, with layers as the first axis."""
        return [sample.statistics() for sample in self._samples]


class _Reducer:
    """Statistics of one sample, layer by layer."""

    def __init__(self, layout: PromptLayout, hidden_size: int, settings: FindSettings) -> None:
        self.length = layout.length
        self._settings, self._hidden_size = settings, hidden_size
        self._spans = [(where.start, where.stop) for _, where in layout.vision_stretches()]
        self._sizes = tuple(grid.tokens for grid in layout.grids)
        self._behind = layout.after_images
        self._text = _gaps(self._spans, layout.length)
        self._layers: dict[int, dict[str, Tensor]] = {}

    def statistics(self) -> dict[str, Tensor]:
        """All statistics with the layers as first axis."""
        layers = [self._layers[layer] for layer in sorted(self._layers)]
        return {name: torch.stack([layer[name] for layer in layers]) for name in layers[0]}

    def _begin(self, device: torch.device) -> dict[str, Tensor]:
        hidden_size, kept = self._hidden_size, min(TOP, self._hidden_size)
        vision = sum(self._sizes)

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        return {
            "sink": zeros(hidden_size),
            "prominence": zeros(hidden_size),
            "ordinary_prominence": zeros(hidden_size),
            "first_prominence": zeros(hidden_size),
            "ordinary": zeros(hidden_size),
            "ordinary_square": zeros(hidden_size),
            "ordinary_max": zeros(hidden_size),
            "first": zeros(hidden_size),
            "text_max": zeros(hidden_size),
            "massive": zeros(hidden_size, dtype=torch.int32),
            "received": zeros(vision),
            "ratio": zeros(vision),
            "group": zeros(vision, dtype=torch.uint8),
            "rms": zeros(vision),
            "top_dims": zeros(vision, kept, dtype=torch.int32),
            "top_values": zeros(vision, kept),
        }

    def reduce(self, layer: int, hidden: Tensor, query: Tensor, key: Tensor, scale: float) -> None:
        """`hidden` (N, D), `query` (H, N, Dh), `key` (Hkv, N, Dh) of the sample's own positions."""
        into = self._layers[layer] = self._begin(hidden.device)
        scores = self._scores(hidden, query, key, scale)
        chosen = choose(
            scores,
            self._sizes,
            self._settings.top_percent,
            self._settings.min_ratio,
        )
        into["received"].copy_(scores)
        into["ratio"].copy_(chosen.ratio)
        into["group"].copy_(chosen.ordinary.to(torch.uint8) + 2 * chosen.sinks.to(torch.uint8))
        ordinary = chosen.ordinary.to(torch.float32)
        self._vision(hidden, ordinary, ordinary / ordinary.sum().clamp(min=1), into)
        self._sinks(hidden, chosen.top, chosen.sinks, into)
        first = relative(hidden[:1])[0]
        into["first"].copy_(first[0])
        into["first_prominence"].copy_(first[0] / background(first)[0])
        for low, high in self._text:
            for part in _blocks(hidden, low, high):
                into["text_max"].copy_(torch.maximum(into["text_max"], relative(part)[0].amax(0)))

    def _scores(self, hidden: Tensor, query: Tensor, key: Tensor, scale: float) -> Tensor:
        """float32 (V,): the scores by which tokens are chosen."""
        if self._settings.tokens_by == "norm":
            parts = [
                torch.linalg.vector_norm(part.to(torch.float32), dim=-1)
                for low, high in self._spans
                for part in _blocks(hidden, low, high)
            ]
            return torch.cat(parts)
        first = first_query_of(self._settings.tokens_by, self.length, self._behind)
        everywhere = received(query, key, scale, first)
        return torch.cat([everywhere[low:high] for low, high in self._spans])

    def _vision(
        self, hidden: Tensor, ordinary: Tensor, weights: Tensor, into: dict[str, Tensor]
    ) -> None:
        """All vision tokens: their values, and sums over the ordinary ones."""
        kept, before = into["top_values"].shape[-1], 0
        for low, high in self._spans:
            for part in _blocks(hidden, low, high):
                columns = slice(before, before + len(part))
                m, rms = relative(part)
                into["rms"][columns] = rms
                values, dims = m.topk(kept, dim=-1)
                into["top_values"][columns], into["top_dims"][columns] = (
                    values,
                    dims.to(torch.int32),
                )
                into["ordinary"].add_(weights[columns] @ m)
                under = background(m, dims)
                into["ordinary_prominence"].add_((weights[columns] / under) @ m)
                m.mul_(ordinary[columns, None])
                into["ordinary_max"].copy_(torch.maximum(into["ordinary_max"], m.amax(0)))
                into["ordinary_square"].add_(weights[columns] @ m.square_())
                before += len(part)

    def _sinks(self, hidden: Tensor, top: Tensor, sinks: Tensor, into: dict[str, Tensor]) -> None:
        """The tokens that stand out; gathered into a small tensor, because they are few."""
        spans = [torch.arange(low, high, device=hidden.device) for low, high in self._spans]
        positions = torch.cat(spans)[top]
        counted = sinks[top].to(torch.float32)
        weights = counted / counted.sum().clamp(min=1)
        for low, high in _steps(hidden, 0, len(positions)):
            part = hidden[positions[low:high]]
            m = relative(part)[0]
            into["sink"].add_(weights[low:high] @ m)
            into["prominence"].add_((weights[low:high] / background(m)) @ m)
            size = part.to(torch.float32).abs()
            median = size.median(-1, keepdim=True).values
            massive = (size >= MASSIVE) & (size >= MASSIVE_RATIO * median)
            into["massive"].add_((massive & sinks[top][low:high, None]).sum(0, dtype=torch.int32))


def _check_finite(stats: SampleStats) -> None:
    """Refuse values that are not finite: compared with a threshold they would count as small, and
    massive activations that overflow would be reported as "no sinks".

    Raises:
        ValueError: naming the sample and the first layer.
    """
    figures = (stats.rms, stats.received, stats.first, stats.text_max)
    finite = torch.stack([torch.isfinite(figure).all(-1) for figure in figures]).all(0)
    for layer, good in zip(stats.layers, finite.tolist(), strict=True):
        if not good:
            raise ValueError(
                f"In layer {layer} of {stats.id} the model's activations are not finite numbers. "
                "In float16 massive activations overflow; load the model in bfloat16 or float32. "
                "Otherwise its weights are damaged."
            )


def _steps(hidden: Tensor, low: int, high: int) -> list[tuple[int, int]]:
    """Pieces of [low, high) whose float32 copy is small."""
    size = max(1, block_bytes(hidden.device) // 2 // (hidden.shape[-1] * 4))
    return [(start, min(start + size, high)) for start in range(low, high, size)]


def _blocks(hidden: Tensor, low: int, high: int) -> list[Tensor]:
    return [hidden[start:stop] for start, stop in _steps(hidden, low, high)]


def _gaps(spans: Sequence[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """Positions outside the spans, except the first of the prompt."""
    edges = [1, *(edge for span in spans for edge in span), length]
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [(low, high) for low, high in pairs if low < high]


def _batch(prompts: Sequence[PromptInputs]) -> tuple[dict[str, Tensor], int]:
    """The tensors of all prompts as one batch, padded on the left, and the batch's length."""
    length = max(prompt.layout.length for prompt in prompts)
    tensors: dict[str, Any] = {}
    for name in prompts[0].tensors:
        parts = [prompt.tensors[name] for prompt in prompts]
        if all(
            part.ndim == 2 and part.shape == (1, prompt.layout.length)
            for part, prompt in zip(parts, prompts, strict=True)
        ):  # one value per position; 0 in the attention mask is padding
            parts = [torch.nn.functional.pad(part, (length - part.shape[1], 0)) for part in parts]
        tensors[name] = torch.cat(parts)
    return tensors, length


def check_window(handle: ModelHandle, length: int) -> None:
    """Refuse a prompt that is longer than a sliding window of the model's attention: received
    attention would be divided by the number of later queries, some of which cannot see the key.

    Raises:
        ValueError: naming length and window.
    """
    window = min((size for size in handle.stack.windows if size is not None), default=None)
    if window is not None and length > window:
        setting = " (max_pixels)" if handle.family.pixel_bounds else ""
        raise ValueError(
            f"The prompt has {length} tokens, but some layers of {handle.info.id} see only the "
            f"last {window}; make the images smaller{setting}."
        )
