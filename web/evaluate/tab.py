"""The Evaluate tab: its form beside the drawn result, and which control calls which handler.

Hooks for tests and screenshots: `[data-testid=evaluation]` has `data-phase` (empty, queued,
running, ready, stopped, error) and, once a result is drawn, `data-ready` with its id; inside it are
`evaluate-phase`, `evaluate-facts`, `evaluate-alert`, `evaluate-title`, `evaluate-said`,
`evaluate-scores`, `evaluate-differences`, `evaluate-types`, `evaluate-questions`,
`evaluate-earlier`; the form has `#evaluate-run`, `#evaluate-stop`, `#evaluate-methods`,
`#evaluate-types`, and a control `#evaluate-NAME` for each setting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component
from gradio.data_classes import FileData

from sinkscope.setting import user_settings
from sinkscope.web.components.controls import LONGEST_TEXT, control
from sinkscope.web.evaluate.open import form_values, updates
from sinkscope.web.evaluate.request import METHODS, MINE, SCENES, TYPES, EvaluateRequest
from sinkscope.web.evaluate.run import EvaluateHandlers
from sinkscope.web.explore.form import Form
from sinkscope.web.runs.inspector import html_component
from sinkscope.web.runs.job_values import field_of
from sinkscope.web.runs.request import MORE
from sinkscope.web.runs.tab_handlers import with_buttons
from sinkscope.web.server.uploads import UploadedFiles
from sinkscope.web.sinks.request import Picture

# Runs once the form has its values; from there on, Explore does what Generate does.
GENERATE = (
    "() => { [...document.querySelectorAll('#tabs [role=tab]')]"
    ".find((tab) => tab.textContent.trim() === 'Explore').click();"
    " scrollTo(0, 0); document.querySelector('#generate').click(); }"
)


UPLOAD_HELP = (
    "A row has a question, its answer and an image: "
    '`{"question": "What colour?", "answer": "red", "image": "a.png"}`; `choices` make it a '
    "multiple choice. Every row must be valid; the first invalid one is named. For benchmarks and "
    "large files use the command line: `sinkscope evaluate run`."
)


def build_evaluate(handlers: EvaluateHandlers, explore: Form) -> None:
    """Lay out the tab in the page that is being built, and connect it.

    Args:
        handlers: called by the controls; learns which component shows results.
        explore: the form that "open question" fills in.
    """
    with gr.Row(elem_id="evaluate-desk"):
        with gr.Column(elem_id="evaluate-ask", min_width=260):
            controls, run, stop = _build_form()
        with gr.Column(elem_id="evaluate-see", min_width=320):
            shown = html_component(
                "evaluate",
                {"phase": "empty"},
                [
                    handlers.open_evaluation,
                    handlers.evaluation_file,
                    handlers.forget_evaluation,
                ],
            )
    handlers.component = shown
    inputs: dict[str, Block] = {
        **controls,
        "dims": explore.dims,
        "dims_of": explore.dims_of,
        "dims_tau": explore.tau,
    }
    waiting: dict[str, Any] = {
        "api_visibility": "private",  # scripts use the command line
        "show_progress": "hidden",
        "concurrency_id": "gpu",
        "concurrency_limit": handlers.settings.app.queue_size + 8,  # the runner queues them
        "trigger_mode": "once",
    }
    at_once: dict[str, Any] = {
        "api_visibility": "private",
        "queue": False,
        "show_progress": "hidden",
    }
    outputs = [shown, run, stop]
    run.click(running(handlers), None, outputs, inputs_kwargs=inputs, **waiting)
    shown.submit(going_on(handlers), None, outputs, **waiting)
    stop.click(stopping(handlers), None, None, **at_once)
    filled = shown.select(
        opening(handlers, list(explore.controls)),
        explore.dims,
        [*explore.controls.values(), explore.more_images_section],
        **at_once,
    )
    filled.success(None, None, None, js=GENERATE, **at_once)


def _build_form() -> tuple[dict[str, Component], gr.Button, gr.Button]:
    methods = gr.CheckboxGroup(
        [(words, name) for name, words in METHODS.items()],
        value=list(METHODS),
        label="Methods",
        info="All answer the same questions and are compared with Default. The control treats as "
        "many random image tokens as if they were the sinks.",
        elem_id="evaluate-methods",
    )
    source = gr.Radio([SCENES, MINE], value=SCENES, label="Questions", elem_id="evaluate-source")
    types = gr.CheckboxGroup(
        list(TYPES), value=list(TYPES), label="Question types", elem_id="evaluate-types"
    )
    with gr.Column(visible=False) as mine:
        files = UploadedFiles(
            label="One file of questions (.jsonl, .json, .csv, .tsv), and its images",
            file_count="multiple",
            type="filepath",
            height=170,
            elem_id="evaluate-files",
        )
        gr.Markdown(UPLOAD_HELP)
    source.change(
        lambda chosen: (gr.update(visible=chosen == SCENES), gr.update(visible=chosen == MINE)),
        source,
        [types, mine],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    controls: dict[str, Component] = {
        "methods": methods,
        "source": source,
        "types": types,
        "files": files,
    }
    for one in user_settings(EvaluateRequest, "seed"):
        controls[one.name] = _control(one)
    with gr.Row(elem_id="evaluate-actions"):
        run = gr.Button("Run", variant="primary", elem_id="evaluate-run", min_width=80)
        stop = gr.Button("Stop", interactive=False, elem_id="evaluate-stop", min_width=60)
    with gr.Accordion("More settings", open=False, elem_id="evaluate-settings"):
        for one in user_settings(EvaluateRequest):
            if one.name not in controls:
                controls[one.name] = _control(one)
    return controls, run, stop


def _control(one: Any) -> Component:
    name = f"evaluate-{one.name.replace('_', '-')}"
    if one.optional:  # a number box cannot be empty
        look = {"placeholder": one.left_out, "max_length": LONGEST_TEXT, "elem_id": name}
        return gr.Textbox("", label=one.label or one.name, info=one.help, **look)
    return control(one, elem_id=name)


def running(handlers: EvaluateHandlers) -> Callable[..., Any]:
    def run_evaluation(
        request: gr.Request,
        *,
        methods: list[str],
        source: str,
        types: list[str],
        files: Sequence[FileData],
        **setting_values: Any,
    ) -> Iterator[tuple[Any, Any, Any]]:
        """Ask questions by several methods, and say whether their scores differ.

        Yields what the tab shows: queued, running with the scores so far, then ready, stopped (with
        what was answered) or error.
        """
        given = tuple(Picture(f.orig_name or Path(f.path).name, Path(f.path)) for f in files or ())
        tab_request = EvaluateRequest(tuple(methods), tuple(types), source, given, **setting_values)
        yield from with_buttons(handlers.run(tab_request, request.session_hash or ""))

    return run_evaluation


def going_on(handlers: EvaluateHandlers) -> Callable[..., Any]:
    def go_on(event: gr.EventData, request: gr.Request) -> Iterator[tuple[Any, Any, Any]]:
        """Ask what is left of a run that was stopped."""
        run_id = field_of(event._data, "run")
        yield from with_buttons(handlers.go_on(run_id, request.session_hash or ""))

    return go_on


def stopping(handlers: EvaluateHandlers) -> Callable[..., Any]:
    def stop_evaluation(request: gr.Request) -> None:
        """Stop this session's run after the questions at hand; what was answered is kept."""
        handlers.stop(request.session_hash or "")

    return stop_evaluation


def opening(handlers: EvaluateHandlers, names: list[str]) -> Callable[..., Any]:
    def open_question(event: gr.EventData, dims: str) -> list[Any]:
        """Put a question of a run into Explore's form, with the settings it was asked with."""
        try:
            values = form_values(handlers, event._data, dims or "")
            unfolded = gr.update(open=True) if values.get(MORE[0]) else gr.skip()
            return [*updates(values, names), unfolded]
        except ValueError as error:
            raise gr.Error(str(error), title="Not possible", print_exception=False) from error

    return open_question
