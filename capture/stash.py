"""Queries kept instead of rows: the run uses plain SDPA, and its attention is computed afterwards.

Only the rotated queries of each answer token are kept (layers x heads x head size, however long the
prompt), and the keys that the run's cache held anyway. Softmax rows follow from both, exactly: they
are the same function of the same numbers. The run's output is plain SDPA's bit for bit, while live
capture's differs from it by rounding.

It is the smaller form for long prompts of which few tokens are inspected: queries take
2 x layers x heads x head size bytes per token, live rows 2 x layers x heads x vision tokens.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache, StoppingCriteriaList

from sinkscope.capture.forecast import (
    bytes_of_a_row,
    check_payload,
    check_stash_memory,
    kept_positions,
)
from sinkscope.capture.probes.answer_tokens import AnswerTokens
from sinkscope.capture.probes.queries_keys import QueriesAndKeys
from sinkscope.capture.probes.sink_scores import SinkScores
from sinkscope.capture.prompt import prompt_trace
from sinkscope.capture.recorder import TraceRecorder
from sinkscope.capture.run import (
    captured_indices,
    decoding_for,
    distribution_errors_named,
    on_device,
    seeded,
)
from sinkscope.capture.session import attached
from sinkscope.capture.trace import GeneratedToken, GenerationTrace, LayerSinks, PromptTrace
from sinkscope.config import GenerationSettings
from sinkscope.models.family import PromptInputs
from sinkscope.models.info import ModelInfo
from sinkscope.models.kernels import attention_rows
from sinkscope.models.loading import ModelHandle


@dataclass(frozen=True)
class QueryStash:
    """A finished run, with the data to compute its attention from. One sequence.

    Attributes:
        inputs: the prompt (of length N).
        settings: of the run; `layers`, `heads` and `prompt_rows` choose what `trace` holds.
        tokens: the T generated tokens.
        queries: layer -> (T, H, D), rotated, in the model's dtype, on its device.
        prompt_queries: layer -> (R, H, D), likewise, of the R prompt tokens whose rows
            `settings.prompt_rows` asks for (`capture.forecast.kept_positions`).
        keys: layer -> (Hkv, N + T - 1, D), rotated, likewise.
        scales: layer -> factor on the scores.
        heads: indices in the model of the heads that `trace` holds.
        sinks, model, finish_reason, seconds, reference, extra: as in `GenerationTrace`.
        windows: layer -> how many keys a query sees at most, itself among them; a layer without a
            sliding window is not there.
    """

    inputs: PromptInputs
    settings: GenerationSettings
    tokens: tuple[GeneratedToken, ...]
    queries: Mapping[int, torch.Tensor]
    prompt_queries: Mapping[int, torch.Tensor]
    keys: Mapping[int, torch.Tensor]
    scales: Mapping[int, float]
    heads: tuple[int, ...]
    sinks: tuple[LayerSinks, ...]
    model: ModelInfo
    finish_reason: str
    seconds: float
    reference: PromptTrace | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
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
        return self._row(layer, self.queries[layer][token], position)[0, :, 0]

    def trace(self) -> GenerationTrace:
        """What `attention_extractor.generate` would have returned, computed now.

        Raises:
            DoesNotFitError: it does not fit into memory; `rows` gives one row at a time.
        """
        layout, answered = self.inputs.layout, len(self.tokens)
        positions = kept_positions(layout, self.settings)
        kept = 1 if self.settings.reduce_heads else len(self.heads)
        check_payload(
            (answered + len(positions)) * bytes_of_a_row(layout, len(self.layers), kept),
            f"The attention of {answered + len(positions)} tokens",
            "reading single rows (QueryStash.rows), or a run that captures less (layers, heads, "
            "reduce_heads)",
        )
        answer = self._recorded(
            self.queries, range(layout.length - 1, layout.length - 1 + answered)
        )
        attention, shares, entropy = answer.recorded(answered)
        read = self._recorded(self.prompt_queries, positions) if positions else None
        prompt_rows = (
            None
            if read is None
            else prompt_trace(self.model, self.inputs, positions, [read], self.sinks)
        )
        return GenerationTrace(
            tokens=self.tokens,
            layout=layout,
            images=self.inputs.images,
            prompt=self.inputs.prompt,
            prompt_tokens=self.inputs.token_texts,
            attention=attention,
            layers=answer.layers,
            heads=answer.heads,
            shares=shares,
            entropy=entropy,
            sinks=self.sinks,
            applied=(),
            model=self.model,
            settings=dataclasses.asdict(self.settings),
            seed=self.settings.seed,
            finish_reason=self.finish_reason,
            seconds=self.seconds,
            extra=self.extra,
            prompt_rows=prompt_rows,
            reference=self.reference,
        )

    def _row(self, layer: int, query: torch.Tensor, position: int) -> torch.Tensor:
        """The softmax row (1, H, 1, position + 1) of one query (H, D); 0 outside a window."""
        unseen = max(0, position + 1 - self.windows.get(layer, position + 1))
        key = self.keys[layer][None, :, unseen : position + 1]
        scale = self.scales[layer]
        row = attention_rows(query[None, :, None], key, scale, None, position - unseen)
        return torch.nn.functional.pad(row, (unseen, 0)) if unseen else row

    def _recorded(self, queries: Mapping[int, torch.Tensor], positions: range) -> TraceRecorder:
        """A recorder that has seen the rows of these queries (one a position, in each layer)."""
        recorder = TraceRecorder(
            self.inputs.layout,
            self.layers,
            self.heads,
            len(positions),
            reduce_heads=self.settings.reduce_heads,
            pinned=any(query.is_cuda for query in queries.values()),
            first=positions.start,
        )
        for index, position in enumerate(positions):
            for layer in self.layers:
                row = self._row(layer, queries[layer][index], position)
                recorder.record(layer, row, position)
        return recorder


def stash_run(
    handle: ModelHandle, inputs: PromptInputs, settings: GenerationSettings
) -> QueryStash:
    """See `attention_extractor.generate_stash`; without a reference. The handle's lock must be
    held."""
    layers, heads = captured_indices(handle, settings)
    check_stash_memory(handle, inputs, settings)
    positions, last = kept_positions(inputs.layout, settings), inputs.layout.length - 1
    first = min(positions.start, last)
    kept = QueriesAndKeys(layers, first)
    answer = AnswerTokens(handle.tokenizer)
    profile = handle.profile
    marks = None if profile is None else SinkScores(profile.dims, profile.tau)
    decoding = decoding_for(handle, settings, inputs.layout.length)
    began = time.perf_counter()
    with (
        attached(
            handle,
            inputs,
            probes=[kept, answer, *([marks] if marks else [])],
            new_tokens=settings.max_new_tokens,
        ) as session,
        seeded(settings.seed, handle.device),
        distribution_errors_named(settings),
    ):
        start = on_device(inputs.tensors, handle.device)
        ending = decoding.ending(handle, [session[answer]])
        handle.generate(
            **start,
            past_key_values=DynamicCache(),  # keeps all keys, also beyond a sliding window
            generation_config=decoding.config,
            stopping_criteria=StoppingCriteriaList([ending]),
        )
    seconds = time.perf_counter() - began
    stasher, probe = session[kept], session[answer]
    # Layer by layer: all queries are stored once, those of one layer twice.
    queries = {layer: torch.stack(stasher.queries.pop(layer)) for layer in layers}
    return QueryStash(
        inputs=inputs,
        settings=settings,
        tokens=probe.finished(),
        queries={layer: layer_queries[last - first :] for layer, layer_queries in queries.items()},
        prompt_queries={
            layer: layer_queries[: len(positions)] for layer, layer_queries in queries.items()
        },
        keys=stasher.keys,
        scales=stasher.scales,
        heads=heads,
        sinks=session[marks].found() if marks else (),
        model=handle.info,
        finish_reason=ending.finish_reason(),
        seconds=seconds,
        extra={"decoding": decoding.about},
        windows={k: size for k, size in enumerate(handle.stack.windows) if size is not None},
    )
