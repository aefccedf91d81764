"""The left column of the Explore tab: image, prompt, examples, Compare with VAR, and settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from sinkscope.config import GenerationSettings, VARSettings
from sinkscope.models.images import open_image
from sinkscope.web.example import Example
from sinkscope.web.inspector import cached, drawn
from sinkscope.web.payload import encode_image
from sinkscope.web.uploads import UploadedImage


@dataclass(frozen=True)
class Form:
    """What one press of Generate reads.

    Attributes:
        controls: in the order of the arguments of `generate` (`web.events.generating`).
        ahead: what the run will take, said before it.
        note: the sentence about the model's sink dimensions.
        dims, dims_of: sink dimensions of this browser alone, in the place of the model's, and the
            model that they were found on.
        own: goes back to the model's; there only while others are used.
        decoding: whether tokens are chosen as set here or as the checkpoint says.
        says: what the checkpoint says.
        replaced: controls that have no effect then.
    """

    controls: tuple[Component, ...]
    image: gr.Image
    prompt: gr.Textbox
    shelf: gr.HTML
    compare: gr.Checkbox
    go: gr.Button
    stop: gr.Button
    ahead: gr.HTML
    note: gr.Textbox
    same_text: gr.Checkbox
    tau: gr.Slider
    tokens: gr.Slider
    decoding: gr.Radio
    says: gr.HTML
    replaced: tuple[Component, ...]
    dims: gr.Textbox
    dims_of: gr.State
    own: gr.Button


def build_form(generation: GenerationSettings, offered: list[Example]) -> Form:
    """Lay the form out in the column that is open."""
    image = UploadedImage(
        label="Image",
        type="filepath",
        sources=["upload", "clipboard"],
        height=190,
        placeholder="Drop a photo, paste it, or click",
        image_mode=None,
        buttons=["fullscreen"],
        elem_id="image",
    )
    prompt = gr.Textbox(
        label="Prompt",
        value="Describe the image." if not offered else offered[0].prompt,
        lines=1,
        max_lines=6,
        max_length=20_000,
        placeholder="Ask something about the image",
        elem_id="prompt",
    )
    shelf = drawn("shelf", None)
    shelf.value = [_shelf_item(item, shelf) for item in offered]
    compare = gr.Checkbox(False, label="Compare with VAR", interactive=False, elem_id="compare")
    with gr.Row(elem_id="actions"):
        go = gr.Button("Generate", variant="primary", elem_id="generate", min_width=80)
        stop = gr.Button("Stop", interactive=False, elem_id="stop", min_width=60)
    ahead = notice_line("ahead")
    note, var, (dims, dims_of, own) = _var_settings()
    generating, decoding, says = _generation_settings(generation)
    return Form(
        controls=(image, prompt, compare, *var, *generating, dims, dims_of, decoding),
        image=image,
        prompt=prompt,
        shelf=shelf,
        compare=compare,
        go=go,
        stop=stop,
        ahead=ahead,
        note=note,
        same_text=var[0],
        tau=var[1],
        tokens=generating[0],
        decoding=decoding,
        says=says,
        replaced=generating[1:-1],
        dims=dims,
        dims_of=dims_of,
        own=own,
    )


def notice_line(name: str) -> gr.HTML:
    """A line that says what something will take (`web.forecast`); empty, it takes no room."""
    line = drawn("notice", None)
    line.elem_id, line.elem_classes = name, ["notice-line"]
    return line


def _var_settings() -> tuple[gr.Textbox, tuple[Any, ...], tuple[Any, ...]]:
    var = VARSettings(dims=(0,))
    with gr.Accordion("VAR settings", open=False, elem_id="var-settings"):
        note = gr.Textbox(
            "No model is loaded yet.",
            show_label=False,
            interactive=False,
            container=False,
            max_lines=8,
            elem_id="var-note",
        )
        dims = gr.Textbox(
            "",
            label="Sink dimensions",
            placeholder="those of the model's profile",
            info="Of this browser alone; the Sinks tab can find them.",
            max_length=200,
            elem_id="sink-dims",
        )
        dims_of = gr.State("")  # by session; a box that is not shown would lose it
        own = gr.Button("Back to the model's own", size="sm", visible=False, elem_id="own-dims")
        same_text = gr.Checkbox(
            False,
            label="Same text",
            info="VAR follows the baseline's answer, token by token.",
            elem_id="same-text",
        )
        tau = gr.Slider(
            0,
            60,
            var.tau,
            step=0.1,
            label="tau",
            info="Sink score above which a patch is a sink.",
        )
        keep = gr.Slider(
            0,
            1,
            var.keep,
            step=0.01,
            label="keep",
            info="Part of a sink's attention that stays on it.",
        )
        share = gr.Slider(
            0,
            1,
            var.max_sink_share,
            step=0.01,
            label="max sink share",
            info="A head is changed while sinks hold at most this of its image part.",
        )
        mass = gr.Slider(
            0,
            1,
            var.min_image_mass,
            step=0.01,
            label="min image mass",
            info="A row is changed if the image has at least this part of it.",
        )
        layers = gr.Textbox(
            "",
            label="Layers",
            placeholder="all but the first two and the last",
            info="Indices such as 2-5, 7.",
        )
        dialect = gr.Radio(["official", "paper"], value=var.dialect, label="Dialect")
        control = gr.Radio(
            ["none", "random"],
            value=var.control,
            label="Control",
            info="random: as many random patches are treated as the sinks.",
        )
    settings = (same_text, tau, keep, share, mass, layers, dialect, control)
    return note, settings, (dims, dims_of, own)


def _generation_settings(
    start: GenerationSettings,
) -> tuple[tuple[Any, ...], gr.Radio, gr.HTML]:
    ours = start.decoding == "ours"
    # Gradio refuses a value outside a slider's range, with a message of its own, so a range always
    # takes in what the settings of the start say.
    with gr.Accordion("Generation settings", open=False, elem_id="generation-settings"):
        tokens = gr.Slider(
            1,
            max(512, start.max_new_tokens),
            start.max_new_tokens,
            step=1,
            label="max new tokens",
        )
        decoding = gr.Radio(
            [("as set here", "ours"), ("as the checkpoint says", "checkpoint")],
            value=start.decoding,
            label="Decoding",
            elem_id="decoding",
        )
        says = notice_line("checkpoint-says")
        temperature = gr.Slider(
            0,
            max(2, start.temperature),
            start.temperature,
            step=0.05,
            label="temperature",
            info="0 is greedy.",
            interactive=ours,
        )
        top_p = gr.Slider(
            min(0.01, start.top_p), 1, start.top_p, step=0.01, label="top p", interactive=ours
        )
        top_k = gr.Number(start.top_k, precision=0, minimum=0, label="top k", interactive=ours)
        penalty = gr.Slider(
            min(0.5, start.repetition_penalty),
            max(2, start.repetition_penalty),
            start.repetition_penalty,
            step=0.01,
            label="repetition penalty",
            interactive=ours,
        )
        seed = gr.Number(start.seed, precision=0, minimum=0, label="seed")
    return (tokens, temperature, top_p, top_k, penalty, seed), decoding, says


def _shelf_item(example: Example, shelf: gr.HTML) -> dict[str, str]:
    small = open_image(example.image)
    small.thumbnail((160, 160))
    return {**cached(*encode_image(small), shelf, keep=True), "prompt": example.prompt}
