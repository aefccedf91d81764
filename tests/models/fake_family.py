"""A made-up vision-language family that differs from Qwen2.5-VL as much as the protocol allows.

Its image tokens are not contiguous: tiles of 4 x 4 cells, each with a mark before it and a mark
after every row, and a thumbnail of 3 x 3 cells last, with a mark after it. Its tokenizer is like
Llama's (Metaspace, byte fallback, a BOS), its decoder has another module path, its chat format has
no template, and it has no pixel bounds.

The decoder is a random Llama in which head 0 of every layer attends to redness, so the attention to
a red patch can be predicted.

    make_handle()      model, tokenizer and adapter, as `load_model` would return them
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    LlamaConfig,
    LlamaModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from sinkscope.models import attention
from sinkscope.models.family import PromptInputs, PromptLayout, PromptRequest, Segment
from sinkscope.models.info import ModelInfo
from sinkscope.models.llama_like import llama_like
from sinkscope.models.loading import ModelHandle
from sinkscope.models.profiles import SinkProfile
from sinkscope.models.stack import TextStack
from sinkscope.models.token_texts import token_texts
from sinkscope.models.views import ImageGrid, View
from tests.text_models import metaspace_tokenizer

PATCH, TILE, SMALL = 8, 4, 3  # pixels of a patch, cells of a tile and of the thumbnail, per side
IMAGE, TILE_MARK, ROW_END, IMAGE_END = "<img>", "<tile>", "<row>", "</img>"
HIDDEN, HEADS, LAYERS = 32, 4, 4
ONE, RED, SINK = 0, 1, 5  # dimensions: 1 everywhere, redness, and the sink dimension of red patches


class FakeConfig(PreTrainedConfig):
    model_type = "fake_vl"
    sub_configs = {"text_config": LlamaConfig}  # noqa: RUF012

    def __init__(self, text_config: Any = None, image_token_id: int = 0, **more: Any) -> None:
        given = text_config if isinstance(text_config, dict) else {}
        self.text_config = (
            text_config if isinstance(text_config, LlamaConfig) else LlamaConfig(**given)
        )
        self.image_token_id = image_token_id
        super().__init__(**more)


class FakeModel(PreTrainedModel, GenerationMixin):
    """Patches are their mean colour; the decoder is called `reader`, its head `say`."""

    config_class = FakeConfig
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: FakeConfig) -> None:
        super().__init__(config)
        self.reader = LlamaModel(config.text_config)
        self.eye = nn.Linear(3, HIDDEN)
        self.say = nn.Linear(HIDDEN, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.reader.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.say

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        colours: Tensor | None = None,
        past_key_values: Any = None,
        position_ids: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **more: Any,
    ) -> CausalLMOutputWithPast:
        embeds = self.reader.embed_tokens(input_ids)
        if colours is not None:
            where = input_ids == self.config.image_token_id
            embeds = embeds.masked_scatter(where[..., None], self.eye(colours).to(embeds.dtype))
        out = self.reader(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
            use_cache=use_cache,
            **more,
        )
        logits = self.say(out[0][:, -logits_to_keep:] if logits_to_keep else out[0])
        return CausalLMOutputWithPast(
            logits=logits, past_key_values=out.past_key_values, attentions=out.attentions
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        colours: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        made = super().prepare_inputs_for_generation(
            input_ids, past_key_values=past_key_values, **kwargs
        )
        first = past_key_values is None or past_key_values.get_seq_length() == 0
        return {**made, "colours": colours if first else None}


@dataclass(frozen=True)
class FakeProcessor:
    tokenizer: Any
    note: str = ""


class FakeFamily:
    """Adapter (`models.family.Family`)."""

    name = "fake_vl"
    loader = FakeModel
    sees_images = True
    pixel_bounds = False

    def recognises(self, config: Any) -> bool:
        return getattr(config, "model_type", None) == "fake_vl"

    def config_problem(self, config: Any) -> str | None:
        return None

    def weights_problem(self, config: Any, tensors: Mapping[str, Any]) -> str | None:
        return None

    def missing_words(self, missing: Sequence[str]) -> str:
        return f"{len(missing)} tensors are missing"

    def text_stack(self, model: Any) -> TextStack:
        return llama_like(model.reader, model.say, model.config.text_config)

    def load_processor(self, source: str, options: Mapping[str, Any]) -> FakeProcessor:
        return FakeProcessor(fake_tokenizer())

    def most_pixels(self, processor: FakeProcessor) -> None: ...

    def check(self, processor: FakeProcessor, config: Any) -> None: ...

    def prepare(
        self, processor: FakeProcessor, config: Any, request: PromptRequest
    ) -> PromptInputs:
        words = processor.tokenizer
        number = words.convert_tokens_to_ids
        ids: list[int] = [words.bos_token_id]
        segments = [Segment("template", 0, 1)]
        grids, colours = [], []
        for index, image in enumerate(request.images):
            grid, tokens, seen = show(image, len(ids))
            grids.append(grid)
            colours.append(seen)
            segments.append(Segment("image", len(ids), len(ids) + len(tokens), index))
            ids += [number(token) for token in tokens]
        said = words(f" {request.prompt}", add_special_tokens=False, split_special_tokens=True)
        segments.append(Segment("user", len(ids), len(ids) + len(said["input_ids"])))
        ids += said["input_ids"]
        input_ids = torch.tensor([ids])
        return PromptInputs(
            tensors={
                "input_ids": input_ids,
                "attention_mask": torch.ones_like(input_ids),
                "colours": torch.cat(colours),
            },
            layout=PromptLayout(len(ids), tuple(segments), tuple(grids)),
            images=tuple(request.images),
            prompt=request.prompt,
            token_ids=tuple(ids),
            token_texts=token_texts(words, ids),
        )

    def forward_prefix(
        self, model: Any, tensors: Mapping[str, Tensor], stop: int
    ) -> tuple[DynamicCache, Tensor]:
        cache = DynamicCache()
        with torch.no_grad():
            model(
                tensors["input_ids"][:, :stop],
                tensors["attention_mask"][:, :stop],
                tensors["colours"],
                past_key_values=cache,
                use_cache=True,
            )
        return cache, torch.zeros(0)

    def resume(self, model: Any, positions: Tensor) -> None: ...


def tiles_of(image: Image.Image) -> tuple[int, int]:
    """Rows and columns of tiles: two along the longer side, two by two where nearly square."""
    ratio = image.width / image.height
    return (1, 2) if ratio > 1.5 else (2, 1) if ratio < 1 / 1.5 else (2, 2)


def show(image: Image.Image, start: int) -> tuple[ImageGrid, list[str], Tensor]:
    """The image's grid, its tokens in the prompt, and the mean colour of each patch (tokens, 3)."""
    down, across = tiles_of(image)
    rows, columns = down * TILE, across * TILE
    canvas = np.asarray(image.resize((columns * PATCH, rows * PATCH), Image.Resampling.BOX))
    small = np.asarray(image.resize((SMALL * PATCH, SMALL * PATCH), Image.Resampling.BOX))
    high, wide = image.height / down, image.width / across
    tokens: list[str] = []
    views, marks, parts = [], [], []

    def mark(name: str) -> None:
        marks.append(start + len(tokens))
        tokens.append(name)

    cells = _cells(canvas)
    for r in range(down):
        for c in range(across):
            mark(TILE_MARK)
            positions = []
            for _ in range(TILE):
                positions += [start + len(tokens) + k for k in range(TILE)]
                tokens.extend([IMAGE] * TILE)
                mark(ROW_END)
            box = (c * wide, r * high, (c + 1) * wide, (r + 1) * high)
            views.append(View(tuple(positions), TILE, TILE, box, "tile"))
            part = cells[r * TILE : (r + 1) * TILE, c * TILE : (c + 1) * TILE]
            parts.append(part.reshape(-1, 3))
    first = start + len(tokens)
    tokens += [IMAGE] * SMALL**2
    whole = (0.0, 0.0, float(image.width), float(image.height))
    views.append(View(range(first, first + SMALL**2), SMALL, SMALL, whole, "thumbnail"))
    parts.append(_cells(small).reshape(-1, 3))
    mark(IMAGE_END)
    grid = ImageGrid(tuple(views), canvas.shape[:2], (image.height, image.width), tuple(marks))
    return grid, tokens, torch.from_numpy(np.concatenate(parts)).float()


