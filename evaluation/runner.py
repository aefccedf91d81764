"""A run: questions from the data, answers from the model, records into a folder as they come.

    prepared = prepare(config.run)  # refuses what is wrong without loading a model
    summary = evaluate(handle, config, prepared, folder)

Questions are read as a stream and forgotten when they are answered; memory grows only by one
integer per question. The folder records which are done: the same call continues after any
interruption.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sinkscope.config import GenerationSettings
from sinkscope.evaluation.base import Judge, Protocol
from sinkscope.evaluation.data import open_data
from sinkscope.evaluation.judges.listed import judge_named
from sinkscope.evaluation.judges.llm import LlmSettings, llm_judge
from sinkscope.evaluation.method_specs import MethodSpec
from sinkscope.evaluation.methods import Method, resolve
from sinkscope.evaluation.provenance import provenance
from sinkscope.evaluation.run_folder import RunFolder
from sinkscope.evaluation.session import Prepared, Session, Summary, items_of
from sinkscope.evaluation.settings import RunConfig, RunSettings, Shard
from sinkscope.evaluation.tasks.listed import task_named
from sinkscope.evaluation.work import Plan
from sinkscope.jobs.job import Progress
from sinkscope.models.loading import ModelHandle
from sinkscope.sinks.engine import Engine, LocalEngine
from sinkscope.utils import run_folder

DEMO = "demo"  # the name of the bundled model, whatever is in the working folder


def prepare(run: RunSettings) -> Prepared:
    """Look up task and protocol, open the data, read its first question.

    Raises:
        ValueError: an unknown name, data that cannot be read, has no questions or lacks a
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
    if next(items_of(prepared, run), None) is None:
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
    """Answer the remaining questions.

    Args:
        handle: the model; its lock is taken for one question at a time.
        config: of the run; missing values are filled in from model and data.
        prepared: from `prepare(config.run)`.
        folder: of the run: new, empty, or that of the same run.
        shard: answer only this part.
        retries: of a question whose error may be temporary.
        engine: where questions are answered; None: in this process.
        on_progress: called with questions done, in all (0: unknown), and a text.
        stop: once set, the run ends after the current few questions.

    Raises:
        Stopped: `stop` was set. What was answered is in the folder.
        ValueError: a method that does not fit the model, a folder that cannot be used, or too many
            questions in a row failed.
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
        session = Session(out, config, prepared, shard, total, on_progress)
        try:
            session.answer(engine or LocalEngine(handle), plan, stop)
        finally:
            out.write_summary(dataclasses.asdict(session.summary()))
        return session.summary()


def settled(
    config: RunConfig, methods: Sequence[Method], prepared: Prepared, handle: ModelHandle
) -> RunConfig:
    """The complete configuration, with absolute paths: the content of `run.toml`."""
    data = prepared.data
    return RunConfig(
        dataclasses.replace(
            config.run,
            data=_whole(config.run.data),
            images=_whole(config.run.images),
            data_revision=None if data is None else data.revision,
            model_revision=handle.info.revision,
        ),
        dataclasses.replace(
            config.model,
            model=config.model.model if config.model.model == DEMO else _whole(config.model.model),
            profile=_whole(config.model.profile),
            revision=_revision(handle),
            dtype=handle.info.dtype,  # type: ignore[arg-type]  # checked by the class
        ),
        tuple(
            MethodSpec(one.name, None if one.var is None else dataclasses.asdict(one.var))
            for one in methods
        ),
    )


def _plan(run: RunSettings, protocol: Protocol, methods: tuple[Method, ...], retries: int) -> Plan:
    settings = GenerationSettings(
        max_new_tokens=protocol.max_new_tokens,
        seed=run.seed,
        decoding=protocol.decoding,  # type: ignore[arg-type]  # checked by the class
    )
    bounds = (protocol.min_pixels, protocol.max_pixels)
    return Plan(methods, settings, *bounds, retries, run.batch_tokens)


def _judge(run: RunSettings, protocol: Protocol) -> Judge:
    if run.judge is None or run.judge == protocol.judge.name:
        return protocol.judge
    if run.judge == "llm":
        assert run.judge_model is not None
        cache = run_folder("cache") / "judge"
        return llm_judge(LlmSettings(run.judge_model, cache, run.judge_url))
    return judge_named(run.judge)


def _of_shard(total: int | None, shard: Shard) -> int:
    """The approximate number of questions of a shard; 0 if unknown."""
    return 0 if total is None else -(-total // shard.count)


def _whole(name: str | None) -> Any:
    """The absolute path of a file or folder; other names unchanged."""
    return str(Path(name).resolve()) if name is not None and Path(name).exists() else name


def _revision(handle: ModelHandle) -> str | None:
    """The value for `ModelSettings.revision`: a hub's commit; None for a folder, which has a
    fingerprint."""
    return None if ":" in handle.info.revision else handle.info.revision


def _check_model(run: RunSettings, handle: ModelHandle) -> None:
    if not handle.family.sees_images:
        raise ValueError(
            f"The model {handle.info.id} sees no images, and all tasks ask about images; give a "
            "vision-language model."
        )
    if run.model_revision not in (None, handle.info.revision):
        raise ValueError(
            f"The model {handle.info.id} is not the one that the run was made with: its revision "
            f"is {handle.info.revision}, and {run.model_revision} is wanted."
        )
