"""The runs of a report: figures, comparisons, failures, and the questions whose score changed."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sinkscope.evaluation.base import Judged, Protocol
from sinkscope.evaluation.metrics.accuracy import Accuracy, MacroByCategory
from sinkscope.evaluation.metrics.tally import TallyMetric
from sinkscope.evaluation.record import AnswerRecord
from sinkscope.evaluation.run_folder import CONFIG, Run, read_run
from sinkscope.evaluation.statistics.compare import (
    FEW_CLUSTERS,
    Comparison,
    NothingToCompareError,
    compare,
)
from sinkscope.evaluation.statistics.settings import CompareSettings
from sinkscope.evaluation.tasks.listed import task_named

BASELINE = "default"
_VALUE = re.compile(r"(\w+)=(\S+)")


@dataclass(frozen=True)
class Usage:
    """Further figures of a method, means over the questions it answered; None if no record has
    them.

    Attributes:
        answered, unparsable: counts.
        cut: answers that ended at the token limit.
        seconds, tokens: per answer.
        sinks, rows_changed, mass_moved: as `evaluation.run_folder` says.
    """

    answered: int
    unparsable: int
    cut: int
    seconds: float | None
    tokens: float | None
    sinks: float | None
    rows_changed: float | None
    mass_moved: float | None


@dataclass(frozen=True)
class Flip:
    """A question whose score another method changed: the two records."""

    before: AnswerRecord
    after: AnswerRecord

    @property
    def fixed(self) -> bool:
        """Whether the score rose."""
        return (self.after.score or 0.0) > (self.before.score or 0.0)


@dataclass(frozen=True)
class Point:
    """One value of a swept setting, and the method that has it."""

    value: float
    method: str


@dataclass(frozen=True)
class Sweep:
    """Methods that differ in only one setting, by its value."""

    name: str
    setting: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Failure:
    """A question without an answer, and why."""

    question: str
    method: str
    reason: str


@dataclass(frozen=True)
class Section:
    """One run.

    Attributes:
        title: its folder's name.
        run, protocol: of the run.
        comparison: None if no question has an answer of every method; `reason` then says so.
        failures: all of them.
        expected: questions of the run; None if no session finished.
        answered: questions with an answer of every method.
        warnings: shown before the figures.
        usage: by method.
        flips: against the baseline, in the data's order.
        sweeps: settings with two values or more.
        other_judge: if another judge was chosen: method -> mean score by the protocol's own.
    """

    title: str
    run: Run
    protocol: Protocol
    comparison: Comparison | None
    reason: str
    failures: tuple[Failure, ...]
    expected: int | None
    answered: int
    warnings: tuple[str, ...]
    usage: Mapping[str, Usage]
    flips: tuple[Flip, ...]
    sweeps: tuple[Sweep, ...]
    other_judge: Mapping[str, float]

    @property
    def complete(self) -> bool:
        """Whether every question of the run has an answer of every method."""
        whole = self.expected is None or self.answered >= self.expected
        return self.run.complete and not self.failures and whole


def gather(folders: Sequence[Path], settings: CompareSettings) -> tuple[Section, ...]:
    """Read and compute.

    Args:
        folders: of runs.
        settings: its baseline, if the run has it; otherwise the run's first method is the baseline.

    Raises:
        ValueError: a folder is not a run, a record is invalid or of an unknown method, a folder is
            given twice, or a run does not have the baseline.
    """
    if len({folder.resolve() for folder in folders}) != len(folders):
        raise ValueError("A run is given twice; allowed: each one once.")
    return tuple(_section(folder, settings) for folder in folders)


@dataclass
class _RecordPass:
    """The values that are kept from one pass over the records."""

    judged: dict[str, list[tuple[int, Judged]]] = field(default_factory=lambda: defaultdict(list))
    failures: list[Failure] = field(default_factory=list)
    warnings: Counter[str] = field(default_factory=Counter)
    sums: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    own_scores: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def take(self, record: AnswerRecord) -> None:
        if record.error is not None or record.score is None:
            reason = record.error or "It has no score."
            self.failures.append(Failure(record.question, record.method, reason))
            return
        # Details of flipped questions are read again.
        slim = record.judged()
        details = {k: v for k, v in slim.judgement.details.items() if k in _METRICS_NEED}
        judgement = replace(slim.judgement, details=details)
        self.judged[record.method].append((record.index, replace(slim, judgement=judgement)))
        if warning := record.details.get("warning"):
            self.warnings[str(warning)] += 1
        if isinstance(own_judgement := record.details.get("own"), dict):
            self.own_scores[record.method].append(float(own_judgement["score"]))
        sums = self.sums[record.method]
        sums["answered"] += 1
        sums["unparsable"] += record.extraction is None
        sums["cut"] += record.finish == "length"
        tokens = None if record.log_probabilities is None else len(record.log_probabilities)
        for name, value in (("tokens", tokens), *((n, getattr(record, n)) for n in _MEANS)):
            if value is not None:
                sums[name] += value
                sums[f"n {name}"] += 1


_METRICS_NEED = ("mentioned", "hallucinated")
_MEANS = ("seconds", "sinks", "rows_changed", "mass_moved")


def _section(folder: Path, settings: CompareSettings) -> Section:
    run = read_run(folder)
    reading = _RecordPass()
    for record in run.records():
        reading.take(record)
    methods = [one.name for one in run.config.methods]
    if strange := sorted({*reading.judged, *(one.method for one in reading.failures)} - {*methods}):
        raise ValueError(
            f"The run {folder} has records of {strange[0]!r}, which its {CONFIG} does not name; "
            f"allowed: {', '.join(methods)}."
        )
    answers = {
        name: [one for _, one in sorted(reading.judged.get(name, []), key=lambda pair: pair[0])]
        for name in methods
    }
    protocol = task_named(run.config.run.task).protocol(run.config.run.protocol)
    baseline = settings.baseline
    if baseline not in methods:
        if baseline != BASELINE:
            raise ValueError(
                f"baseline is {baseline!r}; the run {folder} has {', '.join(methods)}."
            )
        baseline = methods[0]
    controls = tuple((name, twin) for name in methods for twin in methods if _control(name, twin))
    comparison, reason = None, ""
    try:
        chosen = replace(settings, baseline=baseline, controls=(*settings.controls, *controls))
        comparison = compare(_metric(run, protocol), answers, chosen)
    except NothingToCompareError as error:
        reason = str(error)
    # A stopped session knows only the questions that it had read.
    questions = [
        summary.get("questions") if summary.get("ended", True) else None
        for summary in run.summaries
    ]
    known = len(questions) == len(run.files) and all(isinstance(n, int) for n in questions)
    warnings = [f"{text} ({n} answers)" for text, n in reading.warnings.items()]
    return Section(
        title=folder.resolve().name,
        run=run,
        protocol=protocol,
        comparison=comparison,
        reason=reason,
        failures=tuple(reading.failures),
        expected=sum(int(n or 0) for n in questions) if known else None,
        answered=len(comparison.questions) if comparison else 0,
        warnings=(*warnings, *_cautions(comparison)),
        usage={name: _usage(reading.sums[name]) for name in methods},
        flips=_flips(run, comparison),
        sweeps=sweeps(methods),
        other_judge={
            name: sum(scores) / len(scores)
            for name in methods
            if (scores := reading.own_scores.get(name))
        },
    )


def _metric(run: Run, protocol: Protocol) -> TallyMetric:
    """The protocol's metric; the mean score if another judge's results do not fit it."""
    metric = protocol.metric
    if run.config.run.judge not in (None, protocol.judge.name):
        graded = run.config.run.judge in ("vqa_accuracy", "anls")
        name = f"mean score by {run.config.run.judge}"
        return (
            metric if isinstance(metric, MacroByCategory) and not graded else Accuracy(name, graded)
        )
    if not isinstance(metric, TallyMetric):
        raise ValueError(f"The metric {metric.name} is none of `metrics.listed.METRICS`.")
    return metric


def _control(name: str, twin: str) -> bool:
    """Whether `twin` is the random control of `name`: "var keep=0.3" and "var-random keep=0.3"."""
    match = re.fullmatch(r"var((?:[ :].*)?)", name, re.DOTALL)
    return match is not None and twin == f"var-random{match[1]}"


def _usage(sums: Counter[str]) -> Usage:
    def mean(name: str) -> float | None:
        return sums[name] / sums[f"n {name}"] if sums[f"n {name}"] else None

    counts = (sums["answered"], sums["unparsable"], sums["cut"])
    means = [mean(name) for name in ("seconds", "tokens", "sinks", "rows_changed", "mass_moved")]
    return Usage(*counts, *means)


def _flips(run: Run, comparison: Comparison | None) -> tuple[Flip, ...]:
    if comparison is None:
        return ()
    baseline, questions = comparison.settings.baseline, set(comparison.questions)
    flips: list[Flip] = []
    # Records of one question are adjacent: one question is held at a time.
    for name, group in itertools.groupby(run.records(), key=lambda record: record.question):
        if name not in questions:
            continue
        records = {record.method: record for record in group}
        before = records.pop(baseline)
        flips += [Flip(before, after) for after in records.values() if after.score != before.score]
    order = {name: i for i, name in enumerate(comparison.methods)}
    return tuple(sorted(flips, key=lambda flip: (order[flip.after.method], flip.after.index)))


def sweeps(methods: Sequence[str]) -> tuple[Sweep, ...]:
    """Settings with two or more numeric values among methods that are otherwise the same."""
    groups: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for method in methods:
        for match in _VALUE.finditer(method):
            try:
                value = float(match[2])
            except ValueError:
                continue
            rest = " ".join((method[: match.start()] + method[match.end() :]).split())
            groups[rest, match[1]].append(Point(value, method))
    return tuple(
        Sweep(name, setting, tuple(sorted(points, key=lambda point: point.value)))
        for (name, setting), points in groups.items()
        if len(points) > 1
    )


def _cautions(comparison: Comparison | None) -> list[str]:
    if comparison is None:
        return []
    clusters = min((one.clusters for one in comparison.differences), default=FEW_CLUSTERS)
    if clusters >= FEW_CLUSTERS:
        return []
    return [
        f"Only {clusters} independent groups of questions: intervals of the bootstrap are too "
        f"short below {FEW_CLUSTERS}."
    ]
