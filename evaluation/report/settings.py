"""Settings of a report. Imports little, because the command line reads it at its start."""

from __future__ import annotations

from dataclasses import dataclass

from sinkscope.setting import check, explained, refuse, setting

MOST_FLIPS = 10_000


@explained
@dataclass(frozen=True)
class ReportSettings:
    """What a report contains."""

    flips: int = setting(
        60,
        "Maximum number of questions with a changed score that the page shows for each run.",
        low=0,
        high=MOST_FLIPS,
    )
    maps: int = setting(
        0,
        "For this many of these, show both answers with their maps; the run's model is loaded and "
        "answers again.",
        low=0,
        high=MOST_FLIPS,
    )
    data: bool = setting(
        True,
        "Open the data again for the texts and images of these; else only their ids are shown.",
    )

    def __post_init__(self) -> None:
        check(self)
        if self.maps > self.flips:
            raise refuse("maps", self.maps, f"0 to flips, {self.flips}")
        if self.maps and not self.data:
            raise refuse("maps", self.maps, "0 without data, which has the images")
