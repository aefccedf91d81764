"""A helper process, so that its work does not hold this process's interpreter lock.

    helper = Helper("sinkscope.drawing.worker", "draws files")
    result = helper.do({"kind": "gif", ...}, **job.hooks)

It starts with the first task (or `start`), runs several at once, and stays until `close`, until
this process ends in any way, or until it crashes: then its current tasks raise an error, and the
next one starts another process. It runs a module with `python -m`, not `multiprocessing`, which
would run the user's main script again. Tasks and answers are lines of JSON through its standard
input and output (`jobs.serving`), so nothing is pickled; large data is passed as files.
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

GRACE_SECONDS = 1.0  # for a stopped task to end by itself
TICK_SECONDS = 0.1  # between two checks of `stop`

Answers = queue.Queue[dict[str, Any] | None]  # to one task; None: no more will come


class HelperLostError(RuntimeError):
    """The process could not be started, or has ended in the middle of a task."""


class HelperFailedError(RuntimeError):
    """The task failed unexpectedly; the text has the helper's traceback."""


class Helper:
    """A process that runs a module with `jobs.serving.serve`.

    Args:
        module: run with `python -m`, by the same Python and with its import path.
        does: what the process does, for texts: "The process that draws files has ended".
        environment: variables that differ from this process.
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
        """Process id of the running helper, or None."""
        process = self._process
        return process.popen.pid if process is not None and process.runs else None

    def start(self) -> None:
        """Start it if it does not run, without waiting.

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
        """Run a task; other threads may run others meanwhile.

        Args:
            task: plain values.
            on_progress: called with what the task reports, in this thread.
            stop: once set, the task is asked to stop. After a second it is abandoned, and its
                process is ended if no other task is running.
            what: what the steps are.

        Returns:
            The task's result, as JSON returns it.

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
                    message = answers.get(timeout=TICK_SECONDS)
                except queue.Empty:
                    continue
                if message is None:
                    over = True
                    raise HelperLostError(self._lost(process))
                if "at" not in message:
                    over = True
                    return _outcome(message, what)
                done, total, text = message["at"]
                at = done, total
                if on_progress is not None:
                    on_progress(done, total, text)
        finally:
            with self._lock:
                others = process.forget(number)
                if not over:  # it is no longer waited for
                    process.send({"stop": number}) if others else process.end()

    def close(self) -> None:
        """End the process with its running tasks. A later task starts another."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.end()

    def _taken(
        self, number: int, task: Mapping[str, Any], stop: threading.Event | None, what: str
    ) -> tuple[_Process, Answers]:
        """The process that has begun the task, and the queue of its answers.

        If the process was just ending, another is started, once.
        """
        for _ in range(2):
            with self._lock:
                process = self._running()
                answers = process.expect(number)
                try:
                    sent = process.send({"task": number, "about": dict(task)})
                except BaseException:  # not plain values
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
            # Also when the object is garbage-collected, and when Python ends.
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
    """One process with its input and the queues of its answers. `end` ends it at once."""

    end: Callable[[], Any]

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        # An empty entry means the working folder, which is the same for the helper.
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
        """The queue for the answers to a task."""
        answers: Answers = queue.Queue()
        with self._lock:
            self._answers[number] = answers
            if self._over:
                answers.put(None)
        return answers

    def forget(self, number: int) -> int:
        """Stop waiting for a task; returns the number of other tasks."""
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
        with suppress(ValueError, OSError):  # closed, or an incomplete line of a dying process
            for line in stdout:
                message = json.loads(line)
                with self._lock:
                    answers = self._answers.get(message.pop("task"))
                if answers is not None:
                    answers.put(message)
        with self._lock:
            self._over = True
            waiting = list(self._answers.values())
        for answers in waiting:
            answers.put(None)


def _end(popen: subprocess.Popen[str]) -> None:
    popen.kill()  # it has no files of its own: they are in the callers' folders
    popen.wait()
    for pipe in (popen.stdin, popen.stdout):
        if pipe is not None:
            with suppress(OSError, ValueError):
                pipe.close()


def _outcome(message: Mapping[str, Any], what: str) -> Any:
    """The result of a task; its error is raised here."""
    if "done" in message:
        return message["done"]
    if "stopped" in message:
        done, total, steps = message["stopped"]
        raise Stopped(done, total, steps or what)
    if "refused" in message:
        raise ValueError(message["refused"])
    if "system" in message:
        raise OSError(*message["system"])
    raise HelperFailedError(message["failed"])
