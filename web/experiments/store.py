"""Results of the Experiments tab (`web.runs.results`)."""

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
        owner: who asked for it, where users log in.
    """

    id: str
    result: Result
    value: dict[str, Any]
    owner: str | None = field(default_factory=user_now)


class ExperimentStore(ResultStore[ExperimentResult]):
    """Safe to use from several threads."""
