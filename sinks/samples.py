"""Samples to find and validate sinks on: their sources, their names, and which ones are taken.

A sample's id never depends on the order of files or lines. Nor does the choice if there are more
than wanted: samples are ordered by a hash of seed and content (`records.sampling`). Images are
opened while samples are taken, so that an unreadable one is noticed at once, and again when they
are needed, so that only those of one sample are in memory at a time.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from sinkscope.config import ImageLimits
from sinkscope.jobs.job import Progress
from sinkscope.models.images import ImageError, as_rgb, open_image
from sinkscope.records.hub import FORMS, HUB, hub_source
from sinkscope.records.pictures import FolderPictures, picture
from sinkscope.records.reading import plural
from sinkscope.records.record import Record
from sinkscope.records.sampling import RecordSample
from sinkscope.records.sources import ALL_SUFFIXES, Source, file_kind, file_source, folder_source
from sinkscope.utils import none_usable, number_of, sha256

PROMPT = "Describe the image."
# After this many unusable samples, no more are tried: a wrong folder of images is noticed before
# hundreds of thousands of names have been looked up in it.
MOST_SKIPPED = 1000


# Opens an image file elsewhere: returns its replacement in the sample, and the image, upright RGB.
Opened = Callable[[Path | bytes], tuple[Path | Image.Image, Image.Image]]


@dataclass(frozen=True)
class Sample:
    """Images and a question about them.

    Attributes:
        id: name of the sample in results; unique within a set.
        images: at least one Pillow image, path of an image file, or such a file's bytes.
        prompt: the user's text.
        answer: the true answer, if it is known.
        system: the system message; None: the model's default.
        history: earlier turns (question, answer); the images are shown in the first turn.
        where: where the sample comes from, such as `line 17 of pope.jsonl`.
        digests: SHA-256 of each image's pixels; computed here if not given.
    """

    id: str
    images: tuple[Image.Image | Path | bytes, ...]
    prompt: str = PROMPT
    answer: str | None = None
    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()
    where: str = field(default="", compare=False)
    digests: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise ValueError(f"id is {self.id!r}; allowed: a text that is not empty.")
        if isinstance(self.images, Image.Image | Path | str | bytes) or not self.images:
            raise ValueError(f"The sample {self.id} has no list of images; give at least one.")
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise ValueError(f"The sample {self.id} has an empty prompt.")
        if self.answer is not None and not isinstance(self.answer, str):
            raise ValueError(f"The sample {self.id} has an answer that is not text.")
        given = tuple(Path(i) if isinstance(i, str) else i for i in self.images)
        object.__setattr__(self, "images", given)
        if not self.digests:
            object.__setattr__(self, "digests", tuple(map(image_digest, self.open_images())))

    def open_images(self) -> list[Image.Image]:
        """The images, decoded, upright RGB.

        Raises:
            models.images.ImageError: an image is missing, damaged or not allowed.
        """
        return [as_rgb(i) if isinstance(i, Image.Image) else open_image(i) for i in self.images]

    def fingerprint(self) -> str:
        """SHA-256 of the pixels and all texts: what the model sees, independent of the sample's
        name."""
        seen: list[object] = [self.digests, self.prompt]
        if self.system is not None or self.history:  # otherwise keep the hash of older files
            seen += [self.system, self.history]
        return sha256(json.dumps(seen).encode())


@dataclass(frozen=True)
class SampleSet:
    """The samples of a run.

    Attributes:
        samples: sorted by id.
        skipped: (id, reason) of each sample that cannot be used, sorted.
        wanted: the requested number.
        source: description of the source.
        remarks: what was noticed while they were read, as sentences.
        left_out: number of samples passed over because the caller does not want them.
    """

    samples: tuple[Sample, ...]
    skipped: tuple[tuple[str, str], ...]
    wanted: int
    source: str
    remarks: tuple[str, ...] = field(default=(), compare=False)
    left_out: int = 0

    def notes(self) -> tuple[str, ...]:
        """What a user has to know: too few samples, some skipped; empty if all is well."""
        notes = []
        if len(self.samples) < self.wanted:
            notes.append(
                f"{self.source} has {len(self.samples)} usable samples; {self.wanted} were asked "
                "for."
            )
        if self.skipped:
            first = "; ".join(reason for _, reason in self.skipped[:3])
            more = f"; and {len(self.skipped) - 3} more" if len(self.skipped) > 3 else ""
            what = number_of(len(self.skipped), "sample was", "samples were")
            notes.append(f"{what} skipped: {first}{more}")
        return (*notes, *self.remarks)


def image_digest(image: Image.Image) -> str:
    """SHA-256 of an RGB image's size and pixels."""
    return sha256(f"{image.mode} {image.size} ".encode() + image.tobytes())


