"""Several methods behind one pass over the images: the same answers as each gives by itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sinkscope.attention_extractor import compare, generate
from sinkscope.config import GenerationSettings, ModelSettings
from sinkscope.evaluation.asking import MOST_ROWS, Answer, Ask, ask
from sinkscope.evaluation.methods import Method, resolve, wanted_methods
from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.models.profiles import SinkProfile

pytestmark = pytest.mark.tiny
SETTINGS = GenerationSettings(max_new_tokens=6)


@pytest.fixture(scope="module")
def handle(tiny_folder: Path) -> ModelHandle:
    return load_model(ModelSettings(str(tiny_folder)))


def methods(handle: ModelHandle, *texts: str, sweeps: tuple[str, ...] = ()) -> tuple[Method, ...]:
    return resolve(wanted_methods(texts, sweeps), handle.profile, handle.info)


def asked(photo: Image.Image, prompt: str = "Where is the star?") -> Ask:
    return Ask((photo,), prompt, SETTINGS)


def test_the_pair_answers_as_generate_and_compare_do(
    handle: ModelHandle, photo: Image.Image
) -> None:
    default, var = methods(handle, "default", "var:dims=3,5,tau=1.2,keep=0,min_image_mass=0")
    (plain, changed), _ = ask(handle, asked(photo), [default, var])
    inputs = handle.prepare([photo], "Where is the star?")
    alone = generate(handle, inputs, SETTINGS)
    assert var.var is not None
    pair = compare(handle, inputs, SETTINGS, var.var)
    assert plain.text == alone.text == pair.baseline.text
    assert changed.text == pair.var.text
    for mine, trace in ((plain, alone), (changed, pair.var)):
        assert mine.finish == trace.finish
        assert [round(p, 4) for p in mine.log_probabilities] == [
            round(_log(token.probability), 4) for token in trace.tokens
        ]
    layers = pair.var.var["layers"]  # type: ignore[index]
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
    pair = methods(known, "default", "var:dims=7,tau=1.2")
    (plain, _), _ = ask(known, asked(photo), pair)
    trace = generate(known, known.prepare([photo], "Where is the star?"), SETTINGS)
    image = set(trace.layout.vision_positions().tolist())
    found = {position for layer in trace.sinks for position in layer.positions} & image
    assert plain.sinks == len(found) > 0


def test_methods_do_not_change_each_other(handle: ModelHandle, photo: Image.Image) -> None:
    """Other dimensions, more rows than one batch has: each answers as by itself."""
    many = methods(
        handle,
        *("default", "var:dims=3,tau=1.2", "var-random:dims=3,tau=1.2", "var:dims=9,tau=1.2"),
        sweeps=("keep=0,0.5,1",),
    )
    assert len(many) > MOST_ROWS
    together, _ = ask(handle, asked(photo), many)
    for method, answer in zip(many, together, strict=True):
        (alone,), _ = ask(handle, asked(photo), [method])
        assert alike(alone, answer), method.name


def test_a_question_about_the_same_image_shares_its_pass(
    handle: ModelHandle, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = methods(handle, "default", "var:dims=3,tau=1.2,keep=0")
    passes: list[int] = []
    own = type(handle.family).forward_prefix

    def counted(self: Any, *arguments: Any) -> Any:
        passes.append(1)
        return own(self, *arguments)

    monkeypatch.setattr(type(handle.family), "forward_prefix", counted)
    first, shared = ask(handle, asked(photo), pair)
    second, _ = ask(handle, asked(photo.copy(), "How many objects are there?"), pair, shared)
    assert len(passes) == 1
    fresh, _ = ask(handle, asked(photo, "How many objects are there?"), pair)
    assert [same(one) for one in second] == [same(one) for one in fresh]  # to the last bit
    other = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored, _ = ask(handle, asked(other), pair, shared)
    assert len(passes) == 3
    alone, _ = ask(handle, asked(other), pair)
    assert [same(one) for one in mirrored] == [same(one) for one in alone]
    again, _ = ask(handle, asked(photo), pair, shared)  # what is shared was not written to
    assert [same(one) for one in again] == [same(one) for one in first]


def test_another_system_prompt_or_area_shares_nothing(
    handle: ModelHandle, photo: Image.Image
) -> None:
    pair = methods(handle, "default")
    _, shared = ask(handle, asked(photo), pair)
    for other in ({"system": "Be short."}, {"max_pixels": 150 * 150}):
        changed = dataclasses.replace(asked(photo), **other)
        (mine,), made = ask(handle, changed, pair, shared)
        (fresh,), _ = ask(handle, changed, pair)
        assert made is not shared
        assert same(mine) == same(fresh)


def test_a_fingerprint_covers_all_that_is_asked(photo: Image.Image) -> None:
    base = asked(photo)
    others = [
        dataclasses.replace(base, prompt="Where?"),
        dataclasses.replace(base, system=""),
        dataclasses.replace(base, max_pixels=100_000),
        dataclasses.replace(base, settings=GenerationSettings(max_new_tokens=7)),
        dataclasses.replace(base, images=(photo, photo)),
        dataclasses.replace(base, images=(photo.transpose(Image.Transpose.FLIP_TOP_BOTTOM),)),
    ]
    assert len({one.fingerprint() for one in (base, *others)}) == len(others) + 1
    assert base.fingerprint() == asked(photo.copy()).fingerprint()


def same(answer: Answer) -> Answer:
    return dataclasses.replace(answer, seconds=0.0)


def alike(one: Answer, other: Answer) -> bool:
    """The same but for the last bits, in which batches of other sizes differ."""
    numbers = [(*a.log_probabilities, a.rows_changed, a.mass_moved) for a in (one, other)]
    rest = [(a.text, a.finish, a.sinks) for a in (one, other)]
    return rest[0] == rest[1] and numbers[0] == pytest.approx(numbers[1], abs=1e-4)


def _log(probability: float) -> float:
    import math

    return math.log(probability)
