"""Serves the project's documents to readers of the page: `docs/*.md`, the reports that they link
to, and their pictures, as plain web pages.

The app serves them itself under `read/`. They are read-only and come from a list that is made at
the start, so no name in a request can lead to another file. No other machine is contacted.
"""

from __future__ import annotations

import html
import re
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from sinkscope.utils import PROJECT

DOCS = PROJECT / "docs"
FOLDER = "/read/"

SERVED = re.compile(r"[a-z]+:|#|[\w/-]+\.(md|png)(#.*)?$")

FRAME = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title} · SinkScope</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root {{ color-scheme: light dark; --line: #8886; }}
body {{ font: 16px/1.55 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto 6rem;
  padding: 0 1rem; overflow-wrap: break-word; }}
nav {{ font-size: 14px; }} h1, h2, h3 {{ line-height: 1.25; margin: 1.6em 0 .5em; }}
:target {{ background: color-mix(in srgb, Highlight 25%, transparent); }}
pre {{ padding: .7rem .9rem; border: 1px solid var(--line); border-radius: 6px; overflow-x: auto; }}
code {{ font: 14px ui-monospace, Menlo, Consolas, monospace; }}
img {{ max-width: 100%; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; }}
td, th {{ border: 1px solid var(--line); padding: .25rem .6rem; text-align: left; }}
</style></head><body>
<nav><a href="{up}../">SinkScope</a> · <a href="{up}index.md">documents</a></nav>
{body}</body></html>"""


def slug(heading: str) -> str:
    """The name by which links reach a heading, made as code hosts make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def as_page(text: str, depth: int = 0) -> str:
    """Markdown as a web page. HTML in it is shown as text.

    `depth` is the number of folders between the page and the folder of documents. Links to files
    that the app does not serve (code, files outside `docs`) become plain text.
    """
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = reader.parse(text)
    title = "Documents"
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open":
            opening.attrSet("id", slug(inline.content))
            if opening.tag == "h1":
                title = inline.content
        for link in (t for t in inline.children or () if t.type == "link_open"):
            if not SERVED.match(str(link.attrGet("href"))):
                del link.attrs["href"]
    body = reader.renderer.render(tokens, reader.options, {})
    return FRAME.format(title=html.escape(title), body=body, up="../" * depth)


class Documents:
    """Answers `GET read/<name>.md` and its pictures; everything else goes on to the app."""

    def __init__(self, app: ASGIApp, folder: Path = DOCS) -> None:
        self._app = app
        patterns = ("*.md", "images/*.png", "reports/*/*.md")
        paths = [path for pattern in patterns for path in folder.glob(pattern)]
        self._files = {path.relative_to(folder).as_posix(): path for path in paths}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or not path.startswith(FOLDER):
            await self._app(scope, receive, send)
            return
        name = path.removeprefix(FOLDER) or "index.md"
        file = self._files.get(name)
        answer: Response
        if scope["method"] not in ("GET", "HEAD") or file is None:
            answer = PlainTextResponse("There is no such document.", 404)
        elif file.suffix == ".png":
            answer = FileResponse(file)
        else:
            answer = HTMLResponse(as_page(file.read_text(encoding="utf-8"), name.count("/")))
        await answer(scope, receive, send)
