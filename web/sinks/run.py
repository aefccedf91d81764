"""Actions behind Run and Stop of the Sinks tab, and answers to its questions. Independent of the
layout.

A run is a job (`jobs.runner`) in the same queue as answers of the Explore tab. Its measurements are
kept in a folder of their own until the same run is finished or the folder is too old.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from sinkscope.attention_extractor import RunOutOfMemoryError
from sinkscope.config import Settings
from sinkscope.jobs.job import Job, JobProgress, Stopped
from sinkscope.jobs.runner import Runner, StoppedWaiting
from sinkscope.models.images import open_image
from sinkscope.models.loading import ModelHandle
from sinkscope.models.profiles import SinkProfile
from sinkscope.sinks.finding.find import find
from sinkscope.sinks.finding.findings import Findings
from sinkscope.sinks.profile_file import write_profile
from sinkscope.sinks.samples import Sample, SampleSet
from sinkscope.sinks.validating.settings import ValidateSettings
from sinkscope.sinks.validating.validate import validate
from sinkscope.sinks.validating.validation import Validation
from sinkscope.utils import sha256
from sinkscope.web.runs.image_process import ImageProcess, KeptImages
from sinkscope.web.runs.inspector import cached, error_value
from sinkscope.web.runs.job_values import (
    Values,
    field_of,
    loaded_handle,
    result_values,
    running_value,
)
from sinkscope.web.runs.loaded_model import LoadedModel
from sinkscope.web.runs.payload import encode_image
from sinkscope.web.runs.served_files import ServedFiles
from sinkscope.web.runs.store import new_id
from sinkscope.web.runs.tab_handlers import ResultHandlers
from sinkscope.web.server.read_only import READ_ONLY
from sinkscope.web.server.temporary import scratch
from sinkscope.web.sinks.payload import build_sinks_payload, measured_in, profile_name, scores_in
from sinkscope.web.sinks.request import SampleSplit, SinksRequest, draw_samples
from sinkscope.web.sinks.store import SinksResult, SinksStore

SINKS = "sinks"  # the kind of job that the tab's Stop ends
PICTURE_SIDE = 900
GONE = "This result is no longer on the server. Press Run to make it again."


@dataclass(frozen=True)
class SinksFunctions:
    """The functions that find and validate; tests pass their own."""

    find: Callable[..., Findings] = find
    validate: Callable[..., Validation] = validate


class SinksHandlers(ResultHandlers[SinksRequest]):
    """The tab's actions (`ResultHandlers`); measurements of a stopped run are kept.

    Args:
        engine: finds and validates.
        copies: the served files of Explore's runs, which share a folder with those of this tab.
    """

    kind, what = SINKS, "finding sinks"

    def __init__(
        self,
        settings: Settings,
        loaded: LoadedModel,
        runner: Runner,
        engine: SinksFunctions | None = None,
        images: ImageProcess | None = None,
        copies: ServedFiles | None = None,
    ) -> None:
        super().__init__(settings, loaded, runner, images)
        self.engine = engine or SinksFunctions()
        # Not `sinks`, where the command line keeps its measurements: old folders here are deleted.
        self.store = SinksStore(
            settings.app.cache / "page_sinks",
            owned=bool(settings.app.login),
            copies=ServedFiles(copies),
        )

    # --- Run and Stop ----------------------------------------------------------------------------

    def _run(self, request: SinksRequest, run_id: str, job: Job) -> Values:
        request.check()

        def running(at: JobProgress, seconds: float) -> dict[str, Any]:
            message = "Stopping after this sample" if job.stopped else at.stage
            return running_value(run_id, at, message, "samples", seconds)

        try:
            work = partial(self._work, request)
            yield from result_values(self.runner, job, work, run_id, running)
        except StoppedWaiting:
            yield error_value(run_id, "Stopped while it was waiting; nothing was measured.")
        except Stopped as error:
            words = f"{job.ended_by} before a sample was measured; nothing was found yet."
            raise ValueError(words) from error

    def _work(self, request: SinksRequest, job: Job) -> dict[str, Any]:
        """Compute the result in the job's thread, which has the model to itself meanwhile."""
        handle = loaded_handle(self.loaded)
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
        work.mkdir(parents=True, exist_ok=True)  # an error of `find` would name the folder
        samples, done = drawn.find, ""
        job.enter("Finding")
        try:
            findings = self.engine.find(handle, samples, finding, work=work, **job.hooks)
        except Stopped as stopped:
            samples = _measured(drawn.find, work)
            if not samples.samples:
                raise
            done = f"{job.ended_by} after {len(samples.samples)} of {stopped.total} samples"
            # All of these are measured already, so this only decides and runs no forward pass.
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
        self,
        job: Job,
        handle: ModelHandle,
        drawn: SampleSplit,
        findings: Findings,
        settings: ValidateSettings,
    ) -> tuple[Validation | None, str, str]:
        """The validation, or why there is none; and how far it came if it was stopped."""
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
        except (ValueError, RunOutOfMemoryError) as error:  # the result of finding is kept
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
                kept = cached(*encode_image(_opened(sample), PICTURE_SIDE), self.component)
                images[sample.id] = self.store.keep(run_id, kept)["url"]
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
        result = self.store.get(field_of(ask, "run"))
        return {"error": GONE} if result is None else result.value

    def profile_file(self, ask: Any) -> dict[str, Any]:
        """The profile as a TOML file, with the chosen tau."""
        assert self.component is not None
        try:
            profile = self.profile(ask)
        except ValueError as error:
            return {"error": str(error)}
        result = self.store.get(field_of(ask, "run"))
        assert result is not None
        name = profile_name(result.findings)
        with scratch() as folder:
            path = Path(folder) / name
            write_profile(path, profile)
            data = path.read_bytes()
        value = self.store.keep(result.id, cached(data, name, self.component))
        return {**value, "name": name}

    def forget_sinks(self, ask: Any) -> dict[str, Any]:
        """Delete a result and the files made from it: {"run": id}."""
        if self.settings.app.read_only:
            return {"error": READ_ONLY}
        self.store.delete(field_of(ask, "run"))
        return {}

    def profile(self, ask: Any) -> SinkProfile:
        """The profile of a result with another tau: {"run": id, "tau": number}.

        Raises:
            ValueError: the result was removed, has no sinks, or tau is not allowed.
        """
        result, tau = self.store.get(field_of(ask, "run")), field_of(ask, "tau")
        if result is None:
            raise ValueError(GONE)
        profile = result.findings.profile()
        if tau is None or tau == profile.tau:
            return profile
        if isinstance(tau, bool) or not isinstance(tau, int | float) or not math.isfinite(tau):
            raise ValueError(f"tau is {tau!r}; allowed: a number.")
        note = f"tau was set by hand; {profile.tau:g} was calibrated. {profile.note}"
        return dataclasses.replace(profile, tau=round(float(tau), 4), note=note)


def _measured(samples: SampleSet, work: Path) -> SampleSet:
    """The samples whose statistics are in the folder."""
    measured = {(one.id, one.fingerprint) for one in measured_in(work)}
    left = tuple(s for s in samples.samples if (s.id, s.fingerprint()) in measured)
    return dataclasses.replace(samples, samples=left, wanted=len(left))


def _opened(sample: Sample) -> Any:
    first = sample.images[0]
    return first if isinstance(first, Image.Image) else open_image(first)