def read_samples(
    source: str | Path | Source | Sequence[Sample],
    count: int,
    *,
    prompt: str | None = None,
    seed: int = 0,
    images: Path | None = None,
    limits: ImageLimits | None = None,
    unless: Callable[[Sample], bool] | None = None,
    opened: Opened | None = None,
    on_progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> SampleSet:
    """Take `count` samples from a source.

    Args:
        source: a folder with images (searched with its subfolders, and read by its metadata file
            if it has one); a .jsonl, .json, .csv, .tsv or .parquet file with questions and answers
            in one of the layouts of `records.formats.FORMATS`;
            `hub:owner/name[@revision][:[configuration:]split]` with the optional library
            `datasets`; such a source, already opened; or samples.
        count: the number of samples; if the source has fewer, all are taken and `SampleSet.notes`
            says so.
        prompt: asked if the source has no question of its own. None: "Describe the image.", but
            only if nothing in the source could be meant as a question.
        seed: selects the samples if there are more; the order of the source has no effect.
        images: the folder that names of images in a file are relative to; default: the file's own.
        limits: limits of images; by default `ImageLimits()`.
        unless: samples to pass over.
        opened: opens the images of rows, if that must not happen in this process.
        on_progress: called after each sample taken with their number, `count` and a text.
        stop: once set, reading ends with `records.sampling.StoppedReading`.

    Raises:
        ValueError: the source is missing or of another kind, a line is malformed, no line has a
            question or an image, or no sample can be used.
        records.sampling.StoppedReading: `stop` was set.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"count is {count!r}; allowed: a whole number from 1 up.")
    if prompt is not None and not prompt.strip():
        raise ValueError("The prompt is empty; ask something about the images.")
    taking = _SampleReader(count, unless, limits or ImageLimits(), on_progress, opened)
    if isinstance(source, str | Path | Source):
        rows = source if isinstance(source, Source) else open_source(source, count, seed, images)
        draw = RecordSample(rows, count, seed, prompt, stop)
        for record in draw:
            taking.offer(record.id or record.name(), record, rows, prompt or PROMPT)
            if taking.over():
                break
        remarks = _remarks(draw, prompt or PROMPT)
        return taking.result(rows.name, remarks)
    for sample in _given(source, seed):
        taking.offer(sample.id, sample)
        if taking.over():
            break
    return taking.result("the given samples", ())


def open_source(
    source: str | Path, count: int = 1, seed: int = 0, images: Path | None = None
) -> Source:
    """The rows of the source at a path or of a hub dataset; only its beginning is read so far.

    Args:
        source, images: as in `read_samples`.
        count, seed: for a hub dataset, which is shuffled while it is streamed.

    Raises:
        ValueError: there is no such source.
    """
    if images is not None and not images.is_dir():
        raise ValueError(f"The folder of images {images} does not exist.")
    if isinstance(source, str) and source.startswith(HUB):
        if images is not None:
            raise ValueError("images is given, but a hub dataset holds its images itself.")
        return hub_source(source, count, seed)
    path = Path(source)
    if path.is_dir():
        return folder_source(path, None if images is None else images.absolute())
    if path.is_file() and file_kind(path.name) is not None:
        # absolute, because a worker of a cluster may start in another folder
        return file_source(path, FolderPictures((images or path.parent).absolute()))
    kinds = f"a {', '.join(ALL_SUFFIXES[:-1])} or {ALL_SUFFIXES[-1]} file"
    what = f"is neither a folder nor {kinds}" if path.exists() else "does not exist"
    raise ValueError(f"The data {path} {what}; allowed: a folder of images, {kinds}, or {FORMS}.")


@dataclass
class _SampleReader:
    """Takes samples one by one until there are enough."""

    wanted: int
    unless: Callable[[Sample], bool] | None
    limits: ImageLimits
    on_progress: Progress | None
    opened: Opened | None = None
    taken: dict[str, Sample] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    known: dict[str, dict[str | None, str]] = field(default_factory=dict)
    left_out: int = 0

    def over(self) -> bool:
        """Whether there are enough, or too many that cannot be used."""
        most = MOST_SKIPPED + 10 * self.wanted
        return len(self.taken) >= self.wanted or len(self.skipped) >= most

    def offer(
        self,
        sample_id: str,
        candidate: Sample | Record,
        source: Source | None = None,
        prompt: str = PROMPT,
    ) -> None:
        """Open a sample's images, and take it unless it is a duplicate or cannot be used."""
        while sample_id in self.taken:  # a numbered id may equal another row's id
            sample_id += "'"
        if isinstance(candidate, Sample):
            sample = candidate
        else:
            assert source is not None
            try:
                sample = self._opened(sample_id, candidate, source, prompt)
            except ImageError as error:
                self.skipped.append((sample_id, str(error)))
                return
        if self.unless is not None and self.unless(sample):
            self.left_out += 1
            return
        if (first := self._same(sample)) is not None:
            # A duplicate would count twice and make every interval too narrow.
            why = f"{sample.id} is the same picture, question and answer as {first}."
            self.skipped.append((sample.id, why))
            return
        self.taken[sample.id] = sample
        if self.on_progress is not None:
            self.on_progress(len(self.taken), self.wanted, "Reading the images")

    def result(self, name: str, remarks: tuple[str, ...]) -> SampleSet:
        """The samples taken.

        Raises:
            ValueError: there are none.
        """
        if not self.taken and not self.left_out:
            if not self.skipped:
                raise ValueError(f"{name} has no images.")
            raise ValueError(
                f"{none_usable(len(self.skipped), 'sample', f' of {name}')}; the first: "
                f"{self.skipped[0][1]}"
            )
        by_id = tuple(self.taken[sample_id] for sample_id in sorted(self.taken))
        pictures = {sample.digests for sample in by_id}
        if len(pictures) < len(by_id):
            remarks = (
                *remarks,
                f"The {len(by_id)} samples show "
                f"{number_of(len(pictures), 'picture', 'different pictures')}. Samples of one "
                "picture are alike, so that intervals come out too narrow.",
            )
        skipped = tuple(sorted(self.skipped))
        return SampleSet(by_id, skipped, self.wanted, name, remarks, self.left_out)

    def _opened(self, sample_id: str, record: Record, source: Source, prompt: str) -> Sample:
        most = self.limits.max_bytes
        files = [picture(image, source.pictures, most) for image in record.images]
        pairs = [self._image(file) for file in files]
        return Sample(
            sample_id,
            tuple(kept for kept, _ in pairs),
            record.prompt() or prompt,
            record.answer,
            record.system,
            record.history,
            record.where,
            tuple(digest for _, digest in pairs),
        )

    def _image(self, file: Path | bytes) -> tuple[Image.Image | Path | bytes, str]:
        """What the sample stores of an image, and the digest of its pixels."""
        if self.opened is None:
            return file, image_digest(open_image(file, self.limits))
        kept, image = self.opened(file)
        return kept, image_digest(image)

    def _same(self, sample: Sample) -> str | None:
        """The sample that asks the same about the same picture, with the same answer or
        without one. A sample without an answer is replaced by one with an answer."""
        answers = self.known.setdefault(sample.fingerprint(), {})
        if sample.answer in answers:
            return answers[sample.answer]
        if sample.answer is None and answers:
            return next(iter(answers.values()))
        if (without := answers.pop(None, None)) is not None:
            del self.taken[without]
            why = f"{without} is the same picture and question as {sample.id}, without its answer."
            self.skipped.append((without, why))
        answers[sample.answer] = sample.id
        return None


def _remarks(draw: RecordSample, prompt: str) -> tuple[str, ...]:
    notes = draw.survey.notes(draw.source, prompt)
    if not draw.repeated:
        return notes
    units = plural(draw.source.unit, draw.repeated)
    words = "say the same as others (picture, question and answer), and count once"
    return (*notes, f"{draw.repeated} {units} {words}.")


def _given(samples: Iterable[Sample], seed: int) -> Iterator[Sample]:
    """Given samples in the order determined by the seed.

    Raises:
        ValueError: there are none, or two have the same id.
    """
    given = list(samples)
    if not all(isinstance(sample, Sample) for sample in given):
        raise ValueError("The samples are no Sample objects; see sinks.samples.Sample.")
    by_id: dict[str, Sample] = {}
    for sample in given:
        if sample.id in by_id:
            raise ValueError(f"Two samples have the id {sample.id}; allowed: each id once.")
        by_id[sample.id] = sample
    return iter(sorted(given, key=lambda sample: sha256(f"{seed}\0{sample.id}".encode())))
