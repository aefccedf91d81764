"""The result of an experiment: tables, charts as data, a verdict, and provenance.

Everything is made of plain values, so that a file, a page or a terminal can show it. An undefined
number (attention to the last token, which no query sees) is None.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from sinkscope.untrusted import dataclass_from, read_json
from sinkscope.utils import number_of, plain_values, write_bytes_atomically

FORMAT = "sinkscope-experiment-1"
Cell = str | float | int | bool | None
Kind = Literal["lines", "bars", "histogram", "heat"]


def number(value: float) -> float | None:
    """A float for JSON: None for NaN and infinity."""
    return float(value) if math.isfinite(value) else None


def numbers(values: Sequence[float]) -> tuple[float | None, ...]:
    """The same for each."""
    return tuple(number(float(value)) for value in values)


@dataclass(frozen=True)
class Table:
    """A table; the first `keys` columns say what a row is about.

    Attributes:
        name: of its CSV file.
        title: the line above it.
        columns: the headings.
        rows: the cells of each row.
        keys: how many columns name the row.
        note: the text below it.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    keys: int = 1
    note: str = ""

    def __post_init__(self) -> None:
        _check_name(self.name)


@dataclass(frozen=True)
class Series:
    """One line, set of bars or histogram.

    Attributes:
        name: in the legend.
        y: values, one for each x of the chart; of a histogram the counts of its bins.
        low, high: ends of an interval, or None.
        role: determines the colour: a group of tokens, or an arm.
    """

    name: str
    y: tuple[int | float | None, ...]
    low: tuple[int | float | None, ...] | None = None
    high: tuple[int | float | None, ...] | None = None
    role: str = ""


@dataclass(frozen=True)
class Chart:
    """A figure of one quantity, as data (`experiments.figures.draw` draws it).

    Attributes:
        name: of its files.
        title, x_label, y_label: texts.
        kind: lines over x; bars, one per category x; histogram, whose x are the edges of the bins;
            heat, a map whose rows are the series and whose columns are x.
        x: numbers or categories.
        series: what is drawn.
        log: the y axis is logarithmic.
        note: a note below it.
    """

    name: str
    title: str
    kind: Kind
    x: tuple[int | float | str, ...]
    series: tuple[Series, ...]
    x_label: str = "layer"
    y_label: str = ""
    log: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        _check_name(self.name)


@dataclass(frozen=True)
class Verdict:
    """The two conditions of a good explanation.

    Attributes:
        causal: (A) without the factor the sinks disappear, and not with the controls; None: not
            tested.
        specific: (B) only the sinks stand out by the factor; None: not tested.
        text: both conditions in words, with the numbers.
        thresholds: those that decided, in words.
    """

    causal: bool | None
    specific: bool | None
    text: tuple[str, ...]
    thresholds: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """positive: both hold; negative: a tested one does not; open: the tested one holds, and the
        other was not tested."""
        if self.causal and self.specific:
            return "positive"
        return "negative" if False in (self.causal, self.specific) else "open"


@dataclass(frozen=True)
class Findings:
    """What one experiment found, without the model and settings.

    Attributes:
        summary: the findings, in sentences.
        tables, charts: the numbers.
        verdict: None if the experiment has none.
        values: single figures by name, for programs.
        notes: remarks for the reader.
    """

    summary: tuple[str, ...]
    tables: tuple[Table, ...]
    charts: tuple[Chart, ...] = ()
    verdict: Verdict | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """A run of an experiment.

    Attributes:
        experiment, question: its name and what it asks.
        settings: of the experiment and of the study, as plain values.
        model: `ModelInfo`, as plain values.
        samples: ids of the samples used.
        source: where the samples come from, in words.
        groups: groups of tokens, sink and reference first, with the number of tokens in all.
        findings: the results themselves.
        versions: of SinkScope, torch and transformers.
        seconds: its duration.
    """

    experiment: str
    question: str
    settings: Mapping[str, Any]
    model: Mapping[str, Any]
    samples: tuple[str, ...]
    source: str
    groups: Mapping[str, int]
    findings: Findings
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def provenance(self) -> str:
        """One line with experiment, settings, model and samples."""
        revision = str(self.model.get("revision", ""))[:12]
        experiment_settings = self.settings.get("experiment", {})
        listed = ", ".join(
            f"{name} {setting_text(value)}" for name, value in experiment_settings.items()
        )
        return (
            f"{self.experiment}{f' ({listed})' if listed else ''}; {self.model.get('id')} "
            f"({revision}, {self.model.get('dtype')}); {number_of(len(self.samples), 'sample')} of "
            f"{self.source}; sinkscope {self.versions.get('sinkscope', '?')}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as JSON gives them back."""
        values = asdict(self)
        verdict = self.findings.verdict
        if verdict is not None:
            values["findings"]["verdict"]["word"] = verdict.word
        plain: dict[str, Any] = plain_values({"format": FORMAT, **values})
        return plain

    def save(self, path: Path) -> None:
        """Write a JSON file atomically."""
        data = json.dumps(self.as_dict(), ensure_ascii=False, indent=1, allow_nan=False).encode()
        write_bytes_atomically(path, data)

    @staticmethod
    def open(path: Path) -> Result:
        """Read what `save` wrote; of a folder, its result.json.

        Raises:
            ValueError: there is no such file, or it is not a result of an experiment.
        """
        file = path / "result.json" if path.is_dir() else path
        values = read_json(file, "The result")
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(f"{file.name} is not a result of an experiment ({FORMAT}).")
        del values["format"]
        findings = values.get("findings")
        if isinstance(findings, dict) and isinstance(findings.get("verdict"), dict):
            findings["verdict"].pop("word", None)  # it follows from the conditions
        try:
            return dataclass_from(Result, values)
        except ValueError as error:
            raise ValueError(f"The result {file.name} is damaged: {error}.") from error


def _check_name(name: str) -> None:
    """A table's or chart's name is its file's name, so it must not lead to another folder."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", name):
        raise ValueError(f"name is {name!r}; allowed: 1 to 80 letters, digits, _ and -")


def setting_text(value: Any) -> str:
    """A setting's value in words, the same before saving and after loading."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)
