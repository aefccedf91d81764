"""One answer as a line of JSON: written by a run, read by a report.

The keys are described in `evaluation.run_folder`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sinkscope.evaluation.base import Judged, Judgement
from sinkscope.untrusted import UntrustedFileError, parse_json


@dataclass(frozen=True)
class AnswerRecord:
    """One answer of one method to one question; see `evaluation.run_folder` for each key."""

    task: str
    protocol: str
    question: str
    index: int
    method: str
    prompt_hash: str
    answer: str | None
    extraction: str | None
    score: float | None
    details: Mapping[str, Any]
    truth: Any
    category: str
    cluster: str
    fields: Mapping[str, Any]
    log_probabilities: tuple[float, ...] | None = None
    finish: str | None = None
    sinks: int | None = None
    rows_changed: float | None = None
    mass_moved: float | None = None
    seconds: float | None = None
    error: str | None = None
    host: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """The record as one line of JSON, its end included. No NaN, no infinity."""
        values = dataclasses.asdict(self)
        return json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n"

    @staticmethod
    def of_line(line: str | bytes, where: str) -> AnswerRecord:
        """Read a line.

        Raises:
            ValueError: it is not a JSON object, or keys are missing or unknown; `where` and these
                are named.
        """
        try:
            values = parse_json(line)
        except UntrustedFileError as error:
            raise ValueError(f"{where} is damaged, because {error}.") from error
        if not isinstance(values, dict):
            raise ValueError(f"{where} is not JSON object.")
        allowed = {one.name for one in dataclasses.fields(AnswerRecord)}
        if allowed != set(values):
            missing, unknown = sorted(allowed - set(values)), sorted(set(values) - allowed)
            raise ValueError(
                f"{where} is not a record of an evaluation: missing keys {missing}, "
                f"unknown {unknown}."
            )
        for one in dataclasses.fields(AnswerRecord):
            if not _fits(values[one.name], str(one.type)):
                raise ValueError(f"{where} is damaged, because its {one.name} is no {one.type}.")
        if values["log_probabilities"] is not None:
            values["log_probabilities"] = tuple(values["log_probabilities"])
        return AnswerRecord(**values)

    def judged(self) -> Judged:
        """The input of metrics.

        Raises:
            ValueError: the record has an error in place of a score.
        """
        if self.score is None:
            raise ValueError(f"Question {self.question} by {self.method} has no score.")
        judgement = Judgement(self.score, self.extraction, self.details)
        return Judged(
            self.question, self.truth, self.category, self.cluster, judgement, self.fields
        )


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "Mapping[str, Any]": (dict,),
    "None": (type(None),),
}


def _fits(value: Any, kind: str) -> bool:
    """Whether a value of JSON is of a field's type."""
    if kind == "Any":
        return True
    if kind.startswith("tuple[float, ...]") and isinstance(value, list):
        return all(_fits(item, "float") for item in value)
    allowed = [one for part in kind.split(" | ") for one in _TYPES.get(part, ())]
    return type(value) in allowed
