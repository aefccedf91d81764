"""Scripts of the tabs that are not the first one: sent when such a tab is opened.

Gradio puts a component's script into the page itself, so that everybody would load all of them
before the first map is there. Theirs is a line that fetches `part/<name>.js`.
"""

from __future__ import annotations

import hashlib

from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from sinkscope.web.components.assets import read_static

FOLDER = "/part/"
LATE = ("sinks", "experiments", "evaluate")
# Its address names its content, so it never has to be asked for again.
KEPT = {"Cache-Control": "public, max-age=31536000, immutable"}


def script_of(name: str) -> str:
    """What a drawn component runs: its script, or what fetches it."""
    if name not in LATE:
        return read_static(name)
    mark = hashlib.sha256(read_static(name).encode()).hexdigest()[:12]
    return read_static("late").replace("@address@", f"{FOLDER[1:]}{name}.js?{mark}")


class Parts:
    """Answers `GET part/<name>.js`; everything else goes on to the app."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._texts = {f"{FOLDER}{name}.js": read_static(name) for name in LATE}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or not path.startswith(FOLDER):
            await self._app(scope, receive, send)
            return
        answer: Response
        if scope["method"] not in ("GET", "HEAD") or path not in self._texts:
            answer = PlainTextResponse("There is no such script.", 404)
        else:
            answer = Response(self._texts[path], media_type="text/javascript", headers=KEPT)
        await answer(scope, receive, send)
