"""The Explore tab: the form beside the inspector, and which control calls which handler."""

from __future__ import annotations

from typing import Any

import gradio as gr

from sinkscope.config import Settings
from sinkscope.web.components.controls import change_of
from sinkscope.web.explore.events import generating, stopping
from sinkscope.web.explore.explaining import Explaining, connect_explaining
from sinkscope.web.explore.exporting import exporting, stopping_export
from sinkscope.web.explore.forecast import Forecaster
from sinkscope.web.explore.form import Form, build_form
from sinkscope.web.explore.handlers import Handlers
from sinkscope.web.explore.head_lists import HeadLists, connect_head_lists
from sinkscope.web.explore.model_events import (
    choosing_decoding,
    choosing_dims,
    following,
    forecasting,
    load_forecasting,
    loading,
    status_value,
    telling_limits,
)
from sinkscope.web.explore.picker import MODELS, PARAMETERS, build_picker
from sinkscope.web.explore.profile_upload import taking_profile
from sinkscope.web.explore.refill import fill_at_start, noticing, refilling
from sinkscope.web.explore.region import LastTested, stopping_region, testing_region
from sinkscope.web.runs.example import Example
from sinkscope.web.runs.inspector import empty_value, html_component, run_value
from sinkscope.web.runs.loaded_model import LoadedModel
from sinkscope.web.runs.request import MORE
from sinkscope.web.runs.store import Run

# Of a forecast: outside the queue, one at a time; of a burst of changes only the last counts.
QUIET: dict[str, Any] = {
    "api_visibility": "private",
    "queue": False,
    "show_progress": "hidden",
    "trigger_mode": "always_last",
}


def build_explore(
    page: gr.Blocks,
    status: gr.HTML,
    handlers: Handlers,
    forecaster: Forecaster,
    first: Run | None,
    offered: list[Example],
    last: LastTested,
) -> Form:
    """Build the tab in the open page and connect it; returns its form.

    Args:
        page: its load event requests the model's state.
        status: the line about the model, above all tabs.
        handlers: the functions that the controls call; gets the component that shows runs.
        forecaster: gives the line before a run.
        first: the run on screen at first.
        offered: example pictures.
        last: the question of the last region test, which the API's shares.
    """
    settings, loaded = handlers.settings, handlers.loaded
    with gr.Row(elem_id="desk"):
        with gr.Column(elem_id="ask", min_width=260):
            form = build_form(settings.generation, offered)
            picker = build_picker(settings.model)
        with gr.Column(elem_id="see", min_width=320):
            explaining = Explaining(handlers)
            lists = HeadLists(handlers)
            inspector = _inspector(handlers, explaining, lists, first)
    run = _connect_runs(form, inspector, status, handlers, settings)
    _connect_region(inspector, handlers, settings, last)
    connect_explaining(inspector, explaining, settings.app.queue_size + 8)
    connect_head_lists(inspector, lists)
    form.examples.select(
        None,
        form.examples,
        [form.image, form.prompt, *form.more_images],
        js="chosen => [chosen.image, chosen.prompt, null, null, null]",
        api_visibility="private",
    )
    ahead = _connect_forecast(form, forecaster)
    run.then(**ahead)  # a run improves the forecast
    offers = [model for _, model in MODELS]
    outputs = [status, form.compare, form.note, form.tau, picker.estimate]
    free: dict[str, Any] = {
        "concurrency_id": "status",
        "concurrency_limit": None,
        "show_progress": "hidden",
    }
    load = picker.load.click(
        loading(loaded, settings, offers),
        None,
        outputs,
        inputs_kwargs={**picker.controls},
        api_visibility="private",  # `web.api.routes` has the endpoints
        **free,
    )
    on_load = page.load(following(loaded), None, outputs, api_visibility="private", **free)
    decoding = (choosing_decoding(loaded), form.decoding, [form.checkpoint_words, *form.replaced])
    change_of(form.decoding)(*decoding, **QUIET)
    for event in (load, on_load):
        event.then(telling_limits(loaded), None, form.limits, **QUIET)
        event.then(**ahead)
        event.then(*decoding, **QUIET)
    _connect_dims(form, loaded, load)
    _connect_refill(form, inspector, handlers)
    if first is not None and first.kind == "example" and offered:
        fill_at_start(form, first, loaded.handle, settings.model.model)
    gr.on(
        [picker.opened.expand, *(change_of(control) for control in picker.controls.values())],
        load_forecasting(loaded, settings, offers, PARAMETERS),
        None,
        picker.estimate,
        inputs_kwargs={**picker.controls},
        **QUIET,
    )
    return form


