"""Queries kept instead of rows: a run that IS plain SDPA, whose attention is computed afterwards.

Of each answer token only the rotated queries are kept (layers x heads x head size, however long the
prompt), and of the run the keys that its cache held anyway. Softmax rows follow from both, exactly:
they are the same function of the same numbers. The run's output is plain SDPA's bit for bit, where
live capture's differs from it by rounding.

It is the smaller form where prompts are long and few tokens are looked at: queries take
2 x layers x heads x head size bytes a token, live rows 2 x layers x heads x vision tokens.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache, StoppingCriteriaList

from sinkscope.capture.recorder import TraceRecorder
from sinkscope.capture.run import (
    Chosen,
    captured,
    end_tokens,
    generation_config,
    on_device,
    seeded,
    watching,
)
from sinkscope.capture.sinks import SinkObserver
from sinkscope.capture.tokens import TokenProbe
from sinkscope.capture.trace import GeneratedToken, GenerationTrace, LayerSinks
from sinkscope.config import GenerationSettings
from sinkscope.models.attention import ForwardPlan, running
from sinkscope.models.family import PromptInputs
from sinkscope.models.info import ModelInfo
from sinkscope.models.loading import ModelHandle
from sinkscope.redistribution.grouped import attention_rows


@dataclass(frozen=True)
class QueryStash:
    """A finished run, with what its attention can be computed from. One sequence.

    Attributes:
        inputs: the prompt (of length N).
        settings: what made it; `layers` and `heads` choose what `trace` holds.
        tokens: the T generated tokens.
        queries: layer -> (T, H, D), rotated, in the model's dtype, on its device.
        keys: layer -> (Hkv, N + T - 1, D), rotated, likewise.
        scales: layer -> factor on the scores.
        heads: indices in the model of the heads that `trace` holds.
        sinks, model, finish, seconds: as in `GenerationTrace`.
        windows: layer -> how many keys a query sees at most, itself among them; a layer without a
            sliding window is not there.
    """

    inputs: PromptInputs
    settings: GenerationSettings
    tokens: tuple[GeneratedToken, ...]
    queries: Mapping[int, torch.Tensor]
    keys: Mapping[int, torch.Tensor]
    scales: Mapping[int, float]
    heads: tuple[int, ...]
    sinks: tuple[LayerSinks, ...]
    model: ModelInfo
    finish: str
    seconds: float
    windows: Mapping[int, int] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[int, ...]:
        """Indices in the model of the layers kept."""
        return tuple(sorted(self.queries))

    def rows(self, token: int, layer: int) -> torch.Tensor:
        """The whole softmax row that explains a token (row convention: `capture.trace`).

        Returns:
            float32 (H, N + token) over all positions before the token, for all heads of the model.

        Raises:
            ValueError: no such token, or a layer that was not kept.
        """
        if not 0 <= token < len(self.tokens):
            raise ValueError(f"token is {token}; the answer has {len(self.tokens)}, from 0.")
        if layer not in self.queries:
            raise ValueError(f"layer is {layer}; the run kept layers {list(self.layers)}.")
        position = self.inputs.layout.length - 1 + token
        query = self.queries[layer][token][None, :, None]  # (1, H, 1, D)
        unseen = max(0, position + 1 - self.windows.get(layer, position + 1))
        key = self.keys[layer][None, :, unseen : position + 1]
        row = attention_rows(query, key, self.scales[layer], None, position - unseen)[0, :, 0]
        return torch.nn.functional.pad(row, (unseen, 0))

    def trace(self) -> GenerationTrace:
        """What `attention_extractor.generate` would have returned, computed now."""
        layout = self.inputs.layout
        recorder = TraceRecorder(
            layout,
            self.layers,
            self.heads,
            len(self.tokens),
            reduce_heads=self.settings.reduce_heads,
            pinned=any(query.is_cuda for query in self.queries.values()),
        )
        for token in range(len(self.tokens)):
            for layer in self.layers:
                row = self.rows(token, layer)[None, :, None]
                recorder.record(layer, row, layout.length - 1 + token)
        attention, shares, entropy = recorder.finish(len(self.tokens))
        return GenerationTrace(
            tokens=self.tokens,
            layout=layout,
            images=self.inputs.images,
            prompt=self.inputs.prompt,
            prompt_tokens=self.inputs.token_texts,
            attention=attention,
            layers=recorder.layers,
            heads=recorder.heads,
            shares=shares,
            entropy=entropy,
            sinks=self.sinks,
            applied=(),
            model=self.model,
            settings=dataclasses.asdict(self.settings),
            seed=self.settings.seed,
            finish=self.finish,
            seconds=self.seconds,
        )


class _Stasher:
    """Keeps queries as they come, and the newest keys (`models.attention.QueryKeeper`)."""

    def __init__(self, layers: Sequence[int], first: int) -> None:
        self._first = first
        self.queries: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
        self.keys: dict[int, torch.Tensor] = {}
        self.scales: dict[int, float] = {}

    def keep(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, scale: float, first_position: int
    ) -> None:
        if layer not in self.queries:
            return
        low = max(0, self._first - first_position)
        # A copy: the slice would keep the whole prompt's queries alive.
        self.queries[layer] += query[0, :, low:].transpose(0, 1).clone().unbind()
        self.keys[layer] = key[0]  # the cache's own tensor, which grows by being made anew
        self.scales[layer] = scale


def stash_run(
    handle: ModelHandle, inputs: PromptInputs, settings: GenerationSettings
) -> QueryStash:
    """See `attention_extractor.generate_stash`. The handle's lock must be held."""
    layers, heads = captured(handle, settings)
    stasher = _Stasher(layers, inputs.layout.length - 1)
    profile = handle.profile
    observer = None if profile is None else SinkObserver(profile.dims, profile.tau)
    probe = TokenProbe(handle.processor.tokenizer)
    plan = ForwardPlan(None, None, inputs.layout.length, observer, batch=1, keeper=stasher)
    ends = end_tokens(handle)
    began = time.perf_counter()
    with (
        running(handle.stack, plan),
        watching(handle, [probe]),
        seeded(settings.seed, handle.device),
        torch.no_grad(),
    ):
        handle.model.generate(
            **on_device(inputs.tensors, handle.device),
            past_key_values=DynamicCache(),  # whole also behind a sliding window
            generation_config=generation_config(handle, settings),
            stopping_criteria=StoppingCriteriaList([Chosen([probe], ends)]),
        )
    return QueryStash(
        inputs=inputs,
        settings=settings,
        tokens=tuple(probe.tokens),
        queries={layer: torch.stack(kept) for layer, kept in stasher.queries.items()},
        keys=stasher.keys,
        scales=stasher.scales,
        heads=heads,
        sinks=() if observer is None else observer.found(),
        model=handle.info,
        finish="end" if probe.tokens and probe.tokens[-1].id in ends else "length",
        seconds=time.perf_counter() - began,
        windows={k: size for k, size in enumerate(handle.stack.windows) if size is not None},
    )
