"""Steps over a fixed memory: `generate`'s tokens, and the loop's rows and VAR, in all settings."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from sinkscope.attention_extractor import GenerationTrace, compare, generate
from sinkscope.capture.engine import answering
from sinkscope.capture.engine.answering import StepRun, StepsUnavailableError, answer_by_steps
from sinkscope.capture.engine.cache import CAPACITY_STEP, capacity_for
from sinkscope.capture.engine.history import History
from sinkscope.capture.engine.store import release_steps, store_of
from sinkscope.capture.probes.trace_rows import TraceRows
from sinkscope.capture.recorder import TraceRecorder
from sinkscope.capture.run import decoding_for
from sinkscope.capture.session import attached
from sinkscope.capture.tokens import TokenProbe
from sinkscope.capture.trace import GeneratedToken
from sinkscope.config import GenerationSettings, VARSettings
from sinkscope.interventions.base import Intervention
from sinkscope.interventions.damp import DampDims
from sinkscope.interventions.hide import HideKeys
from sinkscope.interventions.lower import LowerAttention
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.models.sites import SiteSelection
from tests.text_models import save_text_model

pytestmark = pytest.mark.tiny

GREEDY = GenerationSettings(max_new_tokens=8)
SAMPLED = GenerationSettings(max_new_tokens=8, temperature=1.3, top_p=0.95, top_k=40, seed=7)
PENALISED = GenerationSettings(max_new_tokens=8, temperature=0.9, repetition_penalty=1.3, seed=3)
# Every head of two layers has sinks and qualifies, so each row is changed.
VAR = VARSettings((3, 40), tau=0.5, keep=0.3, layers=(1, 2), min_image_mass=0, max_sink_share=1)


@pytest.fixture(scope="module")
def shared(tiny_folder: Path) -> ModelHandle:
    return load_model(str(tiny_folder), device="cpu", dtype="float32")


@pytest.fixture
def handle(shared: ModelHandle) -> Iterator[ModelHandle]:
    """No token ends an answer, and no steps of other tests are kept."""
    config = shared.model.generation_config
    end = config.eos_token_id
    config.eos_token_id = None
    release_steps(shared)
    yield shared
    config.eos_token_id = end


@pytest.fixture(scope="module", params=[1, 2], ids=["one image", "two images"])
def inputs(request: pytest.FixtureRequest, shared: ModelHandle, photo: Image.Image) -> PromptInputs:
    other = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT).crop((0, 0, 120, 90))
    return shared.prepare([photo, other][: request.param], "What is there?")


@pytest.fixture(scope="module")
def one(shared: ModelHandle, photo: Image.Image) -> PromptInputs:
    return shared.prepare([photo], "What is there?")


def stepped(settings: GenerationSettings) -> GenerationSettings:
    return dataclasses.replace(settings, engine="graph")


def ids(trace: GenerationTrace) -> list[int]:
    return [token.id for token in trace.tokens]


def assert_equal(steps: GenerationTrace, loop: GenerationTrace, rounding: float = 1e-6) -> None:
    """Equal except for rounding; float16 columns may round to the neighbouring value."""
    assert steps.extra["engine"] == {"asked": "graph", "used": "step"}
    assert "engine" not in loop.extra
    assert ids(steps) == ids(loop) and steps.finish_reason == loop.finish_reason
    assert [token.text for token in steps.tokens] == [token.text for token in loop.tokens]
    for a, b in zip(steps.tokens, loop.tokens, strict=True):
        assert (a.rank, [o.id for o in a.alternatives]) == (b.rank, [o.id for o in b.alternatives])
        assert a.probability == pytest.approx(b.probability, rel=1e-5)
    assert (steps.layers, steps.heads, steps.sinks) == (loop.layers, loop.heads, loop.sinks)
    torch.testing.assert_close(
        steps.attention.float(), loop.attention.float(), rtol=1.1e-3, atol=rounding / 10
    )
    torch.testing.assert_close(steps.shares, loop.shares, rtol=0, atol=rounding)
    torch.testing.assert_close(steps.entropy, loop.entropy, rtol=0, atol=5 * rounding)
    assert (steps.prompt_rows is None) == (loop.prompt_rows is None)
    if steps.prompt_rows is not None and loop.prompt_rows is not None:
        torch.testing.assert_close(steps.prompt_rows.shares, loop.prompt_rows.shares)
    if loop.var is not None:
        assert steps.var is not None and steps.var["settings"] == loop.var["settings"]
        for mine, theirs in zip(steps.var["layers"], loop.var["layers"], strict=True):
            assert mine["moved"] > 0.1
            for name in ("layer", "positions", "selected", "flagged", "missing"):
                assert mine[name] == theirs[name]
            assert mine["moved"] == pytest.approx(theirs["moved"], abs=1e-6)


@pytest.mark.parametrize("var", [None, VAR], ids=["plain", "VAR"])
@pytest.mark.parametrize(
    "settings", [GREEDY, SAMPLED, PENALISED], ids=["greedy", "sampled", "penalty"]
)
def test_an_answer_is_that_of_the_loop(
    handle: ModelHandle, inputs: PromptInputs, settings: GenerationSettings, var: VARSettings | None
) -> None:
    before = torch.random.get_rng_state()
    steps = generate(handle, inputs, stepped(settings), var)
    assert torch.equal(before, torch.random.get_rng_state())
    assert_equal(steps, generate(handle, inputs, settings, var))
    assert ids(generate(handle, inputs, stepped(settings), var)) == ids(steps)


def test_whole_rows_are_those_of_the_loop_to_1e_6(
    handle: ModelHandle, one: PromptInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows before they are reduced, of every layer, head and key, also under VAR."""
    by_steps: list[torch.Tensor] = []
    by_loop: dict[tuple[int, int], torch.Tensor] = {}
    note, record = History.note, TraceRecorder.record

    def noting(self: History, rows: torch.Tensor) -> None:
        by_steps.append(rows.clone())
        note(self, rows)

    def recording(self: TraceRecorder, layer: int, rows: torch.Tensor, first: int) -> None:
        by_loop[layer, first] = rows.clone()
        record(self, layer, rows, first)

    monkeypatch.setattr(History, "note", noting)
    generate(handle, one, stepped(GREEDY), VAR)
    monkeypatch.setattr(TraceRecorder, "record", recording)
    generate(handle, one, GREEDY, VAR)
    assert len(by_steps) == GREEDY.max_new_tokens - 1
    for step, rows in enumerate(by_steps):
        position = one.layout.length + step
        for layer in range(handle.info.layers):
            true = by_loop[layer, position][0, :, 0]
            assert true.shape[1] == position + 1
            torch.testing.assert_close(rows[layer, 0, :, : position + 1], true, rtol=0, atol=1e-6)
        assert not rows[..., position + 1 :].any()


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_both_answers_of_a_comparison(
    handle: ModelHandle, inputs: PromptInputs, settings: GenerationSettings
) -> None:
    """A batch of two after a shared prefix, VAR in one row; then again from the same prefix."""
    loop = compare(handle, inputs, settings, VAR)
    steps = compare(handle, inputs, stepped(settings), VAR)
    again = compare(handle, inputs, stepped(settings), VAR, prefix=steps.prefix)
    assert again.prefix is steps.prefix
    for made in (steps, again):
        assert_equal(made.baseline, loop.baseline)
        assert_equal(made.var, loop.var)
    assert ids(loop.baseline) != ids(loop.var)


