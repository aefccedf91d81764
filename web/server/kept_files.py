"""Sends files of runs without using Gradio's route for files.

Gradio's route uses several threads one after the other, and each of them waits for the interpreter
while a job computes. Files that `web.runs.inspector.cached` has written are recognised by their
names, are small, and are read at once.
"""

from __future__ import annotations

import mimetypes
import os
import re
import stat
from pathlib import Path

from gradio.route_utils import API_PREFIX
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

PREFIX = f"{API_PREFIX}/file="
# A hash of the content and one of our own names (`cached`); no type that a browser would execute.
NAME = re.compile(r"([0-9a-f]{64})/([A-Za-z0-9][\w.-]*\.(?:bin|png|jpg))\Z")
# Do not follow links out of the folder and do not wait for pipes; Windows has neither flag.
_CAREFULLY = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
MOST_BYTES = 8_000_000  # read in one step by the event loop, which serves everybody


class KeptFiles:
    """Answers `GET gradio_api/file=FOLDER/HASH/NAME`; all other requests go on to the app.

    Used only if nobody logs in: the login is checked on Gradio's route.
    """

    def __init__(self, app: ASGIApp, folder: Path) -> None:
        self.app = app
        self._folder = folder.resolve()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = None
        if scope["type"] == "http" and scope["method"] == "GET":
            answer = self._answer(scope["path"], Headers(scope=scope))
        await (answer or self.app)(scope, receive, send)

    def _answer(self, path: str, headers: Headers) -> Response | None:
        if not path.startswith(f"{PREFIX}{self._folder}/") or "range" in headers:
            return None
        hit = NAME.match(path[len(f"{PREFIX}{self._folder}/") :])
        data = None if hit is None else _read(self._folder / hit[1] / hit[2])
        if hit is None or data is None:
            return None  # the app reports what is wrong with the request
        tag = f'"{hit[1]}"'
        if headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"etag": tag})
        kind = mimetypes.guess_type(hit[2])[0] or ""
        shown = kind.startswith("image/")
        return Response(
            data,
            media_type=kind if shown else "application/octet-stream",
            headers={
                "content-disposition": "inline" if shown else f'attachment; filename="{hit[2]}"',
                "etag": tag,
            },
        )


def _read(path: Path) -> bytes | None:
    """The bytes of a small regular file; None for anything else."""
    try:
        handle = os.open(path, os.O_RDONLY | _CAREFULLY)
    except OSError:
        return None
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode) or about.st_size > MOST_BYTES:
            return None
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(handle)
