"""A run: questions from the data, answers from the model, records into a folder as they come.

    prepared = prepare(config.run)  # refuses what can be refused without a model
    summary = evaluate(handle, config, prepared, folder)

Questions are read as a stream and forgotten when they are answered; all that grows with their
number is one whole number each. The folder says which are done already: the same call goes on after
any interruption.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sinkscope.config import GenerationSettings
from sinkscope.evaluation.base import Faulty, Judge, Judgement, Protocol, Question
from sinkscope.evaluation.data import Data, open_data
from sinkscope.evaluation.judges.listed import judge_named
from sinkscope.evaluation.judges.llm import LlmSettings, llm_judge
from sinkscope.evaluation.methods import Method, Wanted, resolve
from sinkscope.evaluation.provenance import provenance
from sinkscope.evaluation.record import AnswerRecord
from sinkscope.evaluation.run_folder import RunFolder
from sinkscope.evaluation.settings import RunConfig, RunSettings, Shard
from sinkscope.evaluation.tasks.base import Item, Task
from sinkscope.evaluation.tasks.listed import task_named
from sinkscope.evaluation.work import Done, Plan, Work, work
from sinkscope.models.loading import ModelHandle
from sinkscope.sinks.engine import Engine, LocalEngine
from sinkscope.sinks.progress import Progress, Stopped
from sinkscope.utils import plain_values, run_folder, sha256

MOST_IN_A_ROW = 50  # questions that fail one after the other until the run is given up
MOST_LISTED = 1000  # failures that a summary names; the records have them all
_ENDLESS = 2**62


@dataclass(frozen=True)
class Prepared:
    """What a run is made of, before there is a model.

    Attributes:
        task, protocol, judge: as they are named in the settings.
        data: opened; None where the task needs none.
        total: how many questions there will be at most; None where nobody knows yet.
    """

    task: Task
    protocol: Protocol
    judge: Judge
    data: Data | None
    total: int | None


@dataclass(frozen=True)
class Summary:
    """How far a run (or its shard) has come.

    Attributes:
        questions: how many it has.
        answered: of them, by every method.
        failed: of them, with an error in place of a score.
        failures: question and error of the first `MOST_LISTED`.
        complete: whether all are there and none failed.
        seconds: of this session.
    """

    questions: int
    answered: int
    failed: int
    failures: tuple[tuple[str, str], ...]
    complete: bool
    seconds: float


def prepare(run: RunSettings) -> Prepared:
    """Look up task and protocol, open the data, read its first question.

    Raises:
        ValueError: a name that there is not, data that cannot be read, has no questions or lacks a
            column, or an endless task without a limit.
    """
    task = task_named(run.task)
    protocol = task.protocol(run.protocol)
    judge = _judge(run, protocol)
    if task.endless and run.limit is None:
        raise ValueError(f"The task {task.name} has no end; give a limit (--limit 1000).")
    if unknown := [part for part in run.parts if task.parts and part not in task.parts]:
        raise ValueError(
            f"parts has {unknown[0]!r}; the task {task.name} has {', '.join(task.parts)}."
        )
    data, total = None, run.limit
    if task.tables:
        named = {table.configuration for table in task.tables}
        wanted = task.tables
        if run.parts and named.issuperset(run.parts):
            wanted = tuple(table for table in task.tables if table.configuration in run.parts)
        images = None if run.images is None else Path(run.images)
        data = open_data(run.data, task.hub, wanted, images, run.data_revision, task.data)
        count = data.count([table for table in wanted if table not in task.joined])
        if count is not None and (not run.parts or wanted != task.tables):
            total = count if run.limit is None else min(count, run.limit)
    elif run.data is not None or run.images is not None:
        raise ValueError(f"data is given, but the task {task.name} needs none.")
    prepared = Prepared(task, protocol, judge, data, total)
    if next(_items(prepared, run), None) is None:
        among = f" among the parts {', '.join(run.parts)}" if run.parts else ""
        raise ValueError(f"The data {run.data or task.name} has no questions{among}.")
    return prepared


def evaluate(
    handle: ModelHandle,
    config: RunConfig,
    prepared: Prepared,
    folder: Path,
    *,
    shard: Shard | None = None,
    retries: int = 1,
    engine: Engine | None = None,
    on_progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Summary:
    """Answer what is not answered yet.

    Args:
        handle: the model; its lock is taken for one question at a time.
        config: what makes the run; what it leaves open is filled in from model and data.
        prepared: from `prepare(config.run)`.
        folder: of the run: new, empty, or that of the same run.
        shard: answer this part alone.
        retries: of a question whose error may pass.
        engine: where questions are answered; None: here.
        on_progress: called with questions done, in all (0: unknown), and a text.
        stop: once set, the run ends after the question it is at.

    Raises:
        Stopped: `stop` was set. What was answered is in the folder.
        ValueError: a method that does not fit the model, a folder that cannot be used, or so many
            questions in a row failed that the rest would too.
    """
    _check_model(config.run, handle)
    methods = resolve(config.methods, handle.profile, handle.info)
    config = settled(config, methods, prepared, handle)
    plan = _plan(config.run, prepared.protocol, methods, retries)
    shard = shard or Shard()
    total = _of_shard(prepared.total, shard)
    with RunFolder(folder, config, shard) as out:
        made_with = provenance(
            prepared.task, prepared.protocol, prepared.judge, prepared.data, handle, methods
        )
        out.note_session(made_with)
        session = _Session(out, config, prepared, shard, total, on_progress)
        try:
            session.answer(engine or LocalEngine(handle), plan, stop)
        finally:
            out.write_summary(dataclasses.asdict(session.summary()))
        return session.summary()


def settled(
    config: RunConfig, methods: Sequence[Method], prepared: Prepared, handle: ModelHandle
) -> RunConfig:
    """The configuration with nothing left open: what `run.toml` has."""
    data = prepared.data
    return RunConfig(
        dataclasses.replace(
            config.run,
            data_revision=None if data is None else data.revision,
            model_revision=handle.info.revision,
        ),
        dataclasses.replace(
            config.model,
            revision=_revision(handle),
            dtype=handle.info.dtype,  # type: ignore[arg-type]
        ),
        tuple(
            Wanted(one.name, None if one.var is None else dataclasses.asdict(one.var))
            for one in methods
        ),
    )


@dataclass
class _Session:
    """One session of a run: reads, hands out, judges, writes, counts."""

    out: RunFolder
    config: RunConfig
    prepared: Prepared
    shard: Shard
    total: int
    on_progress: Progress | None
    under_way: dict[int, tuple[int, Question]] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)  # hashes of the ids
    questions: int = 0
    answered: int = 0
    failed: int = 0
    in_a_row: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    over: bool = False
    began: float = field(default_factory=time.perf_counter)

    def answer(self, engine: Engine, plan: Plan, stop: threading.Event | None) -> None:
        """Until there are no more questions."""
        items = _Stream(self._waiting(), self.total or _ENDLESS)
        results = engine.run(functools.partial(work, plan), items)
        try:
            for position, done in results:
                self._write(*self.under_way.pop(position), done)
                if stop is not None and stop.is_set():
                    raise Stopped(self.answered + self.failed, self.total)
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
        )

    def _waiting(self) -> Iterator[Work]:
        """The questions that are still to be asked, each noted as under way; faults of the data are
        recorded in passing."""
        protocol, position = self.prepared.protocol, 0
        for index, item in enumerate(_items(self.prepared, self.config.run)):
            if not in_shard(item.cluster, self.shard):
                continue
            self.questions += 1
            name = int(sha256(item.id.encode("utf-8", "surrogatepass"))[:16], 16)
            twice = name in self.seen
            self.seen.add(name)
            if index in self.out.done:
                self._count(index, item.id, None)
            elif twice:
                self._fault(index, item, f"The id {item.id} stands in the data twice.")
            elif isinstance(item, Faulty):
                self._fault(index, item, item.reason)
            else:
                try:
                    prompt = protocol.prompt(item)
                except ValueError as error:
                    self._fault(index, item, str(error))
                    continue
                self.under_way[position] = (index, item)
                position += 1
                system = protocol.system if item.system is None else item.system
                yield Work(item.pictures, prompt, system)

    def _write(self, index: int, question: Question, done: Done) -> None:
        records = [
            self._record(index, question, method, done, place)
            for place, method in enumerate(self.config.methods)
        ]
        self.out.append(records)
        self._count(index, question.id, next((one.error for one in records if one.error), None))

    def _fault(self, index: int, item: Item, reason: str) -> None:
        question = Question(item.id, "", (), None, (), item.category, item.cluster)
        self._write(index, question, Done(error=reason))

    def _record(
        self, index: int, question: Question, method: Wanted, done: Done, place: int
    ) -> AnswerRecord:
        answer = done.answers[place] if done.answers else None
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
            finish=None if answer is None else answer.finish,
            sinks=None if answer is None else answer.sinks,
            rows_changed=None if answer is None else answer.rows_changed,
            mass_moved=None if answer is None else answer.mass_moved,
            seconds=None if answer is None else answer.seconds,
            error=error,
            host=done.host,
        )

    def _count(self, index: int, name: str, error: str | None) -> None:
        if error is None:
            self.answered += 1
            self.in_a_row = 0
        else:
            self.failed += 1
            self.in_a_row += 1
            if len(self.failures) < MOST_LISTED:
                self.failures.append((name, error))
        if self.on_progress is not None:
            said = f"{self.failed} failed" if self.failed else ""
            self.on_progress(self.answered + self.failed, self.total, said)
        if self.in_a_row >= MOST_IN_A_ROW:
            raise ValueError(
                f"{MOST_IN_A_ROW} questions in a row failed, the last one: {error} The run was "
                "given up; what was answered is kept."
            )


class _Stream(Sequence[Work]):
    """A sequence to be read once: an engine hands out its items as workers ask for them."""

    def __init__(self, items: Iterator[Work], most: int) -> None:
        self._items, self._most = items, most

    def __len__(self) -> int:
        return self._most

    def __iter__(self) -> Iterator[Work]:
        return self._items

    def __getitem__(self, index: Any) -> Any:
        raise TypeError("Questions are a stream; they are read one after the other.")


def judgement(prepared: Prepared, question: Question, answer: str) -> Judgement:
    """The judge's word; where it is not the protocol's own judge, that one's is kept beside it.

    Raises:
        ValueError: the question cannot be judged.
    """
    made = prepared.judge.judge(answer, question)
    own = prepared.protocol.judge
    if prepared.judge is own:
        return made
    beside = own.judge(answer, question)
    ours = {"judge": own.name, "score": beside.score, "extraction": beside.extraction}
    return dataclasses.replace(made, details={**made.details, "own": ours})


def in_shard(cluster: str, shard: Shard) -> bool:
    """Whether a cluster belongs to a shard: by a hash of its name, so that it stays whole."""
    if shard.count == 1:
        return True
    number = int(sha256(cluster.encode("utf-8", "surrogatepass"))[:15], 16)
    return number % shard.count == shard.number - 1


def _items(prepared: Prepared, run: RunSettings) -> Iterator[Item]:
    """Questions and faulty rows, in the data's order, of the wanted parts, up to the limit."""
    found = prepared.task.read(prepared.data)
    if run.parts:
        found = (item for item in found if item.category in run.parts)
    return itertools.islice(found, run.limit)


