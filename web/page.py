"""The page: its layout, its theme, and which control calls which handler.

app = build_app(settings)       everything connected, nothing loaded, nothing listening
launch(app)                     opens the address, then loads the model in the background
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from config import ModelSettings, Settings, VARSettings
from models.images import open_image
from models.loading import ModelHandle
from web.assets import read_static
from web.example import Example, load_example, read_examples
from web.handlers import Engine, Handlers, Request
from web.inspector import cached, drawn, empty_value, run_value
from web.payload import encode_image
from web.security import middleware
from web.slot import ModelSlot, SlotState
from web.store import Run, RunStore

MODELS = (
    ("Bundled demo model", "demo"),
    ("Qwen2.5-VL 3B", "Qwen/Qwen2.5-VL-3B-Instruct"),
    ("Qwen2.5-VL 7B", "Qwen/Qwen2.5-VL-7B-Instruct"),
)
SANS = (
    "system-ui",
    "-apple-system",
    "Segoe UI",
    "Roboto",
    "Helvetica Neue",
    "Noto Sans",
    "sans-serif",
)
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace")


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
    """Open the address and begin to load the model; with `wait`, return when the server ends."""
    settings = app.settings.app
    if app.slot.state.phase == "none":
        app.slot.load(app.settings.model)
    app.blocks.queue(max_size=4 * settings.queue_size, api_open=False)
    _, address, _ = app.blocks.launch(
        server_name=settings.host,
        server_port=settings.port or None,
        auth=tuple(settings.auth.split(":", 1)) if settings.auth else None,  # type: ignore[arg-type]
        app_kwargs={"middleware": middleware(settings)},
        max_file_size=app.settings.images.max_bytes,
        max_threads=40 + settings.queue_size,
        theme=_theme(),
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


def status_value(state: SlotState) -> dict[str, Any]:
    """The line about the model at the top of the page."""
    handle = state.working
    name, message = state.name, state.message
    if state.phase == "ready" and handle is not None:
        info = handle.info
        message = f"{info.device}, {info.dtype}, {info.layers} layers × {info.heads} heads"
    elif state.phase == "failed" and handle is not None:
        name = handle.info.id
        message = f"still in use. {state.message}"
    return {"phase": state.phase, "name": name, "message": message, "fraction": state.fraction}


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
                    tokens = gr.Slider(
                        1, 512, generation.max_new_tokens, step=1, label="max new tokens"
                    )
                    temperature = gr.Slider(
                        0,
                        2,
                        generation.temperature,
                        step=0.05,
                        label="temperature",
                        info="0 is greedy.",
                    )
                    top_p = gr.Slider(0.01, 1, generation.top_p, step=0.01, label="top p")
                    top_k = gr.Number(generation.top_k, precision=0, minimum=0, label="top k")
                    penalty = gr.Slider(
                        0.5, 2, generation.repetition_penalty, step=0.01, label="repetition penalty"
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
                        info="Area after resizing; empty leaves it to the model.",
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
            _generating(handlers),
            controls,
            [inspector, go, stop],
            api_name="generate",
            show_progress="hidden",
            concurrency_id="gpu",
            concurrency_limit=settings.app.queue_size + 8,  # they wait in Handlers.line
            trigger_mode="once",
        )
        stop.click(
            _stopping(handlers), None, None, api_name="stop", queue=False, show_progress="hidden"
        )
        told = [status, compare, note, tau]
        free = {"concurrency_id": "status", "concurrency_limit": None, "show_progress": "hidden"}
        load.click(
            _loading(slot),
            [name, device, dtype, low, high],
            told,
            api_name="load_model",
            **free,  # type: ignore[arg-type]
        )
        page.load(_following(slot), None, told, api_name="model_state", **free)  # type: ignore[arg-type]
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


def _generating(handlers: Handlers):  # type: ignore[no-untyped-def]
    def generate(
        image: str | None,
        prompt: str,
        compare: bool = False,
        same_text: bool = False,
        tau: float = 20.0,
        keep: float = 0.6,
        max_sink_share: float = 0.5,
        min_image_mass: float = 0.2,
        layers: str = "",
        dialect: str = "official",
        control: str = "none",
        max_new_tokens: float = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: float = 0,
        repetition_penalty: float = 1.0,
        seed: float = 0,
        request: gr.Request = None,  # type: ignore[assignment]
    ) -> Iterator[tuple[Any, Any, Any]]:
        """Answer a prompt about an image and keep the attention behind each token.

        Yields what the inspector shows: queued, streaming, then ready (with the address of the
        run's numbers), stopped or error. With `compare`, VAR is run beside the plain model.
        """
        asked = Request(
            image, prompt, compare, same_text, tau, keep, max_sink_share, min_image_mass, layers,
            dialect, control, max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed,
        )  # fmt: skip
        busy = False
        for value in handlers.generate(asked, request.session_hash or ""):
            over = value["phase"] in ("ready", "stopped", "error")
            if over or not busy:
                buttons = gr.update(interactive=over), gr.update(interactive=not over)
                yield value, *buttons
                busy = not over
            else:
                yield value, gr.skip(), gr.skip()

    return generate


def _stopping(handlers: Handlers):  # type: ignore[no-untyped-def]
    def stop(request: gr.Request) -> None:
        """Stop the run of this session; what it has so far is shown."""
        handlers.stop(request.session_hash or "")

    return stop


def _following(slot: ModelSlot):  # type: ignore[no-untyped-def]
    def model_state() -> Iterator[tuple[Any, ...]]:
        """The loaded model, its progress while it loads."""
        seen, state = slot.wait(-1, 0)
        while state.phase == "loading":
            yield (
                status_value(state),
                *([gr.skip()] * 3 if state.working else _var_controls(state)),
            )
            seen, state = slot.wait(seen, 30)
        yield (status_value(state), *_var_controls(state))

    return model_state


def _loading(slot: ModelSlot):  # type: ignore[no-untyped-def]
    def load_model(
        model: str,
        device: str = "auto",
        dtype: str = "auto",
        min_pixels: float | None = None,
        max_pixels: float | None = None,
    ) -> Iterator[tuple[Any, ...]]:
        """Load a model: `demo`, a hub id or a folder. The one before stays if this fails."""
        try:
            wanted = ModelSettings(
                model=(model or "").strip(),
                device=device,
                dtype=dtype,  # type: ignore[arg-type]
                min_pixels=int(min_pixels) if min_pixels else None,
                max_pixels=int(max_pixels) if max_pixels else None,
            )
        except ValueError as error:
            raise gr.Error(str(error), title="Not possible", print_exception=False) from error
        if not slot.load(wanted):
            raise gr.Error(
                "Another model is being loaded; wait until it is there.", print_exception=False
            )
        yield from _following(slot)()
        if slot.state.phase == "failed":
            raise gr.Error(slot.state.message, title="Not loaded", print_exception=False)

    return load_model


def _var_controls(state: SlotState) -> tuple[Any, Any, Any]:
    """Compare with VAR, the sentence in its settings, and tau, as the loaded model allows."""
    handle = state.working
    if handle is None:
        return gr.update(interactive=False, value=False), "No model is loaded yet.", gr.skip()
    if handle.profile is None:
        words = "The sink dimensions of this model are not known, so VAR cannot run."
        return gr.update(interactive=False, value=False, info=words), words, gr.skip()
    profile = handle.profile
    words = (
        f"Sink dimensions {', '.join(map(str, profile.dims))}: {profile.source}; "
        f"confidence {profile.confidence}. {profile.note}".strip()
    )
    return gr.update(interactive=True, info=None), words, gr.update(value=round(profile.tau, 2))


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


def _theme() -> gr.themes.Base:
    return gr.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        font=SANS,
        font_mono=MONO,
        text_size=gr.themes.sizes.text_sm,
        spacing_size=gr.themes.sizes.spacing_sm,
        radius_size=gr.themes.sizes.radius_sm,
    ).set(
        body_background_fill="#f7f8fa",
        body_background_fill_dark="#0f1216",
        body_text_color="#1b2027",
        body_text_color_dark="#e4e8ee",
        body_text_color_subdued="#5b6572",
        body_text_color_subdued_dark="#9aa5b3",
        block_background_fill="#ffffff",
        block_background_fill_dark="#14181e",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#14181e",
        background_fill_secondary="#f3f5f7",
        background_fill_secondary_dark="#1c2129",
        border_color_primary="#e1e5ea",
        border_color_primary_dark="#272d36",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        block_title_text_weight="500",
        input_background_fill="#ffffff",
        input_background_fill_dark="#1c2129",
        input_border_color="#c9d0d8",
        input_border_color_dark="#3a424e",
        color_accent="#2257c4",
        button_primary_background_fill="#2257c4",
        button_primary_background_fill_hover="#1b469f",
        button_primary_background_fill_dark="#2f66d0",
        button_primary_text_color="#ffffff",
        button_large_text_weight="600",
        slider_color="#2257c4",
        slider_color_dark="#86aef7",
    )
