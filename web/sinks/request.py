"""A click on Run in the Sinks tab: its values, and the samples that they select.

Finding and validating need separate samples. Both come from one random draw, which does not depend
on the order of the files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from sinkscope.config import ImageLimits
from sinkscope.jobs.job import Progress, Stopped
from sinkscope.models.images import ImageError
from sinkscope.setting import checked, explained, like, read, setting, settings_of
from sinkscope.sinks.samples import Sample, SampleSet, image_digest
from sinkscope.sinks.settings import FindSettings
from sinkscope.sinks.validating.settings import ValidateSettings
from sinkscope.utils import none_usable
from sinkscope.web.server.uploads import MOST_FILES
from sinkscope.web.sinks.files import by_picture, question_file, samples_of_file

# Like web.runs.image_process.KeptImages: returns our own file in place of an upload, and the image.
Opener = Callable[..., tuple[Path, Image]]

MOST_SAMPLES = 200
LONGEST_PROMPT = 20_000
EXAMPLES, IMAGES = "Example scenes", "My images"


@dataclass(frozen=True)
class Picture:
    """An uploaded file: its original name, and its path here."""

    name: str
    path: Path


@explained
@dataclass(frozen=True)
class SinksRequest:
    """The values of the tab's controls; `check` validates them.

    `source` is `EXAMPLES` or `IMAGES`. `pictures` are the uploaded files; one of them may be a file
    with questions about the others. `prompt` is asked about every image without a question of its
    own.
    """

    source: str = EXAMPLES
    pictures: tuple[Picture, ...] = ()
    prompt: str = "Describe the image."
    samples: int = setting(
        20,
        "Images to find the dimensions on; 30 are more reliable.",
        low=1,
        high=MOST_SAMPLES,
        label="Samples",
    )
    held_out: int = setting(
        15,  # some have no sink, and 10 with sinks are needed
        "Other images to validate them on, at least 10; 0: no validation.",
        low=0,
        high=MOST_SAMPLES,
        label="Held out",
    )
    top_percent: float = like(FindSettings, "top_percent")
    seed: int = setting(
        0,
        "Seed of the choice of images or scenes, and of the resampling.",
        low=0,
        high=2**31 - 1,
        label="Seed of the samples",
    )

    def check(self) -> tuple[int, int, FindSettings, ValidateSettings]:
        """Number of samples for finding and for validating, and the settings of both.

        Raises:
            ValueError: naming the setting, its value and what is allowed.
        """
        if self.source not in (EXAMPLES, IMAGES):
            raise ValueError(f"source is {self.source!r}; allowed: {EXAMPLES}, {IMAGES}.")
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise ValueError("The question is empty. Ask something about the images.")
        if len(self.prompt) > LONGEST_PROMPT:
            raise ValueError(
                f"The question has {len(self.prompt)} characters; allowed: {LONGEST_PROMPT}."
            )
        values = {
            one.field: checked(one, read(one, getattr(self, one.field)))
            for one in settings_of(SinksRequest)
        }
        if self.source == IMAGES and not self.pictures:
            raise ValueError("There is no image. Upload some, or take the example scenes.")
        if len(self.pictures) > MOST_FILES:
            raise ValueError(
                f"{len(self.pictures)} files were given; allowed: at most {MOST_FILES}."
            )
        both = {"top_percent": values["top_percent"], "seed": values["seed"]}
        finding, validating = FindSettings(**both), ValidateSettings(**both)
        return values["samples"], values["held_out"], finding, validating


@dataclass(frozen=True)
class SampleSplit:
    """The samples of a run; no image is in both sets.

    Attributes:
        find, validate: samples for finding and for validating; `validate` may be empty.
    """

    find: SampleSet
    validate: SampleSet


def draw_samples(
    request: SinksRequest,
    opened: Opener,
    limits: ImageLimits,
    on_progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> SampleSplit:
    """Open images until there are enough, and split them.

    If there are fewer than requested, both sets keep their proportion, and finding gets at least
    one. `opened` opens an upload and returns the path that replaces it in the samples; `limits`
    apply to the images in a file with questions.

    Raises:
        ValueError: no image can be used.
        Stopped: `stop` was set.
    """
    wanted, held_out, _, _ = request.check()
    total = wanted + held_out
    skipped: list[tuple[str, str]] = []
    if request.source == EXAMPLES:
        usable, source = _scenes(request, total), "The generator of example scenes"
    elif (file := question_file(request.pictures)) is not None:
        read = samples_of_file(
            file,
            request.pictures,
            total,
            request.prompt,
            int(request.seed),
            limits,
            opened,
            on_progress,
            stop,
        )
        return _split(read, wanted, held_out, int(request.seed))
    else:
        usable, skipped = _opened(request, total, opened, on_progress, stop)
        source = "The upload"
    if not usable:
        raise ValueError(f"{none_usable(len(skipped), 'image')}; {skipped[0][1]}")
    first = wanted
    if len(usable) < total:
        first = max(1, min(wanted, round(len(usable) * wanted / total)))
    parts = usable[:first], usable[first : first + held_out]
    by_id = [tuple(sorted(part, key=lambda sample: sample.id)) for part in parts]
    return SampleSplit(
        SampleSet(by_id[0], tuple(sorted(skipped)), wanted, source),
        SampleSet(by_id[1], (), held_out, source),
    )


def _split(read: SampleSet, wanted: int, held_out: int, seed: int) -> SampleSplit:
    """Split the samples so that no picture is in both sets, even with different questions."""
    first = wanted
    if len(read.samples) < wanted + held_out:
        first = max(1, min(wanted, round(len(read.samples) * wanted / (wanted + held_out))))
    finding: list[Sample] = []
    validating: list[Sample] = []
    groups = by_picture(read.samples, seed)
    for group in groups:
        # The last group goes to a set that would otherwise be empty.
        kept = group is groups[-1] and finding and held_out and not validating
        (validating if kept or len(finding) >= first else finding).extend(group)
    sides = ((finding[:wanted], wanted), (validating[:held_out], held_out))
    find, validate = (
        dataclasses.replace(
            read, samples=tuple(sorted(side, key=lambda sample: sample.id)), wanted=number
        )
        for side, number in sides
    )
    return SampleSplit(find, dataclasses.replace(validate, skipped=(), remarks=()))


def _scenes(request: SinksRequest, count: int) -> list[Sample]:
    # Imported here: drawing scenes is part of making the bundled model; the page does not need it.
    from PIL import Image

    from sinkscope.demo.measure import sink_scenes

    return [
        Sample(f"scene {number}", (Image.fromarray(scene.image),), request.prompt)
        for number, scene in sink_scenes(int(request.seed), count)
    ]


def _opened(
    request: SinksRequest,
    most: int,
    opened: Opener,
    on_progress: Progress | None,
    stop: threading.Event | None,
) -> tuple[list[Sample], list[tuple[str, str]]]:
    """Samples in the order of the random draw, and those that had to be skipped."""
    usable: list[Sample] = []
    skipped: list[tuple[str, str]] = []
    seen: dict[str, str] = {}
    order = sorted(_named(request.pictures), key=lambda item: _draw_key(item[0], request.seed))
    for done, (name, path) in enumerate(order):
        if stop is not None and stop.is_set():
            raise Stopped(done, len(order))
        if len(usable) == most:
            break
        try:
            kept, image = opened(str(path), name=name)
        except ImageError as error:
            skipped.append((name, str(error)))
            continue
        digest = image_digest(image)
        if digest in seen:
            skipped.append((name, f"{name} is the same picture as {seen[digest]}."))
            continue
        seen[digest] = name
        usable.append(Sample(name, (kept,), request.prompt, digests=(digest,)))
        if on_progress is not None:
            on_progress(len(usable), min(most, len(order)), "Reading the images")
    return usable, skipped


def _named(pictures: Iterable[Picture]) -> Iterator[tuple[str, Path]]:
    """Unique names: files with the same name are numbered."""
    given: set[str] = set()
    for picture in pictures:
        plain = Path(picture.name.replace("\\", "/")).name[:80] or "image"
        name, copy = plain, 2
        while name in given:
            name, copy = f"{plain} ({copy})", copy + 1
        given.add(name)
        yield name, picture.path


def _draw_key(name: str, seed: float) -> str:
    return hashlib.sha256(f"{int(seed)}\0{name}".encode(errors="replace")).hexdigest()
