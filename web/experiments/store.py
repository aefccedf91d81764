"""Results of the Experiments tab."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sinkscope.experiments.result import Result
from sinkscope.web.runs.owners import user_now
from sinkscope.web.runs.results import ResultStore


@dataclass(frozen=True)
class ExperimentResult:
    """The result of one run of the tab.

    Attributes:
        id: id of the run.
        result: the experiment's result.
        value: value with which the tab's component shows the result.
        compared: ids of the two results that a comparison shows; empty for a run.
        owner: the user who started the run, if users log in.
    """

    id: str
    result: Result
    value: dict[str, Any]
    compared: tuple[str, ...] = ()
    owner: str | None = field(default_factory=user_now)


class ExperimentStore(ResultStore[ExperimentResult]):
    """The tab's results."""

    def delete(self, result_id: object) -> None:
        """Remove a result with its files, and the comparisons that show its numbers."""
        found = self.get(result_id)
        if found is None:
            return
        super().delete(found.id)
        for other in self.all():
            if found.id in other.compared:
                super().delete(other.id)
