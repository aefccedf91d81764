"""The inspector's quick questions, answered without Gradio's way to a component's function.

Gradio's way passes through several threads and makes a session for each caller; while a model
computes, each change of threads may wait for the interpreter. Here it is one thread, or none if
the answer is cached.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

import anyio
import anyio.to_thread
from gradio.route_utils import API_PREFIX
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sinkscope.web.explore.handlers import Handlers
from sinkscope.web.runs.job_values import UNFORESEEN

log = logging.getLogger(__name__)

PATHS = (f"{API_PREFIX}/component_server/", f"{API_PREFIX}/component_server")
AT_ONCE = 4  # threads, in addition to those of Gradio, in which events wait for the model
# The questions of exploring a run. The inspector's other functions make files.
QUICK = ("open_run", "token_maps", "tokens_since")


class QuickQuestions:
    """Answers the questions of `QUICK` if the body is JSON (checked by `web.server.bodies`); passes
    on all others.

    Only without logins, which Gradio checks in its own way.
    """

    def __init__(self, app: ASGIApp, handlers: Handlers) -> None:
        self.app, self._handlers = app, handlers
        self._limiter: anyio.CapacityLimiter | None = None  # belongs to the server's event loop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        quick = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in PATHS
        if not quick:
            await self.app(scope, receive, send)
            return
        message = await receive()
        asked = None if message.get("more_body") else self._read_question(message.get("body", b""))
        if asked is None:
            await self.app(scope, _again(message, receive), send)
            return
        await JSONResponse(await self._answer(*asked))(scope, receive, send)

    def _read_question(self, body: bytes) -> tuple[str, Any] | None:
        """Function and question, if the body is one of ours."""
        try:
            message = json.loads(body)
        except (ValueError, RecursionError):
            return None
        component = self._handlers.component
        if not isinstance(message, Mapping) or component is None:
            return None
        name, where = message.get("fn_name"), message.get("component_id")
        if name not in QUICK or where != component._id or isinstance(where, bool):
            return None
        return name, message.get("data")

    async def _answer(self, name: str, question: Any) -> dict[str, Any]:
        if name == "open_run" and (ready := self._handlers.opened(question)) is not None:
            return ready
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(AT_ONCE)
        function: Callable[[Any], dict[str, Any]] = getattr(self._handlers, name)
        try:
            return await anyio.to_thread.run_sync(function, question, limiter=self._limiter)
        except Exception:
            log.exception("%s failed", name)
            return {"error": UNFORESEEN}


def _again(message: Message, receive: Receive) -> Receive:
    """The messages of a request whose first message has been read already."""
    first = [message]

    async def read() -> Message:
        return first.pop() if first else await receive()

    return read
