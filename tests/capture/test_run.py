"""One run: sampling and seeds, the description of each token, its end, Stop, and refusals."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import GenerationConfig

from sinkscope.attention_extractor import (
    GenerationTrace,
    RunOutOfMemoryError,
    compare,
    forecast,
    generate,
    generate_stash,
    prompt_rows,
)
from sinkscope.attention_processor import patch_map
from sinkscope.capture import forecast as forecasting
from sinkscope.capture.probes.rows import Rows
from sinkscope.capture.recorder import TraceRecorder
from sinkscope.capture.run import decoding_for
from sinkscope.capture.session import attached
from sinkscope.capture.trace import MEAN_HEAD, GeneratedToken
from sinkscope.config import GenerationSettings, VARSettings
from sinkscope.models.attention import NAME, install
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.models.token_texts import token_texts

pytestmark = pytest.mark.tiny

GREEDY = GenerationSettings(max_new_tokens=10)
SAMPLED = GenerationSettings(max_new_tokens=10, temperature=1.3, top_p=0.95, top_k=40, seed=7)
PENALISED = GenerationSettings(max_new_tokens=10, repetition_penalty=1.3)


@pytest.fixture(scope="module")
def handle(tiny_folder: Path) -> ModelHandle:
    """No token ends an answer, so the random model's answers have exactly the requested length."""
    made = load_model(str(tiny_folder), device="cpu", dtype="float32")
    made.model.generation_config.eos_token_id = None
    return made


@pytest.fixture(scope="module")
def inputs(handle: ModelHandle, photo: Image.Image) -> PromptInputs:
    return handle.prepare([photo], "What is there?")


@pytest.fixture
def own_config(handle: ModelHandle) -> Iterator[GenerationConfig]:
    """The checkpoint's generation_config; changes are undone."""
    before = handle.model.generation_config
    handle.model.generation_config = GenerationConfig.from_dict(before.to_dict())
    yield handle.model.generation_config
    handle.model.generation_config = before


def plain(
    handle: ModelHandle, inputs: PromptInputs, settings: GenerationSettings
) -> SimpleNamespace:
    """Only transformers, with SDPA: token ids and raw logits (T, vocabulary)."""
    config = decoding_for(handle, settings, inputs.layout.length).config
    config.update(return_dict_in_generate=True, output_logits=True)
    handle.model.set_attn_implementation({"text_config": "sdpa"})
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            out = handle.model.generate(**inputs.tensors, generation_config=config)
    finally:
        handle.model.set_attn_implementation({"text_config": NAME})
    ids = out.sequences[0, inputs.layout.length :].tolist()
    return SimpleNamespace(ids=ids, logits=torch.cat(out.logits))


@pytest.mark.parametrize(
    "settings", [GREEDY, SAMPLED, PENALISED], ids=["greedy", "sampled", "penalty"]
)
def test_capture_changes_no_token_and_a_seed_fixes_them(
    handle: ModelHandle, inputs: PromptInputs, settings: GenerationSettings
) -> None:
    alone = plain(handle, inputs, settings)
    torch.manual_seed(123)  # the caller's generator has no effect and is not changed
    before = torch.random.get_rng_state()
    traces = [generate(handle, inputs, settings) for _ in range(2)]
    assert torch.equal(before, torch.random.get_rng_state())
    for trace in traces:
        assert [token.id for token in trace.tokens] == alone.ids
        assert torch.equal(trace.attention, traces[0].attention)
        assert trace.seed == settings.seed


def test_another_seed_gives_another_answer(handle: ModelHandle, inputs: PromptInputs) -> None:
    answers = {
        tuple(
            token.id
            for token in generate(
                handle, inputs, GenerationSettings(10, temperature=1.3, seed=seed)
            ).tokens
        )
        for seed in range(4)
    }
    assert len(answers) == 4


