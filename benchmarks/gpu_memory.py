"""Peak memory of each variant on a GPU, one after the other in this process.

A GPU's allocations are known to the byte, so no separate processes are needed. What the previous
variant has kept (recorded steps) is dropped first, so it counts for the variant that makes it.
"""

from __future__ import annotations

import gc
from typing import Any

import torch

from sinkscope.attention_extractor import compare, forecast
from sinkscope.benchmarks.variants import graph, ours, plain
from sinkscope.config import GenerationSettings, VARSettings
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle


def peaks(handle: ModelHandle, inputs: PromptInputs, tokens: int) -> dict[str, Any]:
    """Bytes beyond those allocated before the run.

    Returns:
        `peak_bytes` of each variant, empty on a CPU; `allowed_bytes`: what a variant may take
        beyond plain generation: its histories, and for comparing another set of keys and values.
    """
    payload = forecast(handle, inputs, GenerationSettings(max_new_tokens=tokens)).payload_bytes
    layers = tuple(range(handle.info.layers))
    var = VARSettings((1, 2), tau=2.0, min_image_mass=0.0, max_sink_share=1.0, layers=layers)

    def both() -> None:
        settings = GenerationSettings(max_new_tokens=tokens, engine="graph")
        compare(handle, inputs, settings, var)

    variants = {
        "plain": lambda: plain(handle, inputs, tokens, lambda: None),
        "ours": lambda: ours(handle, inputs, tokens, lambda: None),
        "graph": lambda: graph(handle, inputs, tokens, lambda: None),
        "compare": both,
    }
    keys = _key_bytes(handle, inputs.layout.length + tokens)
    result: dict[str, Any] = {
        "payload_bytes": payload,
        "key_bytes": keys,
        "allowed_bytes": {"ours": payload, "graph": payload, "compare": 2 * payload + keys},
        "peak_bytes": {},
    }
    if handle.device.type != "cuda":
        result["skipped_peaks"] = "on a CPU, see `benchmarks capture`"
        for variant in variants.values():
            variant()
        result["allowed_bytes"] = {}
        return result
    for name, variant in variants.items():
        handle.kept.clear()
        variant()  # what a first call sets up permanently is not measured
        handle.kept.clear()
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        variant()
        torch.cuda.synchronize()
        result["peak_bytes"][name] = torch.cuda.max_memory_allocated() - before
    handle.kept.clear()
    return result


def _key_bytes(handle: ModelHandle, positions: int) -> int:
    """Keys and values of one sequence."""
    config: Any = handle.model.config.get_text_config()
    width = config.hidden_size // config.num_attention_heads
    size = torch.empty((), dtype=handle.model.dtype).element_size()
    return int(2 * config.num_hidden_layers * config.num_key_value_heads * width * positions * size)
