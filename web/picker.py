"""The model picker: which model, where and in which numbers; its button loads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from config import ModelSettings

MODELS = (
    ("Bundled demo model", "demo"),
    ("Qwen2.5-VL 3B", "Qwen/Qwen2.5-VL-3B-Instruct"),
    ("Qwen2.5-VL 7B", "Qwen/Qwen2.5-VL-7B-Instruct"),
)


@dataclass(frozen=True)
class Picker:
    """What one press of Load reads; `controls` in the order of the arguments of `load_model`."""

    controls: tuple[Any, ...]
    load: gr.Button


def build_picker(start: ModelSettings) -> Picker:
    """Lay the picker out in the column that is open."""
    with gr.Accordion("Model", open=False, elem_id="model"):
        name = gr.Dropdown(
            list(MODELS),
            value=start.model,
            allow_custom_value=True,
            label="Model",
            info="Choose, or type a hub id or a folder.",
            elem_id="model-name",
        )
        device = gr.Dropdown(
            ["auto", "cpu", "cuda", "mps"],
            value=start.device,
            allow_custom_value=True,
            label="Device",
        )
        dtype = gr.Dropdown(
            ["auto", "float32", "bfloat16", "float16"],
            value=start.dtype,
            label="Number type",
        )
        low = gr.Number(
            start.min_pixels,
            precision=0,
            label="Smallest image, in pixels",
            info="Area after resizing; 0 leaves it to the model.",
        )
        high = gr.Number(start.max_pixels, precision=0, label="Largest image, in pixels")
        load = gr.Button("Load", elem_id="load")
    return Picker((name, device, dtype, low, high), load)
