"""What the actions of a tab with jobs of its own have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Generic, TypeVar

import gradio as gr

from sinkscope.config import Settings
from sinkscope.jobs.job import Job
from sinkscope.jobs.runner import Runner
from sinkscope.web.runs.image_process import ImageProcess
from sinkscope.web.runs.job_values import Values, with_error_value
from sinkscope.web.runs.loaded_model import LoadedModel
from sinkscope.web.runs.store import new_id

Request = TypeVar("Request")


class TabHandlers:
    """A tab's actions, one object an app; `component` is what shows results, set by the tab.

    Args:
        settings: of this start.
        loaded: the model.
        runner: of the jobs of all tabs.
        images: what decodes uploads.
    """

    kind: ClassVar[str]  # of its jobs, that its Stop is for

    def __init__(
        self,
        settings: Settings,
        loaded: LoadedModel,
        runner: Runner,
        images: ImageProcess | None = None,
    ) -> None:
        self.settings, self.loaded, self.runner = settings, loaded, runner
        self.images = images or ImageProcess(settings.images)
        self.component: gr.HTML | None = None

    def stop(self, session: str) -> None:
        """End this browser's run after the step it is at."""
        self.runner.stop(session, self.kind)


class ResultHandlers(TabHandlers, Generic[Request]):
    """The actions of a tab of which each run is a result of its own."""

    what: ClassVar[str]  # a run, for the log: "finding sinks"

    def run(self, request: Request, session: str) -> Values:
        """Values for the component: queued, running, and at last ready, stopped or error.

        Raises:
            gr.Error: after the error value, so that callers of the API learn of it too.
        """
        run_id = new_id()
        values = self._run(request, run_id, self.runner.job(session, self.kind))
        yield from with_error_value(values, run_id, self.what)

    @abstractmethod
    def _run(self, request: Request, run_id: str, job: Job) -> Values:
        """The values of a run; what goes wrong is raised."""


def with_buttons(values: Iterable[dict[str, Any]]) -> Iterator[tuple[Any, Any, Any]]:
    """Each value, with Run or Stop to press."""
    busy = False
    for value in values:
        over = value["phase"] in ("ready", "stopped", "error")
        if over or not busy:
            yield value, gr.update(interactive=over), gr.update(interactive=not over)
            busy = not over
        else:
            yield value, gr.skip(), gr.skip()
