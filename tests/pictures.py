"""Pictures that cost more than their size suggests, for the tests of images and of the app."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def many_scans(scans: int, size: tuple[int, int]) -> bytes:
    """A progressive JPEG whose first scan of fine detail is repeated this many times."""
    data = encode(Image.new("RGB", size, "teal"), "JPEG", progressive=True)
    starts = [at for at in range(len(data) - 1) if data[at : at + 2] == b"\xff\xda"]
    second, third = starts[1:3]
    one = data[second:third]
    return data[:second] + one * (scans - len(starts) + 1) + data[third:]


def flat_png(width: int, height: int) -> bytes:
    """A PNG of one RGB colour: small, however many pixels it has."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    row = b"\0" + bytes((200, 30, 90)) * width
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    smooth = np.stack([x / width, y / height, (np.sin(x / 23) + np.cos(y / 17) + 2) / 4], -1)
    noise = np.random.default_rng(seed).normal(0, 0.04, smooth.shape)
    return Image.fromarray((np.clip(smooth + noise, 0, 1) * 255).astype(np.uint8))
