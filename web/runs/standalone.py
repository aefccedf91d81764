"""A run as one HTML file that shows it in any browser: no server, no model, no network.

It is the page's inspector, with its value and its files as blocks of text in the document, and a
small script (`static/standalone/`) that passes them to it in Gradio's place. A policy in the
document forbids all requests, and all scripts except the one whose hash it contains. Texts of a
model are only ever data: in the payload, in JSON, or escaped.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import numpy as np

from sinkscope.attention_processor import Rows
from sinkscope.capture.decoding import decoding_words, shown_settings
from sinkscope.setting import list_text
from sinkscope.web.components.assets import read_static
from sinkscope.web.runs.payload import build_payload, build_token_maps, encode_image, images_of
from sinkscope.web.runs.store import Run

# Limits in bytes before compression. Above the first one, heads are stored token by token in blocks
# that are decoded on demand (otherwise the browser gets one array). Above the second, heads are
# left out.
EAGER_BYTES = 8_000_000
HEADS_BYTES = 160_000_000

WORDS = {
    "dims": "sink dimensions",
    "max_new_tokens": "tokens at most",
    "reference": "generic prompt",
}


def holds_heads(run: Run, most: int | None = None) -> bool:
    """Whether the file of this run contains single heads, or only their mean.

    Args:
        run: the run.
        most: the maximal number of values in the file; None: `HEADS_BYTES`.
    """
    return _cells(run.traces) <= (HEADS_BYTES if most is None else most)


def build_standalone(
    run: Run,
    *,
    token: int | None = None,
    place: str = "",
    facts: Sequence[tuple[str, str]] = (),
    most_heads: int | None = None,
) -> bytes:
    """The file, in UTF-8.

    Args:
        run: one or two traces.
        token: the token that is chosen when the file is opened; None: the inspector chooses.
        place: the view and note that it opens with, in the form of the page's address; any text is
            allowed, because the inspector reads it like a link. `token` takes precedence.
        facts: more lines for "How this was made", each a name and a text.
        most_heads: if there are more values than this, the file contains only the mean over heads;
            None: `HEADS_BYTES`.

    Raises:
        ValueError: there is no such token.
    """
    longest = max(len(trace.tokens) for trace in run.traces.values())
    if token is not None and not 0 <= token < longest:
        raise ValueError(f"token is {token}; the run has {longest}, from 0.")
    if token is not None:
        place = urlencode({"t": f"{token}-{token}"})
    first = run.first
    script = _script()
    pair = run.kind == "pair"
    # Gradio scopes a component's style in the same way.
    style = f"{read_static('standalone.css')}\n#inspector {{\n{read_static('inspector.css')}\n}}"
    assert "</" not in style
    parts = {
        "policy": html.escape(_policy(script, style)),
        "title": html.escape(f"{_shortened(first.prompt)} · SinkScope"),
        "tag": "where a vision-language model looked for each word it wrote"
        + (", in two runs" if pair else ", without and with VAR" if len(run.traces) > 1 else ""),
        "model": html.escape(" | ".join(_models(run))),
        # Without the links to the documents, because no app serves them here.
        "inspector": re.sub(r"\s*<a href=.*?</a>", "", read_static("inspector.html")),
        "facts": "\n".join(_lines([*_about(run), *facts])),
        "steps": "1/255" if _cells(run.traces) * 2 > EAGER_BYTES else "1/65535",
        "data": "\n".join(_blocks(run, place, most_heads)),
        "style": style,
        "script": script,
    }
    frame = read_static("standalone.html")
    # In one pass, so that no inserted text can be mistaken for a placeholder of the frame.
    return re.sub(r"@(\w+)@", lambda mark: parts[mark[1]], frame).encode()


def _cells(traces: Mapping[str, Rows]) -> int:
    return sum(int(np.prod(trace.attention.shape)) for trace in traces.values())


def _models(run: Run) -> list[str]:
    ids = (trace.model.id.rstrip("/").rsplit("/", 1)[-1] for trace in run.traces.values())
    return list(dict.fromkeys(ids))


def _script() -> str:
    # Like Gradio's; a frame in a notebook has none.
    arguments = "element, trigger, props, server, upload, watch, fetch, Image, history, location"
    inspector = f"replay.start(function ({arguments}) {{\n{read_static('inspector')}\n}});"
    code = f"\n{read_static('standalone')}\n{inspector}\n"
    # Anything that would end the element early can only be inside a string or a comment.
    return re.sub(r"<(?=/script|!--)", r"\\x3c", code, flags=re.IGNORECASE)


def _policy(script: str, style: str) -> str:
    def allowed(text: str) -> str:
        digest = hashlib.sha256(text.encode()).digest()
        return f"'sha256-{base64.b64encode(digest).decode()}'"

    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {allowed(script)}",
            f"style-src-elem {allowed(style)}",
            "style-src-attr 'unsafe-inline'",  # positions and widths of drawn elements
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def _blocks(run: Run, place: str, most_heads: int | None) -> Iterator[str]:
    """The data, each piece in an element that a browser neither runs nor shows."""
    # "<" appears in JSON only inside strings, where it can be escaped by its code.
    value = json.dumps({"value": _value(run), "place": place or None}).replace("<", "\\u003c")
    yield _block("value", value, "application/json")
    payload = build_payload(run, EAGER_BYTES)
    yield _block("file-run.bin", base64.b64encode(payload).decode())
    for index, image in enumerate(images_of(run)):
        data, name = encode_image(image)
        kind = "png" if name.endswith(".png") else "jpeg"
        text = base64.b64encode(data).decode()
        yield _block(f"file-image-{index}", f"data:image/{kind};base64,{text}")
    asked = {n: t.prompt_rows for n, t in run.traces.items() if t.prompt_rows is not None}
    for part, traces in (("heads", run.traces), ("prompt", asked)):
        if EAGER_BYTES < _cells(traces) <= (HEADS_BYTES if most_heads is None else most_heads):
            for name, trace in traces.items():
                for t in range(len(trace.tokens)):
                    maps = build_token_maps(trace, t, t + 1)
                    yield _block(f"{part}-{name}-{t}", base64.b64encode(maps).decode())


def _block(name: str, text: str, kind: str = "text/plain") -> str:
    return f'<script type="{kind}" id="{name}">{text}</script>'


def _value(run: Run) -> dict[str, Any]:
    """The inspector's value; its addresses are names of blocks and are never requested."""
    traces = run.traces.values()
    stopped = any(trace.finish_reason == "stopped" for trace in traces) and run.kind != "pair"
    first = run.first
    tokens = " + ".join(str(len(trace.tokens)) for trace in traces)
    return {
        "phase": "stopped" if stopped else "ready",
        "run": run.id,
        "kind": run.kind,
        "message": "Saved run" if len(run.traces) == 1 else "Saved comparison",
        "facts": [f"{first.model.device}, {first.model.dtype}", f"{tokens} tokens"],
        "data": {"url": "file:///run.bin"},
        "images": [{"url": f"file:///image-{k}"} for k in range(len(images_of(run)))],
    }


