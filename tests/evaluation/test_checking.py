"""Checking the plain model's answer with a method: the result equals what it would generate."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sinkscope.config import GenerationSettings, ModelSettings
from sinkscope.evaluation import checking
from sinkscope.evaluation.answering import Answer
from sinkscope.evaluation.checking import MOST_NEW_TOKENS, _passes, can_check
from sinkscope.evaluation.method_specs import parse_methods
from sinkscope.evaluation.methods import Method, resolve
from sinkscope.evaluation.question_batches import ModelQuestion, PreparedQuestion, answer_questions
from sinkscope.models.loading import ModelHandle, load_model
from tests.evaluation.test_asking import alike, same

SETTINGS = GenerationSettings(max_new_tokens=6)


@pytest.fixture(scope="module")
def handle(tiny_folder: Path) -> ModelHandle:
    return load_model(ModelSettings(str(tiny_folder)))


def methods(handle: ModelHandle, *texts: str) -> tuple[Method, ...]:
    return resolve(parse_methods(texts, ()), handle.profile, handle.info)


class Passes:
    """The number of rows of each call of the model's `generate`, and the tokens it may add."""

    def __init__(self, handle: ModelHandle, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[int, int]] = []
        own = handle.model.generate

        def counted(**arguments: Any) -> Any:
            tokens = arguments["generation_config"].max_new_tokens
            self.seen.append((len(arguments["input_ids"]), tokens))
            return own(**arguments)

        monkeypatch.setattr(handle.model, "generate", counted)


def questions_about(photo: Image.Image, *prompts: str) -> list[ModelQuestion]:
    return [ModelQuestion((photo,), prompt, SETTINGS) for prompt in prompts]


def answers(
    handle: ModelHandle, asks: list[ModelQuestion], methods: tuple[Method, ...]
) -> list[tuple[Answer, ...]]:
    return answer_questions(
        handle, [PreparedQuestion(one, one.inputs(handle)) for one in asks], methods, 100_000
    )


@pytest.mark.tiny
def test_what_says_the_same_is_not_generated(
    handle: ModelHandle, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two methods that move so little that every answer stays the same: one pass for both, and each
    number is that of generating the answer."""
    mild = ("var:dims=3,5,tau=1.2,keep=0.999,min_image_mass=0", "var-random:dims=3,5,tau=1.2")
    three = methods(handle, "default", mild[0], f"{mild[1]},keep=0.999,min_image_mass=0")
    asks = questions_about(
        photo, "Where is the star?", "How many objects are there in this image?", "Why?"
    )
    alone = [answers(handle, asks, (method,)) for method in three]
    passes = Passes(handle, monkeypatch)
    together = answers(handle, asks, three)
    assert passes.seen == [(3, 6), (6, 1)]
    for place, each in enumerate(together):
        assert same(each[0]) == same(alone[0][place][0])  # bit for bit: the same batch
        for number in (1, 2):
            assert alike(each[number], alone[number][place][0])
            assert each[number].ids == each[0].ids
            assert each[number].mass_moved > 0


@pytest.mark.tiny
def test_what_says_something_else_is_generated(
    handle: ModelHandle, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only rows whose answer differs are generated, and get their own answer."""
    pair = methods(handle, "default", "var:dims=3,5,tau=1.2,keep=0,min_image_mass=0")
    asks = questions_about(
        photo, "Where is the star?", "How many objects are there?", "Why?", "Name it."
    )
    alone = [answers(handle, asks, (method,)) for method in pair]
    differ = sum(one.ids != other.ids for (one,), (other,) in zip(alone[0], alone[1], strict=True))
    assert differ > 0
    passes = Passes(handle, monkeypatch)
    together = answers(handle, asks, pair)
    assert passes.seen == [(4, 6), (4, 1), (differ, 6)]
    for place, each in enumerate(together):
        for number in (0, 1):
            assert alike(each[number], alone[number][place][0])


@pytest.mark.tiny
def test_a_draft_that_is_wrong_at_its_last_token_alone_is_refused(
    handle: ModelHandle, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = methods(handle, "default", "var:dims=3,5,tau=1.2,keep=0.999,min_image_mass=0")
    asks = questions_about(photo, "Where is the star?")
    ((_, right),) = answers(handle, asks, pair)
    own = checking.check_rows

    def spoiled(*given: Any) -> Any:
        (draft,) = given[4].answers
        wrong = dataclasses.replace(draft, ids=(*draft.ids[:-1], draft.ids[-1] + 1))
        assert own(*given[:4], dataclasses.replace(given[4], answers=(wrong,))) == [None]
        (said,) = own(*given)
        assert said is not None and said.ids == draft.ids
        return [None]  # then it is generated

    monkeypatch.setattr("sinkscope.evaluation.question_batches.check_rows", spoiled)
    ((_, again),) = answers(handle, asks, pair)
    assert alike(again, right)


@pytest.mark.tiny
def test_only_short_greedy_answers_are_checked(handle: ModelHandle) -> None:
    assert can_check(handle, SETTINGS)
    for other in (
        {"max_new_tokens": MOST_NEW_TOKENS + 1},
        {"temperature": 0.5},
        {"repetition_penalty": 1.1},
    ):
        assert not can_check(handle, dataclasses.replace(SETTINGS, **other))
    assert can_check(handle, dataclasses.replace(SETTINGS, decoding="checkpoint"))
    handle.model.generation_config.repetition_penalty = 1.05
    try:
        assert not can_check(handle, dataclasses.replace(SETTINGS, decoding="checkpoint"))
    finally:
        handle.model.generation_config.repetition_penalty = 1.0


@pytest.mark.parametrize(
    ("lengths", "vocabulary", "expected"),
    [
        ([3, 3, 4], 500, [[0, 1, 2]]),
        ([2] * 7 + [30], 500, [[0, 1, 2, 3, 4, 5, 6], [7]]),
        ([30] + [2] * 7, 500, [[1, 2, 3, 4, 5, 6, 7], [0]]),
        ([2, 30], 500, [[0, 1]]),  # another pass would cost more
        ([64] * 5, 1 << 21, [[0, 1], [2, 3], [4]]),  # logits of two rows fit
        ([64], 1 << 30, [[0]]),
    ],
)
def test_rows_of_one_pass(lengths: list[int], vocabulary: int, expected: list[list[int]]) -> None:
    assert list(_passes(lengths, vocabulary)) == expected


@pytest.mark.slow
def test_the_bundled_model_says_by_both_ways_what_it_says_by_itself() -> None:
    """Scenes of several sizes, answers of 3 to 30 tokens."""
    from itertools import islice

    from sinkscope.evaluation.tasks.demo import TASK

    known = load_model(ModelSettings("demo"))
    two = methods(known, "default", "var")
    asks = [
        ModelQuestion(
            tuple(picture() for picture in one.pictures),
            one.text,
            GenerationSettings(max_new_tokens=64),
        )
        for one in islice(TASK.read(None), 8)
    ]
    together = answers(known, asks, two)
    assert len({len(each[0].ids) for each in together}) > 2
    for number in (0, 1):
        for each, (one,) in zip(together, answers(known, asks, (two[number],)), strict=True):
            assert alike(each[number], one)
            assert number == 0 or each[1].mass_moved > 0
