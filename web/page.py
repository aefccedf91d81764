"""The page: its tabs below one line about the model, and the objects behind them.

app = build_app(settings)       everything is connected; nothing is loaded, no port is open
launch(app)                     (web.launch) starts the server, then loads the model
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gradio as gr

from sinkscope.attention_extractor import Forecast
from sinkscope.config import Settings
from sinkscope.models.loading import ModelHandle
from sinkscope.web.api.region import build_region_api
from sinkscope.web.api.routes import build_api
from sinkscope.web.evaluate.run import EvaluateHandlers
from sinkscope.web.evaluate.tab import build_evaluate
from sinkscope.web.experiments.run import ExperimentsHandlers
from sinkscope.web.experiments.tab import build_experiments
from sinkscope.web.explore.forecast import Forecaster, estimate_run
from sinkscope.web.explore.handlers import Handlers, RunFunctions
from sinkscope.web.explore.model_events import status_value
from sinkscope.web.explore.picker import MODELS
from sinkscope.web.explore.region import LastTested
from sinkscope.web.explore.tab import build_explore
from sinkscope.web.runs.example import Example, load_example, read_examples
from sinkscope.web.runs.inspector import html_component
from sinkscope.web.runs.loaded_model import LoadedModel
from sinkscope.web.runs.owners import OwnedRuns
from sinkscope.web.runs.store import Run, RunStore
from sinkscope.web.server.guarded_blocks import GuardedBlocks
from sinkscope.web.server.read_only import READ_ONLY, only_looking
from sinkscope.web.sinks.run import SinksFunctions, SinksHandlers
from sinkscope.web.sinks.tab import build_sinks


@dataclass(frozen=True)
class App:
    """The page and the objects behind it."""

    blocks: gr.Blocks
    handlers: Handlers
    loaded: LoadedModel
    settings: Settings
    sinks: SinksHandlers


def build_app(
    settings: Settings,
    handle: ModelHandle | None = None,
    *,
    engine: RunFunctions | None = None,
    estimate: Callable[..., Forecast] = estimate_run,
    loaded: LoadedModel | None = None,
    sinks: SinksFunctions | None = None,
    example: Run | None = None,
    examples: list[Example] | None = None,
) -> App:
    """Connect everything. Without a `handle`, `launch` loads the model of the settings.

    Args:
        settings: settings of this start.
        handle: a loaded model, for tests and notebooks.
        engine: computes runs.
        estimate: predicts the cost of a run before it starts.
        loaded: loads models.
        sinks: finds and validates sink dimensions.
        example: the run that is shown first; None: the one that ships with the project.
        examples: pictures to offer; None: the bundled ones.
    """
    loaded = loaded or LoadedModel()
    if handle is not None:
        loaded.use(handle)
    kept = OwnedRuns if settings.app.login else RunStore
    store = kept(settings.app.cache / "runs", settings.app.store_megabytes * 1_000_000)
    handlers = Handlers(settings, loaded, store, engine)
    forecaster = Forecaster(settings, loaded, estimate, handlers.run_times)
    first = example or load_example()
    if first is not None:
        store.put(first, keep_on_disk=False)
    offered = read_examples() if examples is None else examples
    with GuardedBlocks(
        title="SinkScope", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)
    ) as page:
        if settings.app.read_only:
            gr.Markdown(READ_ONLY, elem_id="read-only")
        status = html_component("status", status_value(loaded.state))
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Explore", id="explore", elem_id="explore"):
                last = LastTested()
                form = build_explore(page, status, handlers, forecaster, first, offered, last)
                build_api(handlers, [model for _, model in MODELS])
                build_region_api(handlers, last)
            with gr.Tab("Sinks", id="sinks-tab", elem_id="sinks-tab"):
                finder = SinksHandlers(
                    settings, loaded, handlers.runner, sinks, handlers.images, store.copies
                )
                build_sinks(finder, form)
            with gr.Tab("Experiments", id="experiments-tab", elem_id="experiments-tab") as tab:
                trials = ExperimentsHandlers(
                    settings,
                    loaded,
                    handlers.runner,
                    images=handlers.images,
                    copies=store.copies,
                )
                build_experiments(trials, status, tab)
            with gr.Tab("Evaluate", id="evaluate-tab", elem_id="evaluate-tab"):
                asked = EvaluateHandlers(
                    settings,
                    loaded,
                    handlers.runner,
                    images=handlers.images,
                    copies=store.copies,
                )
                build_evaluate(asked, form)
    if settings.app.read_only:
        only_looking(page)
    return App(page, handlers, loaded, settings, finder)
