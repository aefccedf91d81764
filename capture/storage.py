"""The file of a trace: one safetensors file whose metadata holds the JSON part. No pickle anywhere.

Tensors: `attention` float16 (T, L, H, V), `shares` float32 (T, L, H, S + 1), `entropy` float32 (T,
L, H), `head_mean` float32 (T, L, V), `image_<i>` uint8 (height, width, 3). Where the run has them,
`prompt_rows_*` and `reference_*` hold these three of the prompt's own tokens and of the generic
prompt's last one. The JSON has everything else, with a format version, a checksum over all tensors,
and one for each token's part, so that `TraceReader` can read and check one token and leave the rest
on the disk. Writing is atomic, and takes no second copy of the trace.

Version 2 added `head_mean` and the tokens' checksums, 3 the rows of prompts; all are still read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open

from sinkscope.capture.trace import (
    Alternative,
    GeneratedToken,
    GenerationTrace,
    LayerSinks,
    PromptToken,
    PromptTrace,
)
from sinkscope.models.family import ImageGrid, PromptLayout, Segment
from sinkscope.models.info import ModelInfo
from sinkscope.utils import write_atomically

FORMAT = "sinkscope-trace"
VERSION = 3
ROWS = ("attention", "shares", "entropy")
BY_TOKEN = ("attention", "shares", "entropy", "head_mean")  # tensors whose first axis is the token
PROMPTS = ("prompt_rows", "reference")  # fields that hold a PromptTrace or None
_DTYPES = {torch.float16: "F16", torch.float32: "F32", torch.uint8: "U8"}


def save_trace(trace: GenerationTrace, path: Path) -> None:
    """Write a trace; a kill in the middle leaves the old file whole.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    tensors = {
        "attention": trace.attention.contiguous(),
        "shares": trace.shares.contiguous(),
        "entropy": trace.entropy.contiguous(),
        "head_mean": _head_mean(trace.attention),
    }
    sums = {name: [_crc(part) for part in tensors[name]] for name in BY_TOKEN}
    for name in PROMPTS:
        rows = getattr(trace, name)
        if rows is not None:
            for part in ROWS:
                tensors[f"{name}_{part}"] = getattr(rows, part).contiguous()
            sums[name] = [_crc(tensors[f"{name}_{part}"]) for part in ROWS]
    for index, image in enumerate(trace.images):
        tensors[f"image_{index}"] = torch.from_numpy(np.array(image.convert("RGB")))
    about = {
        "format": FORMAT,
        "version": VERSION,
        "checksum": _checksum(tensors),
        "token_checksums": sums,
        "tokens": [dataclasses.asdict(token) for token in trace.tokens],
        "layout": dataclasses.asdict(trace.layout),
        "prompt": trace.prompt,
        "prompt_tokens": trace.prompt_tokens,
        "layers": trace.layers,
        "heads": trace.heads,
        "sinks": [dataclasses.asdict(sinks) for sinks in trace.sinks],
        "applied": trace.applied,
        "model": dataclasses.asdict(trace.model),
        "settings": dict(trace.settings),
        "seed": trace.seed,
        "finish": trace.finish,
        "seconds": trace.seconds,
        "var": None if trace.var is None else dict(trace.var),
        "extra": dict(trace.extra),
        **{name: _about_rows(getattr(trace, name)) for name in PROMPTS},
    }
    text = json.dumps(about, ensure_ascii=True, allow_nan=False)
    write_atomically(path, lambda file: _write(file, tensors, {"format": "pt", FORMAT: text}))


def open_trace(path: Path) -> GenerationTrace:
    """Read a trace, all of it.

    Raises:
        ValueError: the file is missing, damaged, no trace, or of a newer format; the text says
            which.
    """
    with _opened(path) as (file, about):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        if _checksum(tensors) != about["checksum"]:
            raise ValueError(f"{path} is damaged: its checksum does not match its content.")
        return _trace(about, tensors)


