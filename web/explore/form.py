"""The left column of the Explore tab: image, prompt, examples, Compare with VAR, and settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.processing_utils import save_bytes_to_cache

from sinkscope.config import OF_CHECKPOINT, GenerationSettings
from sinkscope.models.images import open_image
from sinkscope.web.components.controls import control
from sinkscope.web.runs.example import Example
from sinkscope.web.runs.inspector import cached, html_component, served
from sinkscope.web.runs.payload import encode_image
from sinkscope.web.runs.request import ANSWER, MORE, VAR
from sinkscope.web.server.uploads import UploadedFile, UploadedImage


@dataclass(frozen=True)
class Form:
    """The controls of the Explore tab that a click on Generate reads, and the texts next to them.

    Attributes:
        controls: by the names of the arguments of `generate` (`web.explore.events.generating`).
        more_images: inputs for further images of the same question.
        more_images_section: the accordion that holds them.
        estimate: the expected time and memory of the run.
        changed: which controls were changed since the run on screen.
        last_request: the controls' values of that run (`web.explore.refill`).
        limits: the loaded model's restrictions, such as one without image input.
        note: the sentence about the model's sink dimensions.
        dims, dims_of: sink dimensions of only this browser, instead of the model's, and the
            model that they were found on.
        profile: button that reads them from a file.
        reset_dims: button that returns to the model's; visible only while others are used.
        decoding: whether tokens are chosen by the page's settings or the checkpoint's.
        checkpoint_words: the checkpoint's settings, in words.
        replaced: controls that have no effect with the checkpoint's settings.
    """

    controls: dict[str, Component]
    image: gr.Image
    more_images: tuple[gr.Image, ...]
    more_images_section: gr.Accordion
    prompt: gr.Textbox
    examples: gr.HTML
    compare: gr.Checkbox
    generate: gr.Button
    stop: gr.Button
    estimate: gr.HTML
    changed: gr.HTML
    last_request: gr.State
    limits: gr.HTML
    note: gr.Textbox
    same_text: gr.Checkbox
    tau: Component
    decoding: Component
    checkpoint_words: gr.HTML
    replaced: tuple[Component, ...]
    dims: Component
    dims_of: gr.State
    reset_dims: gr.Button
    profile: gr.UploadButton


def build_form(generation: GenerationSettings, offered: list[Example]) -> Form:
    """Build the form in the open column."""
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
    section, more_images = _more_images()
    prompt = gr.Textbox(
        label="Prompt",
        value="Describe the image." if not offered else offered[0].prompt,
        lines=1,
        max_lines=6,
        max_length=20_000,
        placeholder="Ask something about the image",
        elem_id="prompt",
    )
    examples = html_component("examples", None)
    examples.props["items"] = [_example_item(item, examples, image) for item in offered]
    compare = gr.Checkbox(False, label="Compare with VAR", interactive=False, elem_id="compare")
    with gr.Row(elem_id="actions"):
        generate = gr.Button("Generate", variant="primary", elem_id="generate", min_width=80)
        stop = gr.Button("Stop", interactive=False, elem_id="stop", min_width=60)
    changed, last_request = notice_line("changed"), gr.State({})
    limits = notice_line("limits")
    estimate = notice_line("ahead")
    note, same_text, dims_of, reset_dims, var, profile = _var_settings()
    answer, checkpoint_words = _generation_settings(generation)
    return Form(
        controls={
            "image": image,
            "prompt": prompt,
            "compare": compare,
            "same_text": same_text,
            "dims_of": dims_of,
            **var,
            **answer,
            **dict(zip(MORE, more_images, strict=True)),
        },
        image=image,
        more_images=more_images,
        more_images_section=section,
        prompt=prompt,
        examples=examples,
        compare=compare,
        generate=generate,
        stop=stop,
        estimate=estimate,
        changed=changed,
        last_request=last_request,
        limits=limits,
        note=note,
        same_text=same_text,
        tau=var["tau"],
        decoding=answer["decoding"],
        checkpoint_words=checkpoint_words,
        replaced=tuple(answer[name] for name in OF_CHECKPOINT),
        dims=var["dims"],
        dims_of=dims_of,
        reset_dims=reset_dims,
        profile=profile,
    )


def _more_images() -> tuple[gr.Accordion, tuple[gr.Image, ...]]:
    """Small inputs for further images of the same question, folded."""
    with (
        gr.Accordion(
            "Further images of this question", open=False, elem_id="more-images"
        ) as section,
        gr.Row(elem_id="more-places"),
    ):
        places = tuple(
            UploadedImage(
                label=f"Image {index}",
                type="filepath",
                sources=["upload", "clipboard"],
                height=92,
                placeholder="Add",
                image_mode=None,
                buttons=[],
                min_width=60,
                elem_id=name.replace("_", "-"),
                elem_classes=["more-image"],
            )
            for index, name in enumerate(MORE, 1)
        )
    return section, places


def notice_line(name: str) -> gr.HTML:
    """A line of the page (`explore.forecast`); hidden while it is empty."""
    line = html_component("notice", None)
    line.elem_id, line.elem_classes = name, ["notice-line"]
    return line


def _var_settings() -> tuple[
    gr.Textbox, gr.Checkbox, gr.State, gr.Button, dict[str, Component], gr.UploadButton
]:
    """VAR's controls: the note, Same text, the dimensions' model, the reset button, all settings,
    and the profile's file."""
    with gr.Accordion("VAR settings", open=False, elem_id="var-settings"):
        note = gr.Textbox(
            "No model is loaded yet.",
            label="Sink dimensions of the model",  # read aloud
            show_label=False,
            interactive=False,
            container=False,
            max_lines=8,
            elem_id="var-note",
        )
        (first,) = (one for one in VAR if one.field == "dims")
        dims = control(
            first,
            "",
            info="Only for this browser; the Sinks tab can find them.",
            max_length=200,
            elem_id="sink-dims",
        )
        dims_of = gr.State("")  # kept per session; a hidden box would lose it
        reset_dims = gr.Button(
            "Back to the model's own", size="sm", visible=False, elem_id="own-dims"
        )
        profile = UploadedFile(
            "Upload a sink_profile.toml", file_types=[".toml"], size="sm", elem_id="profile-file"
        )
        same_text = gr.Checkbox(
            False,
            label="Same text",
            info="VAR reads the baseline's answer, token by token.",
            elem_id="same-text",
        )
        others = {one.name: control(one) for one in VAR if one is not first}
    return note, same_text, dims_of, reset_dims, {first.name: dims, **others}, profile


def _generation_settings(start: GenerationSettings) -> tuple[dict[str, Component], gr.HTML]:
    """The controls of an answer, and the line with the checkpoint's settings."""
    ours = start.decoding == "ours"
    controls: dict[str, Component] = {}
    with gr.Accordion("Generation settings", open=False, elem_id="generation-settings"):
        for one in ANSWER:
            look: dict[str, Any] = {"interactive": ours} if one.field in OF_CHECKPOINT else {}
            if one.field == "decoding":
                look = {"elem_id": "decoding"}
            controls[one.name] = control(one, getattr(start, one.field), **look)
            if one.field == "decoding":
                checkpoint_words = notice_line("checkpoint-says")
    return controls, checkpoint_words


def _example_item(example: Example, listed: gr.HTML, image: gr.Image) -> dict[str, Any]:
    small = open_image(example.image)
    small.thumbnail((160, 160))
    path = save_bytes_to_cache(example.image.read_bytes(), example.image.name, image.GRADIO_CACHE)
    image.keep_in_cache.add(path)
    whole = {"path": path, "url": served(path), "name": example.image.name}
    thumbnail = cached(*encode_image(small), listed, keep=True)
    return {**thumbnail, "prompt": example.prompt, "image": whole}
