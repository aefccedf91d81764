"""What happens on Run and Stop in the Sinks tab, and on its questions. Knows no layout.

A run takes its place in the line in which answers wait for the model, too. A worker thread computes
it, and a generator tells how far it is; whatever ends the generator ends the run. What was measured
stays in a folder of this browser's own until the same run is finished or the folder is old.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from sinkscope.attention_extractor import RunOutOfMemoryError
from sinkscope.config import Settings
from sinkscope.models.images import open_image
from sinkscope.models.loading import ModelHandle
from sinkscope.models.profiles import SinkProfile
from sinkscope.sinks.find import find
from sinkscope.sinks.findings import Findings
from sinkscope.sinks.profile_file import write_profile
from sinkscope.sinks.progress import Stopped
from sinkscope.sinks.samples import Sample, SampleSet
from sinkscope.sinks.validate import validate
from sinkscope.sinks.validation import Validation
from sinkscope.utils import sha256
from sinkscope.web.handlers import UNFORESEEN
from sinkscope.web.inspector import cached, error_value, queued_value
from sinkscope.web.payload import encode_image
from sinkscope.web.sinks_payload import build_sinks_payload, measured_in, profile_name, scores_in
from sinkscope.web.sinks_request import Drawn, SinksRequest, draw_samples
from sinkscope.web.sinks_store import SinksResult, SinksStore
from sinkscope.web.slot import Line, ModelSlot, Stops, turns, why_no_model
from sinkscope.web.store import new_id

log = logging.getLogger(__name__)

PICTURE_SIDE = 900
GONE = "This result is no longer on the server. Press Run to make it again."


@dataclass(frozen=True)
class SinksEngine:
    """What finds and validates; tests put their own here."""

    find: Callable[..., Findings] = find
    validate: Callable[..., Validation] = validate


@dataclass
class _Job:
    """A run under way: the worker fills `events`, the generator empties them."""

    id: str
    stop: threading.Event
    events: queue.Queue[tuple[str, Any]] = field(default_factory=queue.Queue)

    def telling(self, stage: str) -> Callable[[int, int, str], None]:
        return lambda done, total, text: self.events.put(("at", (stage, done, total, text)))


class SinksHandlers:
    """The tab's actions, one object an app; `component` is what shows results, set by the tab.

    Args:
        settings: of this start.
        slot: the model.
        line: in which runs of all tabs wait.
        engine: what finds and validates.
    """

    def __init__(
        self, settings: Settings, slot: ModelSlot, line: Line, engine: SinksEngine | None = None
    ) -> None:
        self.settings, self.slot, self.line = settings, slot, line
        self.engine = engine or SinksEngine()
        # Not `sinks`, where the command line keeps what it measures: old folders here are deleted.
        self.store = SinksStore(settings.app.cache / "page_sinks")
        self.component: gr.HTML | None = None
        self._stops = Stops()

    # --- Run and Stop ----------------------------------------------------------------------------

    def run(self, request: SinksRequest, session: str) -> Iterator[dict[str, Any]]:
        """Values for the component: queued, running, and at last ready, stopped or error.

        Raises:
            gr.Error: after the error value, so that callers of the API learn of it too.
        """
        run_id = new_id()
        with self._stops.begun(session) as stop:
            try:
                yield from self._run(request, run_id, stop, session)
            except (ValueError, RunOutOfMemoryError) as error:
                yield error_value(run_id, str(error))
                raise gr.Error(str(error), title="Not possible", print_exception=False) from error
            except gr.Error:
                raise
            except Exception as error:
                log.exception("finding sinks failed")
                yield error_value(run_id, UNFORESEEN)
                raise gr.Error(UNFORESEEN, print_exception=False) from error

    def stop(self, session: str) -> None:
        """End this browser's run after the sample it is at; what was measured stays."""
        self._stops.stop(session)

    def _run(
        self, request: SinksRequest, run_id: str, stop: threading.Event, session: str
    ) -> Iterator[dict[str, Any]]:
        request.check()
        with self.line.place() as before:
            for position in turns(before, stop):
                yield queued_value(run_id, position)
            if stop.is_set():
                yield error_value(run_id, "Stopped while it was waiting; nothing was measured.")
                return
            handle = self.slot.handle
            if handle is None:
                raise ValueError(why_no_model(self.slot.state))
            job = _Job(run_id, stop)
            arguments = (job, handle, request, session)
            worker = threading.Thread(target=self._work, args=arguments, daemon=True)
            del arguments, handle  # the worker alone decides how long the model takes memory
            worker.start()
            try:
                yield from self._stream(job)
            finally:
                stop.set()
                worker.join()  # the next in line must find the model free

    def _stream(self, job: _Job) -> Iterator[dict[str, Any]]:
        begun = time.monotonic()
        at = ("Starting", 0, 0, "")
        yield _running(job, at, begun)
        while True:
            try:
                kind, content = job.events.get(timeout=1.0)
            except queue.Empty:
                kind, content = "at", at  # only the clock moves
            while kind == "at" and not job.events.empty():  # the latest is enough
                kind, content = job.events.get()
            if kind == "failed":
                raise content
            if kind == "done":
                yield content
                return
            at = content
            yield _running(job, at, begun)

    def _work(self, job: _Job, handle: ModelHandle, request: SinksRequest, session: str) -> None:
        try:
            job.events.put(("done", self._result(job, handle, request, session)))
        except Stopped:
            words = "Stopped before a sample was measured; nothing was found yet."
            job.events.put(("failed", ValueError(words)))
        except BaseException as error:  # handed to the generator, which raises it
            job.events.put(("failed", error))

    def _result(
        self, job: _Job, handle: ModelHandle, request: SinksRequest, session: str
    ) -> dict[str, Any]:
        _, _, finding, validating = request.check()
        telling = job.telling("Reading the images")
        drawn = draw_samples(request, self.settings.images, telling, job.stop)
        info = handle.info
        about = (session, info.id, info.revision, info.dtype, finding.measuring())
        work = self.store.work(sha256("\0".join(map(str, about)).encode())[:24])
        work.mkdir(parents=True, exist_ok=True)  # here: `find` would name the folder in its error
        samples, done = drawn.find, ""
        try:
            findings = self.engine.find(
                handle,
                samples,
                finding,
                work=work,
                on_progress=job.telling("Finding"),
                stop=job.stop,
            )
        except Stopped as stopped:
            samples = _measured(drawn.find, work)
            if not samples.samples:
                raise
            done = f"Stopped after {len(samples.samples)} of {stopped.total} samples"
            # All of these are measured already, so this decides and passes nothing through.
            findings = self.engine.find(handle, samples, finding, work=work)
        validation, why = None, ""
        if done:
            why = f"{done}; press Run again to go on."
        else:
            validation, why, done = self._validated(job, handle, drawn, findings, validating)
        result = self._kept(findings, validation, why, work, samples, done)
        if not done:
            shutil.rmtree(work, ignore_errors=True)
        return result.value

    def _validated(
        self, job: _Job, handle: ModelHandle, drawn: Drawn, findings: Findings, settings: Any
    ) -> tuple[Validation | None, str, str]:
        """The validation or why there is none, and how far it came where it was stopped."""
        if not findings.dims:
            return None, "There is nothing to validate.", ""
        if not drawn.validate.wanted:
            return None, "No samples were to be held out for it.", ""
        if not drawn.validate.samples:
            return None, "No image is left that finding has not used; upload more.", ""
        try:
            validation = self.engine.validate(
                handle,
                findings.profile(),
                drawn.validate,
                settings,
                found_on=findings,
                on_progress=job.telling("Validating"),
                stop=job.stop,
            )
        except Stopped as stopped:
            done = f"Validating was stopped after {stopped.done} of {stopped.total} samples"
            return None, f"{done}; what was found stays. Press Run again for all of it.", done
        except (ValueError, RunOutOfMemoryError) as error:  # what was found stays
            return None, str(error), ""
        return validation, "", ""

    def _kept(
        self,
        findings: Findings,
        validation: Validation | None,
        why: str,
        work: Path,
        samples: SampleSet,
        done: str,
    ) -> SinksResult:
        assert self.component is not None
        shown = scores_in(work, findings)
        seen = {one.id for one in shown}
        images = {
            sample.id: cached(*encode_image(_opened(sample), PICTURE_SIDE), self.component)["url"]
            for sample in samples.samples
            if sample.id in seen
        }
        data = build_sinks_payload(findings, validation, why, shown, images)
        run_id = new_id()
        value = {
            "phase": "stopped" if done else "ready",
            "run": run_id,
            "message": done or "Done",
            "facts": [] if done else [f"finding took {findings.seconds:.1f} s"],
            "data": cached(data, "sinks.bin", self.component),
        }
        result = SinksResult(findings, validation, why, value, run_id)
        self.store.put(result)
        return result

    # --- questions of the component: no queue and no model; one JSON argument; {"error": ...} -----

    def open_sinks(self, ask: Any) -> dict[str, Any]:
        """A result by its id, for a page that was reloaded."""
        result = self.store.get(_field(ask, "run"))
        return {"error": GONE} if result is None else result.value

    def profile_file(self, ask: Any) -> dict[str, Any]:
        """The profile as a TOML file, with the tau that was chosen."""
        assert self.component is not None
        try:
            profile = self.profile(ask)
        except ValueError as error:
            return {"error": str(error)}
        result = self.store.get(_field(ask, "run"))
        assert result is not None
        name = profile_name(result.findings)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            write_profile(path, profile)
            data = path.read_bytes()
        return {**cached(data, name, self.component), "name": name}

    def profile(self, ask: Any) -> SinkProfile:
        """The profile of a result with another tau: {"run": id, "tau": number}.

        Raises:
            ValueError: the result is gone, has no sinks, or tau cannot be one.
        """
        result, tau = self.store.get(_field(ask, "run")), _field(ask, "tau")
        if result is None:
            raise ValueError(GONE)
        found = result.findings.profile()
        if tau is None or tau == found.tau:
            return found
        if isinstance(tau, bool) or not isinstance(tau, int | float) or not math.isfinite(tau):
            raise ValueError(f"tau is {tau!r}; allowed: a number.")
        note = f"tau was set by hand; {found.tau:g} was calibrated. {found.note}"
        return dataclasses.replace(found, tau=round(float(tau), 4), note=note)


def _running(job: _Job, at: tuple[str, int, int, str], begun: float) -> dict[str, Any]:
    stage, done, total, text = at
    facts = [f"{done} of {total} samples"] if total else []
    return {
        "phase": "running",
        "run": job.id,
        "message": "Stopping after this sample" if job.stop.is_set() else stage,
        "facts": [*facts, f"{time.monotonic() - begun:.0f} s"],
        "fraction": done / total if total else None,
        "text": text,
    }


def _measured(samples: SampleSet, work: Path) -> SampleSet:
    """The samples whose statistics lie in the folder."""
    there = {(one.id, one.fingerprint) for one in measured_in(work)}
    left = tuple(s for s in samples.samples if (s.id, s.fingerprint()) in there)
    return dataclasses.replace(samples, samples=left, wanted=len(left))


def _opened(sample: Sample) -> Any:
    first = sample.images[0]
    return first if isinstance(first, Image.Image) else open_image(first)


def _field(ask: Any, name: str) -> Any:
    return ask.get(name) if isinstance(ask, Mapping) else None
