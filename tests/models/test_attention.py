"""Captured rows against eager attention, and outputs against plain SDPA, on the tiny random
model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import StaticCache

from sinkscope.models.attention import NAME, ForwardPlan, running
from sinkscope.models.loading import ModelHandle, load_model

pytestmark = pytest.mark.tiny
NEW_TOKENS = 6


class FullRows:
    """A recorder that keeps every row whole, in the dtype it was computed in."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int], torch.Tensor] = {}  # (layer, position) -> (B, H, K)

    def record(self, layer: int, rows: torch.Tensor, first_position: int) -> None:
        for offset in range(rows.shape[2]):
            self.rows[layer, first_position + offset] = rows[:, :, offset].clone()


@pytest.fixture(scope="module")
def handle(tiny_folder: Path) -> ModelHandle:
    return load_model(str(tiny_folder), device="cpu", dtype="float32")


@pytest.fixture(autouse=True)
def restored(handle: ModelHandle) -> Iterator[None]:
    """Tests switch the text model's attention; each begins with ours."""
    yield
    handle.model.set_attn_implementation({"text_config": NAME})


def noise(seed: int, width: int, height: int) -> Image.Image:
    pixels = torch.randint(
        0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed)
    )
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def one_image(handle: ModelHandle) -> dict[str, torch.Tensor]:
    return dict(handle.prepare([noise(1, 200, 140)], "What is on the image?").tensors)


def two_images(handle: ModelHandle) -> dict[str, torch.Tensor]:
    pictures = [noise(1, 200, 140), noise(2, 90, 170)]
    return dict(handle.prepare(pictures, "What differs?").tensors)


def left_padded(handle: ModelHandle) -> dict[str, torch.Tensor]:
    """A batch of two prompts of different length, the shorter one padded at its left."""
    short = handle.prepare([noise(1, 90, 90)], "What?").tensors
    long = handle.prepare([noise(2, 140, 90)], "What is that over there?").tensors
    width = long["input_ids"].shape[1]

    def pad(name: str, filler: int) -> torch.Tensor:
        gap = short[name].new_full((1, width - short[name].shape[1]), filler)
        return torch.cat([torch.cat([gap, short[name]], dim=1), long[name]])

    return {
        "input_ids": pad("input_ids", handle.model.generation_config.pad_token_id),
        "attention_mask": pad("attention_mask", 0),
        "mm_token_type_ids": pad("mm_token_type_ids", 0),
        **{n: torch.cat([short[n], long[n]]) for n in ("pixel_values", "image_grid_thw")},
    }


CASES = {"one image": one_image, "two images": two_images, "left padding": left_padded}


def run(
    handle: ModelHandle,
    tensors: dict[str, torch.Tensor],
    implementation: str,
    recorder: FullRows | None = None,
    **options: Any,
) -> Any:
    handle.model.set_attn_implementation({"text_config": implementation})
    plan = ForwardPlan(recorder, None, tensors["input_ids"].shape[1])
    with running(handle.stack, plan) if recorder is not None else nullcontext():
        settings = {
            "max_new_tokens": NEW_TOKENS,
            "do_sample": False,
            "return_dict_in_generate": True,
            "output_logits": True,
            "eos_token_id": None,
        }
        return handle.model.generate(**tensors, **{**settings, **options})


def assert_rows_equal_eager(
    handle: ModelHandle, tensors: dict[str, torch.Tensor], recorder: FullRows
) -> None:
    """To 1e-6 in the first two layers; deeper ones inherit the two kernels' rounding."""
    eager = run(handle, tensors, "eager", output_attentions=True)
    prompt = tensors["input_ids"].shape[1]
    compared = 0
    for step, layers in enumerate(eager.attentions):
        for layer, weights in enumerate(layers):
            ours = recorder.rows[layer, prompt - 1 + step]
            tolerance = 1e-6 if layer < 2 else 5e-6
            assert (ours - weights[:, :, -1]).abs().max() <= tolerance
            compared += 1
    assert compared == NEW_TOKENS * handle.info.layers


@pytest.mark.parametrize("case", CASES)
def test_rows_are_those_of_eager_attention(handle: ModelHandle, case: str) -> None:
    tensors = CASES[case](handle)
    recorder = FullRows()
    run(handle, tensors, NAME, recorder)
    assert_rows_equal_eager(handle, tensors, recorder)


@pytest.mark.parametrize("case", CASES)
def test_capture_changes_no_answer(handle: ModelHandle, case: str) -> None:
    tensors = CASES[case](handle)
    plain = run(handle, tensors, "sdpa")
    ours = run(handle, tensors, NAME, FullRows())
    assert torch.equal(plain.sequences, ours.sequences)
    assert torch.equal(plain.logits[0], ours.logits[0])  # prefill: the same kernel, bit for bit
    for a, b in zip(plain.logits[1:], ours.logits[1:], strict=True):
        assert (a - b).abs().max() <= 1e-5


