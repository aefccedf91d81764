"""The file of a trace: one safetensors file whose metadata holds the JSON part. No pickle anywhere.

Tensors: `attention` float16 (T, L, H, V), `shares` float32 (T, L, H, S + 1), `entropy` float32 (T,
L, H), `head_mean` float32 (T, L, V), `image_<i>` uint8 (bytes,), a PNG of the image that the model
was given. If the run has them, `prompt_rows_*` and `reference_*` hold the first three of these for
the prompt's own tokens and for the generic prompt's last one. The JSON has everything else
(`capture.trace_values`), with a format version, a checksum over all tensors, and one for each
token's part and each image, so that `TraceReader` can read and check one token and leave the rest
on the disk. A checksum in the metadata covers the header, including these checksums
(`capture.trace_file`). Writing is atomic, and needs no second copy of the trace.

Version 2 added `head_mean` and the tokens' checksums, 3 the rows of prompts, 4 the checksums of the
header and of images, 5 images as views, 6 images as PNG (raw pixels before); all are still read,
and checked as far as possible.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sinkscope.capture.pictures import packed, unpacked
from sinkscope.capture.trace import GenerationTrace, PromptTrace
from sinkscope.capture.trace_file import (
    FORMAT,
    VERSION,
    TraceFile,
    TraceFileError,
    as_json,
    bytes_of,
    content_checksum,
    damage_named,
    table_of,
    write,
)
from sinkscope.capture.trace_values import (
    PROMPTS,
    ROWS,
    check_numbers,
    check_tensors,
    rows_of,
    trace_of,
    values_of,
)
from sinkscope.utils import write_atomically

BY_TOKEN = ("attention", "shares", "entropy", "head_mean")  # tensors whose first axis is the token


def save_trace(trace: GenerationTrace, path: Path) -> None:
    """Write a trace; if the process is killed meanwhile, the old file stays intact.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
        ValueError: the trace contains a value that is not finite, or its parts do not fit each
            other; nothing is written.
    """
    tensors = {
        "attention": trace.attention.contiguous(),
        "shares": trace.shares.contiguous(),
        "entropy": trace.entropy.contiguous(),
    }
    for name in PROMPTS:
        rows = getattr(trace, name)
        if rows is not None:
            tensors |= {f"{name}_{part}": getattr(rows, part).contiguous() for part in ROWS}
    with _unfit_named():
        check_numbers(tensors)
    tensors["head_mean"] = _head_mean(trace.attention)
    sums = {name: [_crc(part) for part in tensors[name]] for name in BY_TOKEN}
    for name in PROMPTS:
        if getattr(trace, name) is not None:
            sums[name] = [_crc(tensors[f"{name}_{part}"]) for part in ROWS]
    pictures = {
        f"image_{index}": torch.from_numpy(packed(image))
        for index, image in enumerate(trace.images)
    }
    sums["images"] = [_crc(picture) for picture in pictures.values()]
    tensors |= pictures
    about = {
        "format": FORMAT,
        "version": VERSION,
        "checksum": content_checksum(tensors),
        "token_checksums": sums,
        **values_of(trace),
    }
    with _unfit_named():
        check_tensors(about, table_of(tensors))
        text = as_json(about)
    write_atomically(path, lambda file: write(file, tensors, text))


def open_trace(path: Path) -> GenerationTrace:
    """Read a whole trace.

    Raises:
        ValueError: the file is missing, damaged, not a trace, or of a newer format; the text says
            which.
    """
    with closing(TraceFile(path)) as file, damage_named(path):
        check_tensors(file.about, file.table)
        tensors = {name: file.tensor(name) for name in file.table}
        if content_checksum(tensors) != file.about["checksum"]:
            raise TraceFileError(
                f"{path.name} is damaged: its checksum does not match its content."
            )
        check_numbers(tensors)
        return trace_of(file.about, tensors)


class TraceReader:
    """Reads single tokens of a trace file; the rest stays on the disk.

    Each part is checked against its own checksum as it is read. Use it in a `with`, or call
    `close`. One thread at a time.

    Attributes:
        outline: the trace without data: its tensors are on the device "meta" (shapes only), and it
            has no images, nor rows of prompts.

    Raises:
        ValueError: the file is missing, damaged, not a trace, or of a newer format.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._file = TraceFile(self._path)
        self._about = self._file.about
        try:
            with damage_named(self._path):
                check_tensors(self._about, self._file.table)
                shapes = {name: self._file.table[name][1] for name in ROWS}
                self.outline = trace_of(self._about, _without_data(shapes))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> TraceReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def part(self, tokens: Sequence[int]) -> GenerationTrace:
        """A trace of only these tokens, in this order: what `attention_processor` takes.

        Raises:
            ValueError: a token that the trace does not have, or its part of the file is damaged.
        """
        chosen = [self._token(token) for token in tokens]
        kept: dict[str, Any] = {name: self._prompt(name) for name in PROMPTS}
        for name in ("attention", "shares", "entropy"):
            of_all = getattr(self.outline, name)
            kept[name] = torch.empty(len(chosen), *of_all.shape[1:], dtype=of_all.dtype)
            for index, token in enumerate(chosen):
                kept[name][index] = self._read(name, token)
        part_tokens = tuple(self.outline.tokens[token] for token in chosen)
        return dataclasses.replace(self.outline, tokens=part_tokens, **kept)

    def _prompt(self, name: str) -> PromptTrace | None:
        """The rows of a prompt, checked; None if the file has none."""
        if self._about.get(name) is None:
            return None
        with damage_named(self._path):
            tensors = {f"{name}_{part}": self._file.tensor(f"{name}_{part}") for part in ROWS}
            if [_crc(tensor) for tensor in tensors.values()] != self._about["token_checksums"][
                name
            ]:
                raise TraceFileError(
                    f"{self._path.name} is damaged: the checksum of its {name} is wrong."
                )
            check_numbers(tensors)
            return rows_of(name, self._about, tensors, self.outline)

    def head_mean(self, token: int) -> torch.Tensor:
        """Mean over heads of one token's rows: float32 (L, V).

        Raises:
            ValueError: as `part`.
        """
        if self._about["version"] < 2:
            return self._read("attention", self._token(token)).float().mean(dim=1)
        return self._read("head_mean", self._token(token))

    def mean(self, token: int) -> torch.Tensor:
        """Mean over all layers and heads of one token's rows: float32 (V,).

        Raises:
            ValueError: as `part`.
        """
        return self.head_mean(token).mean(dim=0)

    def image(self, index: int) -> Image.Image:
        """One image of the prompt.

        Raises:
            ValueError: the prompt has no such image, or its part of the file is damaged.
        """
        count = len(self.outline.layout.grids)
        if not 0 <= index < count:
            raise ValueError(f"image is {index}; the prompt has {count}, counted from 0.")
        with damage_named(self._path):
            pixels = self._file.tensor(f"image_{index}")
            sums = (self._about.get("token_checksums") or {}).get("images")
            if sums is not None and _crc(pixels) != sums[index]:
                raise TraceFileError(
                    f"{self._path.name} is damaged: the checksum of image {index} does not match."
                )
            return unpacked(f"image_{index}", pixels.numpy())

    def _token(self, token: int) -> int:
        count = len(self.outline.tokens)
        if not 0 <= token < count:
            raise ValueError(f"token is {token}; the trace has {count}, counted from 0.")
        return token

    def _read(self, name: str, token: int) -> torch.Tensor:
        with damage_named(self._path):
            part = self._file.part(name, token)
            sums = self._about.get("token_checksums")
            if sums is not None and _crc(part) != sums[name][token]:
                raise TraceFileError(
                    f"{self._path.name} is damaged: the checksum of token {token} does not match."
                )
            check_numbers({name: part})
            return part


@contextmanager
def _unfit_named() -> Iterator[None]:
    """Refuse to write what could not be opened again."""
    try:
        yield
    except (ValueError, KeyError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"The trace cannot be saved: {what}.") from error


def _without_data(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {
        name: torch.empty(
            shape, dtype=torch.float16 if name == "attention" else torch.float32, device="meta"
        )
        for name, shape in shapes.items()
    }


def _head_mean(attention: torch.Tensor) -> torch.Tensor:
    """Mean over heads: (T, L, H, V) to float32 (T, L, V); one token at a time, to save memory."""
    tokens, layers, _, vision = attention.shape
    out = torch.empty(tokens, layers, vision)
    for token in range(tokens):
        out[token] = attention[token].float().mean(dim=1)
    return out


def _crc(tensor: torch.Tensor) -> int:
    return zlib.crc32(bytes_of(tensor).data)
