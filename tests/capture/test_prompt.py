"""Rows of the prompt's own tokens, against eager attention."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image

from sinkscope.attention_extractor import compare, generate, prompt_rows
from sinkscope.attention_processor import patch_map
from sinkscope.capture import prompt
from sinkscope.capture.forecast import DoesNotFitError
from sinkscope.capture.run import RunOutOfMemoryError
from sinkscope.capture.trace import GenerationTrace
from sinkscope.config import GenerationSettings, VARSettings
from sinkscope.methods.explain import explain_map
from sinkscope.models import attention
from sinkscope.models.attention import NAME
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle, load_model

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
        "None": tuple(range(inputs.layout.after_images, length)),
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


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal up to float16 storage, and rounding if the same pass is split differently."""
    return a.shape == b.shape and bool((a.float() - b.float()).abs().max() < 1e-3)


@pytest.mark.parametrize(("most", "same_text"), [(64, False), (64, True), (3, False)])
def test_a_run_keeps_them_in_passing(
    handle: ModelHandle, inputs: PromptInputs, most: int, same_text: bool
) -> None:
    plain = GenerationSettings(max_new_tokens=4)
    settings = dataclasses.replace(plain, prompt_rows=most)
    var = VARSettings((3, 40), tau=2.0, keep=0.0, layers=(1, 2), min_image_mass=0.0)
    pair = compare(handle, inputs, settings, var, same_text)
    assert pair.var.var is not None
    assert pair.var.var["changed"]
    alone = generate(handle, inputs, settings)
    after = range(inputs.layout.after_images, inputs.layout.length)
    whole = prompt_rows(handle, inputs, after[-most:])
    for trace in (alone, pair.baseline):
        assert trace.prompt_rows is not None
        assert trace.prompt_rows.positions == whole.positions
        assert trace.prompt_rows.tokens == whole.tokens
        assert close(trace.prompt_rows.attention, whole.attention)
        assert close(trace.prompt_rows.shares, whole.shares)
    changed = pair.var.prompt_rows
    assert changed is not None
    assert not torch.equal(changed.attention, pair.baseline.prompt_rows.attention)
    assert close(changed.attention[-1], pair.var.attention[0])
    assert changed.sinks == pair.var.sinks
    without = generate(handle, inputs, plain)  # nothing else changes
    assert torch.equal(without.attention, alone.attention)
    assert without.prompt_rows is None


def test_the_generic_prompt_is_read_once_beside_a_run(
    handle: ModelHandle, inputs: PromptInputs
) -> None:
    settings = GenerationSettings(max_new_tokens=3, layers=(1, 2), reference=True)
    general = handle.prepare(inputs.images, prompt.GENERIC_PROMPT)
    right = prompt_rows(handle, general, [general.layout.length - 1], settings)
    var = VARSettings((3, 40), tau=0.5, keep=0.2, layers=(1, 2))
    pair = compare(handle, inputs, settings, var)
    for trace in (generate(handle, inputs, settings), pair.baseline, pair.var):
        assert trace.reference is not None
        assert trace.reference.prompt == prompt.GENERIC_PROMPT
        assert trace.reference.positions == right.positions
        assert close(trace.reference.attention, right.attention)


