"""Scripts of the tabs other than the first: sent when such a tab is opened.

Gradio puts the script of a component into the page itself, so everybody would load all scripts
before the first map appears. Here the script in the page is one line that loads `part/<name>.js`.
"""

from __future__ import annotations

import hashlib

from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from sinkscope.web.components.assets import read_static

FOLDER = "/part/"
LATE = ("sinks", "experiments", "evaluate")
# The address contains a hash of the content, so browsers may cache it for ever.
KEPT = {"Cache-Control": "public, max-age=31536000, immutable"}


def script_of(name: str) -> str:
    """The script of a component that draws itself, or the line that loads it."""
    if name not in LATE:
        return read_static(name)
    mark = hashlib.sha256(read_static(name).encode()).hexdigest()[:12]
    return read_static("late").replace("@address@", f"{FOLDER[1:]}{name}.js?{mark}")


class Parts:
    """Answers `GET part/<name>.js`; all other requests go on to the app."""

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
