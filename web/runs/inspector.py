"""The inspector and the other two components of the page that draw in the browser.

They are plain `gr.HTML` with a static template. Text from a model must never be part of a template,
because Gradio evaluates `${...}` and `{{...}}` there. Values are passed to JavaScript as data,
which puts every text on the page as `textContent`.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import gradio as gr
from gradio import processing_utils
from gradio.route_utils import API_PREFIX
from gradio_client.utils import encode_file_path

from sinkscope.capture.decoding import engine_words
from sinkscope.utils import number_of
from sinkscope.web.components.assets import read_static
from sinkscope.web.components.parts import script_of
from sinkscope.web.runs.payload import build_payload, encode_image, images_of
from sinkscope.web.runs.store import LABELS, Run
from sinkscope.web.server.errors import FAULT

log = logging.getLogger(__name__)

_SERVED = f"{API_PREFIX.lstrip('/')}/file="


def html_component(
    name: str, value: Any, functions: list[Callable[..., Any]] | None = None
) -> gr.HTML:
    """A component made of `static/<name>.html` and `static/<name>/*.js`; see `page_style`."""
    return gr.HTML(
        value=value,
        html_template=read_static(f"{name}.html"),
        js_on_load=script_of(name),
        server_functions=[_markable(function) for function in functions or []],
        apply_default_css=False,
        elem_id=name,
    )


def _markable(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Wraps a method as a function: Gradio marks server functions with an attribute, which a bound
    method cannot have.

    Unexpected errors are turned into an answer, including an exit meant for the process.
    """

    def call(ask: Any) -> Any:
        try:
            return function(ask)
        except BaseException:
            log.exception("%s failed", function.__name__)
            return {"error": FAULT}

    call.__name__ = function.__name__
    return call


def cached(data: bytes, name: str, component: gr.HTML, keep: bool = False) -> dict[str, str]:
    """Write bytes to where Gradio serves files from; returns what the browser needs to fetch them.

    Gradio removes such files after a day, unless `keep` says that the page itself refers to them.
    """
    folder = Path(component.GRADIO_CACHE).resolve() / processing_utils.hash_bytes(data)
    path = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    _written(path, data)
    if keep:
        component.keep_in_cache.add(str(path))
    return {"url": served(path)}


def _written(path: Path, data: bytes) -> None:
    """Write the bytes under a name made of their hash. An existing file is never overwritten:
    another browser may be reading it, and would receive only a part."""
    with suppress(OSError):
        if path.stat().st_size == len(data):
            os.utime(path)  # Gradio's day starts again
            return
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(part).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(part).unlink()
        raise


def served(path: str | Path) -> str:
    """The address of a file in Gradio's cache, relative to the page."""
    return f"{_SERVED}{encode_file_path(path)}"


def files_in(value: Any) -> list[Path]:
    """The files whose `served` addresses appear anywhere in a value for the page."""
    if isinstance(value, Mapping):
        return [path for part in value.values() for path in files_in(part)]
    if isinstance(value, list | tuple):
        return [path for part in value for path in files_in(part)]
    if isinstance(value, str) and value.startswith(_SERVED):
        return [Path(unquote(value.removeprefix(_SERVED)))]
    return []


def path_of(url: str) -> Path:
    """The file that an address made by `served` refers to."""
    return Path(unquote(url.split("/file=", 1)[1]))


def cached_file(path: Path, component: gr.HTML) -> dict[str, str]:
    """The same for an existing file; its name is kept."""
    kept = processing_utils.save_file_to_cache(path, component.GRADIO_CACHE)
    return {"url": served(kept), "name": path.name}


def empty_value() -> dict[str, Any]:
    """Nothing to show yet."""
    return {"phase": "empty"}


def queued_value(run_id: str, position: int, message: str = "Starting") -> dict[str, Any]:
    """Waiting for the model; `position` runs come before this one."""
    return {"phase": "queued", "run": run_id, "position": position, "message": message}


def error_value(run_id: str, message: str) -> dict[str, Any]:
    """An error as a sentence; the previous run stays on screen."""
    return {"phase": "error", "run": run_id, "message": message, "at": time.time()}


def stream_value(
    run_id: str,
    prompt: str,
    variants: tuple[str, ...],
    begin: Mapping[str, int],
    new: Mapping[str, list[dict[str, Any]]],
    message: str,
    facts: list[str],
) -> dict[str, Any]:
    """The tokens since the last value, and the index of the first of them."""
    return {
        "phase": "streaming",
        "run": run_id,
        "prompt": prompt,
        "variants": [[name, LABELS[name]] for name in variants],
        "from": dict(begin),
        "new": dict(new),
        "message": message,
        "facts": facts,
    }


def facts_of(run: Run) -> list[str]:
    """Model, device and speed of a finished run, for the status line."""
    trace = run.first
    count = sum(len(t.tokens) for t in run.traces.values())
    seconds = max(t.seconds for t in run.traces.values())
    facts = [
        trace.model.id.rstrip("/").rsplit("/", 1)[-1],
        f"{trace.model.device}, {trace.model.dtype}",
    ]
    facts.append(number_of(count, "token"))
    if seconds > 0 and run.kind != "pair":  # the two runs of a pair have two durations
        facts += [f"{seconds:.1f} s", f"{count / seconds:.1f} tokens/s"]
    facts.append(f"{run.nbytes / 1e6:.1f} MB of attention")
    if trace.settings.get("decoding") == "checkpoint" and run.kind != "pair":
        facts.append("decoded as the checkpoint says")
    if words := engine_words(trace):
        facts.append(words)
    return facts


def run_value(run: Run, component: gr.HTML, keep: bool = False) -> dict[str, Any]:
    """A finished run: addresses of its numbers and images, and the text of the status line."""
    stopped = any(trace.finish_reason == "stopped" for trace in run.traces.values())
    images = images_of(run)
    message = "Precomputed example" if run.kind == "example" else "Stopped" if stopped else "Done"
    if run.kind == "pair":
        stopped, message = False, "Two runs"  # the strips say which answer was stopped
    return {
        "phase": "stopped" if stopped else "ready",
        "run": run.id,
        "kind": run.kind,
        "message": message,
        "facts": facts_of(run),
        "data": cached(build_payload(run), "run.bin", component, keep),
        "images": [cached(*encode_image(image), component, keep) for image in images],
    }