def _cells(pixels: np.ndarray) -> np.ndarray:
    """Mean colour of each patch, from 0 to 1: (rows, columns, 3)."""
    rows, columns = pixels.shape[0] // PATCH, pixels.shape[1] // PATCH
    return pixels.reshape(rows, PATCH, columns, PATCH, 3).mean((1, 3)) / 255


def fake_tokenizer() -> Any:
    return metaspace_tokenizer(extra=(IMAGE, TILE_MARK, ROW_END, IMAGE_END))


def make_handle(seed: int = 0, sinks: float = 0.0) -> ModelHandle:
    """The family's only model.

    Args:
        seed: of the weights.
        sinks: value of dimension `SINK` at red patches; if it is not 0, there is a profile.
    """
    tokenizer = fake_tokenizer()
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 1e9},
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = FakeConfig(text, tokenizer.convert_tokens_to_ids(IMAGE))
        model = FakeModel(config).eval()
        for weight in model.parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.2)
        _plant(model, sinks)
    model.requires_grad_(False)
    model.generation_config = GenerationConfig(do_sample=False)
    attention.install(model)
    family = FakeFamily()
    stack = family.text_stack(model)
    info = ModelInfo(
        "made up", f"seed {seed}", family.name, "float32", "cpu", LAYERS, HEADS, HIDDEN
    )
    profile = SinkProfile(info.id, family.name, HIDDEN, LAYERS, (SINK,), 3.0, "planted", "high")
    return ModelHandle(
        info, model, FakeProcessor(tokenizer), family, stack, profile if sinks else None
    )


def _plant(model: Any, sinks: float) -> None:
    """Head 0 of each layer attends to redness, in a pair of dimensions that RoPE hardly rotates."""
    model.reader.embed_tokens.weight.data[:, ONE] = 1
    model.reader.embed_tokens.weight.data[:, [RED, SINK]] = 0
    eye = model.eye
    eye.weight.data.mul_(0.2)
    eye.bias.data.zero_()
    eye.weight.data[[ONE, RED, SINK]] = 0
    eye.bias.data[ONE] = 1
    for row, size in ((RED, 2.0 + sinks / 2), (SINK, sinks)):  # red, and neither green nor blue
        eye.weight.data[row] = torch.tensor([size, -size / 2, -size / 2])
    size = HIDDEN // HEADS
    slow = size - 1
    for layer in model.reader.layers:
        for projection, dimension in ((layer.self_attn.q_proj, ONE), (layer.self_attn.k_proj, RED)):
            projection.weight.data[:size] = 0
            projection.weight.data[slow, dimension] = 2.5
        for writes in (layer.self_attn.o_proj, layer.mlp.down_proj):
            writes.weight.data.mul_(0.5)
            writes.weight.data[[ONE, RED, SINK]] = 0
