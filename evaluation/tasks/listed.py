"""All tasks."""

from __future__ import annotations

from sinkscope.evaluation.tasks import (
    blink,
    chair,
    demo,
    gqa,
    jsonl,
    mme,
    mmvp,
    older,
    pope,
    sat,
    textvqa,
    vizwiz,
)
from sinkscope.evaluation.tasks.base import Task

TASKS: tuple[Task, ...] = (
    demo.TASK,
    jsonl.TASK,
    older.BLINK_TASK,
    older.SAT_TASK,
    blink.TASK,
    sat.TASK,
    pope.TASK,
    mmvp.TASK,
    textvqa.TASK,
    gqa.TASK,
    vizwiz.TASK,
    mme.TASK,
    chair.TASK,
)


def task_named(name: str) -> Task:
    """The task of this name.

    Raises:
        ValueError: there is none.
    """
    for task in TASKS:
        if task.name == name:
            return task
    raise ValueError(f"task is {name!r}; allowed: {', '.join(task.name for task in TASKS)}.")
