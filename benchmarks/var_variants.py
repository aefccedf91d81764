"""Ways to run VAR and to compare it with the plain model, for `benchmarks var`.

`dense` is the usual implementation: eager attention, whose [heads, N, N] probabilities are
redistributed in every layer and multiplied with V. Everything else is ours. With these settings
every row after the image is redistributed in every layer: the largest possible cost of VAR.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

from sinkscope.attention_extractor import Comparison, compare, generate
from sinkscope.benchmarks.variants import (
    EngineName,
    Mark,
    check_engine,
    plain,
    with_attention,
    with_plain_generate,
)
from sinkscope.capture.answer import score_answer
from sinkscope.config import GenerationSettings, VARSettings
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle
from sinkscope.models.sink_score import sink_score
from sinkscope.var_patch import acting_layers, redistribute

DIMS = (1, 2)
FLAGGED = 0.02  # share of tokens that become sinks


def settings_for(handle: ModelHandle, inputs: PromptInputs) -> VARSettings:
    """VAR in all layers, with a tau that flags about 2 % of the tokens and every row selected."""
    layers = tuple(range(handle.info.layers))
    every = VARSettings(DIMS, tau=0.0, min_image_mass=0.0, max_sink_share=1.0, layers=layers)
    report = generate(handle, inputs, GenerationSettings(max_new_tokens=1), every).var
    if report is None:
        raise RuntimeError("A run with VAR has no report.")
    scores = sorted(score for layer in report["layers"] for score in layer["scores"])
    return dataclasses.replace(every, tau=scores[int((1 - FLAGGED) * len(scores))])


class VarVariants:
    """The runs of one prompt. Each method is one run; it marks every token of one answer.

    Our own have two forms: `NAME` uses the engine `loop`, `NAME_graph` steps.
    """

    def __init__(
        self, handle: ModelHandle, inputs: PromptInputs, var: VARSettings, tokens: int
    ) -> None:
        self.handle, self.inputs, self.var = handle, inputs, var
        self.tokens = tokens
        self._before: Comparison = compare(handle, inputs, self._settings("loop"), var)

    def plain(self, mark: Mark) -> None:
        """transformers' generate with SDPA."""
        plain(self.handle, self.inputs, self.tokens, mark)

    again = plain

    def var_run(self, mark: Mark, engine: EngineName = "loop") -> None:
        """One run with VAR and capture."""
        settings = self._settings(engine)
        trace = generate(self.handle, self.inputs, settings, self.var, on_token=lambda *_: mark())
        check_engine(trace, engine, self.handle)
        if trace.var is None or not trace.var["changed"]:
            raise RuntimeError("VAR changed nothing, so its cost cannot be measured.")

    def var_run_graph(self, mark: Mark) -> None:
        """The same by steps."""
        self.var_run(mark, "graph")

    def dense(self, mark: Mark) -> None:
        """Eager attention with the dense redistribution; nothing is captured."""
        with _dense_var(self.handle, self.inputs, self.var):
            with_plain_generate(self.handle, self.inputs, self.tokens, mark)

    def two_runs(self, mark: Mark) -> None:
        """A comparison by two runs, one without and one with VAR."""
        settings = self._settings("loop")
        generate(self.handle, self.inputs, settings, on_token=lambda *_: mark())
        generate(self.handle, self.inputs, settings, self.var)

    def compare(self, mark: Mark, engine: EngineName = "loop") -> None:
        """A comparison from a shared prefix, both answers in one batch."""
        settings = self._settings(engine)
        pair = compare(self.handle, self.inputs, settings, self.var, on_token=_baseline(mark))
        check_engine(pair.var, engine, self.handle)

    def compare_graph(self, mark: Mark) -> None:
        """The same by steps."""
        self.compare(mark, "graph")

    def other_settings(self, mark: Mark, engine: EngineName = "loop") -> None:
        """The comparison again with another setting, from the prefix of the first."""
        pair = compare(
            self.handle,
            self.inputs,
            self._settings(engine),
            dataclasses.replace(self.var, keep=0.3),
            on_token=_baseline(mark),
            prefix=self._before.prefix,
        )
        check_engine(pair.var, engine, self.handle)

    def other_settings_graph(self, mark: Mark) -> None:
        """The same by steps, reusing those of the first comparison if it used steps."""
        self.other_settings(mark, "graph")

    def same_text(self, mark: Mark) -> None:
        """The comparison on the same text: one pass over a given answer, from the prefix."""
        before, settings = self._before, self._settings("loop")
        with self.handle.lock:
            score_answer(
                self.handle, self.inputs, settings, self.var, before.baseline, before.prefix
            )
        mark()
        mark()

    def _settings(self, engine: EngineName) -> GenerationSettings:
        return GenerationSettings(max_new_tokens=self.tokens, engine=engine)


def _baseline(mark: Mark) -> Callable[[str, int, object], None]:
    return lambda name, index, token: mark() if name == "baseline" else None


@contextmanager
def _dense_var(handle: ModelHandle, inputs: PromptInputs, var: VARSettings) -> Iterator[None]:
    acting = acting_layers(var, handle.info.layers)
    vision = torch.zeros(inputs.layout.length, dtype=torch.bool, device=handle.device)
    vision[inputs.layout.vision_positions().to(handle.device)] = True
    first = inputs.layout.after_images
    sinks: dict[int, torch.Tensor] = {}
    real = modeling_qwen2_5_vl.eager_attention_forward

    def eager(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        output, weights = real(module, query, key, value, mask, **options)
        layer = getattr(module, "layer_idx", None)
        if layer not in acting:
            return output, weights
        keys = weights.shape[3]
        settings, image = (
            torch.nn.functional.pad(part, (0, keys - len(part)))[None]
            for part in (sinks[layer], vision)
        )
        start = first if weights.shape[2] > 1 else 0
        new = redistribute(weights, settings, image, var, start)
        repeated = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        return torch.matmul(new, repeated).transpose(1, 2).contiguous(), new

    def look(layer: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            if hidden.shape[1] > 1:
                sinks[layer] = sink_score(hidden[0], var.dims) > var.tau

        return hook

    hooks = [
        handle.stack.layers[layer].register_forward_pre_hook(look(layer), with_kwargs=True)
        for layer in acting
    ]
    # The patch of the reference code, for this comparison.
    modeling_qwen2_5_vl.eager_attention_forward = eager  # type: ignore[assignment]
    try:
        with with_attention(handle, "eager"):
            yield
    finally:
        modeling_qwen2_5_vl.eager_attention_forward = real
        for hook in hooks:
            hook.remove()
