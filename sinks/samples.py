"""Samples to find and validate sinks on: where they come from, their names, which are taken.

A sample's id never depends on the order of files or lines, and neither does the choice where there
are more than wanted: each id is given a place by the hash of seed and id. Images are opened while
they are listed, so that an unreadable one is known at once, and again when they are needed: only
those of one sample are in memory at a time.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from sinkscope.models.images import ImageError, as_rgb, open_image
from sinkscope.utils import sha256

PROMPT = "Describe the image."
HUB = "hub:"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
QUESTION_KEYS, ANSWER_KEYS = ("prompt", "question"), ("answer",)


@dataclass(frozen=True)
class Sample:
    """Images and what is asked about them.

    Attributes:
        id: names the sample in results; no two samples of a set share one.
        images: at least one Pillow image, or path of an image file.
        prompt: the user's text.
        answer: the true answer, where it is known.
        digests: SHA-256 of each image's pixels; made here where they are not given.
    """

    id: str
    images: tuple[Image.Image | Path, ...]
    prompt: str = PROMPT
    answer: str | None = None
    digests: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise ValueError(f"id is {self.id!r}; allowed: a text that is not empty.")
        if isinstance(self.images, Image.Image | Path | str) or not self.images:
            raise ValueError(f"The sample {self.id} has no list of images; give at least one.")
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise ValueError(f"The sample {self.id} has an empty prompt.")
        if self.answer is not None and not isinstance(self.answer, str):
            raise ValueError(f"The sample {self.id} has an answer that is no text.")
        given = tuple(Path(i) if isinstance(i, str) else i for i in self.images)
        object.__setattr__(self, "images", given)
        if not self.digests:
            object.__setattr__(self, "digests", tuple(map(image_digest, self.open_images())))

    def open_images(self) -> list[Image.Image]:
        """The images, decoded, upright RGB.

        Raises:
            models.images.ImageError: one is missing, damaged or not allowed.
        """
        return [as_rgb(i) if isinstance(i, Image.Image) else open_image(i) for i in self.images]

    def fingerprint(self) -> str:
        """SHA-256 of the pixels and the prompt: what the model sees, whatever the sample's name."""
        return sha256(json.dumps([self.digests, self.prompt]).encode())


@dataclass(frozen=True)
class SampleSet:
    """The samples of a run.

    Attributes:
        samples: sorted by id.
        skipped: (id, reason) of each sample that cannot be used, sorted.
        wanted: how many were asked for.
        source: where they come from, in words.
    """

    samples: tuple[Sample, ...]
    skipped: tuple[tuple[str, str], ...]
    wanted: int
    source: str

    def notes(self) -> tuple[str, ...]:
        """What a user has to know: fewer than asked for, some skipped; empty where all is well."""
        notes = []
        if len(self.samples) < self.wanted:
            notes.append(
                f"{self.source} has {len(self.samples)} usable samples; {self.wanted} were asked "
                "for."
            )
        if self.skipped:
            first = "; ".join(reason for _, reason in self.skipped[:3])
            more = f"; and {len(self.skipped) - 3} more" if len(self.skipped) > 3 else ""
            notes.append(f"{len(self.skipped)} samples were skipped: {first}{more}")
        return tuple(notes)


def image_digest(image: Image.Image) -> str:
    """SHA-256 of an RGB image's size and pixels."""
    return sha256(f"{image.mode} {image.size} ".encode() + image.tobytes())


