"""The other side of `jobs.helper`: a process that does tasks until its standard input ends.

A line of input is `{"task": n, "about": {...}}` or `{"stop": n}`; a line of output is
`{"task": n, ...}` with one of

    begun    true: the task was read, before all else
    at       [done, total, text]: progress
    done     the task's result: it is over, as with all that follow
    stopped  [done, total, what]; without `what` it had not begun
    refused  the text of a ValueError
    system   [errno, text] of an OSError
    failed   the traceback of any other error

A stop may come before its task or after its end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from sinkscope.jobs.job import Progress, Stopped

Do = Callable[[dict[str, Any], Progress, threading.Event], Any]


def serve(load: Callable[[], Do]) -> None:
    """Do tasks, each in its own thread, until standard input ends; this ends the process.

    Args:
        load: imports heavy modules and returns the function of a task (values, progress, stop),
            whose result is plain values.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent process
    # Text printed by a library would be read as an answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lock, stops = threading.Lock(), _Stops()
    loaded: list[Do] = []
    ready = threading.Event()

    def say(number: int, **what: Any) -> None:
        line = json.dumps({"task": number, **what})
        with lock:
            answers.write(f"{line}\n")
            answers.flush()

    def work(number: int, about: dict[str, Any]) -> None:
        ready.wait()
        stop = stops.of(number)
        try:
            if stop.is_set():
                raise Stopped(0, 1, "")
            say(number, done=loaded[0](about, lambda *at: say(number, at=at), stop))
        except Stopped as stopped:
            say(number, stopped=[stopped.done, stopped.total, stopped.what])
        except ValueError as error:
            say(number, refused=str(error))
        except OSError as error:
            say(number, system=[error.errno, error.strerror])
        except BaseException:
            say(number, failed=traceback.format_exc())
        finally:
            stops.drop(number)

    def read() -> None:
        for line in sys.stdin:
            message = json.loads(line)
            if "stop" in message:
                stops.set(message["stop"])
            else:
                number = message["task"]
                stops.of(number)
                say(number, begun=True)
                threading.Thread(target=work, args=(number, message["about"]), daemon=True).start()
        os._exit(0)  # the parent process is gone

    reader = threading.Thread(target=read, daemon=True)
    reader.start()  # at once, also while modules are loading
    loaded.append(load())
    ready.set()
    reader.join()


class _Stops:
    """The stop events of the running tasks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: dict[int, threading.Event] = {}

    def of(self, number: int) -> threading.Event:
        with self._lock:
            return self._events.setdefault(number, threading.Event())

    def set(self, number: int) -> None:
        with self._lock:
            if number in self._events:  # otherwise the task is over
                self._events[number].set()

    def drop(self, number: int) -> None:
        with self._lock:
            self._events.pop(number, None)
