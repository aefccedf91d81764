"""The model picker: model, device and dtype, and the button that loads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import gradio as gr
from gradio.components import Component

from sinkscope.config import Device, DType, ModelSettings
from sinkscope.web.explore.form import notice_line
from sinkscope.web.explore.model_events import LONGEST_REVISION

MODELS = (
    ("Bundled demo model", "demo"),
    ("Qwen2.5-VL 3B", "Qwen/Qwen2.5-VL-3B-Instruct"),
    ("Qwen2.5-VL 7B", "Qwen/Qwen2.5-VL-7B-Instruct"),
)
# Parameters of the published checkpoints, to forecast one that is not on this machine yet.
PARAMETERS = {
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
}


@dataclass(frozen=True)
class Picker:
    """The controls that a click on Load reads.

    Attributes:
        controls: by the names of ModelSettings, which `load_model` takes
        (`web.explore.model_events`).
        estimate: the expected time and memory of the load, then its progress.
        opened: the accordion around all of them.
    """

    controls: dict[str, Component]
    estimate: gr.HTML
    load: gr.Button
    opened: gr.Accordion


def build_picker(start: ModelSettings) -> Picker:
    """Build the picker in the open column."""
    with gr.Accordion("Model", open=False, elem_id="model") as opened:
        name = gr.Dropdown(
            list(MODELS),
            value=start.model,
            allow_custom_value=True,
            label="Model",
            info="Choose, or type a hub id or a folder.",
            elem_id="model-name",
        )
        revision = gr.Textbox(
            start.revision or "",
            label="Revision",
            info="Commit, tag or branch of a hub id.",
            placeholder="the newest",
            max_length=LONGEST_REVISION,
            elem_id="revision",
        )
        with gr.Row():
            device = gr.Dropdown(
                list(get_args(Device)),
                value=start.device,
                allow_custom_value=True,
                label="Device",
                min_width=90,
            )
            dtype = gr.Dropdown(
                list(get_args(DType)),
                value=start.dtype,
                label="Number type",
                min_width=90,
            )
        with gr.Row():
            low, high = (
                gr.Number(
                    value,
                    precision=0,
                    label=label,
                    info="Pixels; 0: the model's own.",
                    min_width=90,
                )
                for value, label in (
                    (start.min_pixels or 0, "Smallest image"),
                    (start.max_pixels or 0, "Largest image"),
                )
            )
        ahead = notice_line("load-ahead")
        load = gr.Button("Load", elem_id="load")
    controls: dict[str, Component] = {
        "model": name,
        "device": device,
        "dtype": dtype,
        "min_pixels": low,
        "max_pixels": high,
        "revision": revision,
    }
    return Picker(controls, ahead, load, opened)
