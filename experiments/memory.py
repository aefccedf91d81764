"""What helps where an experiment finds the memory full."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sinkscope.capture.run import RunOutOfMemoryError
from sinkscope.experiments.settings import StudySettings
from sinkscope.models.loading import ModelHandle


@contextmanager
def memory_errors_named(
    handle: ModelHandle, settings: Any, asked: StudySettings, answers: bool, samples: int
) -> Iterator[None]:
    """Turns a full device into `RunOutOfMemoryError`, with the levers that an experiment has and
    their present values.

    Args:
        handle: of the model.
        settings: of the experiment.
        asked: of the study.
        answers: whether the experiment looks at an answer.
        samples: how many there are.
    """
    full = False
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RunOutOfMemoryError):
        full = True  # raised below, when the traceback no longer holds the run's tensors
    except RuntimeError as error:  # what torch raises where a CPU's memory is full
        full = "can't allocate memory" in str(error)
        if not full:
            raise
    if full:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise RunOutOfMemoryError(
            f"Memory is full. What helps: {', '.join(_levers(handle, settings, asked, answers))}, "
            f"fewer samples (samples; now {samples}), or a smaller model or number type (dtype; "
            f"now {handle.info.dtype})."
        )


def _levers(
    handle: ModelHandle, settings: Any, asked: StudySettings, answers: bool
) -> Iterator[str]:
    """What a pass of this experiment can do with less of."""
    yield "smaller images (max_pixels)" if handle.family.sees_images else "shorter prompts"
    if answers:
        yield f"a shorter answer (answer_tokens; now {asked.answer_tokens})"
    if hasattr(settings, "print"):
        yield f"fewer quantities (print; now {', '.join(settings.print)})"
    if hasattr(settings, "layers"):
        now = "all" if settings.layers is None else ", ".join(map(str, settings.layers))
        yield f"fewer layers (layers; now {now})"
