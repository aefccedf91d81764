"""Ways to generate the same answer: ours, plain generation, and usual ways to capture attention.

- `plain`: transformers' `generate` with SDPA; nothing is captured. The unit of all comparisons.
- `again`: the same again; its difference from `plain` is the noise.
- `ours`: `attention_extractor.generate`: rows of all layers and heads, shares, entropy, sinks,
  probabilities, and the finished trace. With the engine `loop`, which is transformers' own.
- `graph`: the same with the engine of steps: recorded on a GPU, called one by one on a CPU.
- `hooks`: eager attention with a forward hook on every attention module, which keeps the wanted
  row's vision columns and releases the matrix: an economical form of what other tools do.
- `output_attentions`: eager attention, `generate(output_attentions=True)`, as most tools do; every
  [heads, N, N] matrix is kept until the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from sinkscope.attention_extractor import generate
from sinkscope.capture.run import decoding_for, on_device
from sinkscope.capture.trace import GenerationTrace
from sinkscope.config import GenerationSettings
from sinkscope.models.attention import NAME
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle

EngineName = Literal["loop", "graph"]
Mark = Callable[[], None]
Variant = Callable[[ModelHandle, PromptInputs, int, Mark], tuple[int, ...]]


class _EachToken(StoppingCriteria):
    """Marks every token, as our own `on_token` does; stops nothing."""

    def __init__(self, mark: Mark) -> None:
        self._mark = mark

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        self._mark()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


@contextmanager
def with_attention(handle: ModelHandle, implementation: str) -> Iterator[None]:
    handle.model.set_attn_implementation({"text_config": implementation})
    try:
        yield
    finally:
        handle.model.set_attn_implementation({"text_config": NAME})


def with_plain_generate(
    handle: ModelHandle, inputs: PromptInputs, tokens: int, mark: Mark, **options: Any
) -> Any:
    config = decoding_for(
        handle, GenerationSettings(max_new_tokens=tokens), inputs.layout.length
    ).config
    config.update(**options)
    return handle.generate(
        **on_device(inputs.tensors, handle.device),
        generation_config=config,
        stopping_criteria=StoppingCriteriaList([_EachToken(mark)]),
    )


def plain(handle: ModelHandle, inputs: PromptInputs, tokens: int, mark: Mark) -> tuple[int, ...]:
    with with_attention(handle, "sdpa"):
        ids = with_plain_generate(handle, inputs, tokens, mark)
    return tuple(ids[0, inputs.layout.length :].tolist())


def ours(handle: ModelHandle, inputs: PromptInputs, tokens: int, mark: Mark) -> tuple[int, ...]:
    return with_engine("loop", handle, inputs, tokens, mark)


def graph(handle: ModelHandle, inputs: PromptInputs, tokens: int, mark: Mark) -> tuple[int, ...]:
    return with_engine("graph", handle, inputs, tokens, mark)


def with_engine(
    engine: EngineName, handle: ModelHandle, inputs: PromptInputs, tokens: int, mark: Mark
) -> tuple[int, ...]:
    trace = generate(
        handle,
        inputs,
        GenerationSettings(max_new_tokens=tokens, engine=engine),
        on_token=lambda index, token: mark(),
    )
    check_engine(trace, engine, handle)
    return tuple(token.id for token in trace.tokens)


def check_engine(trace: GenerationTrace, engine: EngineName, handle: ModelHandle) -> None:
    """Refuse a run by another engine than the one to be measured.

    Raises:
        RuntimeError: with the reason from the trace.
    """
    about = trace.extra.get("engine", {"used": "loop"})  # empty in the normal case
    recorded = "graph" if handle.device.type == "cuda" else "step"
    wanted = recorded if engine == "graph" else engine
    if about["used"] != wanted:
        raise RuntimeError(
            f"The run should use the engine {wanted!r}, but used {about['used']!r}: "
            f"{about.get('why', 'no reason given')}"
        )


def hooks(handle: ModelHandle, inputs: PromptInputs, tokens: int, mark: Mark) -> tuple[int, ...]:
    kept: list[torch.Tensor] = []
    vision = inputs.layout.vision_positions().to(handle.device)

    def keep(module: Any, args: Any, output: Any) -> None:
        kept.append(output[1][0, :, -1][:, vision].to(torch.float16).cpu())

    with with_attention(handle, "eager"), ExitStack() as undo:
        for layer in handle.stack.layers:
            undo.callback(layer.self_attn.register_forward_hook(keep).remove)
        ids = with_plain_generate(handle, inputs, tokens, mark)
    assert len(kept) == tokens * len(handle.stack.layers)
    return tuple(ids[0, inputs.layout.length :].tolist())


def output_attentions(
    handle: ModelHandle, inputs: PromptInputs, tokens: int, mark: Mark
) -> tuple[int, ...]:
    with with_attention(handle, "eager"):
        out = with_plain_generate(
            handle, inputs, tokens, mark, output_attentions=True, return_dict_in_generate=True
        )
    assert out.attentions[0][0].shape[-1] == inputs.layout.length
    return tuple(out.sequences[0, inputs.layout.length :].tolist())


VARIANTS: Mapping[str, Variant] = {
    "plain": plain,
    "again": plain,
    "ours": ours,
    "graph": graph,
    "hooks": hooks,
    "output_attentions": output_attentions,
}


def matrix_bytes(handle: ModelHandle, inputs: PromptInputs) -> int:
    """What `output_attentions` keeps of the prompt: layers x heads x N x N."""
    info = handle.info
    size = torch.empty((), dtype=handle.model.dtype).element_size()
    return info.layers * info.heads * inputs.layout.length**2 * size
