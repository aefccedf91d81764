"""The API behind the page, for `gradio_client`: load, generate, compare, map, export, stop.

Each endpoint takes plain arguments and returns plain values and files (docs/api.md). Endpoints have
components of their own, which the page does not show, because their arguments must not change with
the layout. A run is addressed by its id, which cannot be guessed: whoever knows the id may read the
run, and no endpoint lists other users' runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from sinkscope.config import ModelSettings
from sinkscope.setting import user_settings as offered_of
from sinkscope.web.api.arguments import argument, asking, inputs_of
from sinkscope.web.api.endpoints import Api, with_clear_errors
from sinkscope.web.api.selection import ExportChoice, Selection
from sinkscope.web.components.controls import LONGEST_TEXT
from sinkscope.web.explore.handlers import Handlers
from sinkscope.web.runs.request import ANSWER, MORE, VAR
from sinkscope.web.server.uploads import UploadedImage


def build_api(handlers: Handlers, offered: Sequence[str]) -> None:
    """Add the endpoints to the page that is being built."""
    api = Api(handlers, offered)
    runs: dict[str, Any] = {
        "concurrency_id": "gpu",
        "concurrency_limit": handlers.settings.app.queue_size + 8,  # Handlers.runner queues them
    }
    files: dict[str, Any] = {"concurrency_id": "export", "concurrency_limit": 2}
    # A map is quick, so it does not wait behind animations.
    maps: dict[str, Any] = {"concurrency_id": "map", "concurrency_limit": 4}
    free: dict[str, Any] = {"concurrency_id": "status", "concurrency_limit": None}
    with gr.Column(visible=False):
        value, files_made = gr.JSON(label="value"), gr.File(label="files", file_count="multiple")
        picture = gr.Image(type="filepath", format="png", label="overlay")
        asked = {
            "image": UploadedImage(type="filepath", label="image"),
            "prompt": gr.Textbox(max_length=20_000, label="prompt"),
        }
        # Added last, so that the indices of the other functions stay the same.
        further = {name: UploadedImage(type="filepath", label=name) for name in MORE}
        same = {"same_text": argument("same_text", False, "VAR follows the baseline's answer.")}
        run = {"run": gr.Textbox(max_length=LONGEST_TEXT, label="run")}
        variant = {"variant": argument("variant", "baseline", "Which answer: baseline or var.")}
        for function, arguments, settings, outputs, limits in (
            (api.load, {}, offered_of(ModelSettings, "profile", "adapter"), value, free),
            (api.generate, asked, ANSWER, value, runs),
            (api.compare, {**asked, **same}, (*VAR, *ANSWER), value, runs),
            (api.map, {**run, **variant}, offered_of(Selection), [value, picture], maps),
            (api.export, run, offered_of(ExportChoice), files_made, files),
        ):
            gr.Button(visible=False).click(
                with_clear_errors(asking(function, settings)),
                None,
                outputs,
                inputs_kwargs={
                    **arguments,
                    **inputs_of(settings),
                    **(further if "image" in arguments else {}),
                },
                api_name=function.__name__,
                **limits,
            )
        gr.Button(visible=False).click(
            api.stop, None, None, api_name="stop", queue=False, show_progress="hidden"
        )
