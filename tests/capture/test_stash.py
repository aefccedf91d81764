"""Attention computed after the run, from queries and keys: the run uses plain SDPA, and the rows
are exact."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sinkscope.attention_extractor import generate, generate_stash
from sinkscope.capture import forecast as forecasting
from sinkscope.capture.run import RunOutOfMemoryError, decoding_for
from sinkscope.capture.stash import QueryStash
from sinkscope.capture.trace import GenerationTrace, PromptTrace
from sinkscope.config import GenerationSettings
from sinkscope.methods.explain import explain_map
from sinkscope.models.attention import NAME
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle, load_model

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
    config = decoding_for(handle, SETTINGS, inputs.layout.length).config
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
    assert (later.layers, later.heads, later.finish_reason) == (
        live.layers,
        live.heads,
        live.finish_reason,
    )
    # The first row comes from the same prefill; later ones differ by the kernels' rounding.
    assert torch.equal(later.attention[0], live.attention[0])
    assert (later.attention.float() - live.attention.float()).abs().max() <= 1e-3
    assert torch.allclose(later.shares, live.shares, atol=1e-5)
    assert torch.allclose(later.entropy, live.entropy, atol=1e-4)


def same_rows(later: GenerationTrace | PromptTrace, live: GenerationTrace | PromptTrace) -> None:
    assert (later.layers, later.heads, later.layout) == (live.layers, live.heads, live.layout)
    assert later.attention.shape == live.attention.shape
    assert (later.attention.float() - live.attention.float()).abs().max() <= 1e-3
    assert torch.allclose(later.shares, live.shares, atol=1e-5)
    assert torch.allclose(later.entropy, live.entropy, atol=1e-4)


@pytest.mark.parametrize("rows", [0, 1, 5, 8192])
@pytest.mark.parametrize("chosen", [{}, {"layers": (3, 1), "heads": (2,)}, {"reduce_heads": True}])
def test_prompt_rows_and_reference_are_those_of_live_capture(
    handle: ModelHandle, photo: Image.Image, rows: int, chosen: dict[str, Any]
) -> None:
    inputs = handle.prepare([photo], "What is there?", "Be brief.", max_pixels=28 * 28 * 40)
    settings = dataclasses.replace(SETTINGS, prompt_rows=rows, reference=True, **chosen)
    live, stash = generate(handle, inputs, settings), generate_stash(handle, inputs, settings)
    later = stash.trace()
    same_rows(later, live)
    assert all(queries.shape[0] == len(stash.tokens) for queries in stash.queries.values())
    if live.prompt_rows is None:
        assert rows == 0
        assert later.prompt_rows is None
    else:
        assert later.prompt_rows is not None
        same_rows(later.prompt_rows, live.prompt_rows)
        for name in ("positions", "tokens", "sinks", "model", "prompt"):
            assert getattr(later.prompt_rows, name) == getattr(live.prompt_rows, name)
        assert torch.equal(later.prompt_rows.attention[-1], later.attention[0])
    assert live.reference is not None
    assert later.reference is not None
    same_rows(later.reference, live.reference)
    for field in dataclasses.fields(PromptTrace):
        if field.name not in ("attention", "shares", "entropy"):
            mine, other = (getattr(t.reference, field.name) for t in (later, live))
            assert mine == other, field.name
    assert (later.settings, later.extra) == (live.settings, live.extra)
    explain_map(later, 1, "relative")


def test_without_room_for_the_reference_the_trace_says_so(
    handle: ModelHandle, inputs: PromptInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RunOutOfMemoryError("full")

    monkeypatch.setattr("sinkscope.attention_extractor.reference_row", full)
    made = generate_stash(handle, inputs, dataclasses.replace(SETTINGS, reference=True)).trace()
    assert made.reference is None
    assert "no memory left" in made.extra["no_reference"]


def test_what_cannot_fit_is_refused(
    handle: ModelHandle, inputs: PromptInputs, stash: QueryStash, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [*stash.queries.values(), *stash.prompt_queries.values()]
    assert forecasting.query_bytes(handle, inputs, SETTINGS) == sum(t.nbytes for t in held)
    monkeypatch.setattr(forecasting, "available_memory", lambda device: 20_000)
    ran = []
    monkeypatch.setattr(handle.model, "generate", lambda **_: ran.append(1))
    with pytest.raises(
        forecasting.DoesNotFitError, match=r"The run needs .*max_new_tokens is 6.*\(layers\)\.$"
    ):
        generate_stash(handle, inputs, SETTINGS)
    assert not ran
    monkeypatch.setattr(forecasting, "available_memory", lambda device: 200)
    with pytest.raises(
        forecasting.DoesNotFitError, match=r"attention of 6 tokens needs .*QueryStash\.rows"
    ):
        stash.trace()
    assert stash.rows(0, 0).shape[0] == handle.info.heads


def test_queries_of_wanted_prompt_tokens_are_counted(
    handle: ModelHandle, inputs: PromptInputs
) -> None:
    settings = dataclasses.replace(SETTINGS, prompt_rows=4, layers=(0, 2))
    kept = generate_stash(handle, inputs, settings)
    assert all(queries.shape[0] == 4 for queries in kept.prompt_queries.values())
    distinct = {
        q.untyped_storage().data_ptr(): q.untyped_storage().nbytes()
        for q in (*kept.queries.values(), *kept.prompt_queries.values())
    }
    assert forecasting.query_bytes(handle, inputs, settings) == sum(distinct.values())


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
