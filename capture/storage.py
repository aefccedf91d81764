"""The file of a trace: one safetensors file whose metadata holds the JSON part. No pickle anywhere.

Tensors: `attention` float16 (T, L, H, V), `shares` float32 (T, L, H, S + 1), `entropy` float32 (T,
L, H), `image_<i>` uint8 (height, width, 3). The JSON has everything else, with a format version and
a checksum over all tensors. A token's slice of a tensor can be read without the rest (safetensors'
`get_slice`). Writing is atomic.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from capture.trace import Alternative, GeneratedToken, GenerationTrace, LayerSinks
from models.family import ImageGrid, PromptLayout, Segment
from models.info import ModelInfo
from utils import write_atomically

FORMAT = "sinkscope-trace"
VERSION = 1


def save_trace(trace: GenerationTrace, path: Path) -> None:
    """Write a trace; a kill in the middle leaves the old file whole.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    tensors = {
        "attention": trace.attention.contiguous(),
        "shares": trace.shares.contiguous(),
        "entropy": trace.entropy.contiguous(),
    }
    for index, image in enumerate(trace.images):
        tensors[f"image_{index}"] = torch.from_numpy(np.array(image.convert("RGB")))
    about = {
        "format": FORMAT,
        "version": VERSION,
        "checksum": _checksum(tensors),
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
    }
    text = json.dumps(about, ensure_ascii=True, allow_nan=False)
    write_atomically(path, lambda file: file.write(save(tensors, {"format": "pt", FORMAT: text})))


def open_trace(path: Path) -> GenerationTrace:
    """Read a trace.

    Raises:
        ValueError: the file is missing, damaged, no trace, or of a newer format; the text says
            which.
    """
    if not path.is_file():
        raise ValueError(f"There is no trace file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(FORMAT)
            if text is None:
                raise ValueError(f"{path} is a safetensors file, but no SinkScope trace.")
            about = json.loads(text)
            if about["version"] > VERSION:
                raise ValueError(
                    f"{path} has format version {about['version']}; this SinkScope reads up "
                    f"to {VERSION}. Update it."
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        if _checksum(tensors) != about["checksum"]:
            raise ValueError(f"{path} is damaged: its checksum does not match its content.")
        return _trace(about, tensors)
    except (SafetensorError, OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged or no trace: "
            f"{str(error).splitlines()[0] if str(error) else error!r}"
        ) from error


def _trace(about: dict[str, Any], tensors: dict[str, torch.Tensor]) -> GenerationTrace:
    layout = about["layout"]
    images = [tensors[f"image_{index}"].numpy() for index in range(len(layout["grids"]))]
    return GenerationTrace(
        tokens=tuple(
            GeneratedToken(
                **{**token, "alternatives": tuple(Alternative(**a) for a in token["alternatives"])}
            )
            for token in about["tokens"]
        ),
        layout=PromptLayout(
            length=layout["length"],
            segments=tuple(Segment(**segment) for segment in layout["segments"]),
            grids=tuple(
                ImageGrid(
                    **{
                        **grid,
                        "resized": tuple(grid["resized"]),
                        "original": tuple(grid["original"]),
                    }
                )
                for grid in layout["grids"]
            ),
        ),
        images=tuple(Image.fromarray(image) for image in images),
        prompt=about["prompt"],
        prompt_tokens=tuple(about["prompt_tokens"]),
        attention=tensors["attention"],
        layers=tuple(about["layers"]),
        heads=tuple(about["heads"]),
        shares=tensors["shares"],
        entropy=tensors["entropy"],
        sinks=tuple(
            LayerSinks(s["layer"], tuple(s["positions"]), tuple(s["scores"]))
            for s in about["sinks"]
        ),
        applied=tuple(about["applied"]),
        model=ModelInfo(**about["model"]),
        settings=about["settings"],
        seed=about["seed"],
        finish=about["finish"],
        seconds=about["seconds"],
        var=about["var"],
        extra=about["extra"],
    )


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
        digest.update(tensor.numpy().reshape(-1).view(np.uint8))
    return digest.hexdigest()
