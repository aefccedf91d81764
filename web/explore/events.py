"""The functions of the Explore tab's events: handlers as generators over its components.

They are private to the page; the endpoints for `gradio_client` are in `web.api.routes` and
`web.api.endpoints`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from sinkscope.config import OF_CHECKPOINT, GenerationSettings
from sinkscope.web.explore.handlers import Handlers
from sinkscope.web.runs.request import MORE, Request


def generating(handlers: Handlers) -> Callable[..., Any]:
    def generate(
        request: gr.Request,
        *,
        image: str | None,
        prompt: str,
        compare: bool,
        same_text: bool,
        dims_of: str,
        **setting_values: Any,
    ) -> Iterator[tuple[Any, Any, Any]]:
        """Answer a prompt about an image and keep the attention behind each token.

        Yields what the inspector shows: queued, streaming, then ready (with the address of the
        run's data), stopped or error. With `compare`, VAR is run as well as the plain model, with
        the sink dimensions `dims` (such as "17, 101") if they are given, else those of the model's
        profile; `dims_of` is the model that they were found on, and another one is refused. With
        `decoding` "checkpoint" the controls of sampling are not read, as the page shows.
        """
        if setting_values.get("decoding") == "checkpoint":
            defaults = GenerationSettings()
            setting_values.update({name: getattr(defaults, name) for name in OF_CHECKPOINT})
        more = tuple(setting_values.pop(name, None) for name in MORE)
        run_request = Request(image, prompt, compare, same_text, dims_of, setting_values, more)
        busy = False
        for value in handlers.generate(run_request, request.session_hash or ""):
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
        """Stop the run of this session; its tokens so far are shown."""
        handlers.stop(request.session_hash or "")

    return stop
