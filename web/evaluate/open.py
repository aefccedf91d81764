"""Opens a question of a run in the form of Explore: its picture, its prompt, and every setting of
the run, so that Generate with Compare gives both answers again, with their maps."""

from __future__ import annotations

import io
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from PIL import Image

from sinkscope.config import OF_CHECKPOINT, GenerationSettings, VARSettings
from sinkscope.evaluation.tasks.listed import task_named
from sinkscope.setting import list_text, user_settings
from sinkscope.web.evaluate.run import EvaluateHandlers
from sinkscope.web.runs.job_values import field_of
from sinkscope.web.runs.request import MORE


def form_values(handlers: EvaluateHandlers, ask: Any, dims: str) -> dict[str, Any]:
    """Values of the form's controls by name; controls that do not change are left out.

    Args:
        handlers: the tab's handlers.
        ask: {"run": id, "question": id, "method": name of the one to compare with default}.
        dims: content of the form's box of sink dimensions.

    Raises:
        ValueError: run, question or method is unknown, or another model is loaded.
    """
    assert handlers.component is not None
    run, question = handlers.question(ask)
    handle, wanted = handlers.loaded.handle, run.config.run.model_revision
    if handle is None or handle.info.revision != wanted:
        info = None if handle is None else handle.info
        loaded = "no model" if info is None else f"{info.id} (revision {info.revision})"
        raise ValueError(
            f"This run asked {run.config.model.model} (revision {wanted}), and {loaded} is loaded; "
            "load the run's model under Model in Explore to open its questions."
        )
    if question.system is not None:
        raise ValueError("This question has a system prompt, which Explore cannot use.")
    places = "image", *MORE
    if len(question.pictures) > len(places):
        raise ValueError(
            f"This question has {len(question.pictures)} images; Explore asks about "
            f"{len(places)} at most."
        )
    saved = [_saved(picture(), handlers.component) for picture in question.pictures]
    protocol = task_named(run.config.run.task).protocol(run.config.run.protocol)
    values: dict[str, Any] = {
        **{name: getattr(GenerationSettings, name) for name in OF_CHECKPOINT},
        **dict.fromkeys(places),
        **dict(zip(places, saved, strict=False)),
        "prompt": protocol.prompt(question),
        "compare": False,
        "same_text": False,
        "decoding": protocol.decoding,
        "max_new_tokens": protocol.max_new_tokens,
        "seed": run.config.run.seed,
    }
    method = field_of(ask, "method")
    settings = {one.name: one.var for one in run.config.methods}
    if method not in settings:
        raise ValueError(f"The method is {method!r}; allowed: {', '.join(settings)}.")
    if (var := settings[method]) is None:
        return values
    values["compare"] = True
    for one in user_settings(VARSettings):
        if one.field == "dims":
            continue
        value = var.get(one.field, one.default)
        if isinstance(value, tuple):
            value = list_text(value)
        values[one.name] = "" if value is None else value
    profile = handle.profile
    if dims.strip() or profile is None or tuple(var["dims"]) != tuple(profile.dims):
        # Given explicitly, so that no default applies; this also keeps tau as it is set here.
        values["dims"] = ", ".join(map(str, var["dims"]))
        values["dims_of"] = handle.info.id
    return values


def updates(values: dict[str, Any], names: list[str]) -> list[Any]:
    """One value for each control of the form, in the order of the names."""
    return [values.get(name, gr.skip()) for name in names]


def _saved(image: Image.Image, component: gr.HTML) -> str:
    """Save the picture exactly as the model saw it to where Gradio takes images from."""
    data = io.BytesIO()
    image.convert("RGB").save(data, "PNG")
    return str(save_bytes_to_cache(data.getvalue(), "question.png", component.GRADIO_CACHE))
