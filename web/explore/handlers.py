"""The handlers of Generate, Stop, and the inspector's requests. They do not know the layout.

A run is a job (`jobs.runner`): it waits in the queue, computes in a thread and is streamed here.
When the generator ends (the answer, Stop, a closed tab, an error), the job ends.
"""

from __future__ import annotations

import base64
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from sinkscope import attention_extractor
from sinkscope.capture.run_times import RunTimes, Work
from sinkscope.capture.trace import GenerationTrace
from sinkscope.config import GenerationSettings, Settings
from sinkscope.jobs.job import Job, JobProgress, Stopped
from sinkscope.jobs.runner import Runner, StoppedWaiting, Waiting
from sinkscope.methods.base import Target, TokenSource, rows_of
from sinkscope.methods.head_list import PickedHeads
from sinkscope.utils import number_of
from sinkscope.web.explore.answering import Answering
from sinkscope.web.explore.export_files import ExportRequest, make_files
from sinkscope.web.explore.kept_prompt import LastPrompt
from sinkscope.web.runs.drawing_process import DrawingProcess
from sinkscope.web.runs.explained_store import ExplainedStore
from sinkscope.web.runs.image_process import ImageProcess, limits_for
from sinkscope.web.runs.inspector import (
    cached,
    error_value,
    files_in,
    queued_value,
    run_value,
    stream_value,
)
from sinkscope.web.runs.job_values import UNFORESEEN, field_of, loaded_handle
from sinkscope.web.runs.loaded_model import LoadedModel
from sinkscope.web.runs.pairs import find_run
from sinkscope.web.runs.payload import build_map, build_token_maps
from sinkscope.web.runs.request import Request
from sinkscope.web.runs.store import Run, RunStore, new_id
from sinkscope.web.runs.value_cache import RunValueCache
from sinkscope.web.server.read_only import READ_ONLY
from sinkscope.web.server.temporary import scratch
from sinkscope.web.server.uploads import existing_upload

log = logging.getLogger(__name__)

ANSWER = "answer"  # the kind of job that the Stop next to Generate ends
STREAM_SECONDS = 0.08
LONGEST_PLACE = 8000  # characters of a view in an address, with a note of 500


@dataclass(frozen=True)
class RunFunctions:
    """The functions that compute runs; tests replace them."""

    generate: Callable[..., GenerationTrace] = attention_extractor.generate
    compare: Callable[..., attention_extractor.Comparison] = attention_extractor.compare


