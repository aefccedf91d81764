"""Text models of several families in which a few neurons of one MLP make the first token a sink.

Every prompt begins with the same token. Its embedding has a direction d that no other one has; the
neurons' rows of gate and up projection (or of the only input projection) are multiples of d, and
their columns of the down projection write massive values. Keys of later layers read them, and
queries are constant, because all embeddings share the value of one dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from sinkscope.experiments.samples import TextSample
from sinkscope.models.loading import ModelHandle, load_model
from tests.text_models import configs, tokenizer_of

PHRASES = (
    *("the river is wide", "a red star shines", "blue circle left", "yes and no again"),
    *("many small boats sail", "old trees stand tall", "rain falls on roofs", "stone walls hold"),
)
LIKE_LLAMA = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class Mechanism:
    """What is planted.

    Attributes:
        family: of `tests.text_models.configs`.
        seed: of the weights.
        hidden, inner, layers, kv_heads: sizes; 4 heads.
        layer: whose MLP makes the sink; None: nothing is planted.
        neurons: that share the job equally.
        dim: of the residual stream, which gets the massive value.
        value: that massive value, of either sign.
        up: sign of the up projection's row: with -1 z is negative.
        strength: of what later layers attend with.
        noise: standard deviation of all other weights.
    """

    family: str
    seed: int = 0
    hidden: int = 64
    inner: int = 128
    layers: int = 4
    kv_heads: int = 2
    layer: int | None = 1
    neurons: tuple[int, ...] = (7,)
    dim: int = 11
    value: float = 60.0
    up: float = 1.0
    strength: float = 1.3
    noise: float = 0.05


def samples(family: str, count: int = 6) -> tuple[TextSample, ...]:
    """Prompts whose first token is always the same."""
    first = "" if family in ("llama", "mistral") else "Q"  # these two begin with <s>
    generator = torch.Generator().manual_seed(5)
    made = []
    for index in range(count):
        picks = torch.randperm(len(PHRASES), generator=generator)[:3].tolist()
        made.append(TextSample(str(index), first + ", ".join(PHRASES[pick] for pick in picks)))
    return tuple(made)


def plant(folder: Path, asked: Mechanism) -> tuple[ModelHandle, Tensor]:
    """The model, loaded, and the planted direction d, float64 (D,)."""
    config = configs()[asked.family]
    sizes = {"hidden_size": "hidden", "intermediate_size": "inner", "num_hidden_layers": "layers"}
    if asked.family == "gpt2":
        sizes = {"n_embd": "hidden", "n_inner": "inner", "n_layer": "layers"}
    elif asked.family in LIKE_LLAMA:
        sizes["num_key_value_heads"] = "kv_heads"
    for key, name in sizes.items():
        setattr(config, key, getattr(asked, name))
    if getattr(config, "head_dim", None):
        config.head_dim = asked.hidden // 4
    if getattr(config, "layer_types", None):
        config.layer_types = ["full_attention"] * asked.layers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(asked.seed)
        model: Any = AutoModelForCausalLM.from_config(config).eval().to(torch.float32)
        model.requires_grad_(False)
        for where, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, asked.noise)
            else:
                parameter.normal_(1.0 if where.endswith("weight") else 0.0, 0.02)
        direction = torch.zeros(asked.hidden)
        if asked.layer is not None:
            direction = _write(model, asked)
    model.generation_config = GenerationConfig(do_sample=False)
    model.save_pretrained(folder)
    tokenizer_of(config.model_type).save_pretrained(folder)
    return load_model(str(folder), device="cpu"), direction.double()


def _write(model: Any, asked: Mechanism) -> Tensor:
    """Write the mechanism into the model; d."""
    assert asked.layer is not None
    shared = (asked.dim + 5) % asked.hidden  # the dimension that all embeddings share
    direction = torch.randn(asked.hidden)
    direction[[asked.dim, shared]] = 0
    if asked.family not in LIKE_LLAMA:  # a LayerNorm centres
        rest = direction != 0
        direction[rest] -= direction[rest].mean()
    direction /= direction.norm()
    inputs = tokenizer_of(model.config.model_type)(samples(asked.family)[0].prompt)["input_ids"]
    layers = _layers(model, asked.family)
    block = layers[asked.layer]
    norm = block.ln_2 if asked.family == "gpt2" else block.post_attention_layernorm
    embeddings = model.get_input_embeddings().weight
    embeddings.normal_(0, 0.3)
    embeddings[:, asked.dim] *= 0.1
    embeddings[:, shared] = 2.0
    embeddings -= (embeddings @ direction)[:, None] * direction
    embeddings[inputs[0]] += 3 * direction / norm.weight
    column = torch.zeros(asked.hidden)
    column[asked.dim] = asked.up if asked.value > 0 else -asked.up
    for neuron in asked.neurons:
        _neuron(block.mlp, neuron, direction, column, asked)
    for layer in layers[asked.layer + 1 :]:
        _attract(layer, shared, asked)
    ids = torch.tensor([inputs])
    states = model(ids, output_hidden_states=True).hidden_states
    written = float((states[asked.layer + 1] - states[asked.layer])[0, 0, asked.dim])
    _columns(block.mlp, asked)[:, list(asked.neurons)] *= asked.value / written
    return direction


def _layers(model: Any, family: str) -> Any:
    if family == "gpt2":
        return model.transformer.h
    return model.gpt_neox.layers if family == "gpt_neox" else model.model.layers


def _columns(mlp: Any, asked: Mechanism) -> Tensor:
    """The down projection as (D, F), a view of the model's own."""
    if asked.family == "gpt2":
        turned: Tensor = mlp.c_proj.weight.T
        return turned
    down: Tensor = (mlp.dense_4h_to_h if asked.family == "gpt_neox" else mlp.down_proj).weight
    return down


