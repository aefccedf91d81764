"""The page: its layout, its theme, and which control calls which handler.

app = build_app(settings)       everything connected, nothing loaded, nothing listening
launch(app)                     opens the address, then loads the model in the background
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from config import Settings, VARSettings
from models.images import open_image
from models.loading import ModelHandle
from web.assets import read_static
from web.events import following, generating, loading, status_value, stopping
from web.example import Example, load_example, read_examples
from web.handlers import Engine, Handlers
from web.inspector import cached, drawn, empty_value, run_value
from web.payload import encode_image
from web.security import middleware
from web.slot import ModelSlot
from web.store import Run, RunStore
from web.theme import theme

MODELS = (
    ("Bundled demo model", "demo"),
    ("Qwen2.5-VL 3B", "Qwen/Qwen2.5-VL-3B-Instruct"),
    ("Qwen2.5-VL 7B", "Qwen/Qwen2.5-VL-7B-Instruct"),
)


@dataclass(frozen=True)
class App:
    """The page and what is behind it."""

    blocks: gr.Blocks
    handlers: Handlers
    slot: ModelSlot
    settings: Settings


def build_app(
    settings: Settings,
    handle: ModelHandle | None = None,
    *,
    engine: Engine | None = None,
    slot: ModelSlot | None = None,
    example: Run | None = None,
    examples: list[Example] | None = None,
) -> App:
    """Connect everything. Without a `handle`, `launch` loads the model of the settings.

    Args:
        settings: of this start.
        handle: for tests and notebooks.
        engine: what computes runs.
        slot: what loads models.
        example: the run on screen at first; None takes the one that ships with the project.
        examples: pictures to offer; None takes the bundled ones.
    """
    slot = slot or ModelSlot()
    if handle is not None:
        slot.use(handle)
    store = RunStore(
        Path(settings.app.cache_dir) / "runs", settings.app.store_megabytes * 1_000_000
    )
    handlers = Handlers(settings, slot, store, engine)
    first = example or load_example()
    if first is not None:
        store.put(first, keep_on_disk=False)
    offered = read_examples() if examples is None else examples
    return App(_layout(settings, handlers, slot, first, offered), handlers, slot, settings)


def launch(app: App, *, wait: bool = True) -> str:
    """Open the address and begin to load the model; with `wait`, return when the server ends.

    Returns:
        The address. Port 0 of the settings has become a free port in it.

    Raises:
        OSError: the host is not this machine's, or the port is in use.
    """
    settings = app.settings.app
    port = _usable_port(settings.host, settings.port)  # before a model is loaded for nothing
    if app.slot.state.phase == "none":
        app.slot.load(app.settings.model)
    app.blocks.queue(max_size=4 * settings.queue_size, api_open=False)
    _, address, _ = app.blocks.launch(
        server_name=f"[{settings.host}]" if ":" in settings.host else settings.host,
        server_port=port,
        auth=tuple(settings.auth.split(":", 1)) if settings.auth else None,  # type: ignore[arg-type]
        app_kwargs={"middleware": middleware(settings)},
        max_file_size=app.settings.images.max_bytes,
        max_threads=40 + settings.queue_size,
        theme=theme(),
        css=read_static("page.css"),
        footer_links=["api", "settings"],
        run_history=False,
        share=False,
        ssr_mode=False,
        enable_monitoring=False,
        show_error=False,
        prevent_thread_lock=not wait,
        quiet=True,
    )
    return address


def _usable_port(host: str, port: int) -> int:
    """The port, or a free one for 0: Gradio would take 7860 and say nothing of it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as probe:
        return int(probe.getsockname()[1])


