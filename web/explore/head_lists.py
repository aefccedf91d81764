"""Lists of heads in the Explore tab: found in the run on screen, read from a file, written as one.

The inspector triggers an event, which waits in the queue as files do (it needs no model), and is
streamed back in values of phase "heads". A file that the browser has read is checked by a server
function: it must be a list of the run's model, with heads that the run kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from sinkscope.jobs.job import Stopped
from sinkscope.jobs.runner import Done
from sinkscope.methods.head_list import NAMES, HeadList
from sinkscope.methods.heads import found_heads
from sinkscope.web.explore.handlers import EXPIRED, Handlers
from sinkscope.web.runs.job_values import Values, inspector_event, with_error_words
from sinkscope.web.runs.pairs import find_run
from sinkscope.web.runs.store import Run

HEADS = "heads"  # the kind of job
UNREAD = "The list of heads cannot be read; please reload the page."


class HeadLists:
    """The event and the server function."""

    def __init__(self, handlers: Handlers) -> None:
        self.handlers = handlers

    def read_heads(self, ask: Any) -> dict[str, Any]:
        """Server function: the heads in the text of a file, for the run on screen."""
        try:
            ask = ask if isinstance(ask, Mapping) else {}
            text = ask.get("text")
            if not isinstance(text, str):
                raise ValueError(UNREAD)
            name = ask.get("name")
            name = name[:80] if isinstance(name, str) and name.strip() else "The file"
            return head_list_value(HeadList.read(text, name), self._run(ask))
        except ValueError as error:
            return {"error": str(error)}

    def find(self) -> Callable[..., Any]:
        """For the inspector's event: finds the heads that its data names."""
        return inspector_event(self.values, "find_heads")

    def values(self, ask: Mapping[str, Any], session: str) -> Values:
        """Values for the inspector: the list, or why there is none."""
        about = {"phase": "heads", "ask": str(ask.get("ask"))[:64]}
        yield from with_error_words(self._values(ask, session), about, "finding heads")

    def _values(self, ask: Mapping[str, Any], session: str) -> Values:
        run, which = self._run(ask), ask.get("which")
        if not isinstance(which, str) or which not in NAMES:
            raise ValueError(UNREAD)
        job = self.handlers.runner.job(session, HEADS)
        try:
            for event in self.handlers.runner.run(
                job, lambda job: found_heads(run.first, which), waits=False
            ):
                if isinstance(event, Done):
                    yield head_list_value(event.result, run)
        except Stopped:
            yield {"error": f"{job.ended_by}; the heads were not looked for."}

    def _run(self, ask: Mapping[str, Any]) -> Run:
        run = find_run(self.handlers.store, ask.get("run"), ask.get("names"), described=False)
        if run is None:
            raise ValueError(EXPIRED)
        return run


def head_list_value(head_list: HeadList, run: Run) -> dict[str, Any]:
    """A list for the browser: its heads, their kind, and the text of its file.

    Raises:
        ValueError: it is empty, another model's, or the run did not keep its heads.
    """
    picked = head_list.picked()
    infos = [trace.model for trace in run.traces.values()]
    if all(head_list.revision != info.revision for info in infos):
        head_list.check_model(infos[0])
    for trace in run.traces.values():
        picked.check_run(trace.layers, trace.heads)
    return {
        "pairs": [list(pair) for pair in picked.pairs],
        "kind": picked.kind,
        "said": head_list.description,
        "file": head_list.as_json(),
    }


def connect_head_lists(inspector: gr.HTML, lists: HeadLists) -> None:
    """The inspector's event."""
    inspector.expand(
        lists.find(),
        None,
        inspector,
        concurrency_id="export",
        concurrency_limit=2,
        api_visibility="private",
        show_progress="hidden",
    )
