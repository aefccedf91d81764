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
from dataclasses import dataclass
from pathlib import Path

from sinkscope.config import ModelSettings
from sinkscope.evaluation.report.csv_files import csv_files
from sinkscope.evaluation.report.gather import Section, gather
from sinkscope.evaluation.report.maps import Maps, draw_maps
from sinkscope.evaluation.report.markdown import markdown
from sinkscope.evaluation.report.page import PageContent, page
from sinkscope.evaluation.report.questions import QuestionLookup, look_up
from sinkscope.evaluation.report.settings import ReportSettings
from sinkscope.evaluation.statistics.settings import CompareSettings
from sinkscope.models.loading import ModelHandle
from sinkscope.utils import write_bytes_atomically


@dataclass(frozen=True)
class Report:
    """Sections of the runs, and the files' texts by their names."""

    sections: tuple[Section, ...]
    files: dict[str, str]

    @property
    def complete(self) -> bool:
        """Whether every run is complete."""
        return all(section.complete for section in self.sections)


Load = Callable[[ModelSettings], ModelHandle]
"""Load a run's model."""


def make_report(
    runs: Sequence[Path],
    settings: ReportSettings | None = None,
    statistics: CompareSettings | None = None,
    load: Load | None = None,
) -> Report:
    """Read the runs and compute everything; writes nothing.

    Args:
        load: loads models; only needed for maps.

    Raises:
        ValueError: a folder is not a run, scipy is missing, maps are requested without `load`, or a
            model is not the run's.
    """
    chosen = settings or ReportSettings()
    sections = gather(runs, statistics or CompareSettings())
    lookups = [_questions(section, chosen) for section in sections]
    maps: Maps = {}
    if chosen.maps:
        if load is None:
            raise ValueError("maps are wanted, which need a way to load models.")
        for section, questions in zip(sections, lookups, strict=True):
            if section.flips:
                handle = load(section.run.config.model)
                maps |= draw_maps(section, questions, chosen.maps, handle)
    files = {
        "report.html": page(sections, PageContent(lookups, chosen.flips, maps)),
        "report.md": markdown(sections, lookups),
        **csv_files(sections, lookups),
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
            write_bytes_atomically(folder / name, data)
            paths.append(folder / name)
    except OSError as error:
        raise ValueError(
            f"The folder {folder} cannot be written: {error.strerror or error}."
        ) from error
    return paths


def _questions(section: Section, settings: ReportSettings) -> QuestionLookup:
    if not settings.data:
        return QuestionLookup({}, "The data was not read" if section.flips else "")
    shown = section.flips[: settings.flips] if settings.flips else ()
    return look_up(section.run, {flip.after.question: flip.after.index for flip in shown})