def _layout(
    settings: Settings,
    handlers: Handlers,
    slot: ModelSlot,
    first: Run | None,
    offered: list[Example],
) -> gr.Blocks:
    var, generation = VARSettings(dims=(0,)), settings.generation
    with gr.Blocks(
        title="SinkScope", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)
    ) as page:
        status = drawn("status", status_value(slot.state))
        with gr.Row(elem_id="desk"):
            with gr.Column(elem_id="ask", min_width=260):
                image = gr.Image(
                    label="Image",
                    type="filepath",
                    sources=["upload", "clipboard"],
                    height=190,
                    placeholder="Drop a photo, paste it, or click",
                    image_mode=None,
                    buttons=["fullscreen"],
                    elem_id="image",
                )
                # Gradio would decode the file, with its own messages and none of our limits.
                image.preprocess = _path_of  # type: ignore[method-assign]
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
                compare = gr.Checkbox(
                    False, label="Compare with VAR", interactive=False, elem_id="compare"
                )
                with gr.Row(elem_id="actions"):
                    go = gr.Button("Generate", variant="primary", elem_id="generate", min_width=80)
                    stop = gr.Button("Stop", interactive=False, elem_id="stop", min_width=60)
                with gr.Accordion("VAR settings", open=False, elem_id="var-settings"):
                    note = gr.Textbox(
                        "No model is loaded yet.",
                        show_label=False,
                        interactive=False,
                        container=False,
                        max_lines=8,
                        elem_id="var-note",
                    )
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
                with gr.Accordion("Generation settings", open=False):
                    # Gradio refuses a value outside a slider's range, with a message of its own, so
                    # a range always takes in what the settings of the start say.
                    tokens = gr.Slider(
                        1,
                        max(512, generation.max_new_tokens),
                        generation.max_new_tokens,
                        step=1,
                        label="max new tokens",
                    )
                    temperature = gr.Slider(
                        0,
                        max(2, generation.temperature),
                        generation.temperature,
                        step=0.05,
                        label="temperature",
                        info="0 is greedy.",
                    )
                    top_p = gr.Slider(
                        min(0.01, generation.top_p),
                        1,
                        generation.top_p,
                        step=0.01,
                        label="top p",
                    )
                    top_k = gr.Number(generation.top_k, precision=0, minimum=0, label="top k")
                    penalty = gr.Slider(
                        min(0.5, generation.repetition_penalty),
                        max(2, generation.repetition_penalty),
                        generation.repetition_penalty,
                        step=0.01,
                        label="repetition penalty",
                    )
                    seed = gr.Number(generation.seed, precision=0, minimum=0, label="seed")
                with gr.Accordion("Model", open=False, elem_id="model"):
                    name = gr.Dropdown(
                        list(MODELS),
                        value=settings.model.model,
                        allow_custom_value=True,
                        label="Model",
                        info="Choose, or type a hub id or a folder.",
                        elem_id="model-name",
                    )
                    device = gr.Dropdown(
                        ["auto", "cpu", "cuda", "mps"],
                        value=settings.model.device,
                        allow_custom_value=True,
                        label="Device",
                    )
                    dtype = gr.Dropdown(
                        ["auto", "float32", "bfloat16", "float16"],
                        value=settings.model.dtype,
                        label="Number type",
                    )
                    low = gr.Number(
                        settings.model.min_pixels,
                        precision=0,
                        label="Smallest image, in pixels",
                        info="Area after resizing; 0 leaves it to the model.",
                    )
                    high = gr.Number(
                        settings.model.max_pixels, precision=0, label="Largest image, in pixels"
                    )
                    load = gr.Button("Load", elem_id="load")
            with gr.Column(elem_id="see", min_width=320):
                inspector = drawn(
                    "inspector",
                    None,
                    [
                        handlers.open_run,
                        handlers.forget_run,
                        handlers.tokens_since,
                        handlers.token_maps,
                        handlers.page_file,
                        handlers.trace_file,
                    ],
                )
                inspector.value = run_value(first, inspector, keep=True) if first else empty_value()
                handlers.component = inspector

        controls = [image, prompt, compare, same_text, tau, keep, share, mass, layers, dialect]
        controls += [control, tokens, temperature, top_p, top_k, penalty, seed]
        gr.on(
            [go.click, prompt.submit],
            generating(handlers),
            controls,
            [inspector, go, stop],
            api_name="generate",
            show_progress="hidden",
            concurrency_id="gpu",
            concurrency_limit=settings.app.queue_size + 8,  # they wait in Handlers.line
            trigger_mode="once",
        )
        stop.click(
            stopping(handlers), None, None, api_name="stop", queue=False, show_progress="hidden"
        )
        told = [status, compare, note, tau]
        free = {"concurrency_id": "status", "concurrency_limit": None, "show_progress": "hidden"}
        load.click(
            loading(slot, settings, [model for _, model in MODELS]),
            [name, device, dtype, low, high],
            told,
            api_name="load_model",
            **free,  # type: ignore[arg-type]
        )
        page.load(following(slot), None, told, api_name="model_state", **free)  # type: ignore[arg-type]
        shelf.select(
            _choosing(offered, image),
            None,
            [image, prompt],
            api_visibility="private",
            queue=False,
            show_progress="hidden",
        )
    return page


def _path_of(payload: Any) -> str | None:
    return None if payload is None else payload.path


def _shelf_item(example: Example, shelf: gr.HTML) -> dict[str, str]:
    small = open_image(example.image)
    small.thumbnail((160, 160))
    return {**cached(*encode_image(small), shelf, keep=True), "prompt": example.prompt}


def _choosing(offered: list[Example], image: gr.Image):  # type: ignore[no-untyped-def]
    files = [
        save_bytes_to_cache(example.image.read_bytes(), example.image.name, image.GRADIO_CACHE)
        for example in offered
    ]
    image.keep_in_cache.update(files)

    def choose(event: gr.EventData) -> tuple[Any, Any]:
        index = event._data.get("index") if isinstance(event._data, dict) else None
        if not isinstance(index, int) or not 0 <= index < len(offered):
            return gr.skip(), gr.skip()
        return files[index], offered[index].prompt

    return choose