def _connect_refill(form: Form, inspector: gr.HTML, handlers: Handlers) -> None:
    """An opened run fills the form, and a line says what was changed since."""
    inspector.apply(
        refilling(handlers, form),
        None,
        [*form.controls.values(), form.last_request, form.changed, form.more_images_section],
        inputs_kwargs={**form.controls},
        # A deferred event would have the data of the previous one.
        **QUIET | {"trigger_mode": "multiple"},
    )
    seen = [change_of(one) for one in form.controls.values() if hasattr(one, "change")]
    named = {"values_of_run": form.last_request, **form.controls}
    gr.on(seen, noticing(), None, form.changed, inputs_kwargs=named, **QUIET)


def _connect_dims(form: Form, loaded: LoadedModel, load: Any) -> None:
    """This browser's own sink dimensions, and the two ways back to the model's."""
    change_of(form.dims)(
        choosing_dims(loaded),
        [form.dims, form.dims_of],
        [form.compare, form.note, form.tau, form.reset_dims],
        **QUIET,
    )
    form.profile.upload(
        taking_profile(loaded), form.profile, [form.dims, form.dims_of, form.tau], **QUIET
    )
    form.reset_dims.click(lambda: ("", ""), None, [form.dims, form.dims_of], **QUIET)
    # Dimensions of one model mean nothing in another.
    load.success(lambda: ("", ""), None, [form.dims, form.dims_of], **QUIET)


def _connect_forecast(form: Form, forecaster: Forecaster) -> dict[str, Any]:
    """Keep the line under Generate current; returns the call that updates it."""
    names = ("image", *MORE, "prompt", "compare", "same_text", "max_new_tokens")
    read = {name: form.controls[name] for name in names}
    call = {"fn": forecasting(forecaster), "outputs": form.estimate, "inputs_kwargs": read, **QUIET}
    # A prompt is read when its box loses the focus, not at each letter.
    changes = (change_of(read[name]) for name in names if name != "prompt")
    gr.on([form.prompt.blur, *changes], **call)
    return call


def _inspector(
    handlers: Handlers, explaining: Explaining, lists: HeadLists, first: Run | None
) -> gr.HTML:
    inspector = html_component(
        "inspector",
        None,
        [
            handlers.open_run,
            handlers.forget_run,
            handlers.tokens_since,
            handlers.token_maps,
            explaining.explained,
            lists.read_heads,
            handlers.page_file,
            handlers.trace_file,
            handlers.start_drawing,
        ],
    )
    inspector.value = empty_value()
    if first is not None:
        inspector.value = handlers.copied(first, run_value(first, inspector, keep=True))
    handlers.component = inspector
    return inspector


def _connect_runs(
    form: Form, inspector: gr.HTML, status: gr.HTML, handlers: Handlers, settings: Settings
) -> Any:
    run = gr.on(
        [form.generate.click, form.prompt.submit],
        generating(handlers),
        None,
        [inspector, form.generate, form.stop],
        inputs_kwargs={**form.controls},
        api_name="answer",  # not "generate", which is the endpoint in `web.api.routes`
        api_visibility="private",
        show_progress="hidden",
        concurrency_id="gpu",
        concurrency_limit=settings.app.queue_size + 8,  # they wait in Handlers.runner
        trigger_mode="once",
    )
    # Another browser may have loaded another model since this page was opened.
    run.then(lambda: status_value(handlers.loaded.state), None, status, **QUIET)
    # Not "stop", which is the endpoint in `web.api.routes`.
    form.stop.click(stopping(handlers), None, None, api_name="stop_answer", **QUIET)
    inspector.select(
        exporting(handlers),
        None,
        inspector,
        api_visibility="private",
        show_progress="hidden",
        concurrency_id="export",
        concurrency_limit=2,
    )
    inspector.stop(
        stopping_export(handlers),
        None,
        None,
        api_visibility="private",
        queue=False,
        show_progress="hidden",
    )
    return run


def _connect_region(
    inspector: gr.HTML, handlers: Handlers, settings: Settings, last: LastTested
) -> None:
    """The question whether a box on the image matters, and its Stop."""
    handlers.loaded.on_change(last.drop)  # the next model needs the memory
    inspector.submit(
        testing_region(handlers, last),
        None,
        inspector,
        api_visibility="private",
        show_progress="hidden",
        concurrency_id="gpu",
        concurrency_limit=settings.app.queue_size + 8,  # they wait in Handlers.runner
    )
    inspector.pause(
        stopping_region(handlers),
        None,
        None,
        api_visibility="private",
        queue=False,
        show_progress="hidden",
    )
