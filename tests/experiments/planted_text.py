"""Tiny text models whose first token is made a sink by one neuron, like those that
`tests.sinks.planted` makes for vision-language models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from sinkscope.experiments.samples import TextSample
from sinkscope.models.loading import ModelHandle, load_model
from tests.sinks.planted import STRENGTH, Plant, _attract, _direction
from tests.text_models import configs, tokenizer_of

FIRST = "Yes"
WORDS = ("red", "blue", "star", "circle", "left", "again", "a", "of", "and", "is", "no")


def prompts(count: int, seed: int = 0) -> tuple[TextSample, ...]:
    """Prompts that begin in the same way and continue differently."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in range(count):
        picks = torch.randint(len(WORDS), (14,), generator=generator).tolist()
        text = " ".join([FIRST, *(WORDS[pick] for pick in picks)])
        made.append(TextSample(f"{index}", text, " a blue circle"))
    return tuple(made)


def planted_text(
    folder: Path, name: str, seed: int, layer: int | None, dim: int = 5
) -> ModelHandle:
    """A model of hidden size 64 and 5 layers; without `layer` nothing is planted.

    Args:
        folder: where it is written.
        name: `qwen2` (gated, RMS norms) or `gpt2` (no gate, LayerNorms; attention is left as it
            is, so that only the MLP's part can be looked at).
        seed: of the weights.
        layer: whose MLP makes the sink.
        dim: of the residual stream that it writes.
    """
    config = configs()[name]
    size = {"n_embd": 64, "n_inner": 128, "n_layer": 5, "n_head": 4}
    if name == "qwen2":
        size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 5}
        config.layer_types = ["full_attention"] * 5
    for key, value in size.items():
        setattr(config, key, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(config).eval().to(torch.float32)
        for where, parameter in model.named_parameters():
            if parameter.dim() > 1:
                std = 1.0 if "embed" in where or "wte" in where else parameter.shape[-1] ** -0.5
                torch.nn.init.normal_(parameter, std=std)
    model.generation_config = GenerationConfig(do_sample=False)
    model.requires_grad_(False)
    model.save_pretrained(folder)
    tokenizer_of(config.model_type).save_pretrained(folder)
    if layer is not None:
        _write(folder, model, name, seed, layer, dim)
    return load_model(str(folder), device="cpu")


def _write(folder: Path, model: Any, name: str, seed: int, layer: int, dim: int) -> None:
    """Plant a sink in the saved model, using values measured on a loaded copy."""
    direction, rms = _measured(load_model(str(folder), device="cpu"), seed, layer)
    if name == "gpt2":
        mlp = model.transformer.h[layer].mlp
        mlp.c_fc.weight[:, 0], mlp.c_fc.bias[0] = 20 * direction, -5.0
        mlp.c_proj.weight[0] = 0
        mlp.c_proj.weight[0, dim] = STRENGTH * rms / 15
    else:
        mlp = model.model.layers[layer].mlp
        mlp.gate_proj.weight[0], mlp.up_proj.weight[0] = 20 * direction, direction
        mlp.down_proj.weight[:, 0] = 0
        mlp.down_proj.weight[dim, 0] = STRENGTH * rms / 20
        for later in model.model.layers[layer + 1 :]:
            _attract(later.self_attn, Plant((dim,), hidden=64), direction)
    model.save_pretrained(folder)


def _measured(handle: ModelHandle, seed: int, layer: int) -> tuple[torch.Tensor, float]:
    """The direction of the MLP's input that distinguishes the first token from all others, and the
    rms of the residual stream."""
    seen, first, stream = [], [], []
    block = handle.stack.layers[layer]
    hooks = [
        block.mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0][0])),
        block.register_forward_hook(
            lambda module, args, out: stream.append(out[0] if isinstance(out, tuple) else out)
        ),
    ]
    for sample in prompts(12, seed + 100):
        inputs = handle.prepare([], sample.prompt)
        handle.model(**inputs.tensors)
        first.append(torch.arange(inputs.layout.length) == 0)
    for hook in hooks:
        hook.remove()
    direction = _direction(torch.cat(seen), torch.cat(first))
    rms = float(torch.cat([s.reshape(-1, s.shape[-1]) for s in stream]).square().mean().sqrt())
    return direction, rms
