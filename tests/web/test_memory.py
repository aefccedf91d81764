"""Free memory is returned to the system when nobody waits, and only then."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sinkscope.web.server import memory
from sinkscope.web.server.memory import BUSY_SECONDS, GROWN, MemoryReturner


class App:
    """Bytes that a process holds, and how often it gave memory back."""

    def __init__(self) -> None:
        self.held, self.given, self.busy, self.now = 10 * GROWN, 0, False, 0.0

    def give(self) -> None:
        self.given += 1
        self.held = 8 * GROWN


def test_when_it_is_worth_it_and_nobody_waits() -> None:
    app = App()
    returning = MemoryReturner(lambda: app.busy, lambda: app.held, app.give, lambda: app.now)
    assert returning.look() and app.given == 1  # memory left over from loading
    assert not returning.look()
    app.held += GROWN - 1
    assert not returning.look()
    app.held, app.busy = app.held + 1, True
    assert not returning.look()
    app.busy = False
    assert returning.look() and app.given == 2
    app.held, app.busy = 20 * GROWN, True  # and nobody is ever idle
    app.now += BUSY_SECONDS - 1
    assert not returning.look()
    app.now += 1
    assert returning.look() and app.given == 3


def test_without_glibc_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    memory._trim.cache_clear()
    try:
        memory.give_back()
        assert memory._trim() is None
    finally:
        memory._trim.cache_clear()


SCRIPT = """
import threading
from sinkscope.web.server.memory import give_back, resident

kept = []

def job():  # small pieces in an arena of its own thread, of which a few stay in use
    pieces = [bytes(40_000) for _ in range(2000)]
    kept.extend(pieces[::200])

threads = [threading.Thread(target=job) for _ in range(4)]
for one in threads:
    one.start()
for one in threads:
    one.join()
before = resident()
give_back()
print(before - resident())
"""


@pytest.mark.skipif(memory._trim() is None, reason="the C library has no malloc_trim")
def test_what_threads_have_freed_goes_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True
    )
    assert int(done.stdout) > 20_000_000
