"""Captured rows against eager attention, and outputs against plain SDPA, on the tiny random
model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import StaticCache

from sinkscope.capture.probes.base import Probe
from sinkscope.capture.probes.rows import Rows
from sinkscope.capture.session import attached
from sinkscope.models import attention
from sinkscope.models.attention import NAME
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.models.sites import NO_END, SiteSelection

pytestmark = pytest.mark.tiny
NEW_TOKENS = 6


FullRows = dict[tuple[int, int], torch.Tensor]  # (layer, position) -> (B, H, K)


@pytest.fixture(scope="module")
def handle(tiny_folder: Path) -> ModelHandle:
    return load_model(str(tiny_folder), device="cpu", dtype="float32")


@pytest.fixture(autouse=True)
def restored(handle: ModelHandle) -> Iterator[None]:
    """Tests switch the text model's attention; each test begins with ours."""
    yield
    handle.model.set_attn_implementation({"text_config": NAME})


def noise(seed: int, width: int, height: int) -> Image.Image:
    pixels = torch.randint(
        0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed)
    )
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def one_image(handle: ModelHandle) -> list[PromptInputs]:
    return [handle.prepare([noise(1, 200, 140)], "What is on the image?")]


def two_images(handle: ModelHandle) -> list[PromptInputs]:
    return [handle.prepare([noise(1, 200, 140), noise(2, 90, 170)], "What differs?")]


def left_padded(handle: ModelHandle) -> list[PromptInputs]:
    """A batch of two prompts of different lengths, the shorter one padded on the left."""
    return [
        handle.prepare([noise(1, 90, 90)], "What?"),
        handle.prepare([noise(2, 140, 90)], "What is that over there?"),
    ]


def tensors_of(handle: ModelHandle, prompts: list[PromptInputs]) -> dict[str, torch.Tensor]:
    width = max(prompt.layout.length for prompt in prompts)

    def pad(name: str, filler: int) -> torch.Tensor:
        parts = [prompt.tensors[name] for prompt in prompts]
        gaps = [part.new_full((1, width - part.shape[1]), filler) for part in parts]
        return torch.cat([torch.cat(pair, dim=1) for pair in zip(gaps, parts, strict=True)])

    return {
        "input_ids": pad("input_ids", handle.model.generation_config.pad_token_id),
        "attention_mask": pad("attention_mask", 0),
        "mm_token_type_ids": pad("mm_token_type_ids", 0),
        **{
            name: torch.cat([prompt.tensors[name] for prompt in prompts])
            for name in ("pixel_values", "image_grid_thw")
        },
    }


CASES = {"one image": one_image, "two images": two_images, "left padding": left_padded}


def run(
    handle: ModelHandle, prompts: list[PromptInputs], implementation: str, **options: Any
) -> Any:
    handle.model.set_attn_implementation({"text_config": implementation})
    settings = {
        "max_new_tokens": NEW_TOKENS,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
        "eos_token_id": None,
    }
    return handle.model.generate(**tensors_of(handle, prompts), **{**settings, **options})


def captured(
    handle: ModelHandle, prompts: list[PromptInputs], **options: Any
) -> tuple[Any, FullRows]:
    """The result of `generate`, and the row that explains each of its tokens."""
    rows = Rows(positions=range(length_of(prompts) - 1, NO_END))
    with attached(handle, prompts, [rows]) as session:
        out = run(handle, prompts, NAME, **options)
    return out, session[rows]


def length_of(prompts: list[PromptInputs]) -> int:
    return max(prompt.layout.length for prompt in prompts)


