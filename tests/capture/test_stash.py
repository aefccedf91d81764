"""Attention computed after the run, from queries and keys: the run is plain SDPA, the rows are
exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from attention_extractor import generate, generate_stash
from capture.run import decide
from capture.stash import QueryStash
from config import GenerationSettings
from models.attention import NAME
from models.family import PromptInputs
from models.loading import ModelHandle, load_model

pytestmark = pytest.mark.tiny
SETTINGS = GenerationSettings(max_new_tokens=6)


@pytest.fixture(scope="module")
def handle(tiny_folder: Path) -> ModelHandle:
    made = load_model(str(tiny_folder), device="cpu", dtype="float32")
    made.model.generation_config.eos_token_id = None
    return made


@pytest.fixture(scope="module")
def inputs(handle: ModelHandle, photo: Image.Image) -> PromptInputs:
    return handle.prepare([photo, photo.crop((0, 0, 90, 60))], "What is there?")


@pytest.fixture(scope="module")
def stash(handle: ModelHandle, inputs: PromptInputs) -> QueryStash:
    return generate_stash(handle, inputs, SETTINGS)


def alone(handle: ModelHandle, inputs: PromptInputs, implementation: str, **options: Any) -> Any:
    config = decide(handle, SETTINGS, inputs.layout.length).config
    config.update(return_dict_in_generate=True, output_logits=True, **options)
    handle.model.set_attn_implementation({"text_config": implementation})
    try:
        return handle.model.generate(**inputs.tensors, generation_config=config)
    finally:
        handle.model.set_attn_implementation({"text_config": NAME})


def test_the_run_is_plain_sdpa_bit_for_bit(
    handle: ModelHandle, inputs: PromptInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = alone(handle, inputs, "sdpa")
    seen = []
    head = handle.stack.output_head
    hook = head.register_forward_hook(lambda module, args, output: seen.append(output[:, -1]))
    try:
        stash = generate_stash(handle, inputs, SETTINGS)
    finally:
        hook.remove()
    ids = plain.sequences[0, inputs.layout.length :].tolist()
    assert [token.id for token in stash.tokens] == ids
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, seen, strict=True))


def test_rows_are_those_of_eager_attention(
    handle: ModelHandle, inputs: PromptInputs, stash: QueryStash
) -> None:
    eager = alone(handle, inputs, "eager", output_attentions=True)
    for token, layers in enumerate(eager.attentions):
        for layer, weights in enumerate(layers):
            row = stash.rows(token, layer)
            assert row.shape == (handle.info.heads, inputs.layout.length + token)
            assert (row - weights[0, :, -1]).abs().max() <= (1e-6 if layer < 2 else 5e-6)


def test_its_trace_is_that_of_live_capture(
    handle: ModelHandle, inputs: PromptInputs, stash: QueryStash
) -> None:
    live, later = generate(handle, inputs, SETTINGS), stash.trace()
    assert [token.id for token in later.tokens] == [token.id for token in live.tokens]
    assert (later.layers, later.heads, later.finish) == (live.layers, live.heads, live.finish)
    # The first row comes from the same prefill; later ones differ by the kernels' rounding.
    assert torch.equal(later.attention[0], live.attention[0])
    assert (later.attention.float() - live.attention.float()).abs().max() <= 1e-3
    assert torch.allclose(later.shares, live.shares, atol=1e-5)
    assert torch.allclose(later.entropy, live.entropy, atol=1e-4)


def test_some_layers_and_heads(
    handle: ModelHandle, inputs: PromptInputs, stash: QueryStash
) -> None:
    few = generate_stash(handle, inputs, GenerationSettings(6, layers=(3, 1), heads=(2,)))
    assert torch.equal(few.trace().attention, stash.trace().attention[:, [1, 3]][:, :, [2]])
    with pytest.raises(ValueError, match=r"layer is 0; the run kept layers \[1, 3\]"):
        few.rows(0, 0)
    with pytest.raises(ValueError, match="token is 6; the answer has 6"):
        few.rows(6, 1)


def test_queries_of_the_prompt_are_not_kept(stash: QueryStash, inputs: PromptInputs) -> None:
    for layer in stash.layers:
        assert stash.queries[layer].shape[0] == len(stash.tokens)
        assert stash.keys[layer].shape[1] == inputs.layout.length + len(stash.tokens) - 1
