"""The request that is being answered, for code that Gradio calls without passing the request."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from gradio.context import LocalContext

USER = "sinkscope.user"  # key in a request's scope: the user who has logged in
_SCOPE: ContextVar[Mapping[str, Any] | None] = ContextVar("sinkscope_scope", default=None)


def enter(scope: Mapping[str, Any]) -> None:
    """Remember the request that this task answers (`web.server.logs`, the outermost middleware)."""
    _SCOPE.set(scope)


def scope_now() -> Mapping[str, Any]:
    """The ASGI scope of the request that started the current code; empty if there is none.

    A queued event runs in a task of the queue, where Gradio stores the event's request.
    """
    given: Any = LocalContext.request.get(None)
    inner = getattr(given, "request", given)  # Gradio's class wraps Starlette's
    scope = getattr(inner, "scope", None)
    return scope if isinstance(scope, Mapping) else (_SCOPE.get() or {})
