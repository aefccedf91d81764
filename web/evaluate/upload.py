"""A user's own questions for the Evaluate tab: one file with rows, and the images that it names.

Only uploaded files are opened: the image names of a row are matched with the uploaded files by
their last path component, and no path on the server is ever followed. A run reads a copy made here,
in which all names are chosen by us. So later readers of the run, such as the report or the page,
open no other files either.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from sinkscope.config import ImageLimits
from sinkscope.evaluation.base import Question
from sinkscope.evaluation.data import Row, StoredPicture, open_data
from sinkscope.evaluation.tasks.base import RowFault
from sinkscope.evaluation.tasks.jsonl import TABLE, TASK, question_of
from sinkscope.models.images import ImageError, open_image
from sinkscope.records.pictures import UploadedPictures, picture
from sinkscope.records.record import RecordError
from sinkscope.records.sources import file_source
from sinkscope.records.text import Damaged
from sinkscope.web.runs.image_process import write_image
from sinkscope.web.server.uploads import upload_path
from sinkscope.web.sinks.files import ALLOWED, question_file
from sinkscope.web.sinks.request import Picture

QUESTIONS = "questions.jsonl"
MOST_FILES = 1000
MOST_BYTES = 200_000_000  # total size of one run's images as uploaded
MOST_KEPT = 2_000_000_000  # their total size as stored
_NAMED = 3  # errors that a refusal lists


def keep_questions(
    files: Sequence[Picture],
    folder: Path,
    limits: ImageLimits,
    most: int,
    opened: Callable[[Path | bytes, ImageLimits], Image.Image] = open_image,
) -> tuple[Path, int]:
    """Check uploaded questions, and write a copy of them and their images into a new folder.

    Args:
        files: all uploaded files: one with questions in any layout of docs/data.md, and images.
        folder: is created.
        limits: limits of images.
        most: the maximal number of questions; the first ones are taken.
        opened: opens an image; the copy is a lossless PNG of its pixels.

    Returns:
        The file of the copy (JSON lines), and its number of questions.

    Raises:
        ValueError: there is no file with questions, an image is missing, or a row cannot be asked;
            the first errors are listed. Nothing is written then except the folder.
    """
    if len(files) > MOST_FILES:
        raise ValueError(f"{len(files)} files were uploaded; allowed: at most {MOST_FILES}.")
    file = question_file(files)
    if file is None:
        raise ValueError(
            f"No file with questions was uploaded; allowed: one ({', '.join(ALLOWED)}), with the "
            "images that it names. Each row has a question, its answer and its image."
        )
    folder.mkdir(parents=True)
    copies = _Copies(folder, limits, opened)
    lines: list[str] = []
    questions: list[Question] = []
    faults: list[str] = []
    for row in _rows(file, files):
        if len(questions) + len(faults) == most:
            break
        try:
            if row.damage:
                raise RowFault(row.damage)
            question = question_of(row)
            names = [
                copies.name_of(one) for one in question.pictures if isinstance(one, StoredPicture)
            ]
        except (RowFault, RecordError, ImageError) as error:
            message = str(error).rstrip(".")
            faults.append(
                message if row.damage else f"{row.where[:1].upper()}{row.where[1:]}: {message}"
            )
            continue
        questions.append(question)
        lines.append(json.dumps(_line(question, names), ensure_ascii=False) + "\n")
    if faults:
        more = f" ({len(faults)} rows in all)" if len(faults) > _NAMED else ""
        raise ValueError(f"Not every row can be asked{more}. {'. '.join(faults[:_NAMED])}.")
    if not questions:
        raise ValueError(f"{Path(file.name).name} has no rows.")
    path = folder / QUESTIONS
    path.write_text("".join(lines), encoding="utf-8")
    _check_copy(path, questions)
    return path, len(questions)


def _rows(file: Picture, files: Sequence[Picture]) -> Iterator[Row]:
    """The rows of the uploaded file; names of images are matched with the uploaded files."""
    named: dict[str, Path | None] = {}
    for one in files:
        if one is not file:
            short = _short(one)
            named[short] = None if short in named else upload_path(str(one.path))
    pictures = UploadedPictures(named)
    source = file_source(upload_path(str(file.path)), pictures, _short(file), damaged=True)
    for number, values in source.rows():
        where = source.place(number)
        if isinstance(values, Damaged):
            yield Row({}, number, where, pictures, TABLE, values.reason)
        elif not isinstance(values, dict):
            yield Row({}, number, where, pictures, TABLE, f"{where} is not an object")
        else:
            yield Row(values, number, where, pictures, TABLE)


@dataclass
class _Copies:
    """Images that were checked and copied, with names of our own."""

    folder: Path
    limits: ImageLimits
    opened: Callable[[Path | bytes, ImageLimits], Image.Image]
    names: dict[Path | bytes, str] = field(default_factory=dict)
    size: int = 0
    kept: int = 0

    def name_of(self, given: StoredPicture) -> str:
        """The name of the copy of an image.

        Raises:
            ImageError: the image is not among the uploads, or cannot be used.
            ValueError: all images together are too large.
        """
        opened_picture = picture(given.reference, given.pictures, self.limits.max_bytes)
        if opened_picture in self.names:
            return self.names[opened_picture]
        self.size += (
            len(opened_picture)
            if isinstance(opened_picture, bytes)
            else opened_picture.stat().st_size
        )
        _check_sum(self.size, MOST_BYTES, "together")
        image = self.opened(opened_picture, self.limits)
        name = f"{len(self.names) + 1:05}.image"
        write_image(image, self.folder / name)
        self.kept += (self.folder / name).stat().st_size
        _check_sum(self.kept, MOST_KEPT, "together without compression")
        self.names[opened_picture] = name
        return name


def _check_sum(size: int, most: int, how: str) -> None:
    if size > most:
        raise ValueError(
            f"The images have more than {most / 1e6:.0f} MB {how}, the most allowed; the command "
            "line has no such limit (sinkscope evaluate run --task jsonl)."
        )


def _line(question: Question, images: Sequence[str]) -> dict[str, Any]:
    """A row that is read back as the same question."""
    truth = question.truth
    line: dict[str, Any] = {
        "id": question.id,
        "question": question.text,
        "image": list(images),
        "category": question.category,
        "cluster": question.cluster,
    }
    if question.options:
        texts = [option for _, option in question.options]
        line["choices"] = texts
        true_option = dict(question.options)[truth]
        line["answer"] = true_option if texts.count(true_option) == 1 else truth
    elif isinstance(truth, tuple):
        line["answers"] = list(truth)
    else:
        line["answer"] = truth
    if question.system is not None:
        line["system"] = question.system
    return {key: value for key, value in line.items() if value != ""}


def _check_copy(path: Path, questions: Sequence[Question]) -> None:
    """Check that the copy asks the same questions as the upload.

    Raises:
        ValueError: a row has a layout that cannot be copied.
    """
    read = TASK.read(open_data(str(path), None, TASK.tables))
    for original, copied in zip(questions, read, strict=True):
        same = isinstance(copied, Question) and all(
            getattr(original, name) == getattr(copied, name)
            for name in ("id", "text", "truth", "options", "category", "cluster", "system")
        )
        if not same:
            raise ValueError(
                f"The question {original.id} cannot be used from an upload; the "
                "command line "
                "can ask it (sinkscope evaluate run --task jsonl --data FILE)."
            )


def _short(one: Picture) -> str:
    return one.name.replace("\\", "/").rsplit("/", 1)[-1]
