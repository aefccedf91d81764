"""The region test on the tiny model: equal to eager attention in float64, and to greyed images."""

from __future__ import annotations

import copy
import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sinkscope.attention_extractor import compare, generate
from sinkscope.config import GenerationSettings, VARSettings
from sinkscope.experiments.answers import PromptAndAnswer, prompt_and_answer, prompt_and_text
from sinkscope.experiments.boxes import Box
from sinkscope.experiments.region import prefix_of, region_steps, region_test
from sinkscope.experiments.region_passes import greyed
from sinkscope.experiments.region_settings import RegionSettings
from sinkscope.jobs.job import Stopped
from sinkscope.models.loading import ModelHandle, load_model

pytestmark = pytest.mark.tiny
BOX = Box(1, 0, 2, 2, image=1)


@pytest.fixture(scope="module")
def handle(tiny_folder: Path) -> ModelHandle:
    return load_model(str(tiny_folder), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def scored(handle: ModelHandle, photo: Image.Image) -> PromptAndAnswer:
    """Two images; the box is on the second, of 5 x 6 cells."""
    images = [photo.resize((84, 84)), photo.resize((168, 140))]
    inputs = handle.prepare(images, "What is it?")
    return prompt_and_text(handle, inputs, "a red star at the top.")


def eager(handle: ModelHandle, scored: PromptAndAnswer, keys: tuple[int, ...]) -> np.ndarray:
    """float64 (T,): log-probabilities from a copy of the model in float64 with eager attention. The
    scores of queries after the images for one of the keys are set to -inf."""
    model = copy.deepcopy(handle.model).double()
    model.set_attn_implementation({"text_config": "eager"})
    tensors = dict(scored.inputs.tensors)
    answer_ids = torch.tensor([scored.answer])
    tensors["input_ids"] = torch.cat([tensors["input_ids"], answer_ids], 1)
    tensors["attention_mask"] = torch.ones_like(tensors["input_ids"])
    kinds = tensors["mm_token_type_ids"]
    tensors["mm_token_type_ids"] = torch.nn.functional.pad(kinds, (0, len(scored.answer)))
    tensors["pixel_values"] = tensors["pixel_values"].double()
    length, behind = tensors["input_ids"].shape[1], scored.inputs.layout.after_images
    mask = torch.full((1, 1, length, length), float("-inf"), dtype=torch.float64).triu(1)
    for key in keys:
        mask[0, 0, behind:, key] = float("-inf")

    def masked(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "attention_mask": mask}

    for layer in model.model.language_model.layers:
        layer.register_forward_pre_hook(masked, with_kwargs=True)
    with torch.no_grad():
        logits = model(**tensors).logits[0, scored.inputs.layout.length - 1 : -1]
    logs = torch.log_softmax(logits, -1)
    return logs[torch.arange(len(scored.answer)), answer_ids[0]].numpy()


@pytest.mark.parametrize("batch_tokens", [None, 200])
def test_cut_equals_eager_attention_in_float64(
    handle: ModelHandle, scored: PromptAndAnswer, batch_tokens: int | None
) -> None:
    settings = RegionSettings(random_boxes=5, batch_tokens=batch_tokens)
    effect = region_test(handle, scored, BOX, settings)
    plain = eager(handle, scored, ())
    np.testing.assert_allclose(effect.plain, plain, rtol=0, atol=3e-5)
    for box, changes in ((BOX, effect.changes), *zip(effect.others, effect.random, strict=True)):
        own = eager(handle, scored, box.positions(scored.inputs.layout))
        np.testing.assert_allclose(changes, own - plain, rtol=0, atol=5e-5)
    assert np.abs(effect.changes).max() > 1e-2, "the box must change something"
    own, others = effect.changes, effect.random
    assert effect.finished and effect.percentile(0) == float((others[:, 0] > own[0]).mean())
    assert effect.percentile() == float((others.sum(1) > own.sum()).mean())
    assert "".join(effect.texts) == "a red star at the top."


def test_a_prefix_that_is_there_gives_the_same(
    handle: ModelHandle, scored: PromptAndAnswer
) -> None:
    settings = RegionSettings(random_boxes=5)
    own = region_test(handle, scored, BOX, settings)
    given = region_test(handle, scored, BOX, settings, prefix=prefix_of(handle, scored))
    assert np.array_equal(own.changes, given.changes)
    assert np.array_equal(own.random, given.random)


def test_grey_is_the_picture_read_anew(handle: ModelHandle, scored: PromptAndAnswer) -> None:
    effect = region_test(handle, scored, BOX, RegionSettings("grey", 3, batch_tokens=200))
    grid = scored.inputs.layout.grids[1]
    for box, changes in ((BOX, effect.changes), *zip(effect.others, effect.random, strict=True)):
        picture = np.array(scored.inputs.images[1])
        x0, y0, x1, y1 = (28 * n for n in (
            box.column, box.row, box.column + box.columns, box.row + box.rows))  # fmt: skip
        assert box.pixels(grid) == (x0, y0, x1, y1)
        picture[y0:y1, x0:x1] = np.rint(picture.reshape(-1, 3).mean(0))
        inputs = handle.prepare([scored.inputs.images[0], Image.fromarray(picture)], "What is it?")
        own = eager(handle, PromptAndAnswer(inputs, scored.answer, scored.texts), ())
        np.testing.assert_allclose(changes, own - eager(handle, scored, ()), rtol=0, atol=5e-5)
    assert np.abs(effect.changes).max() > 1e-3


def test_greying_changes_the_box_alone_and_no_picture_of_the_users(photo: Image.Image) -> None:
    before = np.array(photo)
    made = np.array(greyed(photo, (10, 20, 30, 50)))
    changed = (made != before).any(-1)
    assert changed[20:50, 10:30].mean() > 0.99
    changed[20:50, 10:30] = False
    assert not changed.any() and np.array_equal(np.array(photo), before)


def test_a_run_is_read_as_it_was_made(handle: ModelHandle, photo: Image.Image) -> None:
    """The unchanged log-probabilities are those of the run's tokens, with VAR too."""
    inputs = handle.prepare([photo.resize((140, 112))], "What is it?")
    settings = GenerationSettings(max_new_tokens=6, reference=False)
    var = VARSettings(dims=(3, 9), tau=1.5, max_sink_share=1.0, min_image_mass=0.0, keep=0.2)
    pair = compare(handle, inputs, settings, var)
    assert pair.var.var is not None and pair.var.var["changed"]
    for trace in (pair.baseline, pair.var):
        scored = prompt_and_answer(handle, trace)
        assert scored.var == (var if trace is pair.var else None)
        for how in ("cut", "grey"):
            effect = region_test(handle, scored, Box(0, 0, 2, 2), RegionSettings(how, 4))
            probabilities = [token.probability for token in trace.tokens]
            np.testing.assert_allclose(np.exp(effect.plain), probabilities, rtol=1e-3, atol=1e-6)
            assert bool(effect.var) == (trace is pair.var)


def test_runs_that_cannot_be_read_again_are_refused(
    handle: ModelHandle, photo: Image.Image, tmp_path: Path
) -> None:
    from tests.tiny_model import save_model

    settings = GenerationSettings(max_new_tokens=2, reference=False)
    image = photo.resize((84, 84))
    trace = generate(handle, handle.prepare([image], "What?"), settings)
    other = load_model(str(save_model(tmp_path, seed=1)), device="cpu", dtype="float32")
    with pytest.raises(ValueError, match=r"This run was made by .* is loaded"):
        prompt_and_answer(other, trace)
    spoken = generate(handle, handle.prepare([image], "What?", "Be brief."), settings)
    with pytest.raises(ValueError, match="it was prepared in another way"):
        prompt_and_answer(handle, spoken)
    with pytest.raises(ValueError, match="The answer has no token"):
        prompt_and_answer(handle, dataclasses.replace(trace, tokens=()))
    with pytest.raises(ValueError, match="The answer has no token"):
        prompt_and_text(handle, handle.prepare([image], "What?"), "")


def test_results_grow_and_the_last_is_whole(handle: ModelHandle, scored: PromptAndAnswer) -> None:
    reports: list[tuple[int, int, str]] = []
    settings = RegionSettings(random_boxes=9, batch_tokens=300)
    steps = list(
        region_steps(handle, scored, BOX, settings, on_progress=lambda *step: reports.append(step))
    )
    counts = [len(step.others) for step in steps]
    assert len(steps) > 2 and counts == sorted(counts) and counts[-1] == 9
    assert not steps[0].finished and steps[-1].finished
    for step in steps:
        assert np.array_equal(step.changes, steps[-1].changes)
        assert np.array_equal(step.random, steps[-1].random[: len(step.others)])
    assert [done for done, _, _ in reports] == [0, *counts]
    assert {total for _, total, _ in reports} == {9}


def test_stop_ends_it_between_passes_and_leaves_nothing_behind(
    handle: ModelHandle, scored: PromptAndAnswer
) -> None:
    stop = threading.Event()
    seen: list[int] = []

    def progress(done: int, total: int, text: str) -> None:
        seen.append(done)
        if done > 0:
            stop.set()

    settings = RegionSettings(random_boxes=9, batch_tokens=300)
    with pytest.raises(Stopped) as stopped:
        region_test(handle, scored, BOX, settings, on_progress=progress, stop=stop)
    assert stopped.value.done == seen[-1] and stopped.value.total == 9
    assert not handle.lock.locked()
    assert not handle.stack.language_model._forward_pre_hooks
    assert region_test(handle, scored, BOX, settings).finished


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"how": "blur"}, "how is 'blur'; allowed: cut, grey"),
        ({"random_boxes": 0}, "random_boxes is 0; allowed: a whole number from 1 to 10000"),
        ({"seed": -1}, "seed is -1"),
        ({"batch_tokens": 0}, "batch_tokens is 0; allowed: a whole number from 1"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RegionSettings(**wrong)


def test_a_box_that_is_not_there_is_refused_before_a_pass(
    handle: ModelHandle, scored: PromptAndAnswer
) -> None:
    with pytest.raises(ValueError, match=r"The box has rows 4 to 5; allowed: rows from 0 to 4"):
        region_test(handle, scored, Box(4, 0, 2, 1, image=1))
    with pytest.raises(ValueError, match="no other place"):
        region_test(handle, scored, Box(0, 0, 5, 6, image=1))
