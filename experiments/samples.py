"""The samples of experiments: with images (`sinks.samples`), or prompts of only text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sinkscope.sinks.samples import Sample
from sinkscope.untrusted import read_bytes
from sinkscope.utils import sha256

PROMPTS = Path(__file__).resolve().parent / "prompts.txt"
MOST_BYTES = 50_000_000


@dataclass(frozen=True)
class TextSample:
    """A prompt without images.

    Attributes:
        id: names the sample in results.
        prompt: what the model reads.
        answer: its continuation, if known.
    """

    id: str
    prompt: str
    answer: str | None = None

    @property
    def system(self) -> None:
        """None: the model's own."""
        return None

    @property
    def history(self) -> tuple[tuple[str, str], ...]:
        """No earlier turns."""
        return ()

    def open_images(self) -> list[Image.Image]:
        """None."""
        return []

    def fingerprint(self) -> str:
        """SHA-256 of the text."""
        return sha256(self.prompt.encode())


AnySample = Sample | TextSample


@dataclass(frozen=True)
class Prompts:
    """Samples of a run.

    Attributes:
        samples: in order.
        source: where they come from, in words.
        notes: what a user should know about them.
    """

    samples: tuple[AnySample, ...]
    source: str
    notes: tuple[str, ...] = ()


def own_prompts(count: int) -> Prompts:
    """The first `count` of our own prompts (`prompts.txt`), for models without images."""
    prompts = read_prompts(PROMPTS, count)
    return Prompts(prompts.samples, "SinkScope's own prompts", prompts.notes)


def read_prompts(path: Path, count: int) -> Prompts:
    """The first `count` lines of a text file that are not empty, one prompt per line.

    Raises:
        ValueError: the file cannot be read, is too large, not text, or has no line.
    """
    if count < 1:
        raise ValueError(f"samples is {count}; allowed: 1 or more.")
    try:
        lines = read_bytes(path, MOST_BYTES, "The prompts").decode().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"The prompts {path.name} are not UTF-8 text: {error}.") from error
    kept = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not kept:
        raise ValueError(f"{path.name} has no prompt; allowed: a text file with a prompt a line.")
    notes = []
    if len(kept) < count:
        notes.append(f"{path.name} has {len(kept)} prompts; {count} were asked for.")
    samples = tuple(TextSample(f"line {number}", line) for number, line in kept[:count])
    return Prompts(samples, path.name, tuple(notes))


def have_images(samples: Sequence[AnySample]) -> bool:
    """Whether the samples show images.

    Raises:
        ValueError: some do and some do not, or there is no sample.
    """
    if not samples:
        raise ValueError("There is no sample; give at least one.")
    kinds = {isinstance(sample, Sample) for sample in samples}
    if len(kinds) > 1:
        raise ValueError("Some samples have images and some have none; give one kind at a time.")
    return kinds.pop()