@pytest.mark.parametrize(
    "settings", [GREEDY, SAMPLED, PENALISED], ids=["greedy", "sampled", "penalty"]
)
def test_probability_rank_and_alternatives_are_those_of_the_raw_logits(
    handle: ModelHandle, inputs: PromptInputs, settings: GenerationSettings
) -> None:
    alone = plain(handle, inputs, settings)
    trace = generate(handle, inputs, settings)
    tokenizer = handle.processor.tokenizer
    ranks = set()
    before: list[int] = []
    for token, logits in zip(trace.tokens, alone.logits, strict=True):
        probabilities = torch.softmax(logits.double(), dim=-1)
        assert token.probability == pytest.approx(float(probabilities[token.id]), rel=1e-4)
        order = torch.argsort(logits, descending=True).tolist()
        assert token.rank == order.index(token.id)
        assert [other.id for other in token.alternatives] == order[:5]
        for other in token.alternatives:
            assert other.probability == pytest.approx(float(probabilities[other.id]), rel=1e-4)
            assert other.text == token_texts(tokenizer, [*before, other.id])[-1] or (
                other.text == "\ufffd" == tokenizer.decode([other.id])  # a part of a character
            )
        before.append(token.id)
        ranks.add(token.rank)
    assert (ranks == {0}) == (settings == GREEDY)  # sampling sometimes takes another token


def test_token_texts_join_to_the_answer(handle: ModelHandle, inputs: PromptInputs) -> None:
    decode = handle.processor.tokenizer.decode
    broken = 0
    for length in range(1, SAMPLED.max_new_tokens + 1):  # it may end inside a character
        settings = dataclasses.replace(SAMPLED, max_new_tokens=length)
        for trace in (generate(handle, inputs, settings), generate_stash(handle, inputs, settings)):
            assert trace.finish_reason == "length"
            texts = [token.text for token in trace.tokens]
            assert "".join(texts) == decode([token.id for token in trace.tokens])
            broken += texts[-1].endswith("\ufffd")
    assert broken  # the random model produces incomplete characters


