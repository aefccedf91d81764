"""Errors in a worker: an error of one question does not affect the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sinkscope.config import GenerationSettings, ModelSettings
from sinkscope.evaluation import work as module
from sinkscope.evaluation.methods import Method
from sinkscope.evaluation.work import Plan, Work, work
from sinkscope.models.images import ImageError
from sinkscope.models.loading import ModelHandle, load_model

pytestmark = pytest.mark.tiny
PLAN = Plan(
    (Method("default"),), GenerationSettings(max_new_tokens=3), retries=1, batch_tokens=9999
)


@pytest.fixture(scope="module")
def handle(tiny_folder: Path) -> ModelHandle:
    return load_model(ModelSettings(str(tiny_folder)))


def shown(photo: Image.Image) -> Callable[[], Image.Image]:
    return lambda: photo


def broken() -> Image.Image:
    raise ImageError("red.png is damaged.")


def test_a_broken_image_fails_alone(handle: ModelHandle, photo: Image.Image) -> None:
    given = [
        Work((shown(photo),), "Where?"),
        Work((broken,), "Where?"),
        Work((shown(photo),), " "),
        Work((shown(photo),), "What?"),
    ]
    done = work(PLAN, handle, given)
    assert [one.error for one in done] == [
        None,
        "red.png is damaged.",
        "The prompt is empty; ask something about the image.",
        None,
    ]
    assert [len(one.answers) for one in done] == [1, 0, 0, 1]
    assert done[0].prompt_hash != done[3].prompt_hash
    assert done[1].prompt_hash == ""


def test_a_batch_that_does_not_fit_is_asked_one_by_one(
    handle: ModelHandle, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    answer_all = module.answer_questions

    def limited(model: Any, ready: Sequence[Any], *rest: Any) -> Any:
        sizes.append(len(ready))
        if len(ready) > 1:
            raise torch.OutOfMemoryError("full")
        return answer_all(model, ready, *rest)

    monkeypatch.setattr(module, "answer_questions", limited)
    done = work(PLAN, handle, [Work((shown(photo),), f"Where is {n}?") for n in range(3)])
    assert sizes == [3, 1, 1, 1]
    assert all(one.error is None and len(one.answers) == 1 for one in done)


def test_errors_that_may_pass_are_tried_again_and_named_in_the_end(
    handle: ModelHandle, photo: Image.Image
) -> None:
    tries: list[int] = []

    def away() -> Image.Image:
        tries.append(1)
        if len(tries) < 2:
            raise OSError("the share is away")
        return photo

    (done,) = work(PLAN, handle, [Work((away,), "Where?")])
    assert done.error is None
    assert len(tries) == 2

    def gone() -> Image.Image:
        raise OSError("the share is gone")

    (done,) = work(PLAN, handle, [Work((gone,), "Where?")])
    assert done.error == "OSError: the share is gone"
