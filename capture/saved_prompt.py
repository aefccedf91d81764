"""The prompt of a run, prepared again by the model that made it, so that it can be read again."""

from __future__ import annotations

from sinkscope.capture.trace import GenerationTrace
from sinkscope.config import VARSettings
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle


def prepare_saved_prompt(handle: ModelHandle, trace: GenerationTrace) -> PromptInputs:
    """The prompt of a run as the model takes it.

    Raises:
        ValueError: another model is loaded, or the prompt differs from that of the run (which was
            prepared with a system message, earlier turns or other image sizes).
    """
    check_model(handle, trace)
    inputs = handle.prepare(list(trace.images), trace.prompt)
    if inputs.layout != trace.layout or inputs.token_texts != trace.prompt_tokens:
        raise ValueError(
            f"The prompt of this run has {trace.layout.length} tokens and is prepared with "
            f"{inputs.layout.length} now, or with others: it was prepared in another way (system "
            "message, earlier turns, image sizes). Make the run again with what is loaded."
        )
    return inputs


def check_model(handle: ModelHandle, trace: GenerationTrace) -> None:
    """Refuse a run of another model.

    Raises:
        ValueError: naming both.
    """
    made_by = [(m.id, m.revision, m.family) for m in (trace.model, handle.info)]
    if made_by[0][1:] != made_by[1][1:]:
        raise ValueError(
            f"This run was made by {made_by[0][0]} ({made_by[0][1]}), but {made_by[1][0]} "
            f"({made_by[1][1]}) is loaded. Load the run's model to test it."
        )


def var_settings_of(trace: GenerationTrace) -> VARSettings | None:
    """The VAR settings that a run was made with; None for the plain model."""
    if trace.var is None:
        return None
    stored = dict(trace.var["settings"])
    lists = {name: tuple(v) for name, v in stored.items() if isinstance(v, list)}
    return VARSettings(**{**stored, **lists})
