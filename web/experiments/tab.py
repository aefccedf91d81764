"""The Experiments tab: its form beside the result, and which control calls which handler.

The experiments, their questions and their options come from `experiments.catalogue.EXPERIMENTS`: a
new row there appears here.

Hooks for tests and screenshots: `[data-testid=trial]` has `data-phase` (empty, queued, running,
ready, stopped, error) and, once a result is drawn, `data-ready` with its id; inside it are
`experiments-blank`, `experiments-phase`, `experiments-facts`, `experiments-alert`,
`experiments-question`, `experiments-summary`, `experiments-verdict`, `experiments-notes`,
`experiments-figures`, `experiments-tables`, `experiments-files`, `experiments-about`, and once two
runs of one experiment are done `experiments-sides`, which sets two side by side; the form has
`#experiments-name`, `#experiments-run`, `#experiments-stop`, `#experiments-source`,
`#experiments-files`, `#experiments-prompt`, `#experiments-samples`, `#experiments-tokens`, and
`#set-NAME-SETTING` for each setting of an experiment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.data_classes import FileData

from sinkscope.experiments import catalogue
from sinkscope.experiments.settings import StudySettings
from sinkscope.setting import REQUIRED, Setting, settings_of, user_settings
from sinkscope.web.components.controls import box, change_of
from sinkscope.web.experiments.estimate import estimate_text
from sinkscope.web.experiments.request import BUNDLED, MINE, ExperimentRequest
from sinkscope.web.experiments.run import ExperimentsHandlers
from sinkscope.web.explore.form import notice_line
from sinkscope.web.runs.inspector import html_component
from sinkscope.web.runs.tab_handlers import with_buttons
from sinkscope.web.server.uploads import UploadedFiles
from sinkscope.web.sinks.request import Picture

QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
STUDY = "study"
MINE_WORDS = (
    "Photos, alone or with a .jsonl, .json, .csv or .tsv file of questions about them. For a text "
    "model one .txt file with one prompt per line."
)


@dataclass(frozen=True)
class _Form:
    """The controls that a click on Run reads; `controls` by argument names of `run_experiment`,
    those of settings by the experiment's name, a slash and the setting's name."""

    controls: dict[str, Component]
    name: gr.Dropdown
    blocks: dict[str, gr.Column]
    estimate: gr.HTML
    run: gr.Button
    stop: gr.Button


def build_experiments(handlers: ExperimentsHandlers, status: gr.HTML, tab: gr.Tab) -> None:
    """Lay out the tab in the page that is being built, and connect it.

    Args:
        handlers: called by the controls; learns which component shows results.
        status: the line about the model, which changes with it.
        tab: when it is opened, the text about the loaded model is updated.
    """
    listed = [{"name": row.name, "question": row.question} for row in catalogue.EXPERIMENTS]
    functions = [
        handlers.open_experiment,
        handlers.compare_experiments,
        handlers.forget_experiment,
    ]
    with gr.Row(elem_id="experiments-desk"):
        with gr.Column(elem_id="experiments-ask", min_width=260):
            form = _build_form()
        with gr.Column(elem_id="experiments-see", min_width=320):
            shown = html_component("experiments", {"phase": "empty", "listed": listed}, functions)
    handlers.component = shown
    form.run.click(
        running(handlers),
        None,
        [shown, form.run, form.stop],
        inputs_kwargs={**form.controls},
        api_visibility="private",  # scripts use the command line or `experiments`
        show_progress="hidden",
        concurrency_id="gpu",
        concurrency_limit=handlers.settings.app.queue_size + 8,  # the runner queues them
        trigger_mode="once",
    )
    form.stop.click(stopping(handlers), None, None, **QUIET)
    shown.select(picking, None, form.name, **QUIET)
    form.name.change(choosing(form.blocks), form.name, [form.name, *form.blocks.values()], **QUIET)
    gr.on(
        [tab.select, status.change, form.name.change, change_of(form.controls["source"])],
        updating_estimate(handlers),
        [form.name, form.controls["source"]],
        form.estimate,
        trigger_mode="always_last",
        **QUIET,
    )


def _build_form() -> _Form:
    first = catalogue.EXPERIMENTS[0]
    name = gr.Dropdown(
        [row.name for row in catalogue.EXPERIMENTS],
        value=first.name,
        label="Experiment",
        info=first.question,
        filterable=False,
        elem_id="experiments-name",
    )
    estimate = notice_line("experiments-ahead")
    controls: dict[str, Component] = {"name": name}
    blocks = {}
    for row in catalogue.EXPERIMENTS:
        with gr.Column(visible=row is first, elem_classes="experiments-own") as block:
            for one in user_settings(row.settings):
                controls[f"{row.name}/{one.name}"] = _control(one, row.name)
        blocks[row.name] = block
    controls |= _samples()
    tokens, *others = user_settings(StudySettings)
    controls[f"{STUDY}/{tokens.name}"] = _control(tokens, STUDY, elem_id="experiments-tokens")
    with gr.Accordion("Sinks, controls, thresholds", open=False, elem_id="experiments-settings"):
        for one in others:
            controls[f"{STUDY}/{one.name}"] = _control(one, STUDY)
    with gr.Row(elem_id="experiments-actions"):  # page.css keeps it in sight
        run = gr.Button("Run", variant="primary", elem_id="experiments-run", min_width=80)
        stop = gr.Button("Stop", interactive=False, elem_id="experiments-stop", min_width=60)
    return _Form(controls, name, blocks, estimate, run, stop)


def _samples() -> dict[str, Component]:
    source = gr.Radio(
        [BUNDLED, MINE],
        value=BUNDLED,
        label="Samples",
        info="Bundled: drawn scenes with questions; for a text model, our own prompts.",
        elem_id="experiments-source",
    )
    with gr.Column(visible=False) as mine:
        files = UploadedFiles(
            label="My own",
            file_count="multiple",
            type="filepath",
            height=170,
            elem_id="experiments-files",
        )
        gr.HTML(MINE_WORDS, elem_id="experiments-mine", padding=False)
    source.change(lambda chosen: gr.update(visible=chosen == MINE), source, mine, **QUIET)
    (count,) = settings_of(ExperimentRequest)
    prompt = gr.Textbox(
        label="Question",
        lines=1,
        max_lines=4,
        max_length=20_000,
        info="Question for every image that has none of its own. Empty: each scene’s own; for "
        "photos “Describe the image.”",
        elem_id="experiments-prompt",
    )
    samples = box(count, elem_id="experiments-samples")
    return {"source": source, "files": files, "prompt": prompt, "samples": samples}


def _control(one: Setting, of: str, **look: Any) -> Component:
    """A setting's control; a required setting without default begins at its lowest value."""
    label = (one.label or one.name).replace("_", " ")
    words = {"label": label[:1].upper() + label[1:], "info": one.help}
    if one.left_out and one.kind not in ("switch", "choice"):
        # The description above the box says it in full; a placeholder would be cut off.
        words |= {"info": f"{one.help} Empty: {one.left_out}.", "placeholder": ""}
    ident = f"set-{of}-{one.name}".replace("_", "-")
    value = one.low if one.default is REQUIRED else None
    return box(one, value, **{"elem_id": ident, **words, **look})


