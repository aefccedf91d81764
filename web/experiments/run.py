"""Actions behind Run and Stop of the Experiments tab, and answers to its questions. Does not depend
on the layout.

A run is a job (`jobs.runner`) in the same queue as answers of the Explore tab. It gives a complete
result or none: a stopped experiment has measured only a part of what it compares.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from sinkscope.config import Settings
from sinkscope.experiments.compare import compare, is_comparison
from sinkscope.experiments.result import Result
from sinkscope.experiments.run import run_experiment
from sinkscope.experiments.saving import save_result
from sinkscope.jobs.job import Job, JobProgress, Progress, Stopped
from sinkscope.jobs.runner import Runner, StoppedWaiting
from sinkscope.utils import sha256
from sinkscope.web.experiments.payload import build_experiment_payload
from sinkscope.web.experiments.request import ExperimentRequest, samples_of
from sinkscope.web.experiments.store import ExperimentResult, ExperimentStore
from sinkscope.web.runs.image_process import ImageProcess, KeptImages
from sinkscope.web.runs.inspector import cached, cached_file
from sinkscope.web.runs.job_values import (
    UNFORESEEN,
    Values,
    field_of,
    loaded_handle,
    result_values,
    running_value,
)
from sinkscope.web.runs.loaded_model import LoadedModel
from sinkscope.web.runs.served_files import ServedFiles
from sinkscope.web.runs.tab_handlers import ResultHandlers
from sinkscope.web.server.read_only import READ_ONLY
from sinkscope.web.server.temporary import scratch

log = logging.getLogger(__name__)

COMPARISON = "comparison"  # of two results; needs no model and does not queue
EXPERIMENT = "experiment"  # the kind of job that the tab's Stop ends
GONE = "This result is no longer on the server. Press Run to make it again."
LOOKING = "Looking for sinks"
DRAWING = "Drawing the figures"
ExperimentEngine = Callable[..., Result]


class ExperimentsHandlers(ResultHandlers[ExperimentRequest]):
    """The tab's actions (`ResultHandlers`).

    Args:
        engine: runs an experiment; tests pass their own.
        copies: the served files of Explore's runs, which share a folder with those of this tab.
    """

    kind, what = EXPERIMENT, "an experiment"

    def __init__(
        self,
        settings: Settings,
        loaded: LoadedModel,
        runner: Runner,
        engine: ExperimentEngine | None = None,
        images: ImageProcess | None = None,
        copies: ServedFiles | None = None,
    ) -> None:
        super().__init__(settings, loaded, runner, images)
        self.engine = engine or run_experiment
        self.store = ExperimentStore(owned=bool(settings.app.login), copies=ServedFiles(copies))

    # --- Run and Stop ----------------------------------------------------------------------------

    def _run(self, request: ExperimentRequest, run_id: str, job: Job) -> Values:
        request.check()

        def running(at: JobProgress, seconds: float) -> dict[str, Any]:
            message = "Stopping after this pass" if job.stopped else at.stage or "Starting"
            what = "samples" if at.stage == LOOKING else "passes"
            return running_value(run_id, at, message, what, seconds)

        try:
            work = partial(self._work, request, run_id)
            yield from result_values(self.runner, job, work, run_id, running)
        except StoppedWaiting:
            yield _stopped(run_id, "Stopped while it was waiting; nothing was measured.")
        except Stopped as stopped:
            at = f" after {stopped.done} of {stopped.total} steps" if stopped.total else ""
            yield _stopped(
                run_id, f"{job.ended_by}{at}; a part of it says nothing, so none is kept."
            )

    def _work(self, request: ExperimentRequest, run_id: str, job: Job) -> dict[str, Any]:
        """Compute the result in the job's thread, which has the model to itself meanwhile."""
        handle = loaded_handle(self.loaded)
        experiment, settings, study = request.check()
        job.enter("Reading the samples")
        limits = self.settings.images
        with scratch() as folder:
            opened = KeptImages(self.images, Path(folder), limits, job.stop_event)
            samples = samples_of(request, handle, limits, job, opened)
            result = self.engine(
                handle,
                experiment.name,
                samples,
                settings,
                study,
                on_progress=_staged(job, len(samples.samples)),
                stop=job.stop_event,
            )
        job.enter(DRAWING)
        value = self._value(result, run_id)
        self.store.put(ExperimentResult(run_id, result, value))
        return value

    def _value(self, result: Result, run_id: str) -> dict[str, Any]:
        assert self.component is not None
        with scratch() as folder:
            written = save_result(Path(folder), result)
            sizes = {path.name: _size(path) for path in written if path.suffix == ".png"}
            written.append(_archive(Path(folder), written, result))
            files = {
                path.name: self.store.keep(run_id, cached_file(path, self.component))["url"]
                for path in written
            }
        data = build_experiment_payload(result, files, sizes)
        return {
            "phase": "ready",
            "run": run_id,
            "message": "Done",
            "facts": [f"{result.experiment}, two runs side by side"]
            if is_comparison(result)
            else [
                result.experiment,
                f"{len(result.samples)} samples",
                f"{result.seconds:.1f} s",
            ],
            "data": self.store.keep(run_id, cached(data, "experiment.bin", self.component)),
        }

    # --- a question of the component: no queue and no model; one JSON argument --------------------

    def open_experiment(self, ask: Any) -> dict[str, Any]:
        """A result by its id, for a page that was reloaded."""
        kept = self.store.get(field_of(ask, "run"))
        return {"error": GONE} if kept is None else kept.value

    def forget_experiment(self, ask: Any) -> dict[str, Any]:
        """Delete a result, its files, and the comparisons that show it: {"run": id}."""
        if self.settings.app.read_only:
            return {"error": READ_ONLY}
        self.store.delete(field_of(ask, "run"))
        return {}

    def compare_experiments(self, ask: Any) -> dict[str, Any]:
        """Two finished runs side by side, by their ids: a new result, or an error."""
        one, other = self.store.get(field_of(ask, "a")), self.store.get(field_of(ask, "b"))
        if one is None or other is None:
            return {"error": GONE}
        # The same comparison is not drawn again. Whoever knows both ids may see it.
        run_id = sha256(f"{one.id}~{other.id}".encode())[: len(one.id)]
        known = self.store.get(run_id)
        if known is not None:
            return known.value

        def work(job: Job) -> ExperimentResult:
            both = compare(one.result, other.result)
            value = self._value(both, run_id)
            return ExperimentResult(run_id, both, value, (one.id, other.id))

        job = self.runner.job("", COMPARISON)
        try:
            result: ExperimentResult = self.runner.result(job, work, waits=False)
        except ValueError as error:
            return {"error": str(error)}
        except Exception:
            log.exception("a comparison failed")
            return {"error": UNFORESEEN}
        self.store.put(result)
        return result.value


def _staged(job: Job, count: int) -> Progress:
    """Reports the progress of a job with two parts: looking for sinks in `count` samples, then the
    experiment. The experiment's number of passes is known only after the first part."""

    def tell(done: int, total: int, text: str) -> None:
        stage, _, rest = text.partition(": ")
        if total > count and done > count:
            done, total = done - count, total - count
        elif total > count:  # the first part is over
            done, total = 0, total - count
        if job.at.stage != stage:
            job.enter(stage)
        job.report(done, total, rest)

    return tell


def _stopped(run_id: str, message: str) -> dict[str, Any]:
    return {"phase": "stopped", "run": run_id, "message": message}


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def _archive(folder: Path, written: list[Path], result: Result) -> Path:
    """A zip file of all files."""
    model = str(result.model.get("id")).rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
    plain = "".join(c if c.isascii() and (c.isalnum() or c in ".-_") else "-" for c in model)
    path = folder / f"{result.experiment}-{plain}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in written:
            archive.write(file, f"{path.stem}/{file.name}")
    return path
