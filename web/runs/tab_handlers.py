"""What the actions of tabs with jobs have in common."""

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
    """A tab's actions; one object per app. The tab sets `component`, which shows results.

    Args:
        settings: settings of this start.
        loaded: the model.
        runner: runs the jobs of all tabs.
        images: decodes uploads.
    """

    kind: ClassVar[str]  # kind of its jobs, which its Stop ends

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
        """End this session's run after its current step."""
        self.runner.stop(session, self.kind)


class ResultHandlers(TabHandlers, Generic[Request]):
    """The actions of a tab in which each run gives one result."""

    what: ClassVar[str]  # name of a run in the log, such as "finding sinks"

    def run(self, request: Request, session: str) -> Values:
        """Values for the component: queued, running, and at last ready, stopped or error.

        Raises:
            gr.Error: after the error value, so that callers of the API receive it too.
        """
        run_id = new_id()
        values = self._run(request, run_id, self.runner.job(session, self.kind))
        yield from with_error_value(values, run_id, self.what)

    @abstractmethod
    def _run(self, request: Request, run_id: str, job: Job) -> Values:
        """The values of a run; errors are raised."""


def with_buttons(values: Iterable[dict[str, Any]]) -> Iterator[tuple[Any, Any, Any]]:
    """Each value, with the states of the buttons Run and Stop."""
    busy = False
    for value in values:
        over = value["phase"] in ("ready", "stopped", "error")
        if over or not busy:
            yield value, gr.update(interactive=over), gr.update(interactive=not over)
            busy = not over
        else:
            yield value, gr.skip(), gr.skip()
