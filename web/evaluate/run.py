"""Actions behind Run, Go on and Stop of the Evaluate tab, and answers to its questions. Does not
depend on the layout.

A run is a job (`jobs.runner`) in the same queue as answers of the Explore tab. Its answers are
records in a folder of its own, in the format of `sinkscope evaluate run`; scores, intervals and
texts are computed from these records, during the run and later.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from sinkscope.config import ImageLimits, ModelSettings, Settings
from sinkscope.evaluation.base import Question
from sinkscope.evaluation.report.questions import look_up
from sinkscope.evaluation.run_folder import CONFIG, Run, read_run
from sinkscope.evaluation.runner import evaluate, prepare
from sinkscope.evaluation.session import Summary
from sinkscope.evaluation.settings import RunConfig, read_config
from sinkscope.jobs.job import Job, JobProgress, Stopped
from sinkscope.jobs.runner import Runner, StoppedWaiting
from sinkscope.models.loading import ModelHandle
from sinkscope.web.evaluate.files import file_of, without_folder
from sinkscope.web.evaluate.payload import (
    LIVE_RESAMPLES,
    build_evaluate_payload,
    live,
    read_section,
)
from sinkscope.web.evaluate.request import MINE, EvaluateRequest
from sinkscope.web.evaluate.store import EvaluateStore
from sinkscope.web.evaluate.upload import keep_questions
from sinkscope.web.runs.image_process import ImageProcess
from sinkscope.web.runs.inspector import cached, error_value
from sinkscope.web.runs.job_values import (
    Values,
    field_of,
    loaded_handle,
    result_values,
    running_value,
    with_error_value,
)
from sinkscope.web.runs.loaded_model import LoadedModel
from sinkscope.web.runs.payload import encode_image
from sinkscope.web.runs.served_files import ServedFiles
from sinkscope.web.runs.tab_handlers import TabHandlers
from sinkscope.web.server.read_only import READ_ONLY

EVALUATE = "evaluate"  # the kind of job that the tab's Stop ends
PICTURE_SIDE = 220
LIVE_SECONDS = 1.0  # between two readings of the records
LIVE_SHARE = 10  # a reading that took t seconds is repeated after 10 t at the earliest

Ask = Callable[[ModelHandle], RunConfig]


@dataclass
class _Live:
    """Scores while a run is in progress; read again when enough time has passed."""

    folder: Path
    begun: float = field(default_factory=time.monotonic)
    due: float = 0.0
    shown: dict[str, Any] = field(default_factory=dict)
    first: int | None = None  # questions answered before this job began

    def look(self, done: int) -> dict[str, Any] | None:
        """The scores so far; None if they are not due again or there are none."""
        now = time.monotonic()
        if not done or now < self.due:
            return None
        try:
            payload = live(read_section(self.folder, LIVE_RESAMPLES))
        except ValueError:  # no record yet
            return None
        spent = time.monotonic() - now
        self.due = time.monotonic() + max(LIVE_SECONDS, LIVE_SHARE * spent)
        return payload

    def left(self, done: int, total: int) -> float | None:
        """Estimated seconds until the run is over, at the speed so far."""
        self.first = done if self.first is None else self.first
        new = done - self.first
        if new <= 0 or not total:
            return None
        return (time.monotonic() - self.begun) / new * (total - done)


class EvaluateHandlers(TabHandlers):
    """The tab's actions (`TabHandlers`); the answers of a stopped run are kept.

    Args:
        answer: answers the questions; tests pass their own.
        copies: the served files of Explore's runs, which share a folder with those of this tab.
    """

    kind = EVALUATE

    def __init__(
        self,
        settings: Settings,
        loaded: LoadedModel,
        runner: Runner,
        answer: Callable[..., Summary] = evaluate,
        images: ImageProcess | None = None,
        copies: ServedFiles | None = None,
    ) -> None:
        super().__init__(settings, loaded, runner, images)
        self.answer = answer
        self.store = EvaluateStore(
            settings.app.cache / "page_evaluations",
            owned=bool(settings.app.login),
            copies=ServedFiles(copies),
        )

    # --- Run, Go on and Stop ---------------------------------------------------------------------

    def run(self, request: EvaluateRequest, session: str) -> Values:
        """Values for the component: queued, running, and at last ready, stopped or error.

        Raises:
            gr.Error: after the error value.
        """

        run_id = self.store.new()
        kept: tuple[Path, int] | None = None

        def ask(handle: ModelHandle) -> RunConfig:
            return request.config(handle, self._model(handle), kept)

        def check() -> None:
            nonlocal kept
            most = request.check()["questions"]
            if (handle := self.loaded.handle) is not None:
                ask(handle)  # check now, so that nobody queues only to be refused
            if request.source == MINE:
                folder = self.store.data(run_id)
                limits = self.settings.images
                kept = keep_questions(request.files, folder, limits, most, self._decoded)

        try:
            yield from self._values(run_id, session, ask, check)
        finally:
            self.store.forget(run_id)

    def _decoded(self, image: Path | bytes, limits: ImageLimits) -> Image.Image:
        """An image of an upload; this process reads only the copy made of it."""
        if isinstance(image, bytes):
            return self.images.open_bytes(image, limits)
        return self.images.open_upload(str(image), limits, image.name)

    def go_on(self, run_id: object, session: str) -> Values:
        """The same for a run that was stopped, or some of whose questions failed.

        Raises:
            gr.Error: after the error value.
        """
        known = run_id if isinstance(run_id, str) else ""

        def check() -> None:
            self.store.find(known)

        yield from self._values(
            known, session, lambda handle: read_config(self.store.find(known) / CONFIG), check
        )

    def _values(self, run_id: str, session: str, ask: Ask, check: Callable[[], object]) -> Values:
        def words(error: Exception) -> str:
            folder = self.store.folder_of(run_id)
            text = str(error).replace(str(folder), "of this run")
            return without_folder(text.encode("utf-8", "replace"), folder).decode()

        values = self._run(run_id, session, ask, check)
        yield from with_error_value(values, run_id, "an evaluation", words)

    def _run(self, run_id: str, session: str, ask: Ask, check: Callable[[], object]) -> Values:
        check()
        job = self.runner.job(session, EVALUATE)
        with self.store.writing(run_id) as folder:
            text, seen = "", _Live(folder)
            work = partial(self._work, ask, folder)
            try:
                yield from result_values(
                    self.runner, job, work, run_id, lambda at, _: _running(run_id, job, at, seen)
                )
            except StoppedWaiting:
                yield error_value(run_id, "Stopped while it was waiting; nothing was asked.")
                return
            except Stopped as stopped:
                if not stopped.done:
                    words = f"{job.ended_by} before a question was answered."
                    raise ValueError(words) from stopped
                text = f"{job.ended_by} after {stopped.done} of {stopped.total} questions"
            yield self._value(run_id, folder, text)  # after the job, so the model is free again

    def _work(self, ask: Ask, folder: Path, job: Job) -> None:
        """Runs in the job's thread, which has the model to itself meanwhile."""
        handle = loaded_handle(self.loaded)
        job.enter("Starting")
        config = ask(handle)
        prepared = prepare(config.run)
        job.enter("Answering")
        self.answer(handle, config, prepared, folder, **job.hooks)

    def _model(self, handle: ModelHandle) -> ModelSettings:
        """The model's settings for the run's file: the start's settings if they are of this model.
        Without the path of a profile, because the methods contain all its values."""
        start, info = self.settings.model, handle.info
        model_settings = start if start.model == info.id else ModelSettings(info.id)
        return replace(model_settings, profile=None)

    # --- what is shown ---------------------------------------------------------------------------

    def _value(self, run_id: str, folder: Path, stopped: str = "") -> dict[str, Any]:
        assert self.component is not None
        section = read_section(folder)
        asked = {record.question: record.index for record in section.run.records()}
        questions = look_up(section.run, asked).questions
        pictures: dict[str, str] = {}
        for one in questions.values():
            if one.cluster not in pictures:  # one picture for each scene
                image = encode_image(one.pictures[0](), PICTURE_SIDE)
                value = self.store.keep(run_id, cached(*image, self.component))
                pictures[one.cluster] = value["url"]
        data = build_evaluate_payload(section, questions, pictures)
        seconds = sum(float(one.get("seconds", 0)) for one in section.run.summaries)
        whole = section.complete and not stopped
        over = len(asked) >= (section.run.config.run.limit or 0)
        return {
            "phase": "ready" if over and not stopped else "stopped",
            "run": run_id,
            "message": stopped or ("Done" if whole else "Not complete"),
            "facts": [f"took {seconds:.1f} s"] if whole and seconds else [],
            "data": self.store.keep(run_id, cached(data, "evaluation.bin", self.component)),
        }

    # --- questions of the component: no queue and no model; one JSON argument; {"error": ...} -----

    def open_evaluation(self, ask: Any) -> dict[str, Any]:
        """Open a run by its id: {"run": id}."""
        try:
            run_id = str(field_of(ask, "run"))
            return self._value(run_id, self.store.find(run_id))
        except ValueError as error:
            return {"error": str(error)}

    def evaluation_file(self, ask: Any) -> dict[str, Any]:
        """Download a file of a run: {"run": id, "what": one of `evaluate_files.MEDIA`}."""
        assert self.component is not None
        what, run_id = field_of(ask, "what"), field_of(ask, "run")
        try:
            data = file_of(self.store.find(run_id), what)
        except ValueError as error:
            return {"error": str(error)}
        name = f"evaluation-{what}" if what != "records.jsonl" else "evaluation-answers.jsonl"
        return {**self.store.keep(run_id, cached(data, name, self.component)), "name": name}

    def forget_evaluation(self, ask: Any) -> dict[str, Any]:
        """Delete a run, its records and the files made from it: {"run": id}."""
        if self.settings.app.read_only:
            return {"error": READ_ONLY}
        try:
            self.store.delete(field_of(ask, "run"))
        except ValueError as error:
            return {"error": str(error)}
        return {}

    def question(self, ask: Any) -> tuple[Run, Question]:
        """A question of a run: {"run": id, "question": id}.

        Raises:
            ValueError: run or question is unknown.
        """
        run = read_run(self.store.find(field_of(ask, "run")))
        name = field_of(ask, "question")
        places = {one.question: one.index for one in run.records() if one.question == name}
        questions = look_up(run, places).questions
        if not isinstance(name, str) or name not in questions:
            raise ValueError("This question is not one of the run.")
        return run, questions[name]


def _running(run_id: str, job: Job, at: JobProgress, seen: _Live) -> dict[str, Any]:
    if at.stage == "Answering" and (shown := seen.look(at.done)) is not None:
        seen.shown = shown
        at = job.at  # reading takes time, so the job has gone on
    message = "Stopping after the questions at hand" if job.stopped else at.stage
    value = running_value(run_id, at, message, "questions")
    if at.stage != "Answering":
        value["facts"] = []
    elif at.total:
        left = seen.left(at.done, at.total)
        if left is not None and not job.stopped:
            value["facts"].append(_spoken(left))
        if seen.shown:
            value["live"] = seen.shown
    return value


def _spoken(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(1, round(seconds))} s left"
    return f"about {round(seconds / 60)} min left"
