"""The software and hardware of a run, so that it can be repeated or a difference explained."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from typing import Any

from sinkscope.evaluation.base import Judge, Protocol
from sinkscope.evaluation.data import Data
from sinkscope.evaluation.methods import Method
from sinkscope.evaluation.tasks.base import Task
from sinkscope.models.loading import ModelHandle
from sinkscope.utils import PROJECT, plain_values

LIBRARIES = (
    *("sinkscope", "torch", "transformers", "tokenizers", "safetensors"),
    *("pillow", "numpy", "datasets", "pyarrow", "ray"),
)


def provenance(
    task: Task,
    protocol: Protocol,
    judge: Judge,
    data: Data | None,
    handle: ModelHandle,
    methods: tuple[Method, ...],
) -> dict[str, Any]:
    """Plain values; `session` differs each time a run is resumed."""
    profile = None if handle.profile is None else dataclasses.asdict(handle.profile)
    values = {
        "task": {"name": task.name, "about": task.about},
        "protocol": {
            "name": protocol.name,
            "note": protocol.note,
            "system": protocol.system,
            "max_new_tokens": protocol.max_new_tokens,
            "min_pixels": protocol.min_pixels,
            "max_pixels": protocol.max_pixels,
            "decoding": protocol.decoding,
            "judge": judge.name,
            "own_judge": protocol.judge.name,
            "metric": protocol.metric.name,
        },
        "data": None
        if data is None
        else {
            "name": data.name,
            "revision": data.revision,
            "tables": [str(table) for table in data.tables],
        },
        "model": dataclasses.asdict(handle.info),
        "profile": profile,
        "methods": [
            {"name": one.name, "var": None if one.var is None else dataclasses.asdict(one.var)}
            for one in methods
        ],
        "session": {
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": ["sinkscope", *sys.argv[1:]],  # however it was started
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
            "libraries": versions(),
            "git": git_state(),
            **host(handle),
        },
    }
    return dict(plain_values(values))


def host(handle: ModelHandle) -> dict[str, Any]:
    """The machine and process of an answer: `AnswerRecord.host`."""
    return {"name": socket.gethostname(), "process": os.getpid(), "device": str(handle.device)}


def versions() -> dict[str, str | None]:
    """Versions of the libraries used; None for one that is not installed."""
    result: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            result[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            result[name] = None
    return result


def git_state() -> dict[str, Any] | None:
    """Commit of the code, and whether files differ from it; None outside a clone."""

    def say(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(PROJECT), *arguments],
                capture_output=True,
                text=True,
                check=False,
                timeout=10,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not (PROJECT / ".git").exists() or (commit := say("rev-parse", "HEAD")) is None:
        return None
    return {"commit": commit, "changed": bool(say("status", "--porcelain", "-uno"))}
