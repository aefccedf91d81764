"""What a run of the Experiments tab gave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sinkscope.experiments.result import Result


@dataclass(frozen=True)
class ExperimentResult:
    """What one run of the tab gave.

    Attributes:
        id: of the run.
        result: the experiment's.
        value: what the tab's component is given to show it.
    """

    id: str
    result: Result
    value: dict[str, Any]
