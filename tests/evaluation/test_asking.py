"""Several methods after one pass over the images: the same answers as each method alone."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sinkscope.attention_extractor import compare, generate
from sinkscope.config import GenerationSettings, ModelSettings
from sinkscope.evaluation.answering import Answer
from sinkscope.evaluation.method_specs import parse_methods
from sinkscope.evaluation.methods import Method, resolve
from sinkscope.evaluation.question_batches import (
    MOST_ROWS,
    ModelQuestion,
    PreparedQuestion,
    answer_questions,
)
from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.models.profiles import SinkProfile

pytestmark = pytest.mark.tiny
SETTINGS = GenerationSettings(max_new_tokens=6)


@pytest.fixture(scope="module")
def handle(tiny_folder: Path) -> ModelHandle:
    return load_model(ModelSettings(str(tiny_folder)))


def methods(handle: ModelHandle, *texts: str, sweeps: tuple[str, ...] = ()) -> tuple[Method, ...]:
    return resolve(parse_methods(texts, sweeps), handle.profile, handle.info)


def question_about(photo: Image.Image, prompt: str = "Where is the star?") -> ModelQuestion:
    return ModelQuestion((photo,), prompt, SETTINGS)


def answers(
    handle: ModelHandle,
    asks: list[ModelQuestion],
    methods: tuple[Method, ...],
    batch_tokens: int = 0,
) -> list[tuple[Answer, ...]]:
    return answer_questions(
        handle, [PreparedQuestion(one, one.inputs(handle)) for one in asks], methods, batch_tokens
    )


def test_the_pair_answers_as_generate_and_compare_do(
    handle: ModelHandle, photo: Image.Image
) -> None:
    pair = methods(handle, "default", "var:dims=3,5,tau=1.2,keep=0,min_image_mass=0")
    ((plain, changed),) = answers(handle, [question_about(photo)], pair)
    inputs = handle.prepare([photo], "Where is the star?")
    alone = generate(handle, inputs, SETTINGS)
    assert pair[1].var is not None
    compared = compare(handle, inputs, SETTINGS, pair[1].var)
    assert plain.text == alone.text == compared.baseline.text
    assert changed.text == compared.var.text
    for mine, trace in ((plain, alone), (changed, compared.var)):
        assert mine.finish_reason == trace.finish_reason
        assert mine.log_probabilities == pytest.approx(
            [math.log(token.probability) for token in trace.tokens], abs=1e-4
        )
    layers = compared.var.var["layers"]  # type: ignore[index]
    assert changed.rows_changed == pytest.approx(
        sum(layer["selected"] for layer in layers) / len(layers)
    )
    assert changed.mass_moved == pytest.approx(
        sum(layer["moved"] for layer in layers) / len(layers)
    )
    assert changed.mass_moved > 0
    image = set(inputs.layout.vision_positions().tolist())
    acting = {layer["layer"]: set(layer["positions"]) & image for layer in layers}
    assert changed.sinks == len(set().union(*acting.values())) > 0
    assert (plain.rows_changed, plain.mass_moved) == (0.0, 0.0)
    assert plain.sinks is None  # the model has no profile


def test_the_plain_models_sinks_are_counted_by_its_profile(
    handle: ModelHandle, photo: Image.Image
) -> None:
    sizes = (handle.info.hidden_size, handle.info.layers)
    profile = SinkProfile("x", "qwen2_5_vl", *sizes, (3, 5), 1.2, "test", "low")
    known = dataclasses.replace(handle, profile=profile)
    ((plain, _),) = answers(
        known, [question_about(photo)], methods(known, "default", "var:dims=7,tau=1.2")
    )
    trace = generate(known, known.prepare([photo], "Where is the star?"), SETTINGS)
    image = set(trace.layout.vision_positions().tolist())
    found = {position for layer in trace.sinks for position in layer.positions} & image
    assert plain.sinks == len(found) > 0


def test_methods_do_not_change_each_other(handle: ModelHandle, photo: Image.Image) -> None:
    """Other dimensions, more rows than one batch holds: each row is answered as if alone."""
    many = methods(
        handle,
        *("default", "var:dims=3,tau=1.2", "var-random:dims=3,tau=1.2", "var:dims=9,tau=1.2"),
        sweeps=("keep=0,0.5,1",),
    )
    assert len(many) > MOST_ROWS
    (together,) = answers(handle, [question_about(photo)], many)
    for method, answer in zip(many, together, strict=True):
        ((alone,),) = answers(handle, [question_about(photo)], (method,))
        assert alike(alone, answer), method.name


@pytest.mark.parametrize("dialect", ["official", "paper"])
def test_a_batch_gives_the_answers_of_one_question_at_a_time(
    handle: ModelHandle, photo: Image.Image, dialect: str
) -> None:
    """Images of different sizes, one of them used twice, two in one prompt; short and long texts.
    Every number equals that of a batch of one except for its last bits: padding is never seen, is
    never a sink, and counts in no share."""
    small, turned = photo.resize((120, 90)), photo.transpose(Image.Transpose.ROTATE_90)
    asks = [
        question_about(photo),
        question_about(
            small, "How many objects are there in this image, and where is each one of them?"
        ),
        question_about(turned, "Why?"),
        ModelQuestion((small, turned), "Which colour has the star in the second image?", SETTINGS),
        question_about(photo, "Name the shape at the top left."),
    ]
    own = f"dims=3,5,tau=1.2,keep=0,min_image_mass=0,dialect={dialect}"
    three = methods(handle, "default", f"var:{own}", f"var-random:{own}")
    single = answers(handle, asks, three)
    together = answers(handle, asks, three, batch_tokens=100_000)
    assert any(one[1].mass_moved > 0 for one in single)
    assert len({one[1].log_probabilities for one in single}) == len(asks)
    for number, (one, other) in enumerate(zip(single, together, strict=True)):
        for method, mine, batched in zip(three, one, other, strict=True):
            assert alike(mine, batched), (number, method.name, mine, batched)


def test_batches_keep_the_budget(
    handle: ModelHandle, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    own = handle.model.generate

    def counted(**arguments: Any) -> Any:
        sizes.append(len(arguments["input_ids"]))
        return own(**arguments)

    monkeypatch.setattr(handle.model, "generate", counted)
    asks = [
        question_about(photo, f"Where is {word}?")
        for word in ("one", "two", "three", "four", "five")
    ]
    pair = methods(handle, "default", "var:dims=3,tau=1.2")
    length = asks[0].inputs(handle).layout.length + SETTINGS.max_new_tokens + 4
    answers(handle, asks, pair[1:], batch_tokens=2 * length)
    assert sizes == [2, 2, 1]
    sizes.clear()
    answers(handle, asks, pair, batch_tokens=2 * 2 * length)
    assert max(sizes) == 2  # two questions: their plain answers, and VAR's check of these
    sizes.clear()
    answers(handle, asks, pair, batch_tokens=1)
    assert max(sizes) == 1


def test_questions_about_one_image_share_its_pass(
    handle: ModelHandle, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = methods(handle, "default", "var:dims=3,tau=1.2,keep=0")
    passes: list[int] = []
    own = type(handle.family).forward_prefix

    def counted(self: Any, *arguments: Any) -> Any:
        passes.append(1)
        return own(self, *arguments)

    monkeypatch.setattr(type(handle.family), "forward_prefix", counted)
    other = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    asks = [
        question_about(photo),
        question_about(photo.copy(), "How many objects are there?"),
        question_about(other, "How many objects are there?"),
        dataclasses.replace(question_about(other), system="Be short."),
        dataclasses.replace(question_about(other), max_pixels=150 * 150, system="Be short."),
    ]
    together = answers(handle, asks, pair)
    assert len(passes) == 4
    for one, made in zip(asks, together, strict=True):
        (fresh,) = answers(handle, [one], pair)
        assert list(map(same, made)) == list(map(same, fresh))  # bit for bit


def test_a_fingerprint_covers_all_that_is_asked(photo: Image.Image) -> None:
    base = question_about(photo)
    others = [
        dataclasses.replace(base, prompt="Where?"),
        dataclasses.replace(base, system=""),
        dataclasses.replace(base, max_pixels=100_000),
        dataclasses.replace(base, settings=GenerationSettings(max_new_tokens=7)),
        dataclasses.replace(base, images=(photo, photo)),
        dataclasses.replace(base, images=(photo.transpose(Image.Transpose.FLIP_TOP_BOTTOM),)),
    ]
    assert len({one.fingerprint() for one in (base, *others)}) == len(others) + 1
    assert base.fingerprint() == question_about(photo.copy()).fingerprint()


def same(answer: Answer) -> Answer:
    return dataclasses.replace(answer, seconds=0.0)


def alike(one: Answer, other: Answer) -> bool:
    """Equal except for the last bits, which depend on the batch size."""
    numbers = [(*a.log_probabilities, a.rows_changed, a.mass_moved) for a in (one, other)]
    rest = [(a.text, a.finish_reason, a.sinks) for a in (one, other)]
    return rest[0] == rest[1] and numbers[0] == pytest.approx(numbers[1], abs=1e-4)