def _about(run: Run) -> Iterator[tuple[str, str]]:
    """What made the run, in the order of a reader's interest; for a pair, of both runs."""
    if run.kind == "pair":
        for name, trace in run.traces.items():
            side = Run({"baseline": trace}, created=run.created)
            yield from ((f"{name.upper()}: {what}", text) for what, text in _about_one(side))
        return
    yield from _about_one(run)


def _about_one(run: Run) -> Iterator[tuple[str, str]]:
    first = run.first
    model = first.model
    yield "Prompt", first.prompt
    yield (
        "Model",
        f"{model.id}, revision {model.revision}\n{model.layers} layers, {model.heads} heads, "
        f"hidden size {model.hidden_size}; {model.dtype} on {model.device}"
        + (f"\n{model.note}" if model.note else ""),
    )
    sizes = (
        f"{g.original[1]} × {g.original[0]} px, seen as {g.resized[1]} × {g.resized[0]} px: "
        f"{g.columns} × {g.rows} patches"
        for g in first.layout.grids
    )
    yield "Image" if len(first.images) == 1 else "Images", "\n".join(sizes)
    shown = shown_settings(first)
    yield "Generation", _settings(shown, without=("layers", "heads", "decoding"))
    if words := decoding_words(first):
        yield "Decoding", words
    two = len(run.traces) > 1
    for name, trace in run.traces.items():
        applied = "; ".join(trace.applied) or "nothing: the plain model"
        yield f"{run.label(name)}: applied" if two else "Applied", applied
    report = next((trace.var for trace in run.traces.values() if trace.var is not None), None)
    if report is not None:
        yield "VAR settings", _settings(report.get("settings") or {})
    if two:
        text = "VAR read the baseline's answer" if run.same_text else "each answered freely"
        yield "Texts", text
    yield "Captured", f"layers {_numbers(first.layers)}; heads {_numbers(first.heads)}"
    yield "Made", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(run.created))


def _lines(facts: Sequence[tuple[str, str]]) -> Iterator[str]:
    for what, text in facts:
        yield f"    <dt>{html.escape(what)}</dt><dd><bdi>{html.escape(text)}</bdi></dd>"


def _settings(settings: Mapping[str, Any], without: Sequence[str] = ()) -> str:
    shown = {name: value for name, value in settings.items() if name not in without}
    return ", ".join(
        f"{WORDS.get(name, name.replace('_', ' '))} "
        f"{_numbers(value) if isinstance(value, list | tuple) else value}"
        for name, value in shown.items()
        if value is not None
    )


def _numbers(values: Sequence[Any]) -> str:
    return list_text(values)


def _shortened(text: str, most: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
