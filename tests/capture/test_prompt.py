"""Rows of the prompt's own tokens, against eager attention."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from attention_extractor import generate, prompt_rows
from attention_processor import patch_map
from config import GenerationSettings
from models import attention
from models.attention import NAME
from models.family import PromptInputs
from models.loading import ModelHandle, load_model

pytestmark = pytest.mark.tiny


@pytest.fixture(scope="module")
def handle(tiny_folder: Path) -> ModelHandle:
    return load_model(str(tiny_folder), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def inputs(handle: ModelHandle, photo: Image.Image) -> PromptInputs:
    return handle.prepare([photo, photo.crop((0, 0, 90, 60))], "What is there?")


@pytest.fixture(scope="module")
def eager(handle: ModelHandle, inputs: PromptInputs) -> torch.Tensor:
    """(L, H, N, N)."""
    handle.model.set_attn_implementation({"text_config": "eager"})
    try:
        with torch.no_grad():
            out = handle.model(**inputs.tensors, output_attentions=True)
    finally:
        handle.model.set_attn_implementation({"text_config": NAME})
    return torch.stack(out.attentions)[:, 0]


@pytest.mark.parametrize("rows_at_once", [1, 7, 10_000])
@pytest.mark.parametrize("chosen", [None, [0], [3, 4, 40, 7], "all"])
def test_rows_are_those_at_the_positions(
    handle: ModelHandle,
    inputs: PromptInputs,
    eager: torch.Tensor,
    chosen: list[int] | str | None,
    rows_at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    length = inputs.layout.length
    row = eager.shape[1] * length * 4
    monkeypatch.setattr(attention, "CHUNK_BYTES", rows_at_once * row)
    positions = range(length) if chosen == "all" else chosen
    rows = prompt_rows(handle, inputs, positions)  # type: ignore[arg-type]
    expected = {
        "all": tuple(range(length)),
        "None": tuple(range(inputs.layout.grids[-1].stop, length)),
    }.get(str(chosen), tuple(sorted(positions or ())))
    assert rows.positions == expected
    assert [token.id for token in rows.tokens] == [inputs.token_ids[p] for p in expected]
    vision = inputs.layout.vision_positions()
    for r, position in enumerate(rows.positions):
        right = eager[:, :, position]
        assert (rows.attention[r].float() - right[..., vision]).abs().max() < 1e-3  # float16
        for index, segment in enumerate(inputs.layout.segments):
            mass = right[..., segment.start : segment.stop].sum(-1)
            assert torch.allclose(rows.shares[r, ..., index], mass, atol=1e-5)
        assert torch.allclose(rows.entropy[r], torch.special.entr(right).sum(-1), atol=1e-4)
    assert (rows.shares[..., -1] == 0).all()


def test_only_the_wanted_rows_are_computed(
    handle: ModelHandle, inputs: PromptInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []
    real = attention.attention_rows

    def counted(query: torch.Tensor, *rest: object) -> torch.Tensor:
        computed.append(query.shape[2])
        return real(query, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(attention, "attention_rows", counted)
    prompt_rows(handle, inputs, [5])
    assert computed == [1] * handle.info.layers


def test_its_last_row_is_the_first_of_an_answer(handle: ModelHandle, inputs: PromptInputs) -> None:
    settings = GenerationSettings(max_new_tokens=1, layers=(1, 3), heads=(0, 2))
    trace = generate(handle, inputs, settings)
    rows = prompt_rows(handle, inputs, [inputs.layout.length - 1], settings)
    assert (rows.layers, rows.heads) == (trace.layers, trace.heads) == ((1, 3), (0, 2))
    assert torch.equal(rows.attention[0], trace.attention[0])
    assert torch.equal(rows.shares[0], trace.shares[0])


def test_its_maps_are_made_like_an_answers(handle: ModelHandle, inputs: PromptInputs) -> None:
    rows = prompt_rows(handle, inputs)
    heat = patch_map(rows, 0, image=1)  # type: ignore[arg-type]
    columns = inputs.layout.columns(1)
    expected = rows.attention[0, ..., columns].float().mean(dim=(0, 1))
    assert torch.allclose(torch.from_numpy(heat.values).reshape(-1), expected)


@pytest.mark.parametrize("positions", [[], [-1], [10_000]])
def test_positions_that_are_not_there(
    handle: ModelHandle, inputs: PromptInputs, positions: list[int]
) -> None:
    with pytest.raises(ValueError, match=r"positions is .*; allowed: at least one prompt position"):
        prompt_rows(handle, inputs, positions)
