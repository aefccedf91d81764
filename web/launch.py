"""Opens the page's address, with everything of Gradio that reaches out or in switched off."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from starlette.middleware import Middleware

from sinkscope.web.assets import page_style, read_static
from sinkscope.web.compress import CompressedPage
from sinkscope.web.documents import Documents
from sinkscope.web.page import App
from sinkscope.web.parts import Parts
from sinkscope.web.security import middleware
from sinkscope.web.theme import theme


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
    inside = Middleware(Documents), Middleware(CompressedPage), Middleware(Parts)
    app.blocks.queue(max_size=4 * settings.queue_size, api_open=False)
    _, address, _ = app.blocks.launch(
        server_name=f"[{settings.host}]" if ":" in settings.host else settings.host,
        server_port=port,
        auth=tuple(settings.auth.split(":", 1)) if settings.auth else None,  # type: ignore[arg-type]
        app_kwargs={
            "middleware": [*middleware(app.settings), *inside],
            "lifespan": partial(_alive, app),
        },
        max_file_size=app.settings.images.max_bytes,
        max_threads=40 + settings.queue_size,
        theme=theme(),
        css=page_style(),
        head=f"<script>{read_static('stream.js')}</script>",
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


@asynccontextmanager
async def _alive(app: App, _: object) -> AsyncIterator[None]:
    """As long as the server: what runs beside it ends with it."""
    try:
        yield
    finally:
        app.handlers.drawing.close()


def _usable_port(host: str, port: int) -> int:
    """The port, or a free one for 0: Gradio would take 7860 and say nothing of it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as probe:
        return int(probe.getsockname()[1])
