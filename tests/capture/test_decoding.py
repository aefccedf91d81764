"""How tokens are chosen: a checkpoint's file has no effect unless requested, then all of it has."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import GenerationConfig
from transformers.generation.configuration_utils import WatermarkingConfig

from sinkscope.attention_extractor import compare, generate, generate_stash
from sinkscope.capture.decoding import read_options, shown_settings
from sinkscope.capture.generation_options import GENERATION_OPTIONS, SAMPLING_DEFAULTS
from sinkscope.capture.run import checkpoint_decoding, decoding_for
from sinkscope.capture.trace import GenerationTrace
from sinkscope.config import GenerationSettings, VARSettings
from sinkscope.models.attention import NAME
from sinkscope.models.family import PromptInputs
from sinkscope.models.generation_file import GenerationFile
from sinkscope.models.loading import ModelHandle, load_model

TOKENS = 10
GREEDY = GenerationSettings(TOKENS)
SAMPLED = GenerationSettings(TOKENS, temperature=1.3, top_p=0.95, top_k=40, seed=7)
FOLLOWED = GenerationSettings(TOKENS, decoding="checkpoint", seed=7)
VOCABULARY = 384  # of the tiny model
EVERY = list(range(VOCABULARY))

# For each setting a value that has an effect, and the other settings that it needs.
SAMPLING: dict[str, Any] = {"do_sample": True}
ACTING: dict[str, tuple[Any, dict[str, Any]]] = {
    "do_sample": (True, {"temperature": 1.5}),
    "temperature": (3.0, SAMPLING),
    "top_k": (2, {**SAMPLING, "temperature": 3.0}),
    "top_p": (0.2, {**SAMPLING, "temperature": 3.0}),
    "min_p": (0.5, {**SAMPLING, "temperature": 3.0}),
    "top_h": (0.3, {**SAMPLING, "temperature": 3.0}),
    "typical_p": (0.2, {**SAMPLING, "temperature": 3.0}),
    "epsilon_cutoff": (0.2, {**SAMPLING, "temperature": 3.0}),
    "eta_cutoff": (0.9, {**SAMPLING, "temperature": 1.5}),
    "repetition_penalty": (2.0, {}),
    "encoder_repetition_penalty": (3.0, {}),
    "no_repeat_ngram_size": (1, {}),
    "encoder_no_repeat_ngram_size": (1, {}),
    "bad_words_ids": ([[token] for token in EVERY[:200]], {}),
    "suppress_tokens": (EVERY[:200], {}),
    "begin_suppress_tokens": (EVERY[:200], {}),
    "sequence_bias": ([[[5], 90.0]], {}),
    "exponential_decay_length_penalty": ([2, 5.0], {"eos_token_id": 7}),
    "forced_eos_token_id": (9, {}),
    "remove_invalid_values": (True, {}),
    "renormalize_logits": (True, {}),
    "watermarking_config": (WatermarkingConfig(bias=20.0), {}),
    "min_new_tokens": (8, {"eos_token_id": EVERY[:200]}),
    "min_length": (400, {"eos_token_id": EVERY[:200]}),
    "max_new_tokens": (4, {}),
    "max_length": (100, {}),
    "max_time": (1e-9, {}),
    "stop_strings": (["e", "a", "i", "o", "n", "t", " "], {}),
}
NO_CHANGE = ("remove_invalid_values", "renormalize_logits")  # no effect on greedy answers
OTHER_WAYS: dict[str, tuple[Any, dict[str, Any]]] = {
    "num_beams": (3, {}),
    "num_return_sequences": (2, SAMPLING),
    "constraints": ([1], {}),
    "force_words_ids": ([[1]], {}),
    "prompt_lookup_num_tokens": (3, {}),
    "assistant_early_exit": (2, {}),
    "use_mtp": (True, {}),
    "is_assistant": (True, {}),
    "dola_layers": ("high", {}),
    "penalty_alpha": (0.6, {"top_k": 4}),
    "guidance_scale": (1.5, {}),
    "token_healing": (True, {}),
    "cache_implementation": ("quantized", {}),
}
WITHOUT_EFFECT: dict[str, Any] = {
    "forced_bos_token_id": 3,
    "decoder_start_token_id": 3,
    "early_stopping": True,
    "length_penalty": 3.0,
    "diversity_penalty": 0.5,
    "num_beam_groups": 2,
    "low_memory": True,
    "num_assistant_tokens": 3,
    "num_assistant_tokens_schedule": "heuristic",
    "assistant_confidence_threshold": 0.9,
    "assistant_lookbehind": 3,
    "assistant_ensemble_weight": 0.5,
    "target_lookbehind": 3,
    "max_matching_ngram_size": 3,
    "speculation_type": "dflash",
    "use_cache": False,
    "cache_config": {"nbits": 4},
    "max_cache_len": 900,
    "prefill_chunk_size": 16,
    "compile_config": {"mode": "reduce-overhead"},
    "disable_compile": True,
    "continuous_batching_config": {"a": 1},
    "output_attentions": True,
    "output_hidden_states": True,
    "output_scores": True,
    "output_logits": True,
    "return_dict_in_generate": True,
}


# --- every setting has its place ---------------------------------------------------------------


def test_every_setting_of_the_installed_transformers_is_classified() -> None:
    unknown = set(vars(GenerationConfig())) - set(GENERATION_OPTIONS)
    assert not unknown, (
        f"new in this transformers; give each its line in capture.generation_options: {unknown}"
    )


def test_every_kind_of_setting_is_tried_below() -> None:
    kinds = {
        kind: {n for n, k in GENERATION_OPTIONS.items() if k.kind == kind}
        for kind in {k.kind for k in GENERATION_OPTIONS.values()}
    }
    assert kinds["chooses"] | kinds["samples"] | kinds["ends"] == set(ACTING)
    assert kinds["other way"] == set(OTHER_WAYS)
    assert kinds["unused"] | kinds["mechanics"] == set(WITHOUT_EFFECT)


def test_off_is_what_transformers_does_where_nothing_is_set() -> None:
    defaults = GenerationConfig._get_default_generation_params()
    for name, value in defaults.items():
        knob = GENERATION_OPTIONS[name]
        if name in SAMPLING_DEFAULTS:
            assert SAMPLING_DEFAULTS[name] == value
        elif name != "max_length" and knob.kind != "unused":
            assert knob.off == value, name
    assert SAMPLING_DEFAULTS.keys() <= defaults.keys()


@pytest.mark.parametrize(
    "name", [n for n, knob in GENERATION_OPTIONS.items() if knob.kind not in ("token", "record")]
)
def test_what_is_off_does_not_act(name: str) -> None:
    knob = GENERATION_OPTIONS[name]
    assert not knob.active(knob.off) and not knob.active(None)


# --- what a file would do, in values and words --------------------------------------------------


def test_the_published_file_in_words() -> None:
    own = {
        "bos_token_id": 151643,
        "pad_token_id": 151643,
        "do_sample": True,
        "eos_token_id": [151645, 151643],
        "repetition_penalty": 1.05,
        "temperature": 0.000001,
    }
    found = read_options(own, 151936)
    assert found.values == {
        "do_sample": True,
        "temperature": 1e-6,
        "top_k": 50,  # transformers' default, if a file that samples does not set it
        "repetition_penalty": 1.05,
    }
    assert found.words == "sampling (temperature 1e-06, top k 50), repetition penalty 1.05"
    assert not found.refusals


def test_sampling_settings_of_a_greedy_file_do_nothing() -> None:
    found = read_options({"do_sample": False, "temperature": 0.7, "top_k": 20, "min_p": 0.1}, 100)
    assert (found.values, found.words) == ({}, "greedy decoding")
    assert read_options({}, 100).values == {}
    assert not read_options({"penalty_alpha": 0.6, **SAMPLING}, 100).refusals  # unused in sampling


@pytest.mark.parametrize("name", list(ACTING))
def test_values_are_plain_and_in_the_number_type_that_transformers_demands(name: str) -> None:
    value, rest = ACTING[name]
    found = read_options({**rest, name: value, "eos_token_id": 3}, VOCABULARY)
    assert not found.refusals and name in found.values
    assert json.loads(json.dumps(found.values)) == dict(found.values)
    whole = int(value) if isinstance(value, float) and value >= 1 else value
    again = read_options({**rest, name: whole, "eos_token_id": 3}, VOCABULARY).values[name]
    assert (again, type(again)) == (found.values[name], type(found.values[name]))
    label = name.removesuffix("_config").replace("_", " ")
    assert label in found.words or name == "do_sample"


WRONG: tuple[Any, ...] = (
    "hot", "", [], {}, [[]], [None], [[None]], {"a": 1}, -1, -1.5, 0, 10**400, True, False, 2.5,
    float("nan"), float("inf"), [1, 2, 3], [[1], 2], [["x", 1]], [10**9], [[10**9]], "x" * 10_000,
    ["", "a"], [True], 1e-40,
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [n for n, knob in GENERATION_OPTIONS.items() if knob.kind != "record"]
)
def test_any_value_is_usable_or_named(name: str) -> None:
    for value in WRONG:
        for sampling in (True, False):
            found = read_options({"do_sample": sampling, name: value}, VOCABULARY)
            json.dumps(found.values, allow_nan=False)
            assert "x" * 100 not in found.words and all(len(r) < 400 for r in found.refusals)
            assert all(refusal.startswith(name) for refusal in found.refusals)


def test_a_word_of_the_file_is_never_in_the_words() -> None:
    assert "<b>" not in read_options({"stop_strings": ["<b>", "x"]}, 100).words


# --- runs of the tiny model -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def handle(tiny_folder: Path) -> ModelHandle:
    """No token ends an answer, so the random model's answers have exactly the requested length."""
    made = load_model(str(tiny_folder), device="cpu", dtype="float32")
    made.model.generation_config.eos_token_id = None
    return made


