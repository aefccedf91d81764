"""The API behind the page, for `gradio_client`: load, generate, compare, map, export, stop.

Each endpoint has plain arguments and gives plain values and files (docs/api.md). They have controls
of their own, which no page shows: an endpoint's arguments must not change with the layout. A run is
known by its id, which cannot be guessed; whoever has it may see the run, and nobody is told of
another's.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import gradio as gr

from sinkscope.web.endpoints import Api, plainly
from sinkscope.web.handlers import Handlers
from sinkscope.web.uploads import UploadedImage

# Arguments with their defaults, in the order of the endpoints' own.
ANSWER: dict[str, Any] = {
    "max_new_tokens": 64,
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "repetition_penalty": 1.0,
    "seed": 0,
    "decoding": "ours",
}
VAR: dict[str, Any] = {
    "same_text": False,
    "tau": None,
    "keep": 0.6,
    "max_sink_share": 0.5,
    "min_image_mass": 0.2,
    "var_layers": "",
    "dialect": "official",
    "control": "none",
    "dims": "",
}
LOAD: dict[str, Any] = {
    "device": "auto",
    "dtype": "auto",
    "min_pixels": None,
    "max_pixels": None,
    "revision": "",
}
SELECTION: dict[str, Any] = {
    "layers": "",
    "heads": "",
    "reduce": "mean",
    "scale": "percentile",
    "image": 0,
    "part": "answer",
    "method": "attention",
}
EXPORT: dict[str, Any] = {
    "tokens": "",
    "window": 1,
    "seconds": 0.4,
    "width": None,
    "difference": True,
    "whole_answer": False,
    "colormap": "inferno",
}


def build_api(handlers: Handlers, offered: Sequence[str]) -> None:
    """Add the endpoints to the page that is open."""
    api = Api(handlers, offered)
    runs: dict[str, Any] = {
        "concurrency_id": "gpu",
        "concurrency_limit": handlers.settings.app.queue_size + 8,  # they wait in Handlers.runner
    }
    files: dict[str, Any] = {"concurrency_id": "export", "concurrency_limit": 2}
    # A map is quick: it does not wait behind animations.
    maps: dict[str, Any] = {"concurrency_id": "map", "concurrency_limit": 4}
    free: dict[str, Any] = {"concurrency_id": "status", "concurrency_limit": None}
    with gr.Column(visible=False):
        image = UploadedImage(type="filepath", label="image")
        text = functools.partial(gr.Textbox, max_length=20_000)
        value, files_made = gr.JSON(label="value"), gr.File(label="files", file_count="multiple")
        picture = gr.Image(type="filepath", format="png", label="overlay")
        prompt, answer = text(label="prompt"), [_control(n, v) for n, v in ANSWER.items()]
        selection = [_control(n, v) for n, v in SELECTION.items()]
        run, variant = text(label="run"), text("baseline", label="variant")
        var = [_control(name, default) for name, default in VAR.items()]
        load = [text("demo", label="model"), *(_control(n, v) for n, v in LOAD.items())]
        wanted = [text("pdf", label="kind"), *(_control(n, v) for n, v in EXPORT.items())]
        for function, inputs, outputs, limits in (
            (api.load, load, value, free),
            (api.generate, [image, prompt, *answer], value, runs),
            (api.compare, [image, prompt, *var, *answer], value, runs),
            (
                api.map,
                [run, text("0", label="tokens"), variant, *selection],
                [value, picture],
                maps,
            ),
            (api.export, [run, *wanted, *selection], files_made, files),
        ):
            gr.Button(visible=False).click(
                plainly(function), inputs, outputs, api_name=function.__name__, **limits
            )


def _control(name: str, default: Any) -> gr.components.Component:
    if isinstance(default, bool):
        return gr.Checkbox(default, label=name)
    if isinstance(default, str):
        return gr.Textbox(default, label=name, max_length=2000)
    return gr.Number(default, label=name)
