"""Many questions in one call of `heatmap`: a folder of images or a file, and one loaded model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sinkscope.cli import common
from sinkscope.config import GenerationSettings, ImageLimits, ModelSettings

if TYPE_CHECKING:
    from sinkscope.capture.trace import GenerationTrace
    from sinkscope.cli.picture import Drawing
    from sinkscope.models.loading import ModelHandle
    from sinkscope.records.record import Record
    from sinkscope.records.sources import Source

ANSWERS = "answers.jsonl"
PROMPT = "Describe the image."  # of images without a question
SOME_FAILED = 3  # exit code, as of `evaluate`
LONGEST_NAME = 80


@dataclass(frozen=True)
class Job:
    """The questions and the outputs.

    Attributes:
        data: a folder of images, or a file of questions.
        prompt: the question if the data has none.
        output: the folder for pictures and `answers.jsonl`.
        traces: a folder for the runs, or None.
    """

    data: Path
    prompt: str | None
    output: Path
    traces: Path | None


def is_many(data: Path) -> bool:
    """Whether a path is a folder or a file of questions, and not one image."""
    from sinkscope.records.sources import file_kind

    return data.is_dir() or file_kind(data.name) is not None


def check(
    data: Path,
    prompt: str | None,
    output: Path,
    traces: Path | None,
    images: Sequence[Path] | None,
) -> None:
    """Refuse, before any model is loaded, invalid input or output.

    Raises:
        ValueError: an empty prompt, an output that is a file or whose folder is missing, or
            --image.
    """
    if images:
        raise ValueError(f"--image is for one question; {data} names the images of each itself.")
    if prompt is not None and not prompt.strip():
        raise ValueError("The prompt is empty; ask something about the images.")
    for name, folder in (("output", output), ("save-trace", traces)):
        if folder is None:
            continue
        if (folder.exists() and not folder.is_dir()) or (folder.suffix and not folder.exists()):
            raise ValueError(f"{name} is {str(folder)!r}; allowed for many questions: a folder.")
        if not folder.parent.is_dir():
            raise ValueError(f"The folder {folder.parent} of {name} does not exist.")
        if data.is_dir() and folder.resolve().is_relative_to(data.resolve()):
            raise ValueError(
                f"{name} is {str(folder)!r}, in the folder of the images; its pictures would be "
                "asked about the next time. Choose another one."
            )


def ask_all(job: Job, model: ModelSettings, settings: GenerationSettings, drawing: Drawing) -> None:
    """Ask each question, draw and write it, one after the other; ends the verb with exit code 3 if
    some could not be asked.

    Raises:
        ValueError: the data cannot be read or has no question at all.
    """
    from sinkscope.records.reading import Survey, records_of
    from sinkscope.sinks.samples import open_source  # reads folders, files and their layouts

    source, survey, failed = open_source(job.data), Survey(), 0
    records = _at_least_one(records_of(source, job.prompt, survey), source, survey)
    handle = common.load(model)
    from sinkscope.cli.heatmap import check_method

    check_method(handle, drawing.method_named())
    if (heads := drawing.single_heads()) is not None:
        heads.check_model(handle.info)
    for folder in (job.output, job.traces):
        if folder is not None:
            folder.mkdir(exist_ok=True)
    names = _Names()
    with (job.output / ANSWERS).open("w", encoding="utf-8") as answers:
        for record in records:
            name = names.of(record)
            try:
                written = _ask(handle, (job, name, record, source), settings, drawing)
            except (ValueError, OSError) as error:
                failed += 1
                typer.secho(f"{record.where}: {error}", fg="red", err=True)
                written = {"name": name, "where": record.where, "error": str(error)}
            else:
                typer.echo(f"{name}\t{' '.join(written['answer'].split())}")
            answers.write(json.dumps(written, ensure_ascii=False) + "\n")
            answers.flush()  # finished files are kept, however the run ends
    for note in survey.notes(source, job.prompt or PROMPT):
        typer.echo(f"Note: {note}", err=True)
    typer.echo(f"Wrote {survey.used - failed} of {survey.used} to {job.output}", err=True)
    if failed:
        raise typer.Exit(SOME_FAILED)


def _at_least_one(records: Iterator[Record], source: Source, survey: Any) -> Iterator[Record]:
    """The same records, with the first one read at once, so that bad data is reported before a
    model is loaded."""
    first = next(records, None)
    if first is None:
        survey.check(source)
        raise ValueError(f"The data {source.name} is empty.")

    def all_of_them() -> Iterator[Record]:
        yield first
        yield from records

    return all_of_them()


def _ask(
    handle: ModelHandle,
    what: tuple[Job, str, Record, Source],
    settings: GenerationSettings,
    drawing: Drawing,
) -> dict[str, Any]:
    from sinkscope.attention_extractor import generate
    from sinkscope.cli.drawing import draw
    from sinkscope.cli.heatmap import pictures_of
    from sinkscope.models.images import open_image
    from sinkscope.records.pictures import picture

    job, name, record, source = what
    limits = ImageLimits()
    images = [open_image(picture(r, source.pictures, limits.max_bytes)) for r in record.images]
    prompt = record.prompt() or job.prompt or PROMPT
    inputs = handle.prepare(images, prompt, record.system, history=record.history)
    trace = generate(handle, inputs, settings)
    if job.traces is not None:
        trace.save(job.traces / f"{name}.safetensors")
    paths = pictures_of(job.output / f"{name}.png", len(images))
    for number, path in enumerate(paths):
        draw(trace, drawing.selection(number), drawing.style(), path, as_figure=drawing.figure)
    return {
        "name": name,
        "where": record.where,
        "prompt": prompt,
        "answer": trace.text.strip(),
        "finish": trace.finish_reason,
        "tokens": _tokens(trace, drawing),
        "pictures": [path.name for path in paths],
    }


def _tokens(trace: GenerationTrace, drawing: Drawing) -> list[dict[str, Any]]:
    from sinkscope.cli.drawing import token_shares

    shares = [token_shares(trace, drawing.selection(number)) for number in range(len(trace.images))]
    return [
        {
            "text": token.text,
            "probability": token.probability,
            "image_share": [share[index] for share in shares],
        }
        for index, token in enumerate(trace.tokens)
    ]


class _Names:
    """A unique file name for each record: its id (for an image of a folder its path there), or its
    number."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def of(self, record: Record) -> str:
        from sinkscope.records.sources import SUFFIXES

        stem = record.id or ""
        if stem.lower().endswith(SUFFIXES):
            stem = stem.rpartition(".")[0]
        wanted = re.sub(r"[^\w.-]+", "-", stem).strip("-.")[:LONGEST_NAME] or f"{record.number:05d}"
        name = wanted if wanted not in self._taken else f"{wanted}-{record.number}"
        self._taken.add(name)
        return name
