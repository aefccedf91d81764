"""Text models: prompts, attention rows and sites of each architecture, on tiny random models."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from sinkscope.attention_extractor import generate
from sinkscope.capture.probes.base import Probe
from sinkscope.capture.run import RunOutOfMemoryError, memory_errors_named
from sinkscope.capture.session import attached
from sinkscope.capture.storage import open_trace, save_trace
from sinkscope.config import GenerationSettings
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelError, ModelHandle, load_model
from sinkscope.models.sites import SiteSelection
from sinkscope.models.stack import Projection
from sinkscope.sinks.validating.masking import hidden_log_probabilities, read_answer
from tests.text_models import TEXT, attention_of, generated, save_text_model

pytestmark = pytest.mark.tiny

LAYER, NEW = 1, 3


@pytest.fixture(name="handle", scope="module")
def _handle(text_handle: ModelHandle) -> ModelHandle:
    return text_handle


@pytest.fixture(name="inputs", scope="module")
def _inputs(text_handle: ModelHandle) -> PromptInputs:
    return text_handle.prepare([], TEXT)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return load_model(str(save_text_model(tmp_path_factory.mktemp("llama"), "llama")), device="cpu")


# --- prompts ------------------------------------------------------------------------------------


def test_a_full_memory_speaks_of_no_image(inputs: PromptInputs) -> None:
    with (
        pytest.raises(
            RunOutOfMemoryError, match=r"What helps: fewer new tokens .*64\), or"
        ) as error,
        memory_errors_named(inputs, GenerationSettings()),
    ):
        raise MemoryError
    assert "image" not in str(error.value) and "vision" not in str(error.value)


def test_a_prompt_is_the_text_alone(handle: ModelHandle, inputs: PromptInputs) -> None:
    ids = handle.tokenizer(TEXT)["input_ids"]
    begins = handle.info.family in ("llama", "mistral")
    assert list(inputs.token_ids) == ids
    assert (ids[0] == handle.tokenizer.bos_token_id) is begins
    assert "".join(inputs.token_texts) == handle.tokenizer.decode(ids)
    assert [s.kind for s in inputs.layout.segments] == ["template"] * begins + ["user"]
    assert inputs.layout.segments[-1].stop == inputs.layout.length == len(ids)
    assert inputs.images == () and inputs.layout.grids == () and not inputs.chat
    assert inputs.layout.vision_positions().tolist() == []
    if begins:
        assert "".join(inputs.token_texts[1:]).strip() == TEXT


def test_a_chat_template_only_where_it_is_asked_for(handle: ModelHandle) -> None:
    history = [("a star?", "Yes")]
    made = handle.prepare([], "a red star", "Be brief", history=history, chat=True)
    messages = [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "a star?"},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": "a red star"},
    ]
    right = handle.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert list(made.token_ids) == right
    said = [s for s in made.layout.segments if s.kind != "template"]
    assert [s.kind for s in said] == ["system", "user", "assistant", "user"]
    text = ["".join(made.token_texts[s.start : s.stop]).strip() for s in said]
    assert text == ["Be brief", "a star?", "Yes", "a red star"]
    with pytest.raises(ValueError, match="system is given without a chat template; a text model"):
        handle.prepare([], "x", "Be brief")
    special = handle.tokenizer.bos_token
    with pytest.raises(ValueError, match=r"A user message has .* control token in a conversation"):
        handle.prepare([], f"a {special} b", chat=True)


def test_typed_special_tokens_stay_text(handle: ModelHandle) -> None:
    special = handle.tokenizer.eos_token
    made = handle.prepare([], f"a{special}b")
    assert handle.tokenizer.eos_token_id not in made.token_ids
    assert "".join(made.token_texts).endswith(f"a{special}b")


def test_what_a_text_model_refuses(handle: ModelHandle, photo: Image.Image) -> None:
    with pytest.raises(ValueError, match=r"There is an image, but .* is a text model"):
        handle.prepare([photo], "x")
    with pytest.raises(
        ValueError, match=r"max_pixels is 9000, but models of the family .* take no"
    ):
        handle.prepare([], "x", max_pixels=9000)
    with pytest.raises(ValueError, match="The prompt is empty; give a text"):
        handle.prepare([], " ")
    with pytest.raises(ModelError, match="min_pixels is 9000, but models of the family"):
        load_model(handle.info.id, min_pixels=9000)


def test_learned_positions_end(tmp_path: Path) -> None:
    handle = load_model(str(save_text_model(tmp_path, "gpt2")), device="cpu")
    full = handle.prepare([], "!" * 256)
    assert len(generate(handle, full, GenerationSettings(max_new_tokens=1)).tokens) == 1
    with pytest.raises(ValueError, match=r"may take 257 positions, but .* has learned 256"):
        generate(handle, full, GenerationSettings(max_new_tokens=2))
    with pytest.raises(ValueError, match="has 257 tokens; this model has learned 256 positions"):
        handle.prepare([], "!" * 257)


def test_folders_that_are_no_text_model(llama: ModelHandle, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llama.info.id, folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        load_model(str(folder))
    shutil.copytree(llama.info.id, folder, dirs_exist_ok=True)
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | {"num_hidden_layers": 4}))
    with pytest.raises(ModelError, match="not complete: 9 tensors are missing"):
        load_model(str(folder))


def test_a_folder_as_the_hub_has_gpt2(tmp_path: Path) -> None:
    """Names without the decoder's prefix, a head tied to the embedding, masks among the weights."""
    save_text_model(tmp_path, "gpt2")
    file = tmp_path / "model.safetensors"
    weights = {
        name.removeprefix("transformer."): tensor
        for name, tensor in load_file(file).items()
        if name != "lm_head.weight"
    }
    weights |= {f"h.{k}.attn.bias": torch.ones(1, 1, 256, 256) for k in range(3)}
    save_file(weights, file, metadata={"format": "pt"})
    about = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(about | {"tie_word_embeddings": True}))
    handle = load_model(str(tmp_path), device="cpu")
    assert torch.equal(handle.stack.unembedding, weights["wte.weight"])
    down = handle.stack.mlp(2).down.weight
    assert torch.equal(down, weights["h.2.mlp.c_proj.weight"].T)
    assert handle.info.note == ""