def test_a_comparison_over_the_same_text(handle: ModelHandle, one: PromptInputs) -> None:
    loop = compare(handle, one, GREEDY, VAR, same_text=True)
    steps = compare(handle, one, stepped(GREEDY), VAR, same_text=True)
    assert_equal(steps.baseline, loop.baseline)
    assert ids(steps.var) == ids(loop.var)
    torch.testing.assert_close(steps.var.shares, loop.var.shares)


CAPTURED = {
    "some layers and heads": {"layers": (1, 3), "heads": (0, 2, 3)},
    "mean head": {"layers": (0, 2), "heads": (1, 3), "reduce_heads": True},
    "prompt rows": {"prompt_rows": 5},
    "reference": {"reference": True},  # the prompt passes in two parts
}


@pytest.mark.parametrize("captured", CAPTURED.values(), ids=CAPTURED)
def test_what_is_captured(
    handle: ModelHandle, inputs: PromptInputs, captured: dict[str, object]
) -> None:
    settings = dataclasses.replace(GREEDY, **captured)
    for var in (None, VAR):
        assert_equal(
            generate(handle, inputs, stepped(settings), var),
            generate(handle, inputs, settings, var),
        )


def test_prompts_near_the_edge_of_the_capacity(handle: ModelHandle, one: PromptInputs) -> None:
    """Prompt and answer fill the memory to the last position, or need one position more."""
    length = one.layout.length
    room = capacity_for(length) - length
    for count in (room - 1, room, room + 1):
        settings = GenerationSettings(max_new_tokens=max(count, 1))
        assert_equal(generate(handle, one, stepped(settings)), generate(handle, one, settings))
    assert capacity_for(CAPACITY_STEP) == CAPACITY_STEP == capacity_for(CAPACITY_STEP + 1) // 2


