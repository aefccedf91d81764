"""Inputs of the `sinks` verbs: samples, including the bundled generator's scenes, and profiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sinkscope.models.profiles import SinkProfile, published, read_profile
from sinkscope.sinks.samples import Sample, SampleSet, read_samples
from sinkscope.sinks.settings import SampleChoice
from sinkscope.sinks.validating.validate import held_out, seen_by_finding, used_by_finding
from sinkscope.utils import number_of

if TYPE_CHECKING:
    from sinkscope.sinks.finding.findings import Findings

DEMO = "demo"
LARGE = 100_000_000  # bytes; reading this many takes seconds


def read_data(
    choice: SampleChoice, seed: int, unless: Callable[[Sample], bool] | None = None
) -> SampleSet:
    """The samples of --data, without those for which `unless` is true.

    Raises:
        ValueError: it names none, or none can be used.
    """
    path, images = Path(choice.data), None if choice.images is None else Path(choice.images)
    if choice.data == DEMO and not path.is_file():
        if images is not None:
            raise ValueError("images is given, but the scenes of demo are drawn.")
        return _scenes(choice.samples, choice.prompt, seed)
    if path.is_file() and path.stat().st_size > LARGE:
        typer.echo(f"Reading {path} ({path.stat().st_size / 1e6:.0f} MB)", err=True)
    return read_samples(
        choice.data,
        choice.samples,
        prompt=choice.prompt,
        seed=seed,
        images=images,
        unless=unless,
    )


def read_held_out(choice: SampleChoice, seed: int, used: Findings | None) -> SampleSet:
    """The same without those that finding used, so that one folder or file can be used for both.

    Raises:
        ValueError: as `read_data`; or finding used them all.
    """
    if used is None:
        return read_data(choice, seed)
    if choice.data == DEMO:  # other scenes, unless the seed is that of finding
        more = choice.samples + len(used.samples)
        wider = read_data(dataclasses.replace(choice, samples=more, images=None), seed)
        kept = held_out(wider, choice.samples, used)
        left_out = len(used_by_finding(wider.samples, used))
    else:
        kept = read_data(choice, seed, seen_by_finding(used))
        left_out = kept.left_out
    if not kept.samples:
        raise ValueError(
            f"No sample of {kept.source} is left: finding the profile used all of them "
            f"({left_out}); give others, or --allow-finding-data."
        )
    if left_out:
        typer.echo(f"Left out {number_of(left_out, 'sample')} that finding used.", err=True)
    return kept


def profiles_named(name: str | None) -> tuple[SinkProfile, ...]:
    """A file's profile, the published ones of a model, or all of them.

    Raises:
        ValueError: there is no such file and no such model; the text says what there is.
    """
    if name is None:
        return published()
    if name == DEMO:
        from sinkscope.models.profiles import DEMO as FOLDER
        from sinkscope.models.profiles import PROFILE_FILE

        return (read_profile(FOLDER / PROFILE_FILE),)
    if Path(name).is_file():
        return (read_profile(Path(name)),)
    wanted = name.lower()
    for chosen in (
        [p for p in published() if p.model.lower() == wanted],
        [p for p in published() if wanted in p.model.lower()],
    ):
        if chosen:
            return tuple(chosen)
    raise ValueError(
        f"There is no profile {name!r}; allowed: a file, {DEMO}, or one of "
        f"{', '.join(profile.model for profile in published())}."
    )


def _scenes(count: int, prompt: str | None, seed: int) -> SampleSet:
    from PIL import Image

    from sinkscope.demo.scene_questions import SOURCE, scene_questions

    samples = [
        Sample(one.name, (Image.fromarray(one.image),), one.question, one.answer)
        for one in scene_questions(count, prompt, seed)
    ]
    return SampleSet(tuple(sorted(samples, key=lambda sample: sample.id)), (), count, SOURCE)