def picking(event: gr.EventData) -> Any:
    """The experiment that was chosen in the list of all."""
    chosen = event._data if isinstance(event._data, dict) else {}
    names = [row.name for row in catalogue.EXPERIMENTS]
    return chosen["name"] if chosen.get("name") in names else gr.skip()


def choosing(blocks: Mapping[str, Any]) -> Callable[..., Any]:
    def choose(name: str) -> list[Any]:
        """The question and the options of an experiment."""
        question = {row.name: row.question for row in catalogue.EXPERIMENTS}.get(name, "")
        return [gr.update(info=question), *(gr.update(visible=block == name) for block in blocks)]

    return choose


def updating_estimate(handlers: ExperimentsHandlers) -> Callable[..., Any]:
    def ahead(name: str, source: str) -> Any:
        """What the model can be asked, and how its sinks are known, before Run."""
        return estimate_text(handlers.loaded.state, name, source)

    return ahead


def running(handlers: ExperimentsHandlers) -> Callable[..., Any]:
    def run_experiment(
        request: gr.Request,
        *,
        name: str,
        source: str,
        files: Sequence[FileData],
        prompt: str,
        samples: Any,
        **setting_values: Any,
    ) -> Iterator[tuple[Any, Any, Any]]:
        """Run an experiment on the loaded model.

        Yields what the tab shows: queued, running, then ready (with the address of the result),
        stopped or error.
        """
        pictures = (Picture(f.orig_name or Path(f.path).name, Path(f.path)) for f in files)
        settings, study = _values_of(setting_values, name), _values_of(setting_values, STUDY)
        tab_request = ExperimentRequest(
            name, source, tuple(pictures), prompt, settings, study, samples
        )
        yield from with_buttons(handlers.run(tab_request, request.session_hash or ""))

    return run_experiment


def _values_of(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The values of the controls of one experiment, or of the study."""
    begin = f"{name}/"
    return {key.removeprefix(begin): values[key] for key in values if key.startswith(begin)}


def stopping(handlers: ExperimentsHandlers) -> Callable[..., Any]:
    def stop_experiment(request: gr.Request) -> None:
        """Stop this session's run after the pass it is at."""
        handlers.stop(request.session_hash or "")

    return stop_experiment