def test_a_history_of_several_blocks(
    handle: ModelHandle, one: PromptInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = generate(handle, one, GREEDY, VAR)
    monkeypatch.setattr("sinkscope.capture.engine.history.REDUCED_BYTES", 1)  # layer by layer
    for size in (1, 3):
        monkeypatch.setattr("sinkscope.capture.engine.history.Shape.block", lambda s, n, k=size: k)
        assert_equal(generate(handle, one, stepped(GREEDY), VAR), whole)


def test_an_answer_that_ends_at_once_and_a_row_that_goes_on(
    handle: ModelHandle, one: PromptInputs
) -> None:
    config = handle.model.generation_config
    plain = ids(generate(handle, one, GREEDY))
    config.eos_token_id = plain[0]
    for made in (generate(handle, one, stepped(GREEDY)), generate(handle, one, GREEDY)):
        assert ids(made) == plain[:1] and made.finish_reason == "end"
        assert made.attention.shape[0] == 1
    # In a comparison, one row ends early, the other later or never.
    config.eos_token_id = None
    pair = compare(handle, one, GREEDY, VAR)
    early = next(t for t in ids(pair.baseline)[1:] if t not in ids(pair.var))
    config.eos_token_id = early
    loop, steps = (compare(handle, one, s, VAR) for s in (GREEDY, stepped(GREEDY)))
    assert len(loop.baseline.tokens) < len(loop.var.tokens)
    assert_equal(steps.baseline, loop.baseline)
    assert_equal(steps.var, loop.var)


@pytest.fixture(params=[False, True], ids=["told first", "launched ahead"])
def ahead(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """On a GPU the next step runs while a token is reported; this test forces that on a CPU."""
    monkeypatch.setattr(answering, "runs_ahead", lambda device: request.param)
    return bool(request.param)


def test_stop_at_the_third_token(handle: ModelHandle, one: PromptInputs, ahead: bool) -> None:
    def run(settings: GenerationSettings) -> tuple[GenerationTrace, list[int]]:
        stop, tokens_seen = threading.Event(), list[int]()

        def on_token(index: int, token: GeneratedToken) -> None:
            assert index == len(tokens_seen)
            tokens_seen.append(token.id)
            if index == 2:
                stop.set()

        return generate(handle, one, settings, VAR, on_token=on_token, stop=stop), tokens_seen

    (steps, tokens_seen), (loop, theirs) = run(stepped(GREEDY)), run(GREEDY)
    assert tokens_seen == theirs == ids(steps) and len(tokens_seen) == 3
    assert steps.finish_reason == "stopped"
    assert_equal(steps, loop)


def test_running_ahead_changes_nothing(handle: ModelHandle, one: PromptInputs, ahead: bool) -> None:
    for settings in (SAMPLED, PENALISED):
        assert_equal(
            generate(handle, one, stepped(settings), VAR), generate(handle, one, settings, VAR)
        )


def test_a_token_is_told_before_the_next_is_made(
    handle: ModelHandle, one: PromptInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    note = History.note
    monkeypatch.setattr(
        History, "note", lambda self, rows: (made.append("step"), note(self, rows))[1]
    )
    settings = dataclasses.replace(stepped(GREEDY), max_new_tokens=3)
    generate(handle, one, settings, on_token=lambda index, token: made.append(f"token {index}"))
    assert made == ["token 0", "step", "token 1", "step", "token 2"]


def test_a_checkpoint_s_own_way_of_decoding(
    handle: ModelHandle, one: PromptInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processors that are not part of a step choose after it; stop strings end an answer."""
    config = handle.model.generation_config
    settings = GenerationSettings(max_new_tokens=8, decoding="checkpoint", seed=5)
    changes: list[dict[str, object]] = [
        {"no_repeat_ngram_size": 1},
        {"do_sample": True, "temperature": 1.5, "min_p": 0.01, "repetition_penalty": 1.2},
        {"stop_strings": [generate(handle, one, GREEDY).tokens[2].text]},
    ]
    for change in changes:
        with monkeypatch.context() as own:
            for name, value in change.items():
                own.setattr(config, name, value)
            loop = generate(handle, one, settings)
            steps = generate(handle, one, stepped(settings))
            assert set(change) <= set(loop.extra["decoding"]["used"])
        assert_equal(steps, loop)
    assert steps.finish_reason == "stop_string"


@pytest.mark.parametrize("name", ["gpt2", "mistral_window", "gpt_neox", "qwen3"])
def test_text_models(tmp_path: Path, name: str) -> None:
    """Learned and rotary positions; a sliding window that is shorter than the prompt."""
    handle = load_model(str(save_text_model(tmp_path, name)), device="cpu", dtype="float32")
    handle.model.generation_config.eos_token_id = None
    inputs = handle.prepare([], "a red star, and a blue circle; a red star again, and a circle")
    assert (
        name != "mistral_window"
        or min(w or 99 for w in handle.stack.windows) < inputs.layout.length
    )
    for settings in (GREEDY, SAMPLED):
        steps, loop = (generate(handle, inputs, own) for own in (stepped(settings), settings))
        assert_equal(steps, loop, rounding=1e-5)  # their random weights make larger scores


@pytest.mark.slow
@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_the_bundled_model(photo: Image.Image, settings: GenerationSettings) -> None:
    handle = load_model("demo", device="cpu", dtype="float32")
    inputs = handle.prepare([photo], "Describe the image.")
    assert handle.profile is not None
    var = VARSettings(handle.profile.dims, tau=handle.profile.tau)
    assert_equal(generate(handle, inputs, stepped(settings)), generate(handle, inputs, settings))
    loop, steps = (compare(handle, inputs, s, var) for s in (settings, stepped(settings)))
    for mine, theirs in ((steps.baseline, loop.baseline), (steps.var, loop.var)):
        assert ids(mine) == ids(theirs)
        torch.testing.assert_close(mine.shares, theirs.shares, rtol=0, atol=1e-5)
    mine, theirs = steps.var.var, loop.var.var
    assert mine is not None and theirs is not None and mine["changed"] == theirs["changed"]
    for a, b in zip(mine["layers"], theirs["layers"], strict=True):
        assert a["moved"] == pytest.approx(b["moved"], abs=1e-5)


def by_steps(
    handle: ModelHandle, inputs: PromptInputs, settings: GenerationSettings, *acting: Intervention
) -> tuple[list[int], TraceRecorder]:
    """An answer with any interventions: its ids, and the kept rows."""
    decoding = decoding_for(handle, settings, inputs.layout.length)
    every = tuple(range(handle.info.layers)), tuple(range(handle.info.heads))
    rows = TraceRows(*every, settings.max_new_tokens)
    tokens_seen = TokenProbe(handle.tokenizer)
    ending = decoding.ending(handle, [tokens_seen])
    run = StepRun(inputs, settings, None, decoding, (rows,), (), acting, (tokens_seen,), ending)
    made = answer_by_steps(handle, run)
    return [token.id for token in tokens_seen.tokens], made.session[rows]


def by_loop(
    handle: ModelHandle, inputs: PromptInputs, settings: GenerationSettings, *acting: Intervention
) -> tuple[list[int], TraceRecorder]:
    config = decoding_for(handle, settings, inputs.layout.length).config
    every = tuple(range(handle.info.layers)), tuple(range(handle.info.heads))
    rows = TraceRows(*every, settings.max_new_tokens)
    new = settings.max_new_tokens
    with attached(handle, inputs, [rows], acting, new_tokens=new) as session:
        out = handle.model.generate(**inputs.tensors, generation_config=config)
    return out[0, inputs.layout.length :].tolist(), session[rows]


def test_other_interventions_on_rows(handle: ModelHandle, one: PromptInputs) -> None:
    """Two at once, in order; their steps are not kept, because they have no key."""
    image = tuple(one.layout.vision_positions().tolist())
    acting = (LowerAttention(image[::2], 0.1), LowerAttention(image[1:9], 3.0, layers=(1, 2)))
    steps, mine = by_steps(handle, one, GREEDY, *acting)
    loop, theirs = by_loop(handle, one, GREEDY, *acting)
    assert steps == loop != by_loop(handle, one, GREEDY)[0]
    for got, true in zip(mine.recorded(len(steps)), theirs.recorded(len(steps)), strict=True):
        torch.testing.assert_close(got.float(), true.float(), rtol=1.1e-3, atol=5e-6)
    assert len(store_of(handle)) == 0
    # One that acts only on the prompt is gone before the first step.
    damped = DampDims(SiteSelection("block_in", (1,), range(one.layout.length)), (3, 40), 0.0)
    assert by_steps(handle, one, GREEDY, damped)[0] == by_loop(handle, one, GREEDY, damped)[0]


def test_interventions_that_steps_do_not_know(handle: ModelHandle, one: PromptInputs) -> None:
    hidden = torch.zeros(1, one.layout.length, dtype=torch.bool)
    for acting in (
        HideKeys(hidden),
        DampDims(SiteSelection("block_in", (1,)), (3,), 0.0),
        LowerAttention((3,), 0.5, row_positions=range(one.layout.length + 2)),
    ):
        with pytest.raises(StepsUnavailableError, match="acts"):
            by_steps(handle, one, GREEDY, acting)
    assert not handle.stack.language_model._forward_pre_hooks
