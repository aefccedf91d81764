"""The functions that the Explore tab's own events call: handlers as generators over its components.

They are private to the page; what `gradio_client` sees is in `web.api` and `web.endpoints`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from sinkscope.config import GenerationSettings
from sinkscope.web.handlers import Handlers
from sinkscope.web.request import Request


def generating(handlers: Handlers) -> Callable[..., Any]:
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
        dims: str = "",
        dims_of: str = "",
        decoding: str = "ours",
        request: gr.Request = None,  # type: ignore[assignment]
    ) -> Iterator[tuple[Any, Any, Any]]:
        """Answer a prompt about an image and keep the attention behind each token.

        Yields what the inspector shows: queued, streaming, then ready (with the address of the
        run's numbers), stopped or error. With `compare`, VAR is run beside the plain model, with
        the sink dimensions `dims` (such as "17, 101") if they are given, else those of the model's
        profile; `dims_of` is the model that they were found on, and another one is refused. With
        `decoding` "checkpoint" the controls of sampling are not read, as the page shows.
        """
        if decoding == "checkpoint":
            own = GenerationSettings()
            temperature, top_p, top_k = own.temperature, own.top_p, own.top_k
            repetition_penalty = own.repetition_penalty
        asked = Request(
            image, prompt, compare, same_text, tau, keep, max_sink_share, min_image_mass, layers,
            dialect, control, max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed,
            dims, dims_of, decoding,
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


def stopping(handlers: Handlers) -> Callable[..., Any]:
    def stop(request: gr.Request) -> None:
        """Stop the run of this session; what it has so far is shown."""
        handlers.stop(request.session_hash or "")

    return stop
