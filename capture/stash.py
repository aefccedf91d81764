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
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers import StoppingCriteriaList

from capture.probes.answer_tokens import AnswerTokens
from capture.probes.queries_keys import QueriesAndKeys
from capture.probes.sink_scores import SinkScores
from capture.recorder import TraceRecorder
from capture.run import Chosen, captured, end_tokens, generation_config, on_device, seeded
from capture.session import attached
from capture.trace import GeneratedToken, GenerationTrace, LayerSinks
from config import GenerationSettings
from models.family import PromptInputs
from models.info import ModelInfo
from models.kernels import attention_rows
from models.loading import ModelHandle


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
        key = self.keys[layer][None, :, : position + 1]
        return attention_rows(query, key, self.scales[layer], None, position)[0, :, 0]

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


def stash_run(
    handle: ModelHandle, inputs: PromptInputs, settings: GenerationSettings
) -> QueryStash:
    """See `attention_extractor.generate_stash`. The handle's lock must be held."""
    layers, heads = captured(handle, settings)
    kept = QueriesAndKeys(layers, first=inputs.layout.length - 1)
    answer = AnswerTokens(handle.processor.tokenizer)
    profile = handle.profile
    marks = None if profile is None else SinkScores(profile.dims, profile.tau)
    ends = end_tokens(handle)
    began = time.perf_counter()
    with (
        attached(
            handle,
            inputs,
            probes=[kept, answer, *([marks] if marks else [])],
            new_tokens=settings.max_new_tokens,
        ) as session,
        seeded(settings.seed, handle.device),
    ):
        handle.model.generate(
            **on_device(inputs.tensors, handle.device),
            generation_config=generation_config(handle, settings),
            stopping_criteria=StoppingCriteriaList([Chosen([session[answer]], ends)]),
        )
    stasher, tokens = session[kept], tuple(session[answer].tokens)
    return QueryStash(
        inputs=inputs,
        settings=settings,
        tokens=tokens,
        queries={layer: torch.stack(own) for layer, own in stasher.queries.items()},
        keys=stasher.keys,
        scales=stasher.scales,
        heads=heads,
        sinks=session[marks].found() if marks else (),
        model=handle.info,
        finish="end" if tokens and tokens[-1].id in ends else "length",
        seconds=time.perf_counter() - began,
    )