@pytest.fixture(scope="module")
def inputs(handle: ModelHandle, photo: Image.Image) -> PromptInputs:
    return handle.prepare([photo], "What is there?")


@pytest.fixture(scope="module")
def answers(handle: ModelHandle, inputs: PromptInputs) -> dict[GenerationSettings, list[int]]:
    """Token ids if the checkpoint sets nothing."""
    return {s: ids(generate(handle, inputs, s)) for s in (GREEDY, SAMPLED)}


@pytest.fixture
def own(handle: ModelHandle) -> Iterator[GenerationConfig]:
    """The checkpoint's generation_config; changes are undone."""
    before = handle.model.generation_config
    handle.model.generation_config = GenerationConfig.from_dict(before.to_dict())
    yield handle.model.generation_config
    handle.model.generation_config = before


def ids(trace: GenerationTrace) -> list[int]:
    return [token.id for token in trace.tokens]


def put(own: GenerationConfig, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(own, name, value)


def transformers_alone(handle: ModelHandle, inputs: PromptInputs, **options: Any) -> list[int]:
    """`model.generate` with SDPA and the checkpoint's own configuration, untouched."""
    handle.model.set_attn_implementation({"text_config": "sdpa"})
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(FOLLOWED.seed)
            out = handle.model.generate(**inputs.tensors, **options)
    finally:
        handle.model.set_attn_implementation({"text_config": NAME})
    return out[0, inputs.layout.length :].tolist()


@pytest.mark.tiny
@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", [*ACTING, *OTHER_WAYS, *WITHOUT_EFFECT])
def test_no_setting_of_a_checkpoint_changes_our_answer(
    handle: ModelHandle,
    inputs: PromptInputs,
    own: GenerationConfig,
    answers: dict[GenerationSettings, list[int]],
    name: str,
    settings: GenerationSettings,
) -> None:
    value, rest = {**ACTING, **OTHER_WAYS}.get(name) or (WITHOUT_EFFECT[name], {})
    put(own, {**rest, name: value, "eos_token_id": None})
    trace = generate(handle, inputs, settings)
    assert (ids(trace), trace.finish_reason) == (answers[settings], "length")


@pytest.mark.tiny
@pytest.mark.parametrize("name", list(ACTING))
def test_the_checkpoints_own_answer_is_that_of_transformers_alone(
    handle: ModelHandle,
    inputs: PromptInputs,
    own: GenerationConfig,
    answers: dict[GenerationSettings, list[int]],
    name: str,
) -> None:
    value, rest = ACTING[name]
    put(own, {"eos_token_id": None, **rest, name: value})
    options: dict[str, Any] = {"tokenizer": handle.processor.tokenizer}
    if name not in ("max_new_tokens", "max_length"):
        options["max_new_tokens"] = TOKENS
    if name == "max_length":
        own.max_length = inputs.layout.length + 4
    expected = transformers_alone(handle, inputs, **options)
    trace = generate(handle, inputs, FOLLOWED)
    assert ids(trace) == expected
    assert ids(generate_stash(handle, inputs, FOLLOWED).trace()) == expected
    setattr(own, name, None)
    without = transformers_alone(handle, inputs, max_new_tokens=TOKENS)
    assert (without != expected) == (name not in NO_CHANGE), "this value of it changes nothing"


@pytest.mark.tiny
def test_several_settings_together(
    handle: ModelHandle, inputs: PromptInputs, own: GenerationConfig
) -> None:
    put(
        own,
        {
            "do_sample": True,
            "temperature": 1.4,
            "top_p": 0.9,
            "repetition_penalty": 1.3,
            "no_repeat_ngram_size": 2,
            "suppress_tokens": [3, 5],
            "min_new_tokens": 3,
            "eos_token_id": EVERY[:30],
            "pad_token_id": 5,
        },
    )
    trace = generate(handle, inputs, FOLLOWED)
    assert ids(trace) == transformers_alone(handle, inputs, max_new_tokens=TOKENS)
    other = dataclasses.replace(FOLLOWED, seed=8)
    assert ids(generate(handle, inputs, other)) != ids(trace)


@pytest.mark.tiny
@pytest.mark.parametrize("name", list(WITHOUT_EFFECT))
def test_settings_of_no_effect_have_none_in_the_checkpoints_answer_either(
    handle: ModelHandle,
    inputs: PromptInputs,
    own: GenerationConfig,
    answers: dict[GenerationSettings, list[int]],
    name: str,
) -> None:
    setattr(own, name, WITHOUT_EFFECT[name])
    trace = generate(handle, inputs, FOLLOWED)
    assert ids(trace) == answers[GREEDY]
    assert trace.extra["decoding"]["checkpoint"] == {}


@pytest.mark.tiny
@pytest.mark.parametrize("name", list(OTHER_WAYS))
def test_what_cannot_be_captured_is_refused_by_name(
    handle: ModelHandle, inputs: PromptInputs, own: GenerationConfig, name: str
) -> None:
    value, rest = OTHER_WAYS[name]
    put(own, {**rest, name: value})
    with pytest.raises(ValueError, match=rf"cannot be followed: .*{name} is .*'ours'"):
        generate(handle, inputs, FOLLOWED)
    assert not handle.lock.locked()
    reported = generate(handle, inputs, GREEDY).extra["decoding"]
    assert name in reported["refused"][0]


@pytest.mark.tiny
def test_a_value_that_transformers_cannot_use_is_refused_by_name(
    handle: ModelHandle, inputs: PromptInputs, own: GenerationConfig
) -> None:
    put(own, {"do_sample": True, "temperature": "hot", "suppress_tokens": "all"})
    words = (
        r"temperature is 'hot'; allowed: a number from .*suppress_tokens is 'all'; allowed: a list"
    )
    with pytest.raises(ValueError, match=words):
        generate(handle, inputs, FOLLOWED)
    assert len(generate(handle, inputs, GREEDY).tokens) == TOKENS


@pytest.mark.tiny
@pytest.mark.parametrize(
    "name", [n for n, knob in GENERATION_OPTIONS.items() if knob.kind != "record"]
)
def test_no_value_ends_in_anything_but_an_answer_or_a_sentence(
    handle: ModelHandle, inputs: PromptInputs, own: GenerationConfig, name: str
) -> None:
    followed = GenerationSettings(2, decoding="checkpoint")
    kind = GENERATION_OPTIONS[name].kind
    for value in WRONG:
        if kind == "token" or (kind in ("unused", "mechanics") and value != WRONG[0]):
            continue  # checked when the file is read; not used by the run
        put(own, {"do_sample": name != "penalty_alpha", "eos_token_id": 7, name: value})
        decoding_for(handle, GREEDY, inputs.layout.length)
        try:
            trace = generate(handle, inputs, followed)
        except ValueError as error:
            assert "generation_config.json cannot be followed" in str(error)
        else:
            assert trace.extra["decoding"]["used"]["max_new_tokens"] <= 2


@pytest.mark.tiny
@pytest.mark.parametrize(
    "values",
    [
        {"suppress_tokens": EVERY, "do_sample": True},
        {"bad_words_ids": [[token] for token in EVERY], "do_sample": True},
        {"suppress_tokens": [9], "forced_eos_token_id": 9},
        {"exponential_decay_length_penalty": [0, 2.0], "eos_token_id": None},
        {"watermarking_config": WatermarkingConfig(seeding_scheme="none")},
    ],
    ids=["all suppressed", "all banned", "a forced token suppressed", "no end", "watermark"],
)
def test_values_that_contradict_each_other_are_one_sentence(
    handle: ModelHandle, inputs: PromptInputs, own: GenerationConfig, values: dict[str, Any]
) -> None:
    put(own, values)
    with pytest.raises(ValueError, match=r"generation_config\.json cannot be followed: "):
        generate(handle, inputs, FOLLOWED)
    assert len(generate(handle, inputs, GREEDY).tokens) == TOKENS


# --- why an answer ended --------------------------------------------------------------------------


@pytest.mark.tiny
def test_max_time_ends_an_answer_and_says_so(
    handle: ModelHandle, inputs: PromptInputs, own: GenerationConfig
) -> None:
    own.max_time = 0.2
    waited = []

    def slow(index: int, token: object) -> None:
        waited.append(index)
        time.sleep(0.11)

    trace = generate(handle, inputs, FOLLOWED, on_token=slow)
    assert (trace.finish_reason, len(trace.tokens)) == ("time", len(waited)) and 1 <= len(
        waited
    ) <= 2
    assert trace.attention.shape[0] == len(waited)
    assert generate(handle, inputs, GREEDY, on_token=slow).finish_reason == "length"
    stop = threading.Event()
    stop.set()
    assert generate(handle, inputs, FOLLOWED, stop=stop).finish_reason == "stopped"


@pytest.mark.tiny
def test_a_stop_string_ends_an_answer_and_stays_in_it(
    handle: ModelHandle, inputs: PromptInputs, own: GenerationConfig
) -> None:
    whole = generate(handle, inputs, GREEDY)
    at = next(i for i, token in enumerate(whole.tokens) if i > 2 and token.text.strip())
    own.stop_strings = whole.tokens[at].text
    trace = generate(handle, inputs, FOLLOWED)
    assert trace.finish_reason == "stop_string"
    assert trace.text.endswith(whole.tokens[at].text) and len(trace.tokens) <= at + 1


@pytest.mark.tiny
def test_the_lower_limit_holds_and_a_prompt_above_it_is_refused(
    handle: ModelHandle, inputs: PromptInputs, own: GenerationConfig
) -> None:
    own.max_new_tokens = 400
    trace = generate(handle, inputs, FOLLOWED)
    assert (len(trace.tokens), trace.finish_reason) == (TOKENS, "length")
    put(own, {"max_new_tokens": None, "max_length": inputs.layout.length})
    length = inputs.layout.length
    with pytest.raises(
        ValueError, match=f"max_length is {length}, but the prompt already has {length}"
    ):
        generate(handle, inputs, FOLLOWED)


@pytest.mark.tiny
def test_each_answer_of_a_comparison_ends_for_its_own_reason(
    handle: ModelHandle, inputs: PromptInputs, own: GenerationConfig
) -> None:
    """One row continues without the other, and no token ends answers."""
    put(own, {"do_sample": True, "temperature": 3.0})  # the rows are drawn separately
    var = VARSettings(dims=(0,), tau=2.0)
    free = compare(handle, inputs, FOLLOWED, var)
    other = "".join(token.text for token in free.var.tokens)
    words = [token.text for token in free.baseline.tokens]
    at = next(i for i, w in enumerate(words) if i > 2 and w.isascii() and w.strip() not in other)
    own.stop_strings = [free.baseline.tokens[at].text]
    pair = compare(handle, inputs, FOLLOWED, var)
    assert (pair.baseline.finish_reason, pair.var.finish_reason) == ("stop_string", "length")
    assert pair.baseline.tokens == free.baseline.tokens[: len(pair.baseline.tokens)]
    assert words[at] in pair.baseline.tokens[-1].text  # it may end inside a token
    assert len(pair.baseline.tokens) <= at + 1 < TOKENS
    assert pair.baseline.attention.shape[0] == len(pair.baseline.tokens)
    assert pair.var.tokens == free.var.tokens


@pytest.mark.tiny
def test_stop_ends_both_answers_with_the_same_token_whoever_presses_it(
    handle: ModelHandle, inputs: PromptInputs
) -> None:
    for presses in ("baseline", "var"):
        stop = threading.Event()

        def reported(
            name: str, *_: object, stop: threading.Event = stop, by: str = presses
        ) -> None:
            if name == by:
                stop.set()

        var = VARSettings(dims=(0,), tau=2.0)
        pair = compare(handle, inputs, GREEDY, var, on_token=reported, stop=stop)
        assert [len(t.tokens) for t in (pair.baseline, pair.var)] == [1, 1]
        assert pair.baseline.finish_reason == pair.var.finish_reason == "stopped"


# --- what a trace says of it ----------------------------------------------------------------------


@pytest.mark.tiny
def test_a_trace_says_what_the_checkpoint_would_have_done(
    handle: ModelHandle, inputs: PromptInputs, own: GenerationConfig, tmp_path: Path
) -> None:
    put(own, {"do_sample": True, "temperature": 1e-6, "repetition_penalty": 1.05})
    values = {"do_sample": True, "temperature": 1e-6, "top_k": 50, "repetition_penalty": 1.05}
    words = "sampling (temperature 1e-06, top k 50), repetition penalty 1.05"
    trace = generate(handle, inputs, GREEDY)
    reported = {"used": {"max_new_tokens": TOKENS}, "checkpoint": values, "words": words}
    assert trace.settings["decoding"] == "ours" and trace.extra["decoding"] == reported
    assert "decoding" not in shown_settings(trace)
    followed = generate(handle, inputs, FOLLOWED)
    assert followed.extra["decoding"]["used"] == {**values, "max_new_tokens": TOKENS}
    shown = shown_settings(followed)
    assert shown["decoding"] == f"as the checkpoint says: {words}"
    assert not {"temperature", "top_p", "top_k", "repetition_penalty"} & shown.keys()
    followed.save(tmp_path / "run.safetensors")
    again = GenerationTrace.open(tmp_path / "run.safetensors")
    assert (again.settings, again.extra) == (followed.settings, followed.extra)


@pytest.mark.tiny
def test_probabilities_stay_the_models_own(
    handle: ModelHandle, inputs: PromptInputs, own: GenerationConfig
) -> None:
    own.repetition_penalty = 1.8
    trace = generate(handle, inputs, FOLLOWED)
    config = decoding_for(handle, FOLLOWED, inputs.layout.length).config
    config.update(return_dict_in_generate=True, output_logits=True)
    logits = handle.model.generate(**inputs.tensors, generation_config=config).logits
    for token, raw in zip(trace.tokens, logits, strict=True):
        assert token.probability == pytest.approx(float(raw.softmax(-1)[0, token.id]), rel=1e-4)
    assert any(token.rank > 0 for token in trace.tokens)  # the penalty changed the choice


# --- files ----------------------------------------------------------------------------------------


def loaded(folder: Path, source: Path, text: str | bytes | None, **config: Any) -> ModelHandle:
    """A copy of the tiny checkpoint with another generation_config.json (None: without one)."""
    shutil.copytree(source, folder)
    file = folder / "generation_config.json"
    file.unlink()
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    if config:
        whole = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**whole, **config}))
    return load_model(str(folder), device="cpu", dtype="float32")


