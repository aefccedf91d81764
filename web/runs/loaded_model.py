"""The model that the page uses."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from sinkscope.config import ModelSettings
from sinkscope.models.loading import ModelHandle, load_model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadState:
    """What the page shows about the model.

    Attributes:
        phase: `none`, `loading`, `ready` or `failed`.
        name: the model that is loading, is loaded, or could not be loaded.
        message: progress or failure in words.
        fraction: progress from 0 to 1.
        working: the model that runs use now; a failed load does not change it.
    """

    phase: str = "none"
    name: str = ""
    message: str = ""
    fraction: float = 0.0
    working: ModelHandle | None = None


class LoadedModel:
    """Loads models in the background; the previous one stays in use until the new one is loaded."""

    def __init__(self, load: Callable[..., ModelHandle] = load_model) -> None:
        self._load = load
        self._changed = threading.Condition()
        self._state = LoadState()
        self._version = 0
        self._told: list[Callable[[], None]] = []

    def on_change(self, call: Callable[[], None]) -> None:
        """Call this whenever a load begins and whenever another model comes into use."""
        self._told.append(call)

    @property
    def handle(self) -> ModelHandle | None:
        return self.state.working

    @property
    def state(self) -> LoadState:
        with self._changed:
            return self._state

    def use(self, handle: ModelHandle) -> None:
        """Use a model that is already loaded."""
        self._set(LoadState("ready", handle.info.id, "Ready", 1.0, handle))
        self._tell()

    def load(self, settings: ModelSettings) -> bool:
        """Start loading; False if another load is in progress."""
        with self._changed:
            if self._state.phase == "loading":
                return False
            starting = LoadState("loading", settings.model, "Starting", 0.0, self._state.working)
            self._set(starting)
        self._tell()
        threading.Thread(target=self._work, args=(settings,), daemon=True).start()
        return True

    def wait(self, seen: int, timeout: float) -> tuple[int, LoadState]:
        """The state and its version number, as soon as the version differs from `seen`."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != seen, timeout)
            return self._version, self._state

    def _tell(self) -> None:
        for call in self._told:
            call()

    def _set(self, state: LoadState) -> None:
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
        except BaseException:  # even an exit: the page must not wait for ever
            log.exception("loading %s failed", settings.model)
            words = "The model could not be loaded; the log of the app says why."
            self._set(replace(self.state, phase="failed", message=words, fraction=0.0))
        else:
            self.use(handle)


def why_no_model(state: LoadState) -> str:
    """The message for a user who starts a run while no model is loaded."""
    if state.phase == "loading":
        return f"The model is still loading ({state.message.lower()}). Try again in a moment."
    if state.phase == "failed":
        return f"There is no model: {state.message}"
    return "No model is loaded. Choose one under Model and press Load."
