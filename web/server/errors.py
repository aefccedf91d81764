"""Errors that Gradio would answer with a bare "Internal Server Error" get a sentence.

Gradio looks up functions, components and sessions in plain dictionaries, so a request that names
an unknown one ends in a KeyError. Such a request is the caller's mistake. A full disk is nobody's
mistake and has its own sentence. Any other error is a bug of ours: it is logged and reported as
one.
"""

from __future__ import annotations

import errno
import json
import logging

from gradio.route_utils import FnIndexInferError
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

# The errors that a request with an unknown name raises in Gradio.
_MISTAKES = (
    FnIndexInferError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
    RecursionError,
)
_FULL = (errno.ENOSPC, errno.EDQUOT)

UNKNOWN = (
    "This request names a function, component, session or value that is unknown here. Reload the "
    "page, or see docs/api.md for the API."
)
FULL = "The server's temporary folder is full. Try again later, or tell the server's administrator."
UNWRITABLE = (
    "The server cannot read or write its temporary folder. Please tell the server's administrator."
)
FAULT = "Something went wrong inside SinkScope; the log of the app has the details."


class SpokenErrors:
    """Turns exceptions of the app inside into an answer with a sentence, as JSON."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, bare, body = False, False, bytearray()

        async def watched(message: Message) -> None:
            nonlocal started, bare
            if message["type"] == "http.response.start":
                started = True
                bare = message["status"] == 500  # Gradio's answer to an error
            elif bare:
                body.extend(message.get("body", b""))
            if not bare:
                await send(message)

        try:
            await self.app(scope, receive, watched)
        except (SystemExit, KeyboardInterrupt) as error:
            # Raised by a function of the page: the server's task must not end the server.
            log.exception("a request wanted to end the process")
            if started:
                raise RuntimeError(FAULT) from error
            await _answer(500, FAULT)(scope, receive, send)
        except Exception as error:
            if started and not bare:
                raise
            status, message = answer_to(error)
            level = logging.ERROR if status == 500 else logging.INFO
            log.log(level, "%s %s failed", scope["method"], scope["path"], exc_info=True)
            await _answer(status, message)(scope, receive, send)
        else:
            if bare:
                message = _words(bytes(body))
                if message in ("", FAULT):
                    log.error("%s %s was answered with an error", scope["method"], scope["path"])
                    message = ""
                await _answer(422 if message else 500, message or FAULT)(scope, receive, send)


def _words(body: bytes) -> str:
    """The message with which a function of the page refused (`gr.Error`); "" if it failed."""
    try:
        body_values = json.loads(body)
    except ValueError:
        return ""
    words = body_values.get("error") if isinstance(body_values, dict) else None
    return words if isinstance(words, str) else ""


def answer_to(error: Exception) -> tuple[int, str]:
    """Status and sentence for an exception raised in Gradio."""
    if isinstance(error, OSError):
        return (507, FULL) if error.errno in _FULL else (503, UNWRITABLE)
    if isinstance(error, _MISTAKES):
        return 404, UNKNOWN
    return 500, FAULT


def _answer(status: int, message: str) -> JSONResponse:
    # Gradio's clients look for "error", other programs for "detail".
    return JSONResponse({"detail": message, "error": message}, status)