@pytest.mark.tiny
@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe", b"[1]", b"3", b"[" * 100_000, b'{"a": ' + b"1" * 5000 + b"}"],
    ids=["empty", "cut off", "no UTF-8", "a list", "a number", "deep", "a number of 5000 digits"],
)
def test_a_damaged_file_stops_no_load_and_cannot_be_followed(
    tiny_folder: Path, tmp_path: Path, photo: Image.Image, text: bytes
) -> None:
    handle = loaded(tmp_path / "model", tiny_folder, text)
    assert handle.generation_file.damage.startswith("generation_config.json")
    sound = GenerationConfig.from_pretrained(tiny_folder)
    assert handle.model.generation_config.eos_token_id == sound.eos_token_id  # of config.json
    prompt = handle.prepare([photo], "What is there?")
    trace = generate(handle, prompt, GenerationSettings(2))
    assert trace.extra["decoding"]["refused"] == [handle.generation_file.damage]
    with pytest.raises(ValueError, match=r"cannot be followed: generation_config\.json "):
        generate(handle, prompt, GenerationSettings(2, decoding="checkpoint"))


@pytest.mark.tiny
def test_wrong_values_and_unknown_keys_stop_no_load(
    tiny_folder: Path, tmp_path: Path, photo: Image.Image
) -> None:
    wrong = dict.fromkeys(GENERATION_OPTIONS, "x") | {
        "early_stopping": [1],
        "watermarking_config": {"no": 1},
        "update": 3,
        "to_dict": "x",
        "assistant_model": "x",
        "eos_token_id": ["x"],
        "pad_token_id": -1,
        "bos_token_id": 10**9,
    }
    handle = loaded(tmp_path / "model", tiny_folder, json.dumps(wrong))
    sound = GenerationConfig.from_pretrained(tiny_folder)
    own = handle.model.generation_config
    assert (own.eos_token_id, own.pad_token_id) == (sound.eos_token_id, sound.pad_token_id)
    keys, *tokens = handle.generation_file.notes
    assert "'assistant_model', 'to_dict', 'update'" in keys
    assert [note.split()[0] for note in tokens] == ["eos_token_id", "pad_token_id", "bos_token_id"]
    trace = generate(handle, handle.prepare([photo], "What is there?"), GenerationSettings(2))
    assert len(trace.extra["decoding"]["refused"]) > 20
    assert trace.extra["decoding"]["notes"] == list(handle.generation_file.notes)


