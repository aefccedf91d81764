"""Tiny Qwen2.5-VL models with sinks written into their weights, and models with none.

Nothing is hooked: the planted sinks pass through the real forward pass, from a folder that
`load_model` opens. Some cells of the pictures are painted with a strong pattern. Least squares
finds the direction that distinguishes these cells' tokens from all others at one place in the
network. The weights there are edited so that a token with this direction gets huge values in the
planted dimensions:

- in the language model: one neuron of a layer's MLP reads the direction and writes the dimensions,
  so the sinks arise at the input of the next layer;
- in the vision tower: the last linear layer of the merger writes them.

A query bias and one row of every key projection then make all later tokens attend to them, through
the rotary component of lowest frequency, which hardly depends on the distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration

from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.sinks.samples import Sample
from tests.tiny_model import build_config, build_tokenizer, save_model

CELL = 28  # pixels per vision token
STRENGTH = 40.0  # planted values, in multiples of the residual stream's rms
PULL = 9.0  # attention score that a sink gets from every later token


@dataclass(frozen=True)
class Plant:
    """What to write into a model.

    Attributes:
        dims: the sink dimensions; empty for a model without sinks.
        hidden: the text model's hidden size, a multiple of 32.
        seed: seed of the random weights.
        layer: the layer whose MLP makes the sinks; None: the vision tower makes them.
        decoys: dimensions that are large on every token.
        first: dimensions that are large on the prompt's first token and on no image token.
        attended: whether later tokens attend to the painted cells.
        layers: number of layers.
    """

    dims: tuple[int, ...]
    hidden: int = 64
    seed: int = 0
    layer: int | None = 1
    decoys: tuple[int, ...] = ()
    first: tuple[int, ...] = ()
    attended: bool = True
    layers: int = 6


def planted(folder: Path, plant: Plant) -> ModelHandle:
    """The model in `folder`, made and loaded."""
    save_model(folder)  # tokenizer, chat template and image processor; the weights are replaced
    model = _random_model(plant)
    _always_on(model, plant)
    model.save_pretrained(folder)
    examples = painted_samples(10, seed=1000 + plant.seed)
    _write_sinks(load_model(str(folder), device="cpu"), plant, examples, folder)
    return load_model(str(folder), device="cpu")


def painted_samples(count: int, seed: int = 0, images: int = 1) -> list[Sample]:
    """Samples whose pictures have one or two painted cells each, at random places."""
    random = np.random.default_rng(seed)
    made = []
    for index in range(count):
        pictures = [_picture(random) for _ in range(images)]
        made.append(Sample(f"{index:03}", tuple(p for p, _ in pictures), "Describe the image."))
    return made


def painted_cells(image: Image.Image) -> list[int]:
    """The vision tokens of a picture that are painted."""
    pixels = np.asarray(image).astype(int)
    rows, columns = image.height // CELL, image.width // CELL
    corner = pixels[::CELL, ::CELL][:rows, :columns]
    return np.flatnonzero((corner == (255, 0, 255)).all(-1)).tolist()


def _picture(random: np.random.Generator) -> tuple[Image.Image, list[int]]:
    rows, columns = (int(n) for n in random.integers(4, 8, 2))
    y, x = np.mgrid[0 : rows * CELL, 0 : columns * CELL] / (CELL * 8)
    phase = random.uniform(0, 6, (3, 2))
    pixels = np.stack([np.sin(4 * x + a) + np.cos(5 * y + b) for a, b in phase], -1)
    pixels = 110 + 25 * pixels + random.normal(0, 6, pixels.shape)
    image = np.clip(pixels, 0, 200).astype(np.uint8)
    cells = random.choice(rows * columns, int(random.integers(1, 3)), replace=False).tolist()
    loud = np.zeros((CELL, CELL, 3), np.uint8)
    loud[:, :, 1] = 255 * (np.add.outer(np.arange(CELL) // 4, np.arange(CELL) // 4) % 2)
    loud[:, :, 0] = loud[:, :, 2] = 255 - loud[:, :, 1]
    for cell in cells:
        row, column = divmod(cell, columns)
        image[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = loud
    return Image.fromarray(image), cells


def _random_model(plant: Plant) -> Qwen2_5_VLForConditionalGeneration:
    config = build_config(build_tokenizer(), plant.layers)
    text = config.text_config
    text.hidden_size, text.intermediate_size = plant.hidden, 2 * plant.hidden
    text.num_attention_heads, text.num_key_value_heads = plant.hidden // 16, plant.hidden // 32
    config.vision_config.out_hidden_size = plant.hidden
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plant.seed)
        model = Qwen2_5_VLForConditionalGeneration(config).eval().to(torch.float32)
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
            if "embed_tokens" in name:
                torch.nn.init.normal_(parameter, std=1.0)
    return model.requires_grad_(False)


def _always_on(model: Any, plant: Plant) -> None:
    """Decoys on every token, and dimensions of only the first token."""
    embeddings = model.get_input_embeddings().weight
    start = build_tokenizer().convert_tokens_to_ids("<|im_start|>")
    for dim in plant.decoys:
        embeddings.data[:, dim] += STRENGTH
        model.model.visual.merger.mlp[2].bias.data[dim] += STRENGTH
    for dim in plant.first:
        embeddings.data[start, dim] += 2 * STRENGTH


def _write_sinks(
    handle: ModelHandle, plant: Plant, examples: Sequence[Sample], folder: Path
) -> None:
    model = handle.model
    text = model.model.language_model
    merger = model.model.visual.merger.mlp[2]
    place = merger if plant.layer is None else text.layers[plant.layer].mlp
    seen, loud, rms = _features(handle, place, examples, plant.layer is None)
    direction = _direction(seen, loud)
    if plant.dims and plant.layer is None:
        for dim in plant.dims:
            merger.weight.data[dim] += STRENGTH * rms * direction
    elif plant.dims:
        # silu(20 s) * s of the neuron 0: 20 where s is 1, nearly 0 where s is small.
        place.gate_proj.weight.data[0] = 20 * direction
        place.up_proj.weight.data[0] = direction
        place.down_proj.weight.data[:, 0] = 0
        for dim in plant.dims:
            place.down_proj.weight.data[dim, 0] = STRENGTH * rms / 20
    first = 0 if plant.layer is None else plant.layer + 1
    if plant.attended and not plant.dims:
        # The direction that keys read, at the input of that layer's attention.
        seen, loud, _ = _features(handle, text.layers[first].input_layernorm, examples, False)
        direction = _direction(seen, loud)
    if plant.attended:
        for layer in text.layers[first:]:
            _attract(layer.self_attn, plant, direction)
    model.save_pretrained(folder)


def _direction(seen: torch.Tensor, loud: torch.Tensor) -> torch.Tensor:
    """Least squares: 1 on painted cells, about 0 elsewhere."""
    ridge = 1e-3 * len(seen) * torch.eye(seen.shape[1])
    direction = torch.linalg.solve(seen.T @ seen + ridge, seen.T @ loud.float())
    return direction / (seen[loud] @ direction).mean()


def _attract(attention: Any, plant: Plant, direction: torch.Tensor) -> None:
    """Queries match the sinks' keys, in the rotary component of lowest frequency."""
    width = attention.head_dim
    at = width // 2 - 1
    # Otherwise large dimensions of a token would decide by chance whether it is attended to.
    large = [*plant.dims, *plant.first, *plant.decoys]
    attention.q_proj.weight.data[:, large] = 0
    attention.k_proj.weight.data[:, large] = 0
    attention.q_proj.bias.data.view(-1, width)[:, at] = PULL
    weight = attention.k_proj.weight.data.view(-1, width, plant.hidden)
    weight[:, at] *= 0.3
    for dim in (*plant.dims, *plant.first):
        # a normed token with k equal massive dimensions has about sqrt(hidden / k) in each
        share = len(plant.dims) if dim in plant.dims else len(plant.first)
        weight[:, at, dim] = width**0.5 / (plant.hidden * share) ** 0.5
    if not plant.dims:  # attention without a dimension that marks it
        weight[:, at] = width**0.5 * direction