def _plan(run: RunSettings, protocol: Protocol, methods: tuple[Method, ...], retries: int) -> Plan:
    settings = GenerationSettings(
        max_new_tokens=protocol.max_new_tokens,
        seed=run.seed,
        decoding=protocol.decoding,  # type: ignore[arg-type]
    )
    return Plan(methods, settings, protocol.min_pixels, protocol.max_pixels, retries)


def _judge(run: RunSettings, protocol: Protocol) -> Judge:
    if run.judge is None or run.judge == protocol.judge.name:
        return protocol.judge
    if run.judge == "llm":
        assert run.judge_model is not None
        cache = run_folder("cache") / "judge"
        return llm_judge(LlmSettings(run.judge_model, cache, run.judge_url))
    return judge_named(run.judge)


def _of_shard(total: int | None, shard: Shard) -> int:
    """How many questions a shard has, about; 0 where nobody knows."""
    return 0 if total is None else -(-total // shard.count)


def _revision(handle: ModelHandle) -> str | None:
    """What `ModelSettings.revision` takes: a hub's commit. A folder has a fingerprint, and none."""
    return None if ":" in handle.info.revision else handle.info.revision


def _check_model(run: RunSettings, handle: ModelHandle) -> None:
    if run.model_revision not in (None, handle.info.revision):
        raise ValueError(
            f"The model {handle.info.id} is not the one that the run was made with: its revision "
            f"is {handle.info.revision}, and {run.model_revision} is wanted."
        )
