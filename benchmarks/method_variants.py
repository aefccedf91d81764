"""Explanation methods on one token, for `benchmarks.memory`: each generates an answer of `tokens`
tokens and explains the last one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from sinkscope.attention_extractor import generate
from sinkscope.benchmarks.variants import Mark
from sinkscope.config import GenerationSettings
from sinkscope.methods.explain import METHODS, explain
from sinkscope.methods.passes import passes_of
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle

MethodVariant = Callable[[ModelHandle, PromptInputs, int, Mark], Any]


def explained(
    method: str, handle: ModelHandle, inputs: PromptInputs, tokens: int, mark: Mark
) -> None:
    """A run, and one method's maps of its last token."""
    # keeps one layer and head: the memory of capture is another benchmark
    settings = GenerationSettings(max_new_tokens=tokens, layers=(0,), heads=(0,))
    run = generate(handle, inputs, settings)
    mark()
    explain(run, tokens - 1, method, session=passes_of(handle, run, inputs))
    mark()


VARIANTS: Mapping[str, MethodVariant] = {
    method.name: partial(explained, method.name)
    for method in METHODS
    if method.needs != "trace" and method.name != "occlusion_pixels"  # that needs a processor
}
