"""One session of a run: questions are read, passed to an engine, judged, written and counted."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sinkscope.evaluation.base import Faulty, Judge, Judgement, Protocol, Question
from sinkscope.evaluation.data import Data
from sinkscope.evaluation.method_specs import MethodSpec
from sinkscope.evaluation.record import AnswerRecord
from sinkscope.evaluation.run_folder import RunFolder
from sinkscope.evaluation.settings import MOST_SHARDS, RunConfig, RunSettings, Shard
from sinkscope.evaluation.tasks.base import Item, Task
from sinkscope.evaluation.work import Plan, Work, WorkResult, work
from sinkscope.jobs.job import Progress, Stopped
from sinkscope.sinks.engine import Engine
from sinkscope.utils import plain_values, sha256

MOST_TOGETHER = 8  # questions that a worker gets at once
MOST_IN_A_ROW = 50  # the run is given up after this many failed questions in a row
MOST_LISTED = 1000  # failures that a summary names; the records have them all
_ENDLESS = 2**62


@dataclass(frozen=True)
class Prepared:
    """The parts of a run before a model is loaded.

    Attributes:
        task, protocol, judge: as they are named in the settings.
        data: opened; None if the task needs none.
        total: maximum number of questions; None if unknown.
    """

    task: Task
    protocol: Protocol
    judge: Judge
    data: Data | None
    total: int | None


@dataclass(frozen=True)
class Summary:
    """The progress of a run (or its shard).

    Attributes:
        questions: their number; for an unfinished session (`ended`), the number read so far.
        answered: of them, by every method.
        failed: of them, with an error in place of a score.
        failures: question and error of the first `MOST_LISTED`.
        complete: whether all are answered and none failed.
        seconds: of this session.
        ended: whether the session read all of its questions.
    """

    questions: int
    answered: int
    failed: int
    failures: tuple[tuple[str, str], ...]
    complete: bool
    seconds: float
    ended: bool


@dataclass
class Session:
    """One session of a run: reads, distributes, judges, writes, counts."""

    out: RunFolder
    config: RunConfig
    prepared: Prepared
    shard: Shard
    total: int
    on_progress: Progress | None
    under_way: dict[int, list[tuple[int, Question]]] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)  # hashes of the ids
    questions: int = 0
    answered: int = 0
    failed: int = 0
    in_a_row: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    over: bool = False
    began: float = field(default_factory=time.perf_counter)

    def answer(self, engine: Engine, plan: Plan, stop: threading.Event | None) -> None:
        """Answer until there are no more questions."""
        items = _Stream(self._units(), self.total or _ENDLESS)
        results = engine.run(functools.partial(work, plan), items)
        try:
            for position, unit in results:
                for (index, question), done in zip(self.under_way.pop(position), unit, strict=True):
                    self._write(index, question, done)
                if stop is not None and stop.is_set():
                    raise Stopped(self.answered + self.failed, self.total, "questions")
        finally:
            if (close := getattr(results, "close", None)) is not None:
                close()
        self.over = True

    def summary(self) -> Summary:
        complete = self.over and not self.failed
        seconds = time.perf_counter() - self.began
        return Summary(
            self.questions,
            self.answered,
            self.failed,
            tuple(self.failures),
            complete,
            round(seconds, 3),
            self.over,
        )

    def _units(self) -> Iterator[tuple[Work, ...]]:
        """A few questions of one bucket together. The grouping depends only on the list of
        questions, not on shards or finished questions, so that the batches, and with them the last
        bits of every number, are always the same."""
        buckets: dict[int, list[tuple[int, Question, Work]]] = {}
        position = 0
        for bucket, index, question, given in self._waiting():
            unit = buckets.setdefault(bucket, [])
            unit.append((index, question, given))
            if len(unit) == MOST_TOGETHER:
                del buckets[bucket]
                if self._wanted(unit, position):
                    position += 1
                    yield tuple(work for _, _, work in unit)
        for unit in buckets.values():
            if self._wanted(unit, position):
                position += 1
                yield tuple(work for _, _, work in unit)

    def _wanted(self, unit: Sequence[tuple[int, Question, Work]], position: int) -> bool:
        """Whether some of it remains to be answered; it is then marked as in progress."""
        if all(index in self.out.done for index, _, _ in unit):
            return False
        self.under_way[position] = [(index, question) for index, question, _ in unit]
        return True

    def _waiting(self) -> Iterator[tuple[int, int, Question, Work]]:
        """Bucket, index and question of the shard; faulty rows are recorded."""
        protocol = self.prepared.protocol
        for index, item in enumerate(items_of(self.prepared, self.config.run)):
            # Before the shard is checked: two questions with one id may be in different shards.
            name = int(sha256(item.id.encode("utf-8", "surrogatepass"))[:16], 16)
            twice = name in self.seen
            self.seen.add(name)
            bucket = bucket_of(item.cluster)
            if bucket % self.shard.count != self.shard.number - 1:
                continue
            self.questions += 1
            if index in self.out.done:
                self._count(item.id, None)
            if twice:
                self._fault(index, item, f"The id {item.id} is in the data twice.")
            elif isinstance(item, Faulty):
                self._fault(index, item, item.reason)
            else:
                try:
                    prompt = protocol.prompt(item)
                except ValueError as error:
                    self._fault(index, item, str(error))
                    continue
                system = protocol.system if item.system is None else item.system
                yield bucket, index, item, Work(item.pictures, prompt, system)

    def _write(self, index: int, question: Question, done: WorkResult) -> None:
        if index in self.out.done:
            return
        records = [
            self._record(index, question, method, done, index_of_method)
            for index_of_method, method in enumerate(self.config.methods)
        ]
        self.out.append(records)
        self._count(question.id, next((one.error for one in records if one.error), None))

    def _fault(self, index: int, item: Item, reason: str) -> None:
        question = Question(item.id, "", (), None, (), item.category, item.cluster)
        self._write(index, question, WorkResult(error=reason))

    def _record(
        self,
        index: int,
        question: Question,
        method: MethodSpec,
        done: WorkResult,
        index_of_method: int,
    ) -> AnswerRecord:
        answer = done.answers[index_of_method] if done.answers else None
        judged, error = None, done.error
        if answer is not None:
            try:
                judged = judgement(self.prepared, question, answer.text)
            except ValueError as fault:
                error = str(fault)
        return AnswerRecord(
            task=self.prepared.task.name,
            protocol=self.prepared.protocol.name,
            question=question.id,
            index=index,
            method=method.name,
            prompt_hash=done.prompt_hash,
            answer=None if answer is None else answer.text,
            extraction=None if judged is None else judged.extraction,
            score=None if judged is None else float(judged.score),
            details={} if judged is None else plain_values(judged.details, "details"),
            truth=plain_values(question.truth, "truth"),
            category=question.category,
            cluster=question.cluster,
            fields=plain_values(question.fields, "fields"),
            log_probabilities=None if answer is None else answer.log_probabilities,
            finish=None if answer is None else answer.finish_reason,
            sinks=None if answer is None else answer.sinks,
            rows_changed=None if answer is None else answer.rows_changed,
            mass_moved=None if answer is None else answer.mass_moved,
            seconds=None if answer is None else answer.seconds,
            error=error,
            host=done.host,
        )

    def _count(self, name: str, error: str | None) -> None:
        if error is None:
            self.answered += 1
            self.in_a_row = 0
        else:
            self.failed += 1
            self.in_a_row += 1
            if len(self.failures) < MOST_LISTED:
                self.failures.append((name, error))
        if self.on_progress is not None:
            failed = f"{self.failed} failed" if self.failed else ""
            self.on_progress(self.answered + self.failed, self.total, failed)
        if self.in_a_row >= MOST_IN_A_ROW:
            raise ValueError(
                f"{MOST_IN_A_ROW} questions in a row failed, the last one: {error} The run was "
                "given up; what was answered is kept."
            )


class _Stream(Sequence[tuple[Work, ...]]):
    """A sequence that is read once: an engine distributes its items as workers request them."""

    def __init__(self, items: Iterator[tuple[Work, ...]], most: int) -> None:
        self._items, self._most = items, most

    def __len__(self) -> int:
        return self._most

    def __iter__(self) -> Iterator[tuple[Work, ...]]:
        return self._items

    def __getitem__(self, index: Any) -> Any:
        raise TypeError("Questions are a stream; they are read one after the other.")


def judgement(prepared: Prepared, question: Question, answer: str) -> Judgement:
    """The judgement; if the judge is not the protocol's own, that one's is kept as well.

    Raises:
        ValueError: the question cannot be judged.
    """
    result = prepared.judge.judge(answer, question)
    protocol_judge = prepared.protocol.judge
    if prepared.judge is protocol_judge:
        return result
    beside = protocol_judge.judge(answer, question)
    ours = {"judge": protocol_judge.name, "score": beside.score, "extraction": beside.extraction}
    return dataclasses.replace(result, details={**result.details, "own": ours})


def bucket_of(cluster: str) -> int:
    """Which of `MOST_SHARDS` buckets a cluster belongs to, by a hash of its name."""
    return int(sha256(cluster.encode("utf-8", "surrogatepass"))[:15], 16) % MOST_SHARDS


def items_of(prepared: Prepared, run: RunSettings) -> Iterator[Item]:
    """Questions and faulty rows, in the data's order, of the requested parts, up to the limit. A
    damaged row of unknown part is included."""
    items = prepared.task.read(prepared.data)
    if run.parts:
        wanted = {*run.parts}
        items = (
            item
            for item in items
            if item.category in wanted or (isinstance(item, Faulty) and not item.category)
        )
    return itertools.islice(items, run.limit)