def test_a_stopped_answer_and_one_under_var_keep_their_tails(
    handle: ModelHandle, inputs: PromptInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every token is the first byte of a character: no text is ever complete."""
    decode = handle.processor.tokenizer.decode
    first = handle.processor.tokenizer("\U0001f600", add_special_tokens=False)["input_ids"][0]
    hook = handle.stack.output_head.register_forward_hook(
        lambda module, args, out: out + 1e4 * (torch.arange(out.shape[-1]) == first)
    )
    stop, shown = threading.Event(), []

    def look(index: int, token: GeneratedToken) -> None:
        shown.append(token.text)
        if index == 2:
            stop.set()

    try:
        stopped = generate(handle, inputs, GREEDY, on_token=look, stop=stop)
        var = VARSettings((3,), tau=2.0)
        pairs = [compare(handle, inputs, GREEDY, var, same_text) for same_text in (False, True)]
    finally:
        hook.remove()
    assert shown == ["", "", ""]
    assert (stopped.finish_reason, stopped.text) == ("stopped", "\ufffd" * 3)
    for pair in pairs:
        for trace in (pair.baseline, pair.var):
            assert trace.text == decode([first] * 10) == "\ufffd" * 10


def test_texts_of_the_prompt_join_to_it(handle: ModelHandle, photo: Image.Image) -> None:
    inputs = handle.prepare([photo], "Is \U0001f600 or \U00020bb7 there?", "\u4f60\u597d")
    assert "".join(inputs.token_texts) == handle.processor.tokenizer.decode(inputs.token_ids)
    assert "\ufffd" not in "".join(inputs.token_texts)
    assert "\U0001f600" in inputs.token_texts  # complete, at the token that completes it
    grid = inputs.layout.grids[0]
    assert {inputs.token_texts[p] for p in grid.positions} == {"<|image_pad|>"}
    rows = prompt_rows(handle, inputs)
    assert [token.text for token in rows.tokens] == list(inputs.token_texts[-len(rows.tokens) :])


def test_a_run_ends_at_the_token_that_ends_an_answer(
    handle: ModelHandle, inputs: PromptInputs, own_config: GenerationConfig
) -> None:
    whole = generate(handle, inputs, GREEDY)
    end = whole.tokens[4].id
    first = next(i for i, token in enumerate(whole.tokens) if token.id == end)
    own_config.eos_token_id = [end, 3]
    cut = generate(handle, inputs, GREEDY)
    assert (len(cut.tokens), cut.finish_reason) == (first + 1, "end")
    assert cut.text == "".join(token.text for token in whole.tokens[:first])
    assert torch.equal(cut.attention, whole.attention[: first + 1])


@pytest.mark.parametrize("after", [0, 3])
def test_stop_ends_a_run_with_the_token_it_was_pressed_at(
    handle: ModelHandle, inputs: PromptInputs, after: int
) -> None:
    stop = threading.Event()
    seen = []

    def look(index: int, token: GeneratedToken) -> None:
        seen.append(token)
        if index == after:
            stop.set()

    whole = generate(handle, inputs, GREEDY)
    trace = generate(handle, inputs, GREEDY, on_token=look, stop=stop)
    assert trace.finish_reason == "stopped"
    assert trace.tokens == whole.tokens[: after + 1]
    assert [token.id for token in trace.tokens] == [token.id for token in seen]
    assert trace.text.startswith("".join(token.text for token in seen))
    assert torch.equal(trace.attention, whole.attention[: after + 1])
    assert trace.shares.shape[0] == trace.entropy.shape[0] == after + 1


def test_chosen_layers_and_heads_are_those_of_a_whole_run(
    handle: ModelHandle, inputs: PromptInputs
) -> None:
    whole = generate(handle, inputs, GREEDY)
    some = generate(handle, inputs, GenerationSettings(10, layers=(3, 0), heads=(2,)))
    assert (some.layers, some.heads) == ((0, 3), (2,))
    # Layers that are not captured use plain SDPA, so their outputs differ in the last bits from
    # those of captured ones (`tests/capture/test_session.py`: bit for bit those of plain SDPA).
    for name in ("attention", "shares", "entropy"):
        mine, other = getattr(some, name).float(), getattr(whole, name)[:, [0, 3]][:, :, [2]]
        torch.testing.assert_close(mine, other.float(), rtol=1e-3, atol=1e-6)


def test_heads_reduced_as_they_come_are_the_mean_of_a_whole_run(
    handle: ModelHandle, inputs: PromptInputs, tmp_path: Path
) -> None:
    whole = generate(handle, inputs, GenerationSettings(10, heads=(0, 2, 3)))
    mean = generate(handle, inputs, GenerationSettings(10, heads=(0, 2, 3), reduce_heads=True))
    assert mean.heads == (MEAN_HEAD,)
    assert mean.attention.shape[2] == mean.shares.shape[2] == mean.entropy.shape[2] == 1
    expected = whole.attention.float().mean(2, keepdim=True)
    assert torch.allclose(mean.attention.float(), expected, rtol=2e-3, atol=1e-6)  # float16
    assert torch.allclose(mean.shares, whole.shares.mean(2, keepdim=True), atol=1e-6)
    assert torch.allclose(mean.entropy, whole.entropy.mean(2, keepdim=True), atol=1e-5)
    heat, right = patch_map(mean, 4, layers=[1]), patch_map(whole, 4, layers=[1])
    assert heat.values == pytest.approx(right.values, rel=2e-3, abs=1e-6)
    assert "heads (only their mean was kept)" in heat.label
    with pytest.raises(ValueError, match=r"the trace holds heads .only their mean"):
        patch_map(mean, 4, heads=[2])
    mean.save(tmp_path / "mean.safetensors")
    again = GenerationTrace.open(tmp_path / "mean.safetensors")
    assert again.heads == mean.heads and torch.equal(again.attention, mean.attention)
    small, large = (
        forecast(handle, inputs, GenerationSettings(10, reduce_heads=reduced))
        for reduced in (True, False)
    )
    assert small.payload_bytes * handle.info.heads == large.payload_bytes


# --- what cannot be ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("full"), MemoryError(), RuntimeError("can't allocate memory: 9")],
)
def test_a_full_memory_is_named_and_the_next_run_works(
    handle: ModelHandle,
    inputs: PromptInputs,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = generate(handle, inputs, GREEDY)

    def full(*args: object, **kwargs: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(TraceRecorder, "record", full)
        with pytest.raises(RunOutOfMemoryError, match=r"max_pixels; now .*max_new_tokens; now 10"):
            generate(handle, inputs, GREEDY)
    assert not handle.lock.locked()
    assert generate(handle, inputs, GREEDY).tokens == before.tokens


def test_another_error_keeps_its_name(
    handle: ModelHandle, inputs: PromptInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(TraceRecorder, "record", broken)
    with pytest.raises(RuntimeError, match=r"^something else$"):
        generate(handle, inputs, GREEDY)


def test_a_run_that_cannot_fit_is_refused_before_it_starts(
    handle: ModelHandle, inputs: PromptInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = forecast(handle, inputs, GREEDY)
    half = (need.payload_bytes + need.cache_bytes) // 2
    monkeypatch.setattr(forecasting, "available_memory", lambda device: half)
    with pytest.raises(
        ValueError, match=r"max_new_tokens is 10; at most [45] would fit.*max_pixels"
    ):
        generate(handle, inputs, GREEDY)


def test_the_forecast_is_what_the_trace_takes(handle: ModelHandle, inputs: PromptInputs) -> None:
    for settings in (GREEDY, GenerationSettings(10, layers=(1,), heads=(0, 3))):
        trace = generate(handle, inputs, settings)
        assert len(trace.tokens) == settings.max_new_tokens
        tensors = (trace.attention, trace.shares, trace.entropy)
        taken = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        guess = forecast(handle, inputs, settings)
        assert guess.payload_bytes == taken
        assert guess.vision_tokens == trace.attention.shape[-1]
        assert guess.extra_bytes("cpu") == taken + guess.working_bytes
        assert guess.extra_bytes("cuda:0") == guess.working_bytes
        assert guess.seconds > 0


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    def limited(limit: str) -> int | None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        return forecasting.container_free(tmp_path)

    assert limited("1000") is None  # both values are needed
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 600\ninactive_file 90\nactive_file 10\n")
    assert limited("1000") == 390
    assert limited("600") == 0
    assert limited("max") is None
    assert (forecasting.available_memory(torch.device("cpu")) or 1) > 0


@pytest.mark.parametrize(
    "options, words",
    [
        ({"num_beams": 2}, "batch of 2, but 1 is being recorded. Beam search"),
        ({"prompt_lookup_num_tokens": 2}, "Assisted decoding"),
    ],
)
def test_beams_and_drafts_are_refused_while_a_session_is_attached(
    handle: ModelHandle, inputs: PromptInputs, options: dict[str, int], words: str
) -> None:
    probe = Rows(positions=(0,))
    with pytest.raises(ValueError, match=words), attached(handle, inputs, [probe]):
        # drafts are made when the answer repeats the prompt, so it is made to repeat it
        repeated = [[[int(inputs.token_ids[-1])], 50.0]]
        handle.model.generate(
            **inputs.tensors, max_new_tokens=30, do_sample=False, sequence_bias=repeated, **options
        )
    assert not handle.stack.language_model._forward_pre_hooks


def test_a_model_without_sdpa_is_refused() -> None:
    model = SimpleNamespace(_supports_sdpa=False)
    with pytest.raises(ValueError, match="does not support SDPA"):
        install(model)  # type: ignore[arg-type]
