"""Starts the server, with every feature of Gradio switched off that connects to other machines."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from starlette.middleware import Middleware

from sinkscope.setting.serving import NO_TOKEN, AppSettings
from sinkscope.web.components.assets import page_style, read_static
from sinkscope.web.components.parts import Parts
from sinkscope.web.components.theme import theme
from sinkscope.web.documents import Documents
from sinkscope.web.explore.quick_questions import QuickQuestions
from sinkscope.web.health import Health, HealthRoute, Watchdog
from sinkscope.web.page import App
from sinkscope.web.runs.retention import remove_old_runs
from sinkscope.web.server.compress import CompressedPage
from sinkscope.web.server.errors import SpokenErrors
from sinkscope.web.server.events import Events, withdrawn_now
from sinkscope.web.server.guards import guards
from sinkscope.web.server.kept_files import KeptFiles
from sinkscope.web.server.login import users_of
from sinkscope.web.server.memory import MemoryReturner
from sinkscope.web.server.presence import Attendance, Presence, session_of
from sinkscope.web.server.security import middleware
from sinkscope.web.server.sessions import MOST_SESSIONS, sweep_sessions, use_light_sessions


def launch(app: App, *, wait: bool = True, token: str | None = None) -> str:
    """Start the server and the loading of the model. With `wait`, return when the server ends.

    Args:
        app: what `build_app` returned.
        wait: whether to block.
        token: the access token that page and API require (`web.server.access.token_for`, which
            every start from the command line uses). None: the token of the settings; if they have
            none, no token is required.

    Returns:
        The address, without the token. If the settings say port 0, it has the free port chosen.

    Raises:
        OSError: the host is not an address of this machine, or the port is in use.
        ValueError: the file of users, the certificate or its key cannot be used.
    """
    settings = app.settings.app
    token = token or (settings.token if settings.token != NO_TOKEN else None)
    users = users_of(settings)
    check_tls(settings)
    port = _usable_port(settings.host, settings.port)  # checked before a model is loaded
    if app.loaded.state.phase == "none" and not settings.read_only:
        app.loaded.load(app.settings.model)
    presence = Presence()
    app.handlers.runner.deserted = presence.gone
    app.handlers.runner.withdrawing = partial(withdrawn_now, app.blocks)
    health = Health(app.loaded, app.handlers.runner, app.handlers.store)
    layers = middleware(app.settings, guards(settings, token, port, app.blocks))
    alone = not settings.login  # without a login, answers do not depend on the user
    inside = [
        Middleware(HealthRoute, health=health),
        Middleware(Documents),
        Middleware(CompressedPage, kept=alone),
        Middleware(Parts),
    ]
    if alone and app.handlers.component is not None:
        inside.append(Middleware(KeptFiles, folder=Path(app.handlers.component.GRADIO_CACHE)))
        inside.append(Middleware(QuickQuestions, handlers=app.handlers))
    inside += [
        Middleware(Events, blocks=app.blocks),
        Middleware(Attendance, presence=presence, session_of=partial(session_of, app.blocks)),
        Middleware(SpokenErrors),
    ]
    app.blocks.queue(max_size=4 * settings.queue_size, api_open=False)
    _, address, _ = app.blocks.launch(
        server_name=f"[{settings.host}]" if ":" in settings.host else settings.host,
        server_port=port,
        auth=users,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        ssl_verify=settings.tls_cert is None,  # for Gradio's requests to itself
        app_kwargs={
            "middleware": [*layers, *inside],
            "lifespan": partial(_alive, app, health, presence),
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
        state_session_capacity=MOST_SESSIONS,
        prevent_thread_lock=True,
        quiet=True,
        # Otherwise Gradio ends the start if one of its requests takes over 3 s (a busy machine). By
        # now the server is known to answer: Gradio has called its start-up events through it.
        _frontend=False,
    )
    use_light_sessions(app.blocks)
    if wait:
        app.blocks.block_thread()
    return address


@asynccontextmanager
async def _alive(app: App, health: Health, presence: Presence, _: object) -> AsyncIterator[None]:
    """Runs background tasks as long as the server runs and ends them with it."""
    settings, store, runner = app.settings.app, app.handlers.store, app.handlers.runner
    watchdog = Watchdog(health, settings.exit_on_dead_worker)
    memory = MemoryReturner(lambda: bool(runner.under_way))
    tasks = [
        asyncio.create_task(one)
        for one in (health.watch_loop(), memory.watch(), sweep_sessions(app.blocks, presence.there))
    ]
    if settings.retention_days:
        tasks.append(asyncio.create_task(remove_old_runs(store, settings.retention_days)))
    watchdog.start()
    try:
        yield
    finally:
        watchdog.close()
        for task in tasks:
            task.cancel()
        app.handlers.drawing.close()
        app.handlers.images.close()


def check_tls(settings: AppSettings) -> None:
    """Check that certificate and key can be read and belong together.

    Raises:
        ValueError: naming the setting.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return
    for name in ("tls_cert", "tls_key"):
        try:
            Path(getattr(settings, name)).read_bytes()
        except OSError as error:
            raise ValueError(f"{name} cannot be read: {error.strerror}.") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password="")
    except (ssl.SSLError, OSError) as error:
        raise ValueError(
            "tls_cert and tls_key are not a certificate with its key; allowed: PEM files that "
            "belong together, the key without a password."
        ) from error


def _usable_port(host: str, port: int) -> int:
    """The port, or a free one for 0. (For 0, Gradio would silently use 7860.)"""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as probe:
        return int(probe.getsockname()[1])
