"""The row that explains token t: from the pass that predicted it, not from the pass that read
it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from sinkscope.attention_extractor import generate
from sinkscope.config import GenerationSettings
from sinkscope.models.loading import ModelHandle, load_model

pytestmark = pytest.mark.tiny
NEW_TOKENS = 8


@pytest.fixture(scope="module")
def handle(tiny_folder: Path) -> ModelHandle:
    return load_model(str(tiny_folder), device="cpu", dtype="float32")


def teacher_forced(
    handle: ModelHandle, tensors: dict[str, torch.Tensor], answer: list[int]
) -> torch.Tensor:
    """Rows of one eager pass over prompt and answer: (L, H, N + T, N + T)."""
    extra = torch.tensor([answer])
    ids = torch.cat([tensors["input_ids"], extra], dim=1)
    kinds = torch.cat([tensors["mm_token_type_ids"], torch.zeros_like(extra, dtype=torch.int32)], 1)
    handle.model.set_attn_implementation({"text_config": "eager"})
    try:
        with torch.no_grad():
            out = handle.model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=kinds,
                pixel_values=tensors["pixel_values"],
                image_grid_thw=tensors["image_grid_thw"],
                output_attentions=True,
            )
    finally:
        handle.model.set_attn_implementation({"text_config": "sinkscope"})
    return torch.stack(out.attentions)[:, 0]


def test_row_t_is_the_pass_that_predicted_token_t(handle: ModelHandle, photo: Image.Image) -> None:
    inputs = handle.prepare([photo], "What is there?")
    trace = generate(handle, inputs, GenerationSettings(max_new_tokens=NEW_TOKENS))
    answer = [token.id for token in trace.tokens]
    weights = teacher_forced(handle, dict(inputs.tensors), answer)
    vision = inputs.layout.vision_positions()
    first = inputs.layout.length - 1
    for t in range(len(answer)):
        stored = trace.attention[t].float()
        right = weights[:, :, first + t][..., vision]
        wrong = weights[:, :, first + t + 1][..., vision]
        assert (stored - right).abs().max() < 1e-3  # float16 storage
        assert (stored - wrong).abs().max() > 1e-2  # the off-by-one row is another row


def test_shares_and_entropy_describe_the_whole_row(handle: ModelHandle, photo: Image.Image) -> None:
    inputs = handle.prepare([photo, photo.crop((0, 0, 90, 60))], "What is there?")
    trace = generate(handle, inputs, GenerationSettings(max_new_tokens=NEW_TOKENS))
    answer = [token.id for token in trace.tokens]
    weights = teacher_forced(handle, dict(inputs.tensors), answer)
    length = inputs.layout.length
    assert [s.label for s in trace.layout.segments if s.kind == "image"] == ["image 0", "image 1"]
    for t in range(len(answer)):
        row = weights[:, :, length - 1 + t]
        for index, segment in enumerate(trace.layout.segments):
            mass = row[..., segment.start : segment.stop].sum(-1)
            assert torch.allclose(trace.shares[t, ..., index], mass, atol=1e-5)
        assert torch.allclose(trace.shares[t, ..., -1], row[..., length:].sum(-1), atol=1e-5)
        entropy = torch.special.entr(row).sum(-1)
        assert torch.allclose(trace.entropy[t], entropy, atol=1e-4)
    assert torch.allclose(trace.shares.sum(-1), torch.ones(()), atol=1e-5)