def _neuron(mlp: Any, neuron: int, direction: Tensor, column: Tensor, asked: Mechanism) -> None:
    if asked.family in LIKE_LLAMA:
        mlp.gate_proj.weight[neuron] = 3 * direction
        mlp.up_proj.weight[neuron] = 3 * asked.up * direction
    elif asked.family == "gpt2":  # stored as (in, out)
        mlp.c_fc.weight[:, neuron], mlp.c_fc.bias[neuron] = 8 * direction, -6.0
    else:
        mlp.dense_h_to_4h.weight[neuron], mlp.dense_h_to_4h.bias[neuron] = 8 * direction, -6.0
    _columns(mlp, asked)[:, neuron] = column


def _attract(layer: Any, shared: int, asked: Mechanism) -> None:
    """Let the queries' constant part meet the keys of the massive value, in dimensions of the heads
    that rotary embedding turns slowly or not at all; its values write nothing."""
    size = asked.hidden // 4
    pattern = torch.zeros(size)
    if asked.family in LIKE_LLAMA:
        pattern[[size // 2 - 1, size - 1]] = torch.randn(2)
    else:
        pattern[size // 4 :] = torch.randn(size - size // 4)  # GPT-NeoX turns the first quarter
    pattern *= asked.strength / pattern.norm()
    key = pattern if asked.value > 0 else -pattern
    if asked.family in LIKE_LLAMA:
        attention = layer.self_attn
        attention.q_proj.weight[:, shared] = pattern.repeat(4)
        attention.k_proj.weight[:, asked.dim] = key.repeat(asked.kv_heads)
        attention.v_proj.weight[:, asked.dim] = 0
    elif asked.family == "gpt2":
        weight = layer.attn.c_attn.weight.view(asked.hidden, 3, asked.hidden)
        weight[shared, 0], weight[asked.dim, 1] = pattern.repeat(4), key.repeat(4)
        weight[asked.dim, 2] = 0
    else:  # stored head by head: query, key, value
        weight = layer.attention.query_key_value.weight.view(4, 3, size, asked.hidden)
        weight[:, 0, :, shared], weight[:, 1, :, asked.dim] = pattern, key
        weight[:, 2, :, asked.dim] = 0
