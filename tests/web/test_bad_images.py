"""Images of every kind, uploaded as by the page: one sentence, or an upright RGB picture."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from sinkscope.web.explore.handlers import Handlers
from sinkscope.web.runs.request import Request
from tests.web.test_handlers import engine, handlers

__all__ = ["engine", "handlers"]


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bomb() -> bytes:
    """A PNG of 9000 x 9000 pixels in about 10 kB."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    rows = zlib.compress(b"\0" * (1 + (9000 + 7) // 8) * 9000, 9)
    header = struct.pack(">IIBBBBB", 9000, 9000, 1, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def rotated() -> bytes:
    exif = Image.Exif()
    exif[274] = 6  # stored rotated
    return saved(Image.new("RGB", (60, 40), "red"), "JPEG", exif=exif)


def photo() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(noise)


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty"),
    "truncated": (lambda: saved(photo(), "PNG")[:900], "cut off"),
    "fake": (lambda: b"this is a text", "not an image"),
    "svg": (lambda: b"<svg onload='alert(1)'/>", "SVG"),
    "html": (lambda: b"<!doctype html><script>1</script>", "web page"),
    "bomb": (bomb, "megapixels"),
    "line": (lambda: saved(Image.new("RGB", (20000, 3)), "PNG"), "times"),
}
TAKEN: dict[str, tuple[Callable[[], bytes], tuple[int, int]]] = {
    "one pixel": (lambda: saved(Image.new("RGB", (1, 1)), "PNG"), (1, 1)),
    "rotated": (rotated, (40, 60)),
    "cmyk": (lambda: saved(Image.new("CMYK", (60, 40)), "JPEG"), (60, 40)),
    "16 bit": (lambda: saved(Image.new("I;16", (60, 40), 30000), "PNG"), (60, 40)),
    "palette": (lambda: saved(photo().quantize(8), "PNG", transparency=3), (60, 40)),
    "animated": (
        lambda: saved(photo(), "GIF", save_all=True, append_images=[Image.new("RGB", (60, 40))]),
        (60, 40),
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_with_a_sentence(handlers: Handlers, tmp_path: Path, kind: str) -> None:
    make, words = REFUSED[kind]
    path = tmp_path / "upload.png"
    path.write_bytes(make())
    with pytest.raises(gr.Error) as error:
        list(handlers.generate(Request(str(path), "What is this?"), "s"))
    sentence = str(error.value)
    assert words.lower() in sentence.lower()
    assert str(tmp_path) not in sentence and sentence.count("\n") == 0


@pytest.mark.parametrize("kind", TAKEN)
def test_taken_upright(handlers: Handlers, tmp_path: Path, kind: str) -> None:
    make, size = TAKEN[kind]
    path = tmp_path / "upload.png"
    path.write_bytes(make())
    value = list(handlers.generate(Request(str(path), "What is this?"), "s"))[-1]
    run = handlers.store.get(value["run"])
    assert run is not None
    image = run.traces["baseline"].images[0]
    assert (image.mode, image.size) == ("RGB", size)
