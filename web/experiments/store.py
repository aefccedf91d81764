"""What runs of the Experiments tab gave."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sinkscope.experiments.result import Result
from sinkscope.web.runs.owners import user_now
from sinkscope.web.runs.results import ResultStore


@dataclass(frozen=True)
class ExperimentResult:
    """What one run of the tab gave.

    Attributes:
        id: of the run.
        result: the experiment's.
        value: what the tab's component is given to show it.
        compared: ids of the two results that a comparison shows; none for a run of its own.
        owner: who asked for it, where users log in.
    """

    id: str
    result: Result
    value: dict[str, Any]
    compared: tuple[str, ...] = ()
    owner: str | None = field(default_factory=user_now)


class ExperimentStore(ResultStore[ExperimentResult]):
    """The tab's results."""

    def delete(self, result_id: object) -> None:
        """Forget a result with its files, and the comparisons that show its numbers."""
        found = self.get(result_id)
        if found is None:
            return
        super().delete(found.id)
        for other in self.all():
            if found.id in other.compared:
                super().delete(other.id)
