"""The model that the page works with, and the line of people in front of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from sinkscope.config import ModelSettings
from sinkscope.models.loading import ModelHandle, load_model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SlotState:
    """What the page says about the model.

    Attributes:
        phase: `none`, `loading`, `ready` or `failed`.
        name: the model that is being loaded, that is there, or that could not be loaded.
        message: progress or failure in words.
        fraction: progress from 0 to 1.
        working: the model that runs use right now, which a failed load leaves as it was.
    """

    phase: str = "none"
    name: str = ""
    message: str = ""
    fraction: float = 0.0
    working: ModelHandle | None = None


class ModelSlot:
    """Loads models in the background; the one before stays in use until the new one is there."""

    def __init__(self, load: Callable[..., ModelHandle] = load_model) -> None:
        self._load = load
        self._changed = threading.Condition()
        self._state = SlotState()
        self._version = 0
        self._told: list[Callable[[], None]] = []

    def on_change(self, call: Callable[[], None]) -> None:
        """Call this whenever a load begins and whenever another model comes into use."""
        self._told.append(call)

    @property
    def handle(self) -> ModelHandle | None:
        return self.state.working

    @property
    def state(self) -> SlotState:
        with self._changed:
            return self._state

    def use(self, handle: ModelHandle) -> None:
        """Take a model that is loaded already."""
        self._set(SlotState("ready", handle.info.id, "Ready", 1.0, handle))
        self._tell()

    def load(self, settings: ModelSettings) -> bool:
        """Begin to load; False if another load is under way."""
        with self._changed:
            if self._state.phase == "loading":
                return False
            begun = SlotState("loading", settings.model, "Starting", 0.0, self._state.working)
            self._set(begun)
        self._tell()
        threading.Thread(target=self._work, args=(settings,), daemon=True).start()
        return True

    def wait(self, seen: int, timeout: float) -> tuple[int, SlotState]:
        """The state and its version number, as soon as the version is not `seen` any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != seen, timeout)
            return self._version, self._state

    def _tell(self) -> None:
        for call in self._told:
            call()

    def _set(self, state: SlotState) -> None:
        with self._changed:
            self._state = state
            self._version += 1
            self._changed.notify_all()

    def _work(self, settings: ModelSettings) -> None:
        def progress(text: str, fraction: float) -> None:
            self._set(replace(self.state, message=text, fraction=fraction))

        try:
            handle = self._load(settings, on_progress=progress)
        except ValueError as error:
            self._set(replace(self.state, phase="failed", message=str(error), fraction=0.0))
        except Exception:
            log.exception("loading %s failed", settings.model)
            words = "The model could not be loaded; the log of the app says why."
            self._set(replace(self.state, phase="failed", message=words, fraction=0.0))
        else:
            self.use(handle)


def why_no_model(state: SlotState) -> str:
    """What to say to somebody who starts a run while no model is there."""
    if state.phase == "loading":
        return f"The model is still loading ({state.message.lower()}). Try again in a moment."
    if state.phase == "failed":
        return f"There is no model: {state.message}"
    return "No model is loaded. Choose one under Model and press Load."


class LineIsFullError(ValueError):
    """Too many runs are waiting."""


class Line:
    """First come, first served; the page shows each one's place in it."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._waiting: list[object] = []
        self._changed = threading.Condition()

    @contextmanager
    def place(self) -> Iterator[Callable[[float], int]]:
        """A place in the line; call what it gives to learn how many are before it (0: your turn).

        Raises:
            LineIsFullError: more are waiting than is allowed.
        """
        ticket = object()
        with self._changed:
            if len(self._waiting) > self._longest:
                raise LineIsFullError(
                    f"{len(self._waiting)} runs are waiting already; try again in a little while."
                )
            self._waiting.append(ticket)

        def before(timeout: float) -> int:
            with self._changed:
                now = self._waiting.index(ticket)
                if now:
                    self._changed.wait_for(lambda: self._waiting.index(ticket) != now, timeout)
                return self._waiting.index(ticket)

        try:
            yield before
        finally:
            with self._changed:
                self._waiting.remove(ticket)
                self._changed.notify_all()


def turns(before: Callable[[float], int], stop: threading.Event) -> Iterator[int]:
    """How many are before a run in the line, each time that this has changed, until none is or the
    run was stopped."""
    told = -1
    while (position := before(0.5)) > 0 and not stop.is_set():
        if position != told:
            yield position
        told = position


class Stops(dict[str, threading.Event]):
    """The stop event of each browser session's run, for as long as the run is under way."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    @contextmanager
    def begun(self, session: str) -> Iterator[threading.Event]:
        """A run's stop event, set at the latest when the run is over, however it ends."""
        stop = threading.Event()
        with self._lock:
            self[session] = stop
        try:
            yield stop
        finally:
            stop.set()
            with self._lock:
                if self.get(session) is stop:  # the session may have begun another run
                    del self[session]

    def stop(self, session: str) -> None:
        """Stop this session's run, if there is one."""
        with self._lock:
            event = self.get(session)
        if event is not None:
            event.set()
