"""A process that works for this one, so that what it computes holds no lock of ours.

    helper = Helper("sinkscope.drawing.worker", "draws files")
    result = helper.do({"kind": "gif", ...}, **job.hooks)

It starts with the first task (or `start`), does several at once, and stays until `close`, until
this process ends, however it ends, or until it breaks: then the tasks under way say so, and the
next one starts another. It is a process of its own module and not one of `multiprocessing`,
which would run the user's main script once more in it. Tasks and answers are lines of JSON through
its standard input and output (`jobs.serving`), so nothing is pickled; large data goes as files.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sinkscope.jobs.job import Progress, Stopped

GRACE_SECONDS = 1.0  # for a task that was stopped, to end by itself
TICK_SECONDS = 0.1  # between two looks at `stop`

Answers = queue.Queue[dict[str, Any] | None]  # to one task; None: there will be none any more


class HelperLostError(RuntimeError):
    """The process could not be started, or has ended in the middle of a task."""


class HelperFailedError(RuntimeError):
    """The task failed in a way that nobody foresaw; the text has the other process's traceback."""


class Helper:
    """A process of a module, which `jobs.serving.serve`s.

    Args:
        module: is run as `python -m`, by this very Python and with its import path.
        does: what the process does, for texts: "The process that draws files has ended".
        environment: variables that are other than here.
    """

    def __init__(
        self, module: str, does: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self._module, self._does = module, does
        self._environment = dict(environment or {})
        self._lock = threading.Lock()
        self._process: _Process | None = None
        self._numbers = itertools.count()

    @property
    def pid(self) -> int | None:
        """Of the process that runs; None where none does."""
        process = self._process
        return process.popen.pid if process is not None and process.runs else None

    def start(self) -> None:
        """Start it, where it does not run; it is not waited for.

        Raises:
            HelperLostError: it cannot be started.
        """
        with self._lock:
            self._running()

    def do(
        self,
        task: Mapping[str, Any],
        on_progress: Progress | None = None,
        stop: threading.Event | None = None,
        what: str = "steps",
    ) -> Any:
        """Have a task done; other threads may have others done meanwhile.

        Args:
            task: plain values.
            on_progress: called with what the task reports, in this thread.
            stop: once set, the task is told. It is not waited for longer than a second, and ended
                with its process where no other task is under way.
            what: what the steps are.

        Returns:
            What the task gave, as JSON has it.

        Raises:
            ValueError, OSError: of the task.
            Stopped: `stop` was set before the task was finished.
            HelperLostError: the process could not be started, or has ended.
            HelperFailedError: any other error of the task.
        """
        if stop is not None and stop.is_set():
            raise Stopped(0, 1, what)
        number = next(self._numbers)
        process, answers = self._taken(number, task, stop, what)
        at, over, late = (0, 1), False, None
        try:
            while True:
                if late is None and stop is not None and stop.is_set():
                    late = time.monotonic() + GRACE_SECONDS
                    process.send({"stop": number})
                if late is not None and time.monotonic() > late:
                    raise Stopped(*at, what)
                try:
                    said = answers.get(timeout=TICK_SECONDS)
                except queue.Empty:
                    continue
                if said is None:
                    over = True
                    raise HelperLostError(self._lost(process))
                if "at" not in said:
                    over = True
                    return _outcome(said, what)
                done, total, text = said["at"]
                at = done, total
                if on_progress is not None:
                    on_progress(done, total, text)
        finally:
            with self._lock:
                others = process.forget(number)
                if not over:  # nobody waits for it any more
                    process.send({"stop": number}) if others else process.end()

    def close(self) -> None:
        """End the process, and the tasks under way with it. A later task starts another."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.end()

    def _taken(
        self, number: int, task: Mapping[str, Any], stop: threading.Event | None, what: str
    ) -> tuple[_Process, Answers]:
        """The process that has begun with the task, and where its answers come.

        One that was ending when it was looked at is nobody's error: another is started, once.
        """
        for _ in range(2):
            with self._lock:
                process = self._running()
                answers = process.expect(number)
                try:
                    sent = process.send({"task": number, "about": dict(task)})
                except BaseException:  # no plain values
                    process.forget(number)
                    raise
            if sent and self._begun(answers, stop):
                return process, answers
            with self._lock:
                others = process.forget(number)
                if stop is not None and stop.is_set():
                    process.send({"stop": number}) if others else process.end()
                    raise Stopped(0, 1, what)
                process.end()
        raise HelperLostError(self._lost(process))

    @staticmethod
    def _begun(answers: Answers, stop: threading.Event | None) -> bool:
        """Whether the task was begun; False where the process has ended, or the task is stopped."""
        while stop is None or not stop.is_set():
            with suppress(queue.Empty):
                return answers.get(timeout=TICK_SECONDS) is not None
        return False

    def _running(self) -> _Process:
        if self._process is None or not self._process.runs:
            if self._process is not None:
                self._process.end()
            try:
                self._process = _Process(self._module, self._environment)
            except OSError as error:
                raise HelperLostError(
                    f"The process that {self._does} cannot be started: {error.strerror or error}."
                ) from error
            # Also when nobody needs it any more, and when Python ends.
            self._process.end = weakref.finalize(self, _end, self._process.popen)
        return self._process

    def _lost(self, process: _Process) -> str:
        with suppress(subprocess.TimeoutExpired):
            process.popen.wait(GRACE_SECONDS)
        code = process.popen.returncode
        why = f"exit code {code}"
        if code is not None and code < 0:
            with suppress(ValueError):
                why = signal.Signals(-code).name
        full = ", perhaps because the memory was full" if why == "SIGKILL" else ""
        return (
            f"The process that {self._does} has ended ({why}{full}). Nothing was saved; please "
            "try again, which starts another."
        )


class _Process:
    """One process: what is written to it, and where its answers go. `end` ends it, at once."""

    end: Callable[[], Any]

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        # An empty entry stands for the working folder; that of the other process is the same.
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        self.popen = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if sys.__stderr__ is not None else subprocess.DEVNULL,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": path, **environment},
        )
        self._lock = threading.Lock()
        self._answers: dict[int, Answers] = {}
        self._over = False
        threading.Thread(target=self._read, name=f"reads {module}", daemon=True).start()

    @property
    def runs(self) -> bool:
        return not self._over and self.popen.poll() is None

    def expect(self, number: int) -> Answers:
        """Where the answers to a task will come."""
        answers: Answers = queue.Queue()
        with self._lock:
            self._answers[number] = answers
            if self._over:
                answers.put(None)
        return answers

    def forget(self, number: int) -> int:
        """The answers to a task are waited for no more; how many others are."""
        with self._lock:
            self._answers.pop(number, None)
            return len(self._answers)

    def send(self, message: Mapping[str, Any]) -> bool:
        """Whether the process still takes messages."""
        line = json.dumps(message)
        stdin = self.popen.stdin
        assert stdin is not None
        with self._lock:
            try:
                stdin.write(f"{line}\n")
                stdin.flush()
            except (OSError, ValueError):  # ValueError: closed
                return False
        return True

    def _read(self) -> None:
        stdout = self.popen.stdout
        assert stdout is not None
        with suppress(ValueError, OSError):  # closed, or what a dying process left of a line
            for line in stdout:
                said = json.loads(line)
                with self._lock:
                    answers = self._answers.get(said.pop("task"))
                if answers is not None:
                    answers.put(said)
        with self._lock:
            self._over = True
            waiting = list(self._answers.values())
        for answers in waiting:
            answers.put(None)


def _end(popen: subprocess.Popen[str]) -> None:
    popen.kill()  # it has nothing of its own: its files lie in folders of who asked for them
    popen.wait()
    for pipe in (popen.stdin, popen.stdout):
        if pipe is not None:
            with suppress(OSError, ValueError):
                pipe.close()


def _outcome(said: Mapping[str, Any], what: str) -> Any:
    """What a task gave; its error is raised here."""
    if "done" in said:
        return said["done"]
    if "stopped" in said:
        done, total, steps = said["stopped"]
        raise Stopped(done, total, steps or what)
    if "refused" in said:
        raise ValueError(said["refused"])
    if "system" in said:
        raise OSError(*said["system"])
    raise HelperFailedError(said["failed"])
