"""The distance of captured rows from those of eager attention, compared with the distance of plain
SDPA's logits from eager's, which is the effect of half precision alone.

Everything is computed on one text, the answer of the captured run, so the choice of tokens does not
matter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sinkscope.attention_extractor import generate
from sinkscope.benchmarks.variants import EngineName, check_engine, with_attention
from sinkscope.capture.run import on_device
from sinkscope.config import GenerationSettings
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle


def rows_against_eager(
    handle: ModelHandle, inputs: PromptInputs, tokens: int, engine: EngineName
) -> dict[str, Any]:
    """Distances, relative ones as L2 norms: |ours - eager| / |eager|.

    Returns:
        `rows_relative` over all rows kept, `rows_by_layer` in each layer, `rows_largest` (a
        probability), `logits_relative` of plain SDPA, and `no_farther`: whether the first is at
        most the last.
    """
    trace = generate(handle, inputs, GenerationSettings(max_new_tokens=tokens, engine=engine))
    check_engine(trace, engine, handle)
    answer = [token.id for token in trace.tokens]
    forced = on_device(_with_answer(inputs, answer), handle.device)
    first, vision = inputs.layout.length - 1, inputs.layout.vision_positions().to(handle.device)
    with with_attention(handle, "sdpa"), torch.no_grad():
        plain = _logits(handle, forced, len(answer))
    with with_attention(handle, "eager"), torch.no_grad():
        out = handle.model(
            **forced, use_cache=False, logits_to_keep=len(answer), output_attentions=True
        )
        eager = out.logits[0].float()
        rows = torch.stack(
            [layer[0, :, first:].index_select(-1, vision).float() for layer in out.attentions], 1
        )  # (H, L, T, V)
        del out
    ours = trace.attention.to(rows).permute(2, 1, 0, 3)
    apart = ours - rows
    relative, of_logits = _share(apart, rows), _share(plain - eager, eager)
    return {
        "dtype": handle.info.dtype,
        "layers": handle.info.layers,
        "tokens": len(answer),
        "engine": engine,
        "rows_relative": relative,
        "rows_by_layer": [
            _share(apart[:, layer], rows[:, layer]) for layer in range(rows.shape[1])
        ],
        "rows_largest": float(apart.abs().max()),
        "logits_relative": of_logits,
        "no_farther": relative <= of_logits,
    }


def _logits(handle: ModelHandle, forced: dict[str, Tensor], count: int) -> Tensor:
    logits: Tensor = handle.model(**forced, use_cache=False, logits_to_keep=count).logits[0].float()
    return logits


def _share(apart: Tensor, of: Tensor) -> float:
    return float(apart.double().norm() / of.double().norm().clamp(min=1e-300))


def _with_answer(inputs: PromptInputs, answer: list[int]) -> dict[str, Tensor]:
    """The prompt's tensors with all answer tokens but the last, which predicts nothing."""
    behind = len(answer) - 1
    tensors = dict(inputs.tensors)
    tensors["input_ids"] = torch.cat([tensors["input_ids"], torch.tensor([answer[:behind]])], 1)
    for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        tensors[name] = torch.nn.functional.pad(tensors[name], (0, behind), value=value)
    return tensors