def read_samples(
    source: str | Path | Sequence[Sample],
    count: int,
    *,
    prompt: str = PROMPT,
    seed: int = 0,
) -> SampleSet:
    """Take `count` samples from a source.

    Args:
        source: a folder with images (searched with its subfolders); a .jsonl file with one object a
            line: `image` (a path relative to the file) or `images` (several), and optionally
            `prompt` or `question`, `answer`, `id`; `hub:owner/name` or `hub:owner/name:split` with
            the optional library `datasets`; or samples.
        count: how many; with fewer in the source, all are taken and `SampleSet.notes` says so.
        prompt: asked where the source has no question of its own.
        seed: which are taken where there are more; the order of the source plays no part.

    Raises:
        ValueError: the source is missing or none of these, a line of it is malformed, or no sample
            can be used.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"count is {count!r}; allowed: a whole number from 1 up.")
    if not prompt.strip():
        raise ValueError("The prompt is empty; ask something about the images.")
    name, found = _listing(source, count, prompt, seed)
    unique = _named_apart(found)
    if not unique:
        raise ValueError(f"{name} has no images.")
    taken: list[Sample] = []
    skipped: list[tuple[str, str]] = []
    known: dict[str, str] = {}
    for sample_id in sorted(unique, key=lambda i: sha256(f"{seed}\0{i}".encode())):
        if len(taken) == count:
            break
        made = unique[sample_id]
        try:
            sample = made if isinstance(made, Sample) else _sample(sample_id, made)
        except ImageError as error:
            skipped.append((sample_id, str(error)))
            continue
        first = known.setdefault(sample.fingerprint(), sample_id)
        if first == sample_id:
            taken.append(sample)
        else:  # it would count twice, and make every interval too narrow
            skipped.append((sample_id, f"{sample_id} is the same picture and question as {first}."))
    if not taken:
        raise ValueError(
            f"None of the {len(skipped)} samples of {name} can be used; the first: {skipped[0][1]}"
        )
    by_id = sorted(taken, key=lambda sample: sample.id)
    return SampleSet(tuple(by_id), tuple(sorted(skipped)), count, name)


@dataclass(frozen=True)
class _Row:
    """A sample whose images have not been opened yet."""

    id: str
    images: tuple[Image.Image | Path | bytes, ...]
    prompt: str
    answer: str | None = None


def _sample(sample_id: str, row: _Row) -> Sample:
    images = (open_image(i) if isinstance(i, bytes) else i for i in row.images)
    return Sample(sample_id, tuple(images), row.prompt, row.answer)


def _listing(
    source: str | Path | Sequence[Sample], count: int, prompt: str, seed: int
) -> tuple[str, Iterable[_Row | Sample]]:
    """The source's name, and all that it lists."""
    if isinstance(source, str) and source.startswith(HUB):
        return source, _from_hub(source, count, prompt, seed)
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_dir():
            return str(path), _from_folder(path, prompt)
        if path.is_file() and path.suffix.lower() in (".jsonl", ".ndjson"):
            return str(path), _from_jsonl(path, prompt)
        what = "is neither a folder nor a .jsonl file" if path.exists() else "does not exist"
        raise ValueError(
            f"The data {path} {what}; allowed: a folder of images, a .jsonl file, or "
            f"{HUB}owner/name."
        )
    given = list(source)
    if not all(isinstance(sample, Sample) for sample in given):
        raise ValueError("The samples are no Sample objects; see sinks.samples.Sample.")
    return "the given samples", given


def _named_apart(found: Iterable[_Row | Sample]) -> dict[str, _Row | Sample]:
    """By id. Rows of one id get numbers, by what they ask, for the order of lines plays no part;
    two given samples of one id are refused."""
    groups: dict[str, list[_Row | Sample]] = {}
    for row in found:
        if row.id in groups and isinstance(row, Sample):
            raise ValueError(f"Two samples have the id {row.id}; allowed: each id once.")
        groups.setdefault(row.id, []).append(row)
    unique: dict[str, _Row | Sample] = {}
    for name, rows in sorted(groups.items()):
        copy = 2
        for row in sorted(rows, key=_content):
            sample_id = name
            while sample_id in unique or (sample_id != name and sample_id in groups):
                sample_id, copy = f"{name} ({copy})", copy + 1
            unique[sample_id] = row
    return unique


def _content(row: _Row | Sample) -> tuple[str, bool, str, list[str]]:
    """What rows of one id are put in order by; images in memory have no name to go by."""
    paths = [str(image) for image in row.images if isinstance(image, Path)]
    return row.prompt, row.answer is None, row.answer or "", paths


