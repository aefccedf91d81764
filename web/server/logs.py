"""The app's log: one line for each request, with an id, and messages that contain this id.

Never written: bodies, prompts, answers, queries (which contain tokens), names of files, and ids of
runs and sessions. In the JSON format an exception is logged as its type and source locations,
without its text, which may quote user input.
"""

from __future__ import annotations

import json
import logging
import secrets
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sinkscope.setting.serving import AppSettings
from sinkscope.web.server import current_request as current
from sinkscope.web.server.current_request import USER

REQUEST = "sinkscope.request"  # key in a request's scope: the request's id
access = logging.getLogger("sinkscope.access")
_ID_AFTER = ("heartbeat/", "file=", "file/", "proxy=", "stream/")
MOST_FRAMES = 12


class RequestLog:
    """Gives each request an id (header `x-request-id` of the answer) and logs one line about it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope[REQUEST] = secrets.token_hex(8)
        current.enter(scope)
        start, status, sent, got = time.monotonic(), 0, 0, 0

        async def counted() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            return message

        async def seen(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                named = (b"x-request-id", scope[REQUEST].encode())
                message = {**message, "headers": [*message["headers"], named]}
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, counted, seen)
        finally:
            access.info(
                "%s %s %d",
                scope["method"],
                path_shown(scope["path"]),
                status,
                extra={
                    "about": {
                        "method": scope["method"],
                        "path": path_shown(scope["path"]),
                        "status": status,
                        "ms": round(1000 * (time.monotonic() - start), 1),
                        "received": got,
                        "sent": sent,
                        **({"user": scope[USER]} if scope.get(USER) else {}),
                    }
                },
            )


def path_shown(path: str) -> str:
    """A path without the parts that name a file, a session or an event."""
    for mark in _ID_AFTER:
        before, separator, _ = path.partition(mark)
        if separator:
            return f"{before}{mark}..."
    if path.startswith("/gradio_api/call/"):
        return "/".join(path.split("/")[:4])[:100]  # the endpoint; the event's id follows it
    return path[:100].encode("ascii", "replace").decode()


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, request id, and the message or the request."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if request := current.scope_now().get(REQUEST):
            fields["request"] = request
        about = getattr(record, "about", None)
        fields.update(about if isinstance(about, dict) else {"message": _message(record)})
        if record.exc_info and record.exc_info[0] is not None:
            frames = traceback.extract_tb(record.exc_info[2])[-MOST_FRAMES:]
            fields["error"] = record.exc_info[0].__name__
            fields["at"] = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames]
        return json.dumps(fields, ensure_ascii=True)


def _message(record: logging.LogRecord) -> str:
    """The whole message of our own loggers. Libraries may quote anything, so only the first line of
    theirs."""
    text = record.getMessage()
    return text if record.name.startswith("sinkscope") else text.partition("\n")[0][:300]


def start_logging(settings: AppSettings) -> None:
    """Log to standard error as the settings say: warnings as text, or everything as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    root = logging.getLogger()
    if settings.log == "json":
        handler.setFormatter(JsonLines())
        logging.getLogger("sinkscope").setLevel(logging.INFO)
    else:
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root.setLevel(logging.WARNING)
    root.handlers[:] = [handler]
