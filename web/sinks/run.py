"""What happens on Run and Stop in the Sinks tab, and on its questions. Knows no layout.

A run is a job (`jobs.runner`) in the line in which answers wait for the model, too. What was
measured stays in a folder of this browser's own until the same run is finished or the folder is
old.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from sinkscope.attention_extractor import RunOutOfMemoryError
from sinkscope.config import Settings
from sinkscope.jobs.job import At, Job, Stopped
from sinkscope.jobs.runner import Done, Runner, StoppedWaiting, Waiting
from sinkscope.models.images import open_image
from sinkscope.models.loading import ModelHandle
from sinkscope.models.profiles import SinkProfile
from sinkscope.sinks.finding.find import find
from sinkscope.sinks.finding.findings import Findings
from sinkscope.sinks.profile_file import write_profile
from sinkscope.sinks.samples import Sample, SampleSet
from sinkscope.sinks.validating.validate import validate
from sinkscope.sinks.validating.validation import Validation
from sinkscope.utils import sha256
from sinkscope.web.explore.handlers import UNFORESEEN
from sinkscope.web.runs.copies import Copies
from sinkscope.web.runs.image_process import ImageProcess, KeptImages
from sinkscope.web.runs.inspector import cached, error_value, queued_value
from sinkscope.web.runs.loaded_model import LoadedModel, why_no_model
from sinkscope.web.runs.payload import encode_image
from sinkscope.web.runs.store import new_id
from sinkscope.web.server.read_only import READ_ONLY
from sinkscope.web.server.temporary import scratch
from sinkscope.web.sinks.payload import build_sinks_payload, measured_in, profile_name, scores_in
from sinkscope.web.sinks.request import SampleSplit, SinksRequest, draw_samples
from sinkscope.web.sinks.store import SinksResult, SinksStore

log = logging.getLogger(__name__)

SINKS = "sinks"  # the kind of job that the tab's Stop is for
PICTURE_SIDE = 900
GONE = "This result is no longer on the server. Press Run to make it again."


@dataclass(frozen=True)
class SinksEngine:
    """What finds and validates; tests put their own here."""

    find: Callable[..., Findings] = find
    validate: Callable[..., Validation] = validate


class SinksHandlers:
    """The tab's actions, one object an app; `component` is what shows results, set by the tab.

    Args:
        settings: of this start.
        loaded: the model.
        runner: of the jobs of all tabs.
        engine: what finds and validates.
        images: what decodes uploads.
        copies: those of runs, beside which this tab keeps its own.
    """

    def __init__(
        self,
        settings: Settings,
        loaded: LoadedModel,
        runner: Runner,
        engine: SinksEngine | None = None,
        images: ImageProcess | None = None,
        copies: Copies | None = None,
    ) -> None:
        self.settings, self.loaded, self.runner = settings, loaded, runner
        self.images = images or ImageProcess(settings.images)
        self.engine = engine or SinksEngine()
        # Not `sinks`, where the command line keeps what it measures: old folders here are deleted.
        self.store = SinksStore(
            settings.app.cache / "page_sinks",
            owned=bool(settings.app.login),
            copies=Copies(copies),
        )
        self.component: gr.HTML | None = None

    # --- Run and Stop ----------------------------------------------------------------------------

    def run(self, request: SinksRequest, session: str) -> Iterator[dict[str, Any]]:
        """Values for the component: queued, running, and at last ready, stopped or error.

        Raises:
            gr.Error: after the error value, so that callers of the API learn of it too.
        """
        run_id = new_id()
        try:
            yield from self._run(request, run_id, self.runner.job(session, SINKS))
        except StoppedWaiting:
            yield error_value(run_id, "Stopped while it was waiting; nothing was measured.")
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
        self.runner.stop(session, SINKS)

    def _run(self, request: SinksRequest, run_id: str, job: Job) -> Iterator[dict[str, Any]]:
        request.check()
        begun = -1.0
        try:
            for event in self.runner.run(job, partial(self._work, request)):
                if isinstance(event, Waiting):
                    yield queued_value(run_id, event.before)
                elif isinstance(event, Done):
                    yield event.result
                else:
                    begun = time.monotonic() if begun < 0 else begun
                    yield _running(run_id, job, event, begun)
        except StoppedWaiting:
            raise
        except Stopped as error:
            words = f"{job.ended_by} before a sample was measured; nothing was found yet."
            raise ValueError(words) from error

    def _work(self, request: SinksRequest, job: Job) -> dict[str, Any]:
        """The result, computed in the job's thread, which alone holds the model meanwhile."""
        handle = self.loaded.handle
        if handle is None:
            raise ValueError(why_no_model(self.loaded.state))
        job.enter("Starting")
        with scratch() as folder:
            limits = self.settings.images
            opened = KeptImages(self.images, Path(folder), limits, job.stop_event)
            return self._result(job, handle, request, opened)

    def _result(
        self, job: Job, handle: ModelHandle, request: SinksRequest, opened: KeptImages
    ) -> dict[str, Any]:
        _, _, finding, validating = request.check()
        job.enter("Reading the images")
        drawn = draw_samples(request, opened, self.settings.images, **job.hooks)
        info = handle.info
        about = (job.owner, info.id, info.revision, info.dtype, finding.measuring())
        work = self.store.work(sha256("\0".join(map(str, about)).encode())[:24])
        work.mkdir(parents=True, exist_ok=True)  # here: `find` would name the folder in its error
        samples, done = drawn.find, ""
        job.enter("Finding")
        try:
            findings = self.engine.find(handle, samples, finding, work=work, **job.hooks)
        except Stopped as stopped:
            samples = _measured(drawn.find, work)
            if not samples.samples:
                raise
            done = f"{job.ended_by} after {len(samples.samples)} of {stopped.total} samples"
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
        self, job: Job, handle: ModelHandle, drawn: SampleSplit, findings: Findings, settings: Any
    ) -> tuple[Validation | None, str, str]:
        """The validation or why there is none, and how far it came where it was stopped."""
        if not findings.dims:
            return None, "There is nothing to validate.", ""
        if not drawn.validate.wanted:
            return None, "No samples were to be held out for it.", ""
        if not drawn.validate.samples:
            return None, "No image is left that finding has not used; upload more.", ""
        job.enter("Validating")
        try:
            validation = self.engine.validate(
                handle, findings.profile(), drawn.validate, settings, found_on=findings, **job.hooks
            )
        except Stopped as stopped:
            how = f"{job.ended_by.lower()} after {stopped.done} of {stopped.total} samples"
            done = f"Validating was {how}"
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
        seen, run_id = {one.id for one in shown}, new_id()
        images = {}
        for sample in samples.samples:
            if sample.id in seen:
                made = cached(*encode_image(_opened(sample), PICTURE_SIDE), self.component)
                images[sample.id] = self.store.keep(run_id, made)["url"]
        data = build_sinks_payload(findings, validation, why, shown, images)
        value = {
            "phase": "stopped" if done else "ready",
            "run": run_id,
            "message": done or "Done",
            "facts": [] if done else [f"finding took {findings.seconds:.1f} s"],
            "data": self.store.keep(run_id, cached(data, "sinks.bin", self.component)),
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
        with scratch() as folder:
            path = Path(folder) / name
            write_profile(path, profile)
            data = path.read_bytes()
        made = self.store.keep(result.id, cached(data, name, self.component))
        return {**made, "name": name}

    def forget_sinks(self, ask: Any) -> dict[str, Any]:
        """Delete a result and what was made of it: {"run": id}."""
        if self.settings.app.read_only:
            return {"error": READ_ONLY}
        self.store.delete(_field(ask, "run"))
        return {}

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


def _running(run_id: str, job: Job, at: At, begun: float) -> dict[str, Any]:
    facts = [f"{at.done} of {at.total} samples"] if at.total else []
    return {
        "phase": "running",
        "run": run_id,
        "message": "Stopping after this sample" if job.stopped else at.stage,
        "facts": [*facts, f"{time.monotonic() - begun:.0f} s"],
        "fraction": at.done / at.total if at.total else None,
        "text": at.text,
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