class TraceReader:
    """Reads single tokens of a trace file; what is not asked for stays on the disk.

    Each part is checked against its own checksum as it is read. Use it in a `with`, or call
    `close`. One thread at a time.

    Attributes:
        outline: the trace without data: its tensors are on the device "meta" (shapes only), and it
            has no images, nor rows of prompts.

    Raises:
        ValueError: the file is missing, damaged, no trace, or of a newer format.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._open = _opened(self._path)
        self._file, self._about = self._open.__enter__()
        try:
            with _damage_named(self._path):
                self.outline = _trace(self._about, self._shapes())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> TraceReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._open.__exit__(None, None, None)

    def part(self, tokens: Sequence[int]) -> GenerationTrace:
        """A trace of only these tokens, in this order: what `attention_processor` takes.

        Raises:
            ValueError: a token that the trace does not have, or its part of the file is damaged.
        """
        chosen = [self._token(token) for token in tokens]
        tensors = {}
        for name in ("attention", "shares", "entropy"):
            of_all = getattr(self.outline, name)
            tensors[name] = torch.empty(len(chosen), *of_all.shape[1:], dtype=of_all.dtype)
            for index, token in enumerate(chosen):
                tensors[name][index] = self._read(name, token)
        said = tuple(self.outline.tokens[token] for token in chosen)
        rows = {name: self._prompt(name) for name in PROMPTS}
        return dataclasses.replace(self.outline, tokens=said, **tensors, **rows)

    def _prompt(self, name: str) -> PromptTrace | None:
        """The rows of a prompt, checked; None where the file has none."""
        if self._about.get(name) is None:
            return None
        with _damage_named(self._path):
            tensors = {f"{name}_{part}": self._file.get_tensor(f"{name}_{part}") for part in ROWS}
            if [_crc(tensor) for tensor in tensors.values()] != self._about["token_checksums"][
                name
            ]:
                raise ValueError(f"{self._path} is damaged: the checksum of its {name} is wrong.")
            return _rows(name, self._about, tensors, self.outline)

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
        with _damage_named(self._path):
            return Image.fromarray(self._file.get_tensor(f"image_{index}").numpy())

    def _token(self, token: int) -> int:
        count = len(self.outline.tokens)
        if not 0 <= token < count:
            raise ValueError(f"token is {token}; the trace has {count}, counted from 0.")
        return token

    def _read(self, name: str, token: int) -> torch.Tensor:
        with _damage_named(self._path):
            part: torch.Tensor = self._file.get_slice(name)[token : token + 1][0]
            sums = self._about.get("token_checksums")
            if sums is not None and _crc(part) != sums[name][token]:
                raise ValueError(
                    f"{self._path} is damaged: the checksum of token {token} does not match."
                )
            return part

    def _shapes(self) -> dict[str, torch.Tensor]:
        shapes = {}
        for name, dtype in (
            ("attention", torch.float16),
            ("shares", torch.float32),
            ("entropy", torch.float32),
        ):
            shape = self._file.get_slice(name).get_shape()
            shapes[name] = torch.empty(shape, dtype=dtype, device="meta")
        return shapes


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """What goes wrong while a file is read becomes one sentence."""
    try:
        yield
    except (
        SafetensorError,
        OSError,
        json.JSONDecodeError,
        KeyError,
        TypeError,
        IndexError,
    ) as error:
        raise ValueError(
            f"{path} is damaged or no trace: "
            f"{str(error).splitlines()[0] if str(error) else error!r}"
        ) from error


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The file, and its JSON part."""
    if not path.is_file():
        raise ValueError(f"There is no trace file {path}.")
    with _damage_named(path), safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(FORMAT)
        if text is None:
            raise ValueError(f"{path} is a safetensors file, but no SinkScope trace.")
        about = json.loads(text)
        if about["version"] > VERSION:
            raise ValueError(
                f"{path} has format version {about['version']}; this SinkScope reads up "
                f"to {VERSION}. Update it."
            )
        yield file, about