@pytest.mark.tiny
def test_without_the_file_the_values_are_those_of_config_json(
    tiny_folder: Path, tmp_path: Path
) -> None:
    handle = loaded(tmp_path / "a", tiny_folder, None, repetition_penalty=1.3)
    assert checkpoint_decoding(handle).values == {"repetition_penalty": 1.3}
    sound = GenerationConfig.from_pretrained(tiny_folder)
    assert handle.model.generation_config.eos_token_id == sound.eos_token_id
    assert handle.generation_file == GenerationFile()
    with pytest.raises(ValueError, match=r"config.json of .* has settings of generation"):
        loaded(tmp_path / "b", tiny_folder, None, max_new_tokens="5")


@pytest.mark.tiny
def test_a_file_is_read_as_transformers_reads_it(tiny_folder: Path, tmp_path: Path) -> None:
    values = {
        **{n: v for n, (v, _) in ACTING.items()},
        "suppress_tokens": [1, 2],  # transformers refuses those above beside the forced one
        "watermarking_config": {"bias": 3.0},
        "eos_token_id": [3, 4],
        "pad_token_id": 5,
        "transformers_version": "4.49.0",
    }
    handle = loaded(tmp_path / "model", tiny_folder, json.dumps(values))
    expected = GenerationConfig.from_pretrained(tmp_path / "model").to_dict()
    got = handle.model.generation_config.to_dict()
    assert got.pop("watermarking_config").to_dict() == expected.pop("watermarking_config").to_dict()
    assert {n: v for n, v in got.items() if not n.startswith("_")} == {
        n: v for n, v in expected.items() if not n.startswith("_")
    }