def assert_rows_equal_eager(
    handle: ModelHandle, prompts: list[PromptInputs], rows: FullRows
) -> None:
    """To 1e-6 in the first two layers; deeper ones inherit the two kernels' rounding."""
    eager = run(handle, prompts, "eager", output_attentions=True)
    prompt = length_of(prompts)
    compared = 0
    for step, layers in enumerate(eager.attentions):
        for layer, weights in enumerate(layers):
            ours = rows[layer, prompt - 1 + step]
            tolerance = 1e-6 if layer < 2 else 5e-6
            assert (ours - weights[:, :, -1]).abs().max() <= tolerance
            compared += 1
    assert compared == NEW_TOKENS * handle.info.layers == len(rows)


@pytest.mark.parametrize("case", CASES)
def test_rows_are_those_of_eager_attention(handle: ModelHandle, case: str) -> None:
    prompts = CASES[case](handle)
    assert_rows_equal_eager(handle, prompts, captured(handle, prompts)[1])


@pytest.mark.parametrize("case", CASES)
def test_capture_changes_no_answer(handle: ModelHandle, case: str) -> None:
    prompts = CASES[case](handle)
    plain = run(handle, prompts, "sdpa")
    ours, _ = captured(handle, prompts)
    assert torch.equal(plain.sequences, ours.sequences)
    assert torch.equal(plain.logits[0], ours.logits[0])  # prefill: the same kernel, bit for bit
    for a, b in zip(plain.logits[1:], ours.logits[1:], strict=True):
        assert (a - b).abs().max() <= 1e-5


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("session", [False, True], ids=["no session", "nothing attached"])
def test_without_a_plan_it_is_plain_sdpa_bit_for_bit(
    handle: ModelHandle, case: str, session: bool
) -> None:
    prompts = CASES[case](handle)
    plain = run(handle, prompts, "sdpa")
    with attached(handle, prompts) if session else nullcontext():
        ours = run(handle, prompts, NAME)
    assert torch.equal(plain.sequences, ours.sequences)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, ours.logits, strict=True))


def test_chunked_prefill_gives_the_same_rows(handle: ModelHandle) -> None:
    (inputs,) = one_image(handle)
    tensors, prompt = inputs.tensors, inputs.layout.length
    half = prompt // 2
    model = handle.model.model
    embeds = model.get_input_embeddings()(tensors["input_ids"])
    features = model.get_image_features(tensors["pixel_values"], tensors["image_grid_thw"])
    picture = (tensors["input_ids"] == handle.model.config.image_token_id)[..., None]
    embeds = embeds.masked_scatter(picture, torch.cat(features.pooler_output))
    positions, _ = model.get_rope_index(
        tensors["input_ids"], tensors["mm_token_type_ids"], tensors["image_grid_thw"]
    )
    rows = Rows(positions=(3, half - 1, half, prompt - 1))
    with attached(handle, inputs, [rows]) as session:
        cache = None
        for part in (slice(0, half), slice(half, prompt)):
            cache = handle.stack.language_model(
                inputs_embeds=embeds[:, part],
                position_ids=positions[:, :, part],
                past_key_values=cache,
                use_cache=True,
            ).past_key_values
    whole = Rows(positions=(3, half - 1, half, prompt - 1))
    with attached(handle, inputs, [whole]) as at_once:
        handle.model(**tensors)
    assert len(session[rows]) == 4 * handle.info.layers
    for (layer, position), row in session[rows].items():
        other = at_once[whole][layer, position][..., : row.shape[-1]]
        assert (row - other).abs().max() <= 1e-6


def test_a_static_cache_gives_the_same_rows(handle: ModelHandle) -> None:
    prompts = one_image(handle)
    length = length_of(prompts) + NEW_TOKENS + 5
    cache = StaticCache(config=handle.model.config.text_config, max_cache_len=length)
    _, rows = captured(handle, prompts, past_key_values=cache, disable_compile=True)
    assert_rows_equal_eager(handle, prompts, rows)