def _features(
    handle: ModelHandle, place: Any, examples: Sequence[Sample], tower: bool
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Inputs (n, features) of a module, which of them belong to painted cells, and the rms of the
    residual stream there."""
    kept: list[torch.Tensor] = []
    hook = place.register_forward_pre_hook(lambda module, args: kept.append(args[0].detach()))
    stream: list[torch.Tensor] = []
    layers = handle.stack.layers
    follow = next(
        (i + 1 for i, layer in enumerate(layers) if layer.mlp is place), 0
    )  # whose input is what the place has made
    watch = layers[follow].register_forward_pre_hook(
        lambda module, args, kwargs: stream.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    marks = []
    try:
        for sample in examples:
            image = sample.open_images()[0]
            inputs = handle.prepare([image], sample.prompt)
            cells = torch.tensor(painted_cells(image))
            handle.model(**inputs.tensors)
            grid = inputs.layout.grids[0]
            loud = torch.zeros(grid.tokens if tower else inputs.layout.length, dtype=torch.bool)
            if tower:  # the tower works in the order of its windows, the prompt in rows
                rows = stream[-1][0, list(grid.positions)]
                order = torch.cdist(place(kept[-1]), rows).argmin(-1)
                kept.pop()  # of this very call
                loud[cells] = True
                loud = loud[order]
            else:
                loud[cells + grid.positions[0]] = True
            marks.append(loud)
    finally:
        hook.remove()
        watch.remove()
    seen = torch.cat([k.reshape(-1, k.shape[-1]) for k in kept])
    rms = float(torch.cat([s.reshape(-1, s.shape[-1]) for s in stream]).square().mean().sqrt())
    return seen, torch.cat(marks), rms
