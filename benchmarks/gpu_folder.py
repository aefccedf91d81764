"""A model folder from the disk, with everything a user does with it, in wall time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sinkscope.attention_extractor import compare, generate
from sinkscope.config import GenerationSettings, VARSettings
from sinkscope.models.loading import load_model
from sinkscope.sinks.finding.find import find
from sinkscope.sinks.samples import Sample
from sinkscope.sinks.settings import FindSettings

TOKENS, SAMPLES = 24, 8
PIXELS = 448 * 448  # of the image, after resizing: 256 vision tokens


def check_folder(folder: Path, device: str) -> dict[str, Any]:
    """Load, ask, compare, compare again with another setting, and search for sinks.

    The weights may be random, so answers and findings mean nothing. This measures that everything
    works, and how long it takes.

    Raises:
        RuntimeError: something that must hold for any weights does not hold.
    """
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        done = work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds[name] = time.perf_counter() - began
        return done

    handle = timed("load", lambda: load_model(str(folder), device=device, dtype="bfloat16"))
    inputs = timed(
        "prepare", lambda: handle.prepare([_image(0)], "What is there?", max_pixels=PIXELS)
    )
    settings = GenerationSettings(max_new_tokens=TOKENS)
    trace = timed("ask_first", lambda: generate(handle, inputs, settings))
    again = timed("ask", lambda: generate(handle, inputs, settings))
    if [t.id for t in trace.tokens] != [t.id for t in again.tokens]:
        raise RuntimeError("The same greedy question was answered in two ways.")
    shares = trace.shares.sum(-1)
    if not torch.allclose(shares, torch.ones(()), atol=2e-3):
        raise RuntimeError("Rows of attention do not add up to 1.")
    dims = tuple(handle.profile.dims) if handle.profile is not None else (1, 2)
    var = VARSettings(dims, tau=1.0, min_image_mass=0.0, max_sink_share=1.0)
    pair = timed("compare_first", lambda: compare(handle, inputs, settings, var))
    pair = timed("compare", lambda: compare(handle, inputs, settings, var))
    other = VARSettings(dims, tau=1.0, keep=0.2, min_image_mass=0.0, max_sink_share=1.0)
    turned = timed(
        "compare_again", lambda: compare(handle, inputs, settings, other, prefix=pair.prefix)
    )
    if turned.prefix is not pair.prefix:
        raise RuntimeError("Another setting of VAR did not reuse the prefix.")
    samples = [Sample(f"sample {index}", (_image(index),)) for index in range(SAMPLES)]
    quick = FindSettings(bootstrap=200, halves=20, max_pixels=PIXELS)
    findings = timed("find", lambda: find(handle, samples, quick))
    return {
        "folder_bytes": sum(file.stat().st_size for file in folder.iterdir()),
        "layers": handle.info.layers,
        "dtype": handle.info.dtype,
        "prompt": inputs.layout.length,
        "vision_tokens": inputs.layout.vision_tokens,
        "answer_tokens": len(trace.tokens),
        "engine": dict(trace.extra.get("engine", {"used": "loop"})),
        "var_changed": bool(pair.var.var and pair.var.var["changed"]),
        "samples": len(findings.samples),
        "dims": list(findings.dims),
        "work_seconds": seconds,
    }


def _image(seed: int) -> Image.Image:
    """Noise on a slope, 448 x 448."""
    generator = np.random.default_rng(seed)
    slope = np.linspace(0, 1, 448)[:, None, None] * np.ones((448, 448, 3))
    noisy = np.clip(slope + generator.normal(0, 0.2, slope.shape), 0, 1)
    return Image.fromarray((noisy * 255).astype(np.uint8))