def test_packed_weights_are_refused_where_plain_ones_are_needed() -> None:
    module = nn.Linear(4, 3)
    assert Projection(module).weight.shape == (3, 4)
    assert Projection(module, transposed=True).weight.shape == (4, 3)
    module.weight = nn.Parameter(torch.zeros(12, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"is torch\.uint8, packed by a quantisation"):
        _ = Projection(module).weight


# --- attention rows -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows(Probe):
    reads: tuple[SiteSelection, ...] = (SiteSelection("rows"),)


def test_rows_are_those_of_eager_attention(handle: ModelHandle, inputs: PromptInputs) -> None:
    """All rows of the prompt and of the answer, in every layer; the output is plain SDPA's."""
    with attention_of(handle, "eager"):
        eager = generated(handle, inputs, output_attentions=True)
    with attention_of(handle, "sdpa"):
        plain = generated(handle, inputs)
    probe = Rows()
    with attached(handle, inputs, [probe], new_tokens=NEW) as session:
        ours = generated(handle, inputs)
    assert torch.equal(ours.sequences, eager.sequences)
    for a, b, c in zip(ours.logits, plain.logits, eager.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
        torch.testing.assert_close(a, c, rtol=0, atol=1e-4)
    for layer in range(handle.info.layers):
        prefill = torch.cat(
            [r for r in session[probe][layer] if r.shape[-1] <= inputs.layout.length], 2
        )
        torch.testing.assert_close(prefill, eager.attentions[0][layer], rtol=0, atol=1e-5)
        steps = session[probe][layer][-(NEW - 1) :]
        for step, right in zip(steps, eager.attentions[1:], strict=True):
            torch.testing.assert_close(step, right[layer], rtol=0, atol=1e-5)
    sharp = eager.attentions[0][-1][0, :, -1].amax(-1)
    assert float(sharp.max()) > 0.3, "rows so flat that another one would not be seen"


def test_windows_are_said(handle: ModelHandle, inputs: PromptInputs) -> None:
    with attention_of(handle, "eager"), torch.no_grad():
        rows = handle.model(**inputs.tensors, output_attentions=True).attentions
    length = inputs.layout.length
    for window, layer in zip(handle.stack.windows, rows, strict=True):
        seen = (layer[0, 0, -1] > 0).sum()
        assert int(seen) == min(length, window or length)


def test_queries_and_keys_give_the_row(handle: ModelHandle, inputs: PromptInputs) -> None:
    @dataclass(frozen=True)
    class Keys(Probe):
        reads: tuple[SiteSelection, ...] = (SiteSelection("queries_keys", (LAYER,)),)

    keys, rows = Keys(), Rows((SiteSelection("rows", (LAYER,)),))
    with attached(handle, inputs, [keys, rows]) as session, torch.no_grad():
        handle.model(**inputs.tensors)
    ((query, key, scale),) = session[keys][LAYER]
    if handle.stack.windows[LAYER] is not None:
        return  # with a window, the row does not cover all keys
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    last = torch.softmax(query[:, :, -1:] @ key.transpose(2, 3) * scale, -1)
    torch.testing.assert_close(session[rows][LAYER][-1][:, :, -1:], last, rtol=0, atol=1e-5)


# --- a whole run --------------------------------------------------------------------------------


def test_a_run_without_image_is_recorded(
    handle: ModelHandle, inputs: PromptInputs, tmp_path: Path
) -> None:
    trace = generate(handle, inputs, GenerationSettings(max_new_tokens=NEW))
    with attention_of(handle, "eager"):
        eager = generated(handle, inputs, output_attentions=True)
    assert [token.id for token in trace.tokens] == eager.sequences[
        0, inputs.layout.length :
    ].tolist()
    assert trace.attention.shape == (NEW, 3, 4, 0)
    torch.testing.assert_close(trace.shares.sum(-1), torch.ones(NEW, 3, 4))
    first = eager.attentions[0][LAYER][0, :, -1]
    stretches = [first[:, s.start : s.stop].sum(-1) for s in inputs.layout.segments]
    torch.testing.assert_close(
        trace.shares[0, LAYER, :, :-1], torch.stack(stretches, -1), rtol=0, atol=1e-5
    )
    save_trace(trace, tmp_path / "run.safetensors")
    again = open_trace(tmp_path / "run.safetensors")
    assert again.tokens == trace.tokens and again.layout == trace.layout and again.images == ()
    assert torch.equal(again.shares, trace.shares)


def test_hidden_tokens_are_those_of_a_dense_mask(handle: ModelHandle, inputs: PromptInputs) -> None:
    answer = (5, 70, 9)
    with handle.lock:
        scored = read_answer(handle, inputs, answer)
        hidden = torch.zeros(2, inputs.layout.length, dtype=torch.bool)
        hidden[1, 2] = True
        found = hidden_log_probabilities(handle, scored, hidden)
    ids = torch.tensor([[*inputs.token_ids, *answer[:-1]]])
    places = torch.arange(ids.shape[1])
    for row, gone in zip(found, (None, 2), strict=True):
        logits = []
        for window in sorted({w or 10**6 for w in handle.stack.windows}):
            near = places[:, None] - places < window
            seen = (places[:, None] >= places) & near
            if gone is not None:
                seen &= (places != gone) | (places[:, None] == gone)
            mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
            logits.append((window, mask[None, None]))
        if len(logits) > 1:  # Qwen2 takes a mask for each kind of layer
            masks: Any = {"sliding_attention": logits[0][1], "full_attention": logits[1][1]}
        else:
            masks = logits[0][1]
        with attention_of(handle, "sdpa"), torch.no_grad():
            states = handle.stack.language_model(input_ids=ids, attention_mask=masks)[0]
        right = handle.stack.output_head(states[0, -len(answer) :]).log_softmax(-1)
        expected = right[torch.arange(len(answer)), list(answer)]
        torch.testing.assert_close(row, expected, rtol=0, atol=1e-4)
    assert (found[0] - found[1]).abs().max() > 1e-3
