"""What helps when memory runs out during an experiment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from sinkscope.capture.run import RunOutOfMemoryError, out_of_memory_named
from sinkscope.experiments.settings import StudySettings
from sinkscope.models.loading import ModelHandle


def memory_errors_named(
    handle: ModelHandle, settings: Any, asked: StudySettings, answers: bool, samples: int
) -> AbstractContextManager[None]:
    """`capture.run.out_of_memory_named` naming the experiment's settings that help and their
    present values.

    Args:
        handle: of the model.
        settings: of the experiment.
        asked: of the study.
        answers: whether the experiment looks at an answer.
        samples: how many there are.
    """

    def words() -> str:
        levers = ", ".join(_levers(handle, settings, asked, answers))
        return (
            f"Memory is full. What helps: {levers}, fewer samples (samples; now {samples}), or a "
            f"smaller model or number type (dtype; now {handle.info.dtype})."
        )

    return out_of_memory_named(words, also=(RunOutOfMemoryError,))


def _levers(
    handle: ModelHandle, settings: Any, asked: StudySettings, answers: bool
) -> Iterator[str]:
    """The settings that reduce the memory of a pass."""
    yield "smaller images (max_pixels)" if handle.family.sees_images else "shorter prompts"
    if answers:
        yield f"a shorter answer (answer_tokens; now {asked.answer_tokens})"
    if hasattr(settings, "print"):
        yield f"fewer quantities (print; now {', '.join(settings.print)})"
    if hasattr(settings, "layers"):
        now = "all" if settings.layers is None else ", ".join(map(str, settings.layers))
        yield f"fewer layers (layers; now {now})"
