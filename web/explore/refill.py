"""An opened run fills the form, and a line then says what was changed since."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr
from gradio.processing_utils import move_files_to_cache, save_bytes_to_cache

from sinkscope.models.loading import ModelHandle
from sinkscope.web.explore.forecast import Notice, notice
from sinkscope.web.explore.form import Form
from sinkscope.web.explore.handlers import Handlers
from sinkscope.web.runs.form_values import changed_words, control_values, form_values_of
from sinkscope.web.runs.request import MORE
from sinkscope.web.runs.store import Run


def cached_image(run: Run, image: gr.Image, keep: bool = False, index: int = 0) -> str | None:
    """An image of the run where Gradio serves files from, losslessly; None if it has none."""
    if index >= len(run.first.images):
        return None
    file = io.BytesIO()
    run.first.images[index].convert("RGB").save(file, "PNG")
    path: str = save_bytes_to_cache(file.getvalue(), "image.png", image.GRADIO_CACHE)
    if keep:
        image.keep_in_cache.add(path)
    return path


def fill_at_start(form: Form, run: Run, handle: ModelHandle | None, coming: str) -> None:
    """The form of a page that opens with this run on screen.

    It is part of the page: an event would come later and undo what a user did by then.

    Args:
        form: gets its values.
        run: the run.
        handle: the loaded model; None if it is loaded after the page was built.
        coming: the model that is loaded then. If it is the run's, tau is that of the run: with
            another one, the page would say at first that tau was changed.
    """
    values_of_run = form_values_of(run)
    values = control_values(values_of_run, handle, run.first.model.id)
    if handle is None and coming == run.first.model.id and "tau" in values_of_run:
        values["tau"] = values_of_run["tau"]
    for name, value in values.items():
        form.controls[name].value = value
    shown = form.image.postprocess(cached_image(run, form.image, keep=True))
    # As a component does with its initial value: the file comes with its address.
    form.image.value = move_files_to_cache(
        shown.model_dump() if shown is not None else None,
        form.image,
        postprocess=True,
        keep_in_cache=True,
    )


def refilling(handlers: Handlers, form: Form) -> Callable[..., Any]:
    """For the inspector's event: a run was opened, or a link names one that is gone."""
    names = list(form.controls)

    def refill(event: gr.EventData, **now: Any) -> tuple[Any, ...]:
        ask = event._data if isinstance(event._data, Mapping) else {}
        run, handle = handlers.store.get(ask.get("run")), handlers.loaded.handle
        sent = ask.get("said")
        sent_values = (
            form_values_of(run) if run is not None else sent if isinstance(sent, Mapping) else None
        )
        if sent_values is None:
            return *(gr.skip() for _ in names), gr.skip(), gr.skip(), gr.skip()
        values = control_values(
            sent_values, handle, run.first.model.id if run is not None else None
        )
        fill = bool(ask.get("fill"))
        if run is not None:
            for index, name in enumerate(("image", *MORE)):
                kept = cached_image(run, form.image, index=index) if fill else now.get(name)
                values[name] = kept
        shown = values if fill else {}
        if shown.get("dims"):
            shown = {**shown, "dims_of": run.first.model.id if run is not None else ""}
        updates = (shown.get(name, gr.skip()) for name in names)
        values_of_run = values if run is not None else {}
        words = "" if fill else changed_words(values_of_run, now)
        several = fill and any(values.get(name) for name in MORE)
        unfolded = gr.update(open=True) if several else gr.skip()
        return *updates, values_of_run, notice(words, "changed"), unfolded

    return refill


def noticing() -> Callable[..., Any]:
    """For every control's change: the line that says what was changed since the run on screen."""

    def changed(values_of_run: Mapping[str, Any], **now: Any) -> Notice:
        return notice(changed_words(values_of_run, now), "changed")

    return changed