class Handlers:
    """The page's actions, one object per app; `component` is the inspector, set by the page."""

    def __init__(
        self,
        settings: Settings,
        loaded: LoadedModel,
        store: RunStore,
        engine: RunFunctions | None = None,
        run_times: RunTimes | None = None,
    ) -> None:
        self.settings = settings
        self.loaded = loaded
        self.store = store
        self.engine = engine or RunFunctions()
        self.run_times = run_times or RunTimes()  # learns how long runs take
        limit = settings.app.job_minutes
        self.runner = Runner(
            settings.app.queue_size, 60 * limit if limit else None, settings.app.session_queue
        )
        self.drawing = DrawingProcess(store.file_of)
        self.images = ImageProcess(settings.images)
        self.explained = ExplainedStore(store)
        self.component: gr.HTML | None = None
        self._shown = RunValueCache(self._value)
        self._last = LastPrompt()
        loaded.on_change(self._last.drop)  # the next model needs the memory
        self._answering: dict[str, Answering] = {}  # by run id, while a run is computed
        self._lock = threading.Lock()

    # --- Generate and Stop -----------------------------------------------------------------------

    def generate(self, request: Request, session: str) -> Iterator[dict[str, Any]]:
        """Yield values for the inspector: queued, streaming, and finally ready, stopped or error.

        Raises:
            gr.Error: after the error value, so that callers of the API get it too.
        """
        run_id = new_id()
        try:
            yield from self._generate(request, run_id, self.runner.job(session, ANSWER))
        except StoppedWaiting:
            yield error_value(run_id, "Stopped while it was waiting; nothing was generated.")
        except Stopped:
            yield error_value(run_id, "Stopped while the image was read; nothing was generated.")
        except ValueError as error:
            yield error_value(run_id, str(error))
            raise _api_error(str(error), "Not possible") from error
        except attention_extractor.RunOutOfMemoryError as error:
            yield error_value(run_id, str(error))
            raise _api_error(str(error), "Out of memory") from error
        except gr.Error:
            raise
        except Exception as error:
            log.exception("a run failed")
            yield error_value(run_id, UNFORESEEN)
            raise _api_error(UNFORESEEN, "Error") from error
        finally:
            with self._lock:
                self._answering.pop(run_id, None)

    def stop(self, session: str) -> None:
        """End this browser's run after the current token; the tokens so far are kept."""
        self.runner.stop(session, ANSWER)

    def _generate(self, request: Request, run_id: str, job: Job) -> Iterator[dict[str, Any]]:
        settings = request.settings(self.settings)
        if not request.images:
            raise ValueError("There is no image. Upload or paste one, or take an example.")
        if not isinstance(request.prompt, str) or not request.prompt.strip():
            raise ValueError("The prompt is empty. Ask something about the image.")
        for path in request.images:
            existing_upload(path)
        variants = ("baseline", "var") if request.compare else ("baseline",)
        tokens: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
        answering = Answering(
            run_id, request.prompt, variants, job, settings.max_new_tokens, tokens
        )
        self.store.claim(run_id)
        with self._lock:
            self._answering[run_id] = answering
        sent = dict.fromkeys(variants, 0)
        first_token = last = -1.0
        for event in self.runner.run(job, partial(self._work, answering, request, settings)):
            now = time.monotonic()
            if isinstance(event, Waiting):
                yield queued_value(run_id, event.before)
            elif not isinstance(event, JobProgress):
                if any(len(tokens[name]) > sent[name] for name in variants):
                    yield self._delta(answering, sent, first_token)
                yield self._kept(event.result, job)
            elif (
                first_token < 0
            ):  # at once, so that the page reacts to the click and not only to the first token
                first_token = last = now
                yield self._delta(answering, sent, first_token)
            else:
                fresh = any(len(tokens[name]) > sent[name] for name in variants)
                if now - last >= (STREAM_SECONDS if fresh else 0.9):
                    yield self._delta(answering, sent, first_token)
                    last = now

    def _work(
        self, answering: Answering, request: Request, settings: GenerationSettings, job: Job
    ) -> Run:
        """Compute the run, in the job's thread, which has exclusive use of the model."""
        handle = loaded_handle(self.loaded)
        var = request.var(handle)
        limits = limits_for(self.settings.images, handle)
        images = [
            self.images.open_upload(path, limits, stop=job.stop_event) for path in request.images
        ]
        inputs, prefix = self._last.prepare(handle, images, request.prompt)
        read = "Reading the image" if len(images) == 1 else "Reading the images"
        job.report(0, answering.most, read)
        start, same = time.monotonic(), bool(var and request.same_text)
        staged = {"on_stage": answering.on_stage} if settings.compile else {}
        stop = job.stop_event
        try:
            if var is None:
                trace = self.engine.generate(
                    handle,
                    inputs,
                    settings,
                    on_token=lambda i, token: answering.on_token("baseline", i, token),
                    stop=stop,
                    **staged,
                )
                traces = {"baseline": trace}
            else:
                pair = self.engine.compare(
                    handle,
                    inputs,
                    settings,
                    var,
                    same,
                    on_token=answering.on_token,
                    stop=stop,
                    prefix=prefix,
                    **staged,
                )
                self._last.keep(inputs, pair.prefix)
                traces = {"baseline": pair.baseline, "var": pair.var}
        except attention_extractor.RunOutOfMemoryError as error:
            # Release the previous prompt's cache: the next try needs its memory.
            self._last.drop()
            prefix = None
            traceback.clear_frames(error.__traceback__)
            raise
        if prefix is None:  # else the image was passed through the model by an earlier run
            work = Work(inputs.layout, len(answering.times), len(traces), same)
            self.run_times.note(handle, work, time.monotonic() - start, answering.times)
        return Run(traces, same_text=same, id=answering.run_id)

    def _kept(self, run: Run, job: Job) -> dict[str, Any]:
        """Store a finished run, and return its value for the inspector."""
        note = self.store.put(run)
        try:
            value = self.value_of(run)
        except OSError as error:  # its data reaches the browser as a file
            raise ValueError(
                "The run is finished and kept, but its data cannot be sent to the page: "
                f"{error.strerror or 'the disk cannot be written'}."
            ) from error
        if value["phase"] == "stopped" and job.late:
            value = {**value, "message": job.ended_by}
        return {**value, "facts": [*value["facts"], *([note] if note else [])]}

    def _delta(
        self, answering: Answering, sent: dict[str, int], first_token: float
    ) -> dict[str, Any]:
        begin = dict(sent)
        new = {v: answering.tokens[v][sent[v] :] for v in answering.variants}
        for variant, tokens in new.items():
            sent[variant] += len(tokens)
        count, seconds = sum(sent.values()), max(0.0, time.monotonic() - first_token)
        facts = [number_of(count, "token"), f"{seconds:.1f} s"]
        if count and seconds > 0:
            facts.append(f"{count / seconds:.1f} tokens/s")
        message = answering.stage or ("Writing" if count else "Reading the image")
        message = "Stopping" if answering.job.stopped else message
        return stream_value(
            answering.run_id, answering.prompt, answering.variants, begin, new, message, facts
        )

    def value_of(self, run: Run) -> dict[str, Any]:
        """The inspector's value of a finished run."""
        return self._shown(run)

    def _value(self, run: Run) -> dict[str, Any]:
        assert self.component is not None
        return self.copied(run, run_value(run, self.component))

    def copied(self, run: Run, value: dict[str, Any]) -> dict[str, Any]:
        """Register the files of a value as copies of a run, to be removed with it."""
        self.store.keep_copies(run, *files_in(value))
        return value

    # --- questions of the inspector: no queue and no model; one JSON argument; {"error": ...} ---

    def open_run(self, ask: Any) -> dict[str, Any]:
        """A run by its id, for example after a reload."""
        run = self._run_asked(ask)
        return self.value_of(run) if isinstance(run, Run) else run

    def opened(self, ask: Any) -> dict[str, Any] | None:
        """The result of `open_run` if it is cached and available without waiting; else None."""
        run = self.store.in_memory(field_of(ask, "run"), wait=False)
        if run is None or not self.store.may_see(run.id):
            return None
        return self._shown.cached(run)

    def _run_asked(self, ask: Any, described: bool = True) -> Run | dict[str, Any]:
        """The run, or the pair of runs, of a request; or the error to return."""
        try:
            run = find_run(self.store, field_of(ask, "run"), field_of(ask, "names"), described)
        except ValueError as error:
            return {"error": str(error)}
        return run or {"error": EXPIRED}

    def forget_run(self, ask: Any) -> dict[str, Any]:
        """Delete a run and its files. The example stays."""
        if self.settings.app.read_only:
            return {"error": READ_ONLY}
        run = self.store.get(field_of(ask, "run"))
        if run is not None and run.kind != "example":
            self.store.delete(run.id)
        return {}

    def page_file(self, ask: Any) -> dict[str, Any]:
        """The run as a standalone HTML file that opens with the current view."""
        run = self._run_asked(ask)
        if not isinstance(run, Run):
            return run
        place = field_of(ask, "place")
        view = place if isinstance(place, str) and len(place) <= LONGEST_PLACE else ""
        return self._exported(run, ExportRequest("html", place=view))

    def trace_file(self, ask: Any) -> dict[str, Any]:
        """One trace of a run, as a file for `GenerationTrace.open`."""
        run, name = self._run_asked(ask, described=False), field_of(ask, "variant")
        if not isinstance(run, Run) or name not in list(run.traces):
            return {"error": EXPIRED}
        return self._exported(run, ExportRequest("trace", side=name))

    def _exported(self, run: Run, wanted: ExportRequest) -> dict[str, Any]:
        """A file that is written at once, as the page downloads it."""
        assert self.component is not None
        with scratch() as folder:
            (path,) = make_files(run, wanted, Path(folder))
            data = path.read_bytes()
        value = {**cached(data, path.name, self.component), "name": path.name, "bytes": len(data)}
        return self.copied(run, value)

    def start_drawing(self, ask: Any) -> dict[str, Any]:
        """Save was opened: start the drawing process."""
        self.drawing.start()
        return {}

    def tokens_since(self, ask: Any) -> dict[str, Any]:
        """Tokens of a running run from an index on, if the page has missed some."""
        with self._lock:
            answering = self._answering.get(str(field_of(ask, "run")))
        variant, begin = field_of(ask, "variant"), field_of(ask, "from")
        if (
            answering is None
            or not self.store.may_see(answering.run_id)
            or variant not in answering.variants
        ):
            return {"error": EXPIRED}
        if not isinstance(begin, int) or begin < 0:
            return {"error": EXPIRED}
        return {"tokens": answering.tokens[variant][begin:]}

    def token_maps(self, ask: Any) -> dict[str, Any]:
        """Data of single heads of a run: every (layer, head, patch) of some tokens, or one map."""
        run = self._run_asked(ask, described=False)
        if not isinstance(run, Run):
            return run
        try:
            trace = run.traces[ask["variant"]]
            part: TokenSource = "prompt" if ask.get("prompt") else "answer"
            rows = rows_of(trace, part)
            start, stop = int(ask["start"]), int(ask["stop"])
            if not 0 <= start < stop <= len(rows.tokens):
                raise ValueError(f"tokens {start} to {stop} are not in this run")
            if ask["whole"]:
                data = build_token_maps(rows, start, stop)
            else:
                layers, heads = (
                    captured[int(ask[name][0]) : int(ask[name][1]) + 1]
                    for name, captured in (("layers", rows.layers), ("heads", rows.heads))
                )
                pairs = ask.get("pairs") or None
                if pairs is not None:
                    pairs = PickedHeads(pairs).pairs
                target = Target(tuple(range(start, stop)), part)
                data = build_map(trace, target, (layers, heads, pairs), ask["combine"])
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError):
            return {"error": "This view cannot be computed for this run."}
        return {"data": base64.b64encode(data).decode()}


EXPIRED = "This run is no longer on the server. Press Generate to make it again."


def _api_error(words: str, title: str) -> gr.Error:
    """For callers of the API; on the page the inspector shows the error."""
    return gr.Error(words, title=title, visible=False, print_exception=False)