def _from_folder(folder: Path, prompt: str) -> Iterator[_Row]:
    folder = folder.absolute()  # a worker of a cluster may start elsewhere
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith("."):
            yield _Row(path.relative_to(folder).as_posix(), (path,), prompt)


def _from_jsonl(path: Path, prompt: str) -> Iterator[_Row]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The data {path} cannot be read as UTF-8 text: {error}.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"Line {number} of {path}"
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is no JSON: {error}.") from error
        if not isinstance(values, dict):
            raise ValueError(f"{where} is no JSON object; it needs an image.")
        images = values.get("images", values.get("image"))
        images = [images] if isinstance(images, str) else images
        named = isinstance(images, list) and all(isinstance(image, str) for image in images)
        if not images or not named:
            raise ValueError(f"{where} has no image; allowed: image (a path) or images (a list).")
        asked = _text(values, QUESTION_KEYS, where) or prompt
        # Named by what it is, not by its line, so that the order of lines plays no part.
        own = f"{'+'.join(images)}#{sha256(asked.encode())[:8]}"
        yield _Row(
            str(values.get("id") or own),
            tuple(path.absolute().parent / image for image in images),
            asked,
            _text(values, ANSWER_KEYS, where),
        )


def _from_hub(source: str, count: int, prompt: str, seed: int) -> Iterator[_Row]:
    """Rows of a hub dataset, streamed: shuffled by the library, no more of them than are used."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise ValueError(
            f"The data {source} is a dataset of a hub; install the library datasets to read it."
        ) from error
    name, _, split = source.removeprefix(HUB).partition(":")
    if "/" not in name:
        raise ValueError(f"The data {source} names no dataset; allowed: {HUB}owner/name[:split].")
    split = split or "train"
    try:
        rows = datasets.load_dataset(name, split=split, streaming=True)
        # Undecoded: our limits hold, and an unreadable image is skipped and does not end the run.
        rows = rows.decode(False).shuffle(seed=seed, buffer_size=max(200, 4 * count))
        for taken, row in enumerate(rows):
            if taken == 2 * count:  # some to spare for those that cannot be used
                return
            images = row.get("images", row.get("image"))
            images = images if isinstance(images, list | tuple) else [images]
            pictures = tuple(_encoded(image) for image in images if _is_image(image))
            if not pictures:
                raise ValueError(
                    f"The data {source} has no column image or images with images in it; it has "
                    f"{', '.join(map(str, row))}."
                )
            asked = _text(row, QUESTION_KEYS, f"A row of {source}") or prompt
            digest = sha256(json.dumps([sha256(picture) for picture in pictures]).encode())
            own = row.get("id", row.get("question_id"))
            named = f"{digest[:12]}#{sha256(asked.encode())[:8]}" if own is None else str(own)
            yield _Row(named, pictures, asked, _text(row, ANSWER_KEYS, f"A row of {source}"))
    except (OSError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"The dataset {source} cannot be read: {error}") from error


def _is_image(value: Any) -> bool:
    """Whether a dataset's value is an image that was not decoded: its bytes, or where they are."""
    return isinstance(value, dict) and ("bytes" in value or "path" in value)


def _encoded(value: dict[str, Any]) -> bytes:
    """The bytes of such an image; none where it has none, which no decoder takes for an image."""
    if value.get("bytes") is not None:
        return bytes(value["bytes"])
    if not (path := value.get("path")):
        return b""
    with importlib.import_module("fsspec").open(path, "rb") as file:  # also hf:// and archives
        return bytes(file.read())


def _text(values: dict[str, Any], keys: Sequence[str], where: str) -> str | None:
    for key in keys:
        if values.get(key) is not None:
            if not isinstance(values[key], str):
                raise ValueError(f"{where} has {key} that is no text: {values[key]!r}.")
            return str(values[key])
    return None
