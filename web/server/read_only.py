"""A demo for looking only: stored runs and the example, without any function that changes anything.

Allowed functions are listed; every other function of the page and the API answers one sentence.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import gradio as gr
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sinkscope.web.server.bodies import UPLOAD

READ_ONLY = (
    "This is a read-only demo: the example and stored runs can be viewed, but nothing is "
    "generated, loaded, uploaded or deleted."
)
# Names of the functions behind events, or of endpoints.
LOOKING = frozenset(
    {
        # the page when it opens, and help texts of its controls
        "model_state", "limits", "decoding", "sink_dims", "refill", "changed", "ahead", "choose",
        "picking", "open_question", "<lambda>",
        # maps and files of a stored run
        "map", "export", "export_view", "stop", "stop_export", "find_heads",
    }
)  # fmt: skip


def only_looking(page: gr.Blocks) -> None:
    """Make every function of the page that is not in `LOOKING` refuse, and disable its buttons."""
    for function in page.fns.values():
        if function.fn is None or function.fn.__name__ in LOOKING:  # None: runs only in the browser
            continue
        function.fn = _refusing(function.fn)
        for target, _ in function.targets:
            control = page.blocks.get(target) if target is not None else None
            if isinstance(control, gr.Button):
                control.interactive = False


def _refusing(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def refuse(*_: Any, **__: Any) -> Any:
        raise gr.Error(READ_ONLY, title="Not possible", print_exception=False)

    return refuse


class NoUploads:
    """Refuses uploads before a byte of them is read."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].rstrip("/") == UPLOAD:
            await PlainTextResponse(READ_ONLY, 403)(scope, receive, send)
            return
        await self.app(scope, receive, send)
