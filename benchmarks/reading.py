"""Reading one token's map back from a trace file: a 36 x 16 trace with 1024 vision tokens."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sinkscope.attention_processor import patch_map
from sinkscope.capture.storage import TraceReader
from sinkscope.capture.trace import GeneratedToken, GenerationTrace
from sinkscope.models.family import PromptLayout, Segment
from sinkscope.models.info import ModelInfo
from sinkscope.models.views import one_view

LAYERS, HEADS, SIDE, TOKENS = 36, 16, 32, 24


def measure() -> dict[str, Any]:
    """Median seconds with a new reader (which opens the file and reads its header) and with an
    open one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.safetensors"
        trace = random_trace()
        trace.save(path)
        size = path.stat().st_size
        opened, mean, whole = [], [], []
        with TraceReader(path) as reader:
            for token in range(TOKENS):
                began = time.perf_counter()
                reader.mean(token)
                mean.append(time.perf_counter() - began)
                began = time.perf_counter()
                patch_map(reader.part([token]), 0)
                whole.append(time.perf_counter() - began)
        for token in range(TOKENS):
            began = time.perf_counter()
            with TraceReader(path) as reader:
                reader.mean(token)
            opened.append(time.perf_counter() - began)
    return {
        "trace": f"{TOKENS} tokens, {LAYERS} layers, {HEADS} heads, {SIDE**2} vision tokens",
        "file_bytes": size,
        "mean_seconds": statistics.median(mean),
        "open_and_mean_seconds": statistics.median(opened),
        "all_layers_and_heads_seconds": statistics.median(whole),
    }


def random_trace(
    tokens: int = TOKENS, layers: int = LAYERS, heads: int = HEADS, side: int = SIDE
) -> GenerationTrace:
    """A made-up trace of any size, with `side` x `side` vision tokens."""
    generator = torch.Generator().manual_seed(0)
    vision = side * side
    rows = torch.rand(tokens, layers, heads, vision, generator=generator)
    rows *= 0.4 / rows.sum(-1, keepdim=True)  # the image gets less than half of each row
    pixels = (side * 28, side * 28)
    return GenerationTrace(
        tokens=tuple(GeneratedToken(t, f" w{t}", 0.5, 0) for t in range(tokens)),
        layout=PromptLayout(
            vision + 20,
            (Segment("image", 0, vision, 0), Segment("user", vision, vision + 20)),
            (one_view(0, 1, 2 * side, 2 * side, 2, pixels, pixels),),
        ),
        images=(Image.new("RGB", pixels),),
        prompt="",
        prompt_tokens=("",) * (vision + 20),
        attention=rows.half(),
        layers=tuple(range(layers)),
        heads=tuple(range(heads)),
        shares=torch.full((tokens, layers, heads, 3), 0.3),
        entropy=torch.rand(tokens, layers, heads, generator=generator),
        sinks=(),
        applied=(),
        model=ModelInfo("made up", "", "", "float32", "cpu", layers, heads, 2048),
        settings={},
        seed=0,
        finish_reason="length",
        seconds=0.0,
    )
