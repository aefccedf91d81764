"""Uploads that contain a file of questions: its rows are asked about the uploaded pictures.

A row names its pictures by the original names of the uploaded files, or contains them in base64.
No path on the server is ever followed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sinkscope.config import ImageLimits
from sinkscope.jobs.job import Progress, Stopped
from sinkscope.records.pictures import UploadedPictures
from sinkscope.records.sampling import StoppedReading
from sinkscope.records.sources import file_kind, file_source
from sinkscope.sinks.samples import PROMPT, Opened, Sample, SampleSet, read_samples
from sinkscope.utils import sha256
from sinkscope.web.server.uploads import upload_path

if TYPE_CHECKING:
    from sinkscope.web.sinks.request import Picture

# A small Parquet file can fill the memory when it is unpacked; text cannot.
ALLOWED = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")


def question_file(pictures: Iterable[Picture]) -> Picture | None:
    """The uploaded file with questions, or None if all files are pictures.

    Raises:
        ValueError: there are two, or it is of a kind that is not read from uploads.
    """
    files = [picture for picture in pictures if file_kind(picture.name) is not None]
    if not files:
        return None
    if len(files) > 1:
        raise ValueError(
            f"{len(files)} files with questions were given; allowed: one, with its pictures."
        )
    if Path(files[0].name).suffix.lower() not in ALLOWED:
        raise ValueError(
            f"{_short(files[0])} cannot be read from an upload; allowed: {', '.join(ALLOWED)}. The "
            "command line reads it."
        )
    return files[0]


def samples_of_file(
    file: Picture,
    pictures: Sequence[Picture],
    most: int,
    prompt: str,
    seed: int,
    limits: ImageLimits,
    opened: Opened,
    on_progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> SampleSet:
    """Samples of an uploaded file with questions.

    Args:
        file: the file, one of `pictures`.
        pictures: all uploaded files.
        most: how many samples to take.
        prompt: asked if a row has no question. The form's default text counts as no prompt, so
            that a row whose question is not found is not silently asked the default question.
        seed: selects the samples.
        limits: limits of images.
        opened, on_progress, stop: as in `sinks.samples.read_samples`.

    Raises:
        ValueError: the file cannot be read, is not an upload, or none of its rows can be asked.
        Stopped: `stop` was set.
    """
    named: dict[str, Path | None] = {}
    for picture in pictures:
        if picture is not file:
            path = upload_path(str(picture.path))
            named[_short(picture)] = None if _short(picture) in named else path
    source = file_source(upload_path(str(file.path)), UploadedPictures(named), _short(file))
    try:
        return read_samples(
            source,
            most,
            prompt=None if prompt == PROMPT else prompt,
            seed=seed,
            limits=limits,
            opened=opened,
            on_progress=on_progress,
            stop=stop,
        )
    except StoppedReading:
        raise Stopped(0, most) from None


def by_picture(samples: Iterable[Sample], seed: int) -> list[list[Sample]]:
    """Samples in groups that share no picture, in an order determined by the seed."""
    groups: list[list[Sample]] = []
    seen: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=lambda s: sha256(f"{seed}\0{s.fingerprint()}".encode())):
        joined = [sample]
        for other in {id(g): g for d in sample.digests if (g := seen.get(d)) is not None}.values():
            joined += other
            groups = [group for group in groups if group is not other]
        groups.append(joined)
        for one in joined:
            seen.update(dict.fromkeys(one.digests, joined))
    return groups


def _short(picture: Picture) -> str:
    return Path(picture.name.replace("\\", "/")).name[:80] or "file"