@pytest.mark.parametrize("case", CASES)
def test_without_a_plan_it_is_plain_sdpa_bit_for_bit(handle: ModelHandle, case: str) -> None:
    tensors = CASES[case](handle)
    plain = run(handle, tensors, "sdpa")
    ours = run(handle, tensors, NAME)
    assert torch.equal(plain.sequences, ours.sequences)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, ours.logits, strict=True))


def test_chunked_prefill_gives_the_same_rows(handle: ModelHandle) -> None:
    tensors = one_image(handle)
    recorder = FullRows()
    prompt = tensors["input_ids"].shape[1]
    half = prompt // 2
    model = handle.model.model
    embeds = model.get_input_embeddings()(tensors["input_ids"])
    features = model.get_image_features(tensors["pixel_values"], tensors["image_grid_thw"])
    picture = (tensors["input_ids"] == handle.model.config.image_token_id)[..., None]
    embeds = embeds.masked_scatter(picture, torch.cat(features.pooler_output))
    positions, _ = model.get_rope_index(
        tensors["input_ids"], tensors["mm_token_type_ids"], tensors["image_grid_thw"]
    )
    with torch.no_grad(), running(handle.stack, ForwardPlan(recorder, None, prompt)):
        cache = None
        for part in (slice(0, half), slice(half, prompt)):
            cache = handle.stack.language_model(
                inputs_embeds=embeds[:, part],
                position_ids=positions[:, :, part],
                past_key_values=cache,
                use_cache=True,
            ).past_key_values
    whole = FullRows()
    run(handle, tensors, NAME, whole, max_new_tokens=1)
    for layer in range(handle.info.layers):
        difference = recorder.rows[layer, prompt - 1] - whole.rows[layer, prompt - 1]
        assert difference.abs().max() <= 1e-6


def test_a_static_cache_gives_the_same_rows(handle: ModelHandle) -> None:
    tensors = one_image(handle)
    recorder = FullRows()
    length = tensors["input_ids"].shape[1] + NEW_TOKENS + 5
    cache = StaticCache(config=handle.model.config.text_config, max_cache_len=length)
    run(handle, tensors, NAME, recorder, past_key_values=cache, disable_compile=True)
    assert_rows_equal_eager(handle, tensors, recorder)


def test_bfloat16_rows_are_within_its_rounding(tiny_folder: Path) -> None:
    handle = load_model(str(tiny_folder), device="cpu", dtype="bfloat16")
    tensors = one_image(handle)
    recorder = FullRows()
    run(handle, tensors, NAME, recorder, max_new_tokens=1)
    handle.model.set_attn_implementation({"text_config": "eager"})
    eager = handle.model.generate(
        **tensors,
        max_new_tokens=1,
        do_sample=False,
        return_dict_in_generate=True,
        output_attentions=True,
    )
    prompt = tensors["input_ids"].shape[1]
    first = eager.attentions[0][0][:, :, -1].float()
    # Eager rounds its weights to bfloat16 (8 bits); ours stay float32. Later layers also differ in
    # their inputs, for eager's rounded outputs feed them.
    assert ((recorder.rows[0, prompt - 1] - first).abs() <= first * 2**-7 + 1e-6).all()


def test_all_rows_of_the_prompt_on_demand(handle: ModelHandle) -> None:
    tensors = one_image(handle)
    recorder = FullRows()
    prompt = tensors["input_ids"].shape[1]
    plan = ForwardPlan(recorder, None, prompt, all_rows_from=3, chunk=16)
    with torch.no_grad(), running(handle.stack, plan):
        handle.model(**tensors)
    handle.model.set_attn_implementation({"text_config": "eager"})
    with torch.no_grad():
        eager = handle.model(**tensors, output_attentions=True).attentions
    for layer, weights in enumerate(eager):
        assert (layer, 2) not in recorder.rows
        for position in range(3, prompt):
            ours = recorder.rows[layer, position]
            assert (ours - weights[:, :, position]).abs().max() <= 1e-6


def test_an_exception_leaves_nothing_on_the_model(handle: ModelHandle) -> None:
    class Broken:
        def record(self, layer: int, rows: torch.Tensor, first_position: int) -> None:
            raise RuntimeError("recorder broke")

    tensors = one_image(handle)
    before = run(handle, tensors, NAME).logits
    with pytest.raises(RuntimeError, match="recorder broke"):
        run(handle, tensors, NAME, Broken())  # type: ignore[arg-type]
    assert not handle.stack.language_model._forward_pre_hooks
    assert not any(layer._forward_pre_hooks for layer in handle.stack.layers)
    after = run(handle, tensors, NAME).logits
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_vision_tower_keeps_sdpa(handle: ModelHandle) -> None:
    assert handle.model.config.text_config._attn_implementation == NAME
    assert handle.model.config.vision_config._attn_implementation == "sdpa"
