"""Settings of a report. Imports little, because the command line reads it at its start."""

from __future__ import annotations

from dataclasses import dataclass

from sinkscope.setting import check, explained, refuse, setting

MOST_FLIPS = 10_000


@explained
@dataclass(frozen=True)
class ReportSettings:
    """What a report has."""

    flips: int = setting(
        60,
        "Maximum number of questions with a changed score that the page shows for each run.",
        low=0,
        high=MOST_FLIPS,
    )
    maps: int = setting(
        0,
        "Of so many of these both answers are given again and shown with their maps, which "
        "loads the run's model.",
        low=0,
        high=MOST_FLIPS,
    )
    data: bool = setting(
        True, "Open the data again for the texts and images of these; else they have their ids."
    )

    def __post_init__(self) -> None:
        check(self)
        if self.maps > self.flips:
            raise refuse("maps", self.maps, f"0 to flips, {self.flips}")
        if self.maps and not self.data:
            raise refuse("maps", self.maps, "0 without data, which has the images")
