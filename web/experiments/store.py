"""What a run of the Experiments tab gave."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sinkscope.experiments.result import Result
from sinkscope.web.runs.owners import user_now


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
