"""The questions of the records: text, options and images, if the data can still be opened.

A record has only the question's id. Reports use it if the data is gone.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from PIL import Image

from sinkscope.evaluation.base import Question
from sinkscope.evaluation.run_folder import Run
from sinkscope.evaluation.runner import prepare
from sinkscope.evaluation.settings import RunSettings
from sinkscope.utils import number_of

SIDE = 320  # pixels of a small image's longer side


@dataclass(frozen=True)
class QuestionLookup:
    """Questions by their id; `reason` says why some are missing, else ""."""

    questions: Mapping[str, Question]
    reason: str


def look_up(run: Run, wanted: Mapping[str, int]) -> QuestionLookup:
    """Read the run's data again, up to the last requested question.

    Args:
        wanted: id -> its index in the data.
    """
    if not wanted:
        return QuestionLookup({}, "")
    try:
        # Nothing is judged here, so the judge's package and key are not needed.
        settings = dataclasses.replace(run.config.run, judge=None, judge_model=None, judge_url=None)
        questions = dict(_matching(settings, wanted))
    except (ValueError, OSError) as error:
        return QuestionLookup({}, f"The data cannot be opened ({error})")
    if missing := len(wanted) - len(questions):
        return QuestionLookup(
            questions,
            f"{number_of(missing, 'question is', 'questions are')} not in the data any more",
        )
    return QuestionLookup(questions, "")


def _matching(settings: RunSettings, wanted: Mapping[str, int]) -> Iterable[tuple[str, Question]]:
    prepared = prepare(settings)
    items = prepared.task.read(prepared.data)
    if settings.parts:
        items = (item for item in items if item.category in settings.parts)
    left = set(wanted)
    for item in itertools.islice(items, max(wanted.values()) + 1):
        if item.id in left and isinstance(item, Question):
            left.discard(item.id)
            yield item.id, item


def small_image(image: Image.Image, side: int = SIDE) -> str:
    """A small copy as a data URL: JPEG, at most `side` pixels long."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def small_images(question: Question) -> tuple[list[str], str]:
    """The question's images, small; and the error of any that cannot be opened."""
    urls = []
    for picture in question.pictures:
        try:
            urls.append(small_image(picture()))
        except (ValueError, OSError) as error:
            return urls, str(error)
    return urls, ""
