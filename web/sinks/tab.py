"""The Sinks tab: its form beside the drawn result, and which control calls which handler.

Hooks for tests and screenshots: `[data-testid=finder]` has `data-phase` (empty, queued, running,
ready, stopped, error) and, once a result is drawn, `data-ready` with its id; inside it are
`sinks-verdict`, `sinks-notes`, `sinks-use`, `sinks-save`, `sinks-own`, `sinks-message`,
`sinks-sample`, `sinks-layer`, `sinks-tau`, `sinks-tau-value`, `sinks-flagged`, `sinks-photo`,
`sinks-heat`, `sinks-candidates`, `sinks-dims`, `sinks-validation`; the form has
`#sinks-run`, `#sinks-stop`,
`#sinks-source`, `#sinks-files`, `#sinks-prompt`, `#sinks-samples`, `#sinks-held-out`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.data_classes import FileData

from sinkscope.setting import user_settings
from sinkscope.web.components.controls import control
from sinkscope.web.explore.form import Form
from sinkscope.web.explore.model_events import tau_end
from sinkscope.web.runs.inspector import html_component
from sinkscope.web.runs.tab_handlers import with_buttons
from sinkscope.web.server.uploads import UploadedFiles
from sinkscope.web.sinks.request import EXAMPLES, IMAGES, Picture, SinksRequest
from sinkscope.web.sinks.run import SinksHandlers


@dataclass(frozen=True)
class _SinksForm:
    """The controls that a click on Run reads; `controls` by argument names of `find_sinks`."""

    controls: dict[str, Component]
    run: gr.Button
    stop: gr.Button


def build_sinks(handlers: SinksHandlers, explore: Form) -> None:
    """Lay out the tab in the page that is being built, and connect it.

    Args:
        handlers: called by the controls; learns which component shows results.
        explore: the form whose VAR settings a result can be used in.
    """
    with gr.Row(elem_id="sinks-desk"):
        with gr.Column(elem_id="sinks-ask", min_width=260):
            form = _build_form()
        with gr.Column(elem_id="sinks-see", min_width=320):
            shown = html_component(
                "sinks",
                {"phase": "empty"},
                [handlers.open_sinks, handlers.profile_file, handlers.forget_sinks],
            )
    handlers.component = shown
    form.run.click(
        finding(handlers),
        None,
        [shown, form.run, form.stop],
        inputs_kwargs={**form.controls},
        api_visibility="private",  # scripts use the command line or `sinks`
        show_progress="hidden",
        concurrency_id="gpu",
        concurrency_limit=handlers.settings.app.queue_size + 8,  # the runner queues them
        trigger_mode="once",
    )
    form.stop.click(
        stopping(handlers),
        None,
        None,
        api_visibility="private",
        queue=False,
        show_progress="hidden",
    )
    shown.select(
        using(handlers),
        None,
        [explore.dims, explore.dims_of, explore.tau],
        api_visibility="private",
        queue=False,
        show_progress="hidden",
    )


def _build_form() -> _SinksForm:
    source = gr.Radio(
        [EXAMPLES, IMAGES],
        value=EXAMPLES,
        label="Images",
        info="Drawn scenes, or your own photos. Questions about them can be in a .jsonl, .json, "
        ".csv or .tsv file among them.",
        elem_id="sinks-source",
    )
    with gr.Column(visible=False) as mine:
        files = UploadedFiles(
            label="My images",
            file_count="multiple",
            type="filepath",
            height=170,
            elem_id="sinks-files",
        )
    source.change(
        lambda chosen: gr.update(visible=chosen == IMAGES),
        source,
        mine,
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    prompt = gr.Textbox(
        label="Question",
        value=SinksRequest.prompt,
        lines=1,
        max_lines=4,
        max_length=20_000,
        info="Question for every image that has none of its own.",
        elem_id="sinks-prompt",
    )
    with gr.Row(elem_id="sinks-actions"):
        run = gr.Button("Run", variant="primary", elem_id="sinks-run", min_width=80)
        stop = gr.Button("Stop", interactive=False, elem_id="sinks-stop", min_width=60)
    with gr.Accordion("Settings", open=False, elem_id="sinks-settings"):
        settings: dict[str, Component] = {
            one.name: control(one, elem_id=f"sinks-{one.name.replace('_', '-')}")
            for one in user_settings(SinksRequest)
        }
    controls = {"source": source, "files": files, "prompt": prompt, **settings}
    return _SinksForm(controls, run, stop)


def finding(handlers: SinksHandlers) -> Callable[..., Any]:
    def find_sinks(
        request: gr.Request,
        *,
        source: str,
        files: Sequence[FileData],
        prompt: str,
        **setting_values: Any,
    ) -> Iterator[tuple[Any, Any, Any]]:
        """Find the dimensions that mark the model's sinks, and validate them on other images.

        Yields what the tab shows: queued, running, then ready (with the address of the numbers),
        stopped (with what was measured so far) or error.
        """
        pictures = (Picture(f.orig_name or Path(f.path).name, Path(f.path)) for f in files)
        tab_request = SinksRequest(source, tuple(pictures), prompt, **setting_values)
        yield from with_buttons(handlers.run(tab_request, request.session_hash or ""))

    return find_sinks


def stopping(handlers: SinksHandlers) -> Callable[..., Any]:
    def stop_sinks(request: gr.Request) -> None:
        """Stop this session's run after the sample it is at; what was measured is kept."""
        handlers.stop(request.session_hash or "")

    return stop_sinks


def using(handlers: SinksHandlers) -> Callable[..., Any]:
    def use(event: gr.EventData) -> tuple[Any, Any, Any]:
        """Dimensions, their model and tau for this browser's VAR; without a run, the model's."""
        chosen = event._data if isinstance(event._data, dict) else {}
        if chosen.get("run") is None:
            return "", "", gr.skip()
        try:
            profile = handlers.profile(chosen)
        except ValueError as error:
            raise gr.Error(str(error), title="Not possible", print_exception=False) from error
        end = max(tau_end(profile.hidden_size), math.ceil(profile.tau))
        tau = gr.update(value=round(profile.tau, 2), maximum=end)
        return ", ".join(map(str, profile.dims)), profile.model, tau

    return use