def _write(file: BinaryIO, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """The safetensors format, tensor by tensor; the library's own `save` would first make a copy of
    everything in memory."""
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        file.write(_bytes(tensor))


def _head_mean(attention: torch.Tensor) -> torch.Tensor:
    """Mean over heads: (T, L, H, V) to float32 (T, L, V); one token at a time, to save memory."""
    tokens, layers, _, vision = attention.shape
    out = torch.empty(tokens, layers, vision)
    for token in range(tokens):
        out[token] = attention[token].float().mean(dim=1)
    return out


def _about_rows(rows: PromptTrace | None) -> dict[str, Any] | None:
    """What a file says about rows of a prompt, beside their tensors and what the trace says."""
    if rows is None:
        return None
    return {
        "positions": rows.positions,
        "tokens": [dataclasses.asdict(token) for token in rows.tokens],
        "layout": dataclasses.asdict(rows.layout),
        "sinks": [dataclasses.asdict(sinks) for sinks in rows.sinks],
        "prompt": rows.prompt,
    }


def _rows(
    name: str, about: dict[str, Any], tensors: dict[str, torch.Tensor], trace: GenerationTrace
) -> PromptTrace:
    said = about[name]
    attention, shares, entropy = (tensors[f"{name}_{part}"] for part in ROWS)
    return PromptTrace(
        positions=tuple(said["positions"]),
        tokens=tuple(PromptToken(**token) for token in said["tokens"]),
        layout=_layout(said["layout"]),
        attention=attention,
        layers=trace.layers,
        heads=trace.heads,
        shares=shares,
        entropy=entropy,
        sinks=_sinks(said["sinks"]),
        model=trace.model,
        prompt=said["prompt"],
    )


def _layout(said: dict[str, Any]) -> PromptLayout:
    return PromptLayout(
        length=said["length"],
        segments=tuple(Segment(**segment) for segment in said["segments"]),
        grids=tuple(
            ImageGrid(
                **{**grid, "resized": tuple(grid["resized"]), "original": tuple(grid["original"])}
            )
            for grid in said["grids"]
        ),
    )


def _sinks(said: list[dict[str, Any]]) -> tuple[LayerSinks, ...]:
    return tuple(LayerSinks(s["layer"], tuple(s["positions"]), tuple(s["scores"])) for s in said)


def _trace(about: dict[str, Any], tensors: dict[str, torch.Tensor]) -> GenerationTrace:
    """The trace; without images and rows of prompts where `tensors` has none."""
    layout = _layout(about["layout"])
    names = [f"image_{index}" for index in range(len(layout.grids))]
    images = [tensors[name].numpy() for name in names if name in tensors]
    trace = GenerationTrace(
        tokens=tuple(
            GeneratedToken(
                **{**token, "alternatives": tuple(Alternative(**a) for a in token["alternatives"])}
            )
            for token in about["tokens"]
        ),
        layout=layout,
        images=tuple(Image.fromarray(image) for image in images),
        prompt=about["prompt"],
        prompt_tokens=tuple(about["prompt_tokens"]),
        attention=tensors["attention"],
        layers=tuple(about["layers"]),
        heads=tuple(about["heads"]),
        shares=tensors["shares"],
        entropy=tensors["entropy"],
        sinks=_sinks(about["sinks"]),
        applied=tuple(about["applied"]),
        model=ModelInfo(**about["model"]),
        settings=about["settings"],
        seed=about["seed"],
        finish=about["finish"],
        seconds=about["seconds"],
        var=about["var"],
        extra=about["extra"],
    )
    there = [name for name in PROMPTS if f"{name}_attention" in tensors]
    return dataclasses.replace(trace, **{n: _rows(n, about, tensors, trace) for n in there})


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _crc(tensor: torch.Tensor) -> int:
    return zlib.crc32(_bytes(tensor))


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    """A view of a contiguous tensor's bytes."""
    return tensor.contiguous().numpy().reshape(-1).view(np.uint8)