BOUNDS = {"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 40}
TURNS = [("Describe it.", "A red star.")]


@pytest.mark.parametrize("bounds", [{}, BOUNDS])
@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("history", [(), TURNS])
def test_the_generic_prompt_is_prepared_like_the_prompt(
    handle: ModelHandle,
    photo: Image.Image,
    bounds: dict[str, int],
    system: str | None,
    history: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pictures = [photo, photo.crop((0, 0, 90, 60))]
    inputs = handle.prepare(pictures, "What is there?", system, history=history, **bounds)  # type: ignore[arg-type]
    settings = GenerationSettings(max_new_tokens=2, layers=(1, 2), reference=True)
    # Earlier turns come after the image, so the generic instruction replaces them.
    general = handle.prepare(pictures, prompt.GENERIC_PROMPT, system, **bounds)  # type: ignore[arg-type]
    right = prompt_rows(handle, general, [general.layout.length - 1], settings)
    shared = []
    real = prompt.read_prompt

    def spied(*arguments: object) -> object:
        shared.append(arguments[-1] is not None)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(prompt, "read_prompt", spied)
    trace = generate(handle, inputs, settings)
    assert shared == [True]  # everything up to the image is equal, so it is computed once
    assert trace.reference is not None
    assert trace.reference.layout == general.layout
    assert trace.reference.layout.grids == inputs.layout.grids
    assert close(trace.reference.attention, right.attention)
    for image in (0, 1):
        shape = inputs.layout.grids[image].rows, inputs.layout.grids[image].columns
        assert explain_map(trace, 1, "relative", image=image).values.shape == shape


def test_a_prompt_knows_what_it_was_prepared_with(handle: ModelHandle, photo: Image.Image) -> None:
    made = handle.prepare([photo], "What is there?", "Be brief.", history=TURNS, **BOUNDS)  # type: ignore[arg-type]
    assert (made.system, made.history) == ("Be brief.", (("Describe it.", "A red star."),))
    assert {name: getattr(made, name) for name in BOUNDS} == BOUNDS
    plain = handle.prepare([photo], "What is there?")
    assert (plain.system, plain.history, plain.min_pixels, plain.max_pixels) == (
        None,
        (),
        None,
        None,
    )


def test_a_prompt_that_was_cut_otherwise_gets_no_reference(
    handle: ModelHandle, photo: Image.Image
) -> None:
    inputs = handle.prepare([photo], "What is there?", **BOUNDS)  # type: ignore[arg-type]
    by_hand = dataclasses.replace(inputs, min_pixels=None, max_pixels=None)
    trace = generate(handle, by_hand, GenerationSettings(max_new_tokens=2, reference=True))
    assert len(trace.tokens) == 2
    assert trace.reference is None
    assert "cuts the images into other patches" in trace.extra["no_reference"]
    with pytest.raises(ValueError, match="cuts the images into other patches"):
        explain_map(trace, 0, "relative")


def test_no_answer_is_lost_for_the_generic_prompt(
    handle: ModelHandle, inputs: PromptInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = GenerationSettings(max_new_tokens=2, reference=True)
    stop = threading.Event()
    stop.set()
    stopped = generate(handle, inputs, settings, stop=stop)
    assert stopped.reference is None
    assert "stopped before the generic prompt" in stopped.extra["no_reference"]

    plain = generate(handle, inputs, dataclasses.replace(settings, reference=False))
    for error in (RunOutOfMemoryError("full"), DoesNotFitError("too large")):
        trace = failing(handle, inputs, settings, error, monkeypatch)
        assert [token.id for token in trace.tokens] == [token.id for token in plain.tokens]
        assert "no memory" in trace.extra["no_reference"]
    refused = failing(handle, inputs, settings, prompt.NoReferenceError("so it is"), monkeypatch)
    assert refused.extra["no_reference"] == "so it is"


@pytest.mark.parametrize("error", [ValueError("a slip"), RuntimeError("a slip"), KeyError("slip")])
def test_a_fault_in_reading_the_generic_prompt_is_no_note(
    handle: ModelHandle, inputs: PromptInputs, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = GenerationSettings(max_new_tokens=2, reference=True)
    with pytest.raises(type(error), match="slip"):
        failing(handle, inputs, settings, error, monkeypatch)


def failing(
    handle: ModelHandle,
    inputs: PromptInputs,
    settings: GenerationSettings,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
) -> GenerationTrace:
    """A run whose pass over the generic prompt ends with this error."""

    def fails(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr("sinkscope.attention_extractor.reference_row", fails)
        return generate(handle, inputs, settings)
