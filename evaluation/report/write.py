"""`evaluate report`: runs in, files out.

report.html      one page, with charts and the questions whose score changed
report.md        the same without images
figures.csv      every figure with its interval
differences.csv  every comparison, with test, p, power and verdict
changed.csv      every question whose score changed
failures.csv     every question without an answer
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sinkscope.config import ModelSettings
from sinkscope.evaluation.report.csv_files import csv_files
from sinkscope.evaluation.report.gather import Section, gather
from sinkscope.evaluation.report.maps import Maps, draw_maps
from sinkscope.evaluation.report.markdown import markdown
from sinkscope.evaluation.report.page import Shown, page
from sinkscope.evaluation.report.questions import Found, look_up
from sinkscope.evaluation.statistics.compare import Settings
from sinkscope.models.loading import ModelHandle
from sinkscope.utils import write_atomically


@dataclass(frozen=True)
class ReportSettings:
    """What a report has.

    Attributes:
        statistics: how methods are compared.
        flips: changed questions that the page shows, for each run.
        data: whether texts and images of these are read from the run's data again.
        maps: of how many of these both answers are given again, with their maps.
    """

    statistics: Settings = field(default_factory=Settings)
    flips: int = 60
    data: bool = True
    maps: int = 0

    def __post_init__(self) -> None:
        if self.flips < 0:
            raise ValueError(f"flips is {self.flips}; allowed: 0 or more.")
        if not 0 <= self.maps <= self.flips:
            raise ValueError(f"maps is {self.maps}; allowed: 0 to flips, {self.flips}.")
        if self.maps and not self.data:
            raise ValueError("maps are wanted without data; the images are in the data.")


@dataclass(frozen=True)
class Report:
    """Sections of the runs, and the files' texts by their names."""

    sections: tuple[Section, ...]
    files: dict[str, str]

    @property
    def complete(self) -> bool:
        """Whether every run is."""
        return all(section.complete for section in self.sections)


Load = Callable[[ModelSettings], ModelHandle]
"""Loads a run's model."""


def make_report(
    runs: Sequence[Path], settings: ReportSettings | None = None, load: Load | None = None
) -> Report:
    """Read the runs and compute everything; writes nothing.

    Args:
        load: of models, for maps alone.

    Raises:
        ValueError: a folder is no run, scipy is missing, maps are wanted without `load`, or a model
            is not the run's.
    """
    chosen = settings or ReportSettings()
    sections = gather(runs, chosen.statistics)
    found = [_found(section, chosen) for section in sections]
    maps: Maps = {}
    if chosen.maps:
        if load is None:
            raise ValueError("maps are wanted, which need a way to load models.")
        for section, questions in zip(sections, found, strict=True):
            if section.flips:
                handle = load(section.run.config.model)
                maps |= draw_maps(section, questions, chosen.maps, handle)
    files = {
        "report.html": page(sections, Shown(found, chosen.flips, maps)),
        "report.md": markdown(sections, found),
        **csv_files(sections, found),
    }
    return Report(sections, files)


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write the files; the folder is made if it is missing.

    Raises:
        ValueError: it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for name, text in report.files.items():
            data = text.encode("utf-8", "replace")
            write_atomically(folder / name, lambda file, data=data: file.write(data))  # type: ignore[misc]
            paths.append(folder / name)
    except OSError as error:
        raise ValueError(
            f"The folder {folder} cannot be written: {error.strerror or error}."
        ) from error
    return paths


def _found(section: Section, settings: ReportSettings) -> Found:
    if not settings.data:
        return Found({}, "The data was not read (--no-data)" if section.flips else "")
    shown = section.flips[: settings.flips] if settings.flips else ()
    return look_up(section.run, {flip.after.question: flip.after.index for flip in shown})
