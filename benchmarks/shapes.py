"""Random-weight models with the sizes of real ones, and prompts of a chosen length.

Time and memory do not depend on the weights. The vision tower is as small as possible, because its
cost does not depend on what is captured and would only dilute the ratios.
"""

from __future__ import annotations

import dataclasses
import math
import platform
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from sinkscope.models import attention
from sinkscope.models.family import PromptInputs, PromptLayout, Segment
from sinkscope.models.info import ModelInfo
from sinkscope.models.loading import ModelHandle
from sinkscope.models.profiles import SinkProfile
from sinkscope.models.qwen2_5_vl import Qwen25VL
from sinkscope.models.views import one_view

PATCH, MERGE = 14, 2
BEFORE, AFTER = 15, 40  # prompt positions before the vision start, at least as many after the end
SHORTEST = BEFORE + AFTER + 2 + 9


@dataclass(frozen=True)
class Shape:
    """Sizes of a text model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int


SHAPES = {
    "tiny": Shape(64, 3, 4, 2, 128, 512),  # for the tests of the benchmarks themselves
    "small": Shape(768, 4, 12, 2, 4096, 16384),
    "3b": Shape(2048, 36, 16, 2, 11008, 151936),
    "7b": Shape(3584, 28, 28, 4, 18944, 152064),
}


def build_handle(
    shape: str, device: str, dtype: torch.dtype, seed: int = 0, layers: int | None = None
) -> ModelHandle:
    """A handle as `load_model` makes it, with random weights made on the device; with `layers`
    layers if given, else the shape's own number.

    It has a sink profile, because a run with capture finds sinks, and no token that ends an
    answer.
    """
    size = SHAPES[shape]
    if layers is not None:
        size = dataclasses.replace(size, layers=layers)
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
        torch.manual_seed(seed)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                model = Qwen2_5_VLForConditionalGeneration(_config(size))
        finally:
            torch.set_default_dtype(before)
    model.eval().requires_grad_(False)
    model.generation_config = GenerationConfig(eos_token_id=None, pad_token_id=0, bos_token_id=1)
    attention.install(model)
    family = Qwen25VL()
    words = {f"w{i}": i for i in range(size.vocabulary)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, "w0")))
    info = ModelInfo(
        id=f"random {shape}",
        revision=f"seed {seed}",
        family=family.name,
        dtype=str(dtype).removeprefix("torch."),
        device=str(model.get_input_embeddings().weight.device),
        layers=size.layers,
        heads=size.heads,
        hidden_size=size.hidden,
    )
    tau = 0.9 * math.sqrt(size.hidden)
    profile = SinkProfile(
        info.id, info.family, size.hidden, size.layers, (1, 2), tau, "made up", "low"
    )
    processor = SimpleNamespace(tokenizer=tokenizer, note="")
    return ModelHandle(info, model, processor, family, family.text_stack(model), profile)


def prepared_handle(shape: str, device: str, dtype: str, threads: int) -> ModelHandle:
    """`build_handle` for a benchmark's options; sets torch's threads.

    Raises:
        ValueError: an unknown device, or one that this machine does not have.
    """
    torch.set_num_threads(threads)
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device is {device!r}; allowed: cpu, cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but torch finds no CUDA device here.")
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    return build_handle(shape, device, getattr(torch, dtype))


def device_name(device: str) -> str:
    """The device's name for a report."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"cpu ({platform.processor() or platform.machine()})"


def build_prompt(handle: ModelHandle, length: int, seed: int = 1) -> PromptInputs:
    """A prompt of `length` positions, nearly all of them one image.

    Raises:
        ValueError: there is no room for an image.
    """
    if length < SHORTEST:
        raise ValueError(f"lengths has {length}; allowed: prompt lengths from {SHORTEST} up.")
    cells = length - BEFORE - AFTER - 2
    columns = math.isqrt(cells)
    rows = cells // columns
    vision = rows * columns
    generator = torch.Generator().manual_seed(seed)
    config = handle.model.config
    words = torch.randint(10, config.image_token_id - 10, (length,), generator=generator)
    start = BEFORE + 1
    words[start - 1] = config.vision_start_token_id
    words[start : start + vision] = config.image_token_id
    words[start + vision] = config.vision_end_token_id
    ids = words[None]
    h, w = rows * MERGE, columns * MERGE
    tensors = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == config.image_token_id).to(torch.int32),
        "pixel_values": torch.randn(h * w, 3 * 2 * PATCH**2, generator=generator).to(
            handle.model.dtype
        ),
        "image_grid_thw": torch.tensor([[1, h, w]]),
    }
    pixels = (h * PATCH, w * PATCH)
    layout = PromptLayout(
        length,
        (
            Segment("system", 0, BEFORE),
            Segment("template", BEFORE, start),
            Segment("image", start, start + vision, 0),
            Segment("template", start + vision, start + vision + 1),
            Segment("user", start + vision + 1, length - 4),
            Segment("template", length - 4, length),
        ),
        (one_view(start, 1, h, w, MERGE, pixels, pixels),),
    )
    image = Image.new("RGB", (28, 28))
    texts = tuple(f"w{i}" for i in words.tolist())
    return PromptInputs(tensors, layout, (image,), "random", tuple(words.tolist()), texts)


def _config(size: Shape) -> Qwen2_5_VLConfig:
    half = size.hidden // size.heads // 2  # rotary frequencies, split over time, height and width
    time, height = half // 4, (half - half // 4) // 2
    image = size.vocabulary - 4
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": size.hidden,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads,
            "intermediate_size": size.mlp,
            "vocab_size": size.vocabulary,
            "max_position_embeddings": 32768,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [time, height, half - time - height],
            },
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 80,
            "intermediate_size": 80,
            "num_heads": 1,
            "out_hidden_size": size.hidden,
            "fullatt_block_indexes": [],
            "window_size": 112,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
        },
        image_token_id=image,
        vision_start_token_id=image + 1,
        vision_end_token_id=image + 2,
        video_token_id=image + 3,
        tie_word_embeddings=True,
    )
    config._attn_implementation = "sdpa"
    return config
