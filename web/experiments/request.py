"""A click on Run in the Experiments tab: its values, and the samples that they select."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sinkscope.config import ImageLimits
from sinkscope.experiments.catalogue import Experiment, experiment_named
from sinkscope.experiments.samples import Prompts, own_prompts, read_prompts
from sinkscope.experiments.settings import StudySettings
from sinkscope.jobs.job import Job
from sinkscope.models.loading import ModelHandle
from sinkscope.setting import (
    REQUIRED,
    checked,
    explained,
    refuse,
    setting,
    settings_of,
    user_settings,
)
from sinkscope.sinks.samples import PROMPT, Sample
from sinkscope.web.components.controls import control_value
from sinkscope.web.server.uploads import MOST_FILES, upload_path
from sinkscope.web.sinks.request import (
    IMAGES,
    LONGEST_PROMPT,
    MOST_SAMPLES,
    Opener,
    Picture,
    SinksRequest,
    draw_samples,
)

BUNDLED, MINE = "Bundled", "My own"
TEXT_FILES = (".txt", ".text", ".md")


@explained
@dataclass(frozen=True)
class ExperimentRequest:
    """The values of the tab's controls; `check` validates them.

    `name` is the experiment's name. `source` is `BUNDLED` (drawn scenes; for a text model, our own
    prompts) or `MINE` (`pictures`: images, optionally with a file of questions about them; for a
    text model, a text file). `prompt` is asked about every image without a question of its own.
    `experiment_settings` are the values of the experiment's own controls, and `study` of those that
    all experiments share, by the names that users see.
    """

    name: str
    source: str = BUNDLED
    pictures: tuple[Picture, ...] = ()
    prompt: str = ""
    experiment_settings: Mapping[str, Any] = field(default_factory=dict)
    study: Mapping[str, Any] = field(default_factory=dict)
    samples: int = setting(
        16,
        "Number of samples; more give narrower intervals.",
        low=1,
        high=MOST_SAMPLES,
        label="How many",
    )

    def check(self) -> tuple[Experiment, Any, StudySettings]:
        """The experiment, its settings, and the settings of all experiments.

        Raises:
            ValueError: naming the setting, its value and what is allowed.
        """
        experiment = experiment_named(self.name)
        if self.source not in (BUNDLED, MINE):
            raise refuse("source", self.source, f"{BUNDLED}, {MINE}")
        if not isinstance(self.prompt, str) or len(self.prompt) > LONGEST_PROMPT:
            raise ValueError(f"The question has more than {LONGEST_PROMPT} characters.")
        (samples,) = settings_of(ExperimentRequest)
        checked(samples, control_value(samples, self.samples))
        if self.source == MINE and not self.pictures:
            raise ValueError("There is no file. Upload some, or take the bundled samples.")
        if len(self.pictures) > MOST_FILES:
            raise ValueError(
                f"{len(self.pictures)} files were given; allowed: at most {MOST_FILES}."
            )
        settings, study = (
            _settings_from(experiment.settings, self.experiment_settings),
            _settings_from(StudySettings, self.study),
        )
        return experiment, settings, study

    @property
    def count(self) -> int:
        """The number of samples, as an integer."""
        return int(self.samples)


def _settings_from(cls: type[Any], given: Mapping[str, Any]) -> Any:
    """The settings from the values of controls."""
    values: dict[str, Any] = {}
    for one in user_settings(cls):
        if one.name in given:
            values[one.field] = control_value(one, given[one.name])
        elif one.default is REQUIRED:
            raise refuse(one.name, None, one.help.rstrip("."))
    return cls(**values)


def samples_of(
    request: ExperimentRequest,
    handle: ModelHandle,
    limits: ImageLimits,
    job: Job,
    opened: Opener,
) -> Prompts:
    """The samples of a run; `opened` opens an upload (`web.sinks.request.draw_samples`).

    Raises:
        ValueError: no sample can be used, or this model cannot read the file.
        Stopped: the job was stopped.
    """
    if not handle.family.sees_images:
        if request.source == BUNDLED:
            return own_prompts(request.count)
        return _prompts(request, handle.info.id)
    if request.source == BUNDLED:
        return _scenes(request)
    drawn = draw_samples(
        SinksRequest(
            IMAGES,
            request.pictures,
            request.prompt.strip() or PROMPT,
            samples=request.count,
            held_out=0,
        ),
        opened,
        limits,
        **job.hooks,
    ).find
    source = "the upload" if drawn.source == "The upload" else drawn.source  # inside a sentence
    return Prompts(drawn.samples, source, drawn.notes())


def _scenes(request: ExperimentRequest) -> Prompts:
    # Imported here: drawing scenes is part of making the bundled model; the page does not need it.
    from PIL import Image

    from sinkscope.demo.scene_questions import SOURCE, scene_questions

    samples: Iterator[Sample] = (
        Sample(one.name, (Image.fromarray(one.image),), one.question, one.answer)
        for one in scene_questions(request.count, request.prompt.strip() or None, 0)
    )
    return Prompts(tuple(sorted(samples, key=lambda sample: sample.id)), SOURCE)


def _prompts(request: ExperimentRequest, model: str) -> Prompts:
    """The lines of an uploaded text file."""
    names = [Path(one.name.replace("\\", "/")).name[:80] or "file" for one in request.pictures]
    if len(names) != 1 or Path(names[0]).suffix.lower() not in TEXT_FILES:
        raise ValueError(
            f"{model} is a text model and sees no images, but {', '.join(names[:3])} "
            f"{'was' if len(names) == 1 else 'were'} uploaded; allowed: one text file "
            f"({', '.join(TEXT_FILES)}) with a prompt a line."
        )
    path = upload_path(str(request.pictures[0].path))
    try:
        read = read_prompts(path, request.count)
    except ValueError as error:  # its text names the file's path on the server
        raise ValueError(str(error).replace(path.name, names[0])) from error
    return Prompts(
        read.samples, names[0], tuple(n.replace(path.name, names[0]) for n in read.notes)
    )
