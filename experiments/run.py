"""Running an experiment: from its name, a model and samples to a `Result`."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch
import transformers

from sinkscope.experiments.catalogue import experiment_named
from sinkscope.experiments.memory import memory_errors_named
from sinkscope.experiments.preparing import prepare_study
from sinkscope.experiments.result import Result
from sinkscope.experiments.samples import AnySample, Prompts
from sinkscope.experiments.settings import StudySettings
from sinkscope.experiments.study import ProgressWatch
from sinkscope.jobs.job import Progress
from sinkscope.models.loading import ModelHandle


def run_experiment(
    handle: ModelHandle,
    name: str,
    samples: Prompts | Sequence[AnySample],
    settings: Any,
    study_settings: StudySettings | None = None,
    *,
    on_progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Result:
    """Run one of `catalogue.EXPERIMENTS`.

    Args:
        handle: a loaded model. Its lock is taken for one pass at a time; do not hold it.
        name: of the experiment.
        samples: with images, or without; not both.
        settings: of this experiment (its row says which dataclass).
        study_settings: what all experiments share.
        on_progress: called with passes done, passes in all, and what is being done.
        stop: once set, the run ends after the current pass.

    Raises:
        ValueError: an impossible setting, sample or token; the text says what is possible. What can
            be checked without a pass is refused before the first one.
        RunOutOfMemoryError: the device is full; the text says what helps.
        Stopped: `stop` was set.
    """
    experiment = experiment_named(name)
    if not isinstance(settings, experiment.settings):
        raise ValueError(
            f"settings is a {type(settings).__name__}; {name} takes {experiment.settings.__name__}."
        )
    study_settings = study_settings or StudySettings()
    if study_settings.tokens is None:  # some experiments compare other tokens
        tokens = getattr(settings, "default_tokens", None)
        study_settings = dataclasses.replace(study_settings, tokens=tokens)
    _check_layers(handle, settings)
    if experiment.check is not None:
        experiment.check(handle, settings, study_settings)
    given = samples if isinstance(samples, Prompts) else Prompts(tuple(samples), "given samples")
    began = time.perf_counter()
    count = len(given.samples)
    with memory_errors_named(handle, settings, study_settings, experiment.answers, count):
        study = prepare_study(
            handle,
            given.samples,
            study_settings,
            source=given.source,
            answers=experiment.answers,
            ordinary=experiment.ordinary if getattr(settings, "draws_tokens", True) else "",
            least=experiment.least,
            watch=ProgressWatch(on_progress, stop),
        )
        findings = experiment.run(study, settings)
    findings = dataclasses.replace(findings, notes=(*given.notes, *study.notes, *findings.notes))
    return Result(
        experiment=name,
        question=experiment.question,
        settings={
            "experiment": dataclasses.asdict(settings),
            "study": dataclasses.asdict(study_settings),
        },
        model=dataclasses.asdict(handle.info),
        samples=tuple(case.sample.id for case in study.cases),
        source=study.source,
        groups=study.sizes,
        findings=findings,
        versions=versions(),
        seconds=time.perf_counter() - began,
    )


def _check_layers(handle: ModelHandle, settings: Any) -> None:
    """Refuse layers that the model does not have before any sample is passed through it; where a
    layer must have one after it, the experiment says so."""
    layers = handle.info.layers
    for name in ("layer", "layers"):
        given = getattr(settings, name, None)
        for layer in given if isinstance(given, tuple) else (given,):
            if layer is not None and not 0 <= layer < layers:
                raise ValueError(
                    f"layer is {layer}; {handle.info.id} has layers 0 to {layers - 1}."
                )


def versions() -> dict[str, str]:
    """The versions that a number may depend on."""
    try:
        package_version = importlib.metadata.version("sinkscope")
    except importlib.metadata.PackageNotFoundError:
        package_version = "from a folder"
    return {
        "sinkscope": package_version,
        "torch": str(torch.__version__),
        "transformers": str(transformers.__version__),
    }