def test_bfloat16_rows_are_within_its_rounding(tiny_folder: Path) -> None:
    handle = load_model(str(tiny_folder), device="cpu", dtype="bfloat16")
    prompts = one_image(handle)
    _, rows = captured(handle, prompts, max_new_tokens=1)
    eager = run(handle, prompts, "eager", max_new_tokens=1, output_attentions=True)
    first = eager.attentions[0][0][:, :, -1].float()
    # Eager rounds its weights to bfloat16 (8 bits); ours stay float32. Later layers also have
    # different inputs, because eager's rounded outputs are passed on to them.
    row = rows[0, length_of(prompts) - 1]
    assert ((row - first).abs() <= first * 2**-7 + 1e-6).all()


@pytest.mark.parametrize("at_once", [1, 16, 10_000])
def test_all_rows_of_the_prompt_on_demand(
    handle: ModelHandle, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (inputs,) = one_image(handle)
    monkeypatch.setattr(attention, "CHUNK", at_once)
    prompt = inputs.layout.length
    rows = Rows(positions=range(3, prompt))
    with attached(handle, inputs, [rows]) as session:
        handle.model(**inputs.tensors)
    handle.model.set_attn_implementation({"text_config": "eager"})
    with torch.no_grad():
        eager = handle.model(**inputs.tensors, output_attentions=True).attentions
    assert len(session[rows]) == (prompt - 3) * handle.info.layers
    for layer, weights in enumerate(eager):
        for position in range(3, prompt):
            ours = session[rows][layer, position]
            assert (ours - weights[:, :, position]).abs().max() <= 1e-6


def test_every_looker_gets_its_own_positions_of_one_computation(
    handle: ModelHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    (inputs,) = one_image(handle)
    end = inputs.layout.length
    wanted = [(2, 3, 9), range(5, 12), range(end - 1, NO_END), (9,)]
    computed: list[int] = []
    real = attention.attention_rows

    def counted(query: torch.Tensor, *rest: Any) -> torch.Tensor:
        computed.append(query.shape[2])
        return real(query, *rest)

    monkeypatch.setattr(attention, "attention_rows", counted)
    probes = [Rows((1,), positions) for positions in wanted]
    with attached(handle, inputs, probes) as session:
        handle.model(**inputs.tensors)
    assert sum(computed) == len({2, 3, *range(5, 12), end - 1})
    everything = Rows((1,))
    with attached(handle, inputs, [everything]) as other:
        handle.model(**inputs.tensors)
    for probe, positions in zip(probes, wanted, strict=True):
        here = [p for p in range(end) if p in positions]
        assert [position for _, position in session[probe]] == here
        for position in here:
            row = session[probe][1, position]
            # Weights of at most 1: their last bit is 6e-8 to 1.2e-7, and block sizes differ.
            assert (row - other[everything][1, position]).abs().max() <= 3e-7
            blocks = row.untyped_storage().nbytes() // (row.shape[1] * row.shape[2] * 4)
            assert blocks <= len(here), "nothing is kept but what was asked for"


def test_an_exception_leaves_nothing_on_the_model(handle: ModelHandle) -> None:
    @dataclass(frozen=True)
    class Broken(Probe):
        reads: tuple[SiteSelection, ...] = (
            SiteSelection("rows"),
            SiteSelection("z"),
            SiteSelection("logits"),
        )

        def see(self, site: str, layer: int, values: Any, positions: Sequence[int]) -> None:
            raise RuntimeError("the probe broke")

    def hooks() -> int:  # transformers leaves some of its own
        modules = handle.model.modules()
        return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in modules)

    prompts = one_image(handle)
    before, count = run(handle, prompts, NAME).logits, hooks()
    with (
        pytest.raises(RuntimeError, match="the probe broke"),
        attached(handle, prompts, [Broken()]),
    ):
        run(handle, prompts, NAME)
    assert hooks() == count
    after = run(handle, prompts, NAME).logits
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_vision_tower_keeps_sdpa(handle: ModelHandle) -> None:
    assert handle.model.config.text_config._attn_implementation == NAME
    assert handle.model.config.vision_config._attn_implementation == "sdpa"
