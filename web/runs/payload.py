"""A run's data for the browser: one compact file of numbers, preceded by a JSON description.

    "SINK" | uint32 length of the JSON | JSON, padded to 4 bytes | the arrays, each padded to 4

All of it is gzipped. The browser draws only from these arrays, so a click needs no request. Three
kinds are always included: the mean over heads for each (token, layer, patch), for every view of all
heads; the shares for each (token, layer, head); and the shares of each prompt segment. Single
heads, head ranges, maximum and minimum need every (token, layer, head, patch): small runs include
it; for large ones the page fetches it on demand, for a token or a range of tokens.

Attention is stored companded, `code = round(top * sqrt(value / scale))`, with one scale for each
row. A sink often has a hundred times the attention of the patches around it; with a linear scale of
255 steps, or with one scale for the whole run, these would become 0. The true mass of each row is
included as well.

The prompt's own tokens have the same arrays as the answer's (`<side>.prompt.*`), and the generic
prompt that a relative map is divided by has one row of every head (`<side>.reference.*`).
"""

from __future__ import annotations

import gzip
import io
import json
import struct
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from PIL import Image

from sinkscope.attention_processor import Rows, head_mean, image_share, sink_share
from sinkscope.capture.trace import GeneratedToken, GenerationTrace
from sinkscope.config import Reduce
from sinkscope.methods.base import Chosen, Method, Target
from sinkscope.methods.explain import METHODS, explain
from sinkscope.methods.relative import Relative
from sinkscope.web.runs.form_values import form_values_of
from sinkscope.web.runs.store import Run, control_of, run_summary

RELATIVE = Relative()
MAGIC = b"SINK"
EAGER_BYTES = 3_000_000
# What `static/inspector/20_data.js` computes from the arrays; the others of METHODS are computed on
# demand (`web.explore.explaining`).
IN_BROWSER = ("attention", "relative", "without_sinks")
NOT_IN_BROWSER = "the page does not draw it, but Python and the command line do"


def pack(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """The file described above; its JSON gets `arrays`: name, dtype, shape, offset of each."""
    listed, blocks, offset = [], [], 0
    for name, array in arrays.items():
        block = np.ascontiguousarray(array).tobytes()
        listed.append(
            {"name": name, "dtype": array.dtype.name, "shape": list(array.shape), "offset": offset}
        )
        blocks.append(block + b"\0" * (-len(block) % 4))
        offset += len(blocks[-1])
    text = json.dumps(
        {**header, "arrays": listed}, ensure_ascii=False, separators=(",", ":")
    ).encode()
    text += b" " * (-len(text) % 4)
    return gzip.compress(MAGIC + struct.pack("<I", len(text)) + text + b"".join(blocks), 1, mtime=0)


def compand(values: np.ndarray, dtype: type = np.uint8) -> tuple[np.ndarray, np.ndarray]:
    """Codes (..., n) and float32 scales (...) of non-negative rows: scale * (code / top) ** 2."""
    values = np.maximum(values.astype(np.float32), 0)
    scale = values.max(-1) if values.shape[-1] else np.zeros(values.shape[:-1], np.float32)
    ratio = values / np.where(scale > 0, scale, 1)[..., None]
    return np.rint(np.sqrt(ratio) * np.iinfo(dtype).max).astype(dtype), scale.astype(np.float32)


def _fixed(values: np.ndarray, top: float = 1.0) -> np.ndarray:
    """uint16 codes of values in [0, top]."""
    return np.rint(np.clip(values / (top or 1.0), 0, 1) * 65535).astype(np.uint16)


def token_delta(token: GeneratedToken) -> dict[str, Any]:
    """A token for the strip while the answer streams."""
    return {"t": token.text, "p": round(token.probability, 5)}


def _token(token: GeneratedToken) -> dict[str, Any]:
    others = [[a.text, round(a.probability, 5), int(a.id == token.id)] for a in token.alternatives]
    piece = {"b": token.piece} if token.piece else {}
    return {**token_delta(token), "r": token.rank, "a": others, **piece}


def _sinks(trace: GenerationTrace) -> list[dict[str, Any]]:
    cells_at = trace.layout.cells_at()
    sinks = []
    for layer_sinks in trace.sinks:
        pairs = list(zip(layer_sinks.positions, layer_sinks.scores, strict=True))
        cells: dict[int, float] = {}
        for p, score in pairs:
            for cell in cells_at.get(p, ()):
                cells[cell] = max(score, cells.get(cell, score))
        sinks.append(
            {
                "layer": layer_sinks.layer,
                "columns": list(cells),
                "scores": [round(s, 3) for s in cells.values()],
                "text": [
                    [p, trace.prompt_tokens[p], round(s, 3)] for p, s in pairs if p not in cells_at
                ],
            }
        )
    return sinks


def _treated(trace: GenerationTrace) -> list[dict[str, Any]]:
    """Where a control acted: in each layer the patches that it changed instead of the sinks."""
    if not control_of(trace):
        return []
    cells_at = trace.layout.cells_at()
    return [
        {
            "layer": layer["layer"],
            "columns": [cell for p in layer.get("positions", ()) for cell in cells_at.get(p, ())],
        }
        for layer in (trace.var or {}).get("layers") or ()
    ]


def _plain(value: Any) -> Any:
    """A value for JSON; other types become text."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, str) or value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, Sequence):
        return [_plain(v) for v in value]
    return str(value)


def _geometry(trace: GenerationTrace) -> dict[str, Any]:
    """The positions of the patches, of a run or of a side of a pair, whose images may differ."""
    sizes = [grid.rows * grid.columns for grid in trace.layout.grids]
    return {
        "patches": trace.layout.cells,
        "images": [
            {
                "rows": grid.rows,
                "columns": grid.columns,
                "start": start,
                "height": grid.original[0],
                "width": grid.original[1],
                "resized": list(grid.resized),
            }
            for grid, start in zip(trace.layout.grids, accumulate([0, *sizes]), strict=False)
        ],
        "segments": [[s.kind, s.label, s.stop - s.start] for s in trace.layout.segments],
    }


def _variant(run: Run, name: str, trace: GenerationTrace) -> dict[str, Any]:
    second_text = {}
    if run.kind == "pair":  # its photos follow those of the first side
        second_text = {**_geometry(trace), "photo": 0}
        if name == "b" and not run.about.get("one_photo"):
            second_text["photo"] = len(run.first.images)
    return {
        **second_text,
        "name": name,
        "label": run.label(name),
        "tokens": [_token(token) for token in trace.tokens],
        "finish": trace.finish_reason,
        "seconds": round(trace.seconds, 3),
        "asked": _prompt_tokens(trace),
        "reference": _reference(run, name),
        "applied": list(trace.applied),
        "sinks": _sinks(trace),
        "treated": _treated(trace),
        "var": _plain(trace.var),
        "settings": _plain(trace.settings),
        "seed": trace.seed,
    }


def _together(traces: Sequence[Rows], eager_bytes: int) -> tuple[type, bool]:
    """The dtype of these rows' codes, and whether all their heads are included."""
    cells = sum(int(np.prod(trace.attention.shape)) for trace in traces)
    return (np.uint16 if 2 * cells <= eager_bytes else np.uint8), cells <= eager_bytes


def _arrays(name: str, rows: Rows, fine: type, eager: bool) -> dict[str, np.ndarray]:
    arrays = {
        f"{name}.image": _fixed(image_share(rows).numpy()),
        f"{name}.sink": _fixed(sink_share(rows).numpy()),
        f"{name}.entropy": _fixed(rows.entropy.numpy(), _top(rows)),
        f"{name}.segments": _fixed(rows.shares.mean(2).numpy()),
    }
    maps = {"mean": head_mean(rows), **({"full": rows.attention} if eager else {})}
    for key, values in maps.items():
        codes = compand(_on_cells(rows, values), fine)
        arrays[f"{name}.{key}"], arrays[f"{name}.{key}.scale"] = codes
    return arrays


def _on_cells(rows: Rows, values: torch.Tensor) -> np.ndarray:
    """Values of vision tokens on the cells that the page draws; cells without a token have 0.

    For images with one view (Qwen) these are the tokens' own values, not copied.
    """
    shown = rows.layout.on_cells(values)
    return (shown if shown is values else shown.nan_to_num(0.0)).numpy()


def _top(rows: Rows) -> float:
    """The largest entropy, the unit of the codes."""
    return float(rows.entropy.max()) if rows.entropy.numel() else 0.0


def _reference_of(run: Run, name: str) -> str:
    """The side whose generic prompt divides a trace: the sides of one run share it."""
    return name if run.kind == "pair" else next(iter(run.traces))


def _prompt_tokens(trace: GenerationTrace) -> dict[str, Any] | None:
    """The prompt's own tokens with their kinds, and how many earlier ones are not kept."""
    rows = trace.prompt_rows
    if rows is None or not rows.tokens:
        return None
    kinds = {p: s.kind for s in trace.layout.segments for p in range(s.start, s.stop)}
    after = trace.layout.after_images
    tokens = [
        {"t": token.text, "k": kinds[p]}
        for token, p in zip(rows.tokens, rows.positions, strict=True)
    ]
    return {"tokens": tokens, "before": rows.positions[0] - after}


def _reference(run: Run, name: str) -> dict[str, Any]:
    trace = run.traces[name]
    if trace.reference is None or RELATIVE.availability(trace) is not None:
        return {}
    return {"of": _reference_of(run, name), "prompt": trace.reference.prompt}


def _methods(run: Run, methods: Sequence[Method]) -> list[dict[str, Any]]:
    """The methods as the page lists them, with description and obstacle for each side."""
    drawn = {*IN_BROWSER, *(one.name for one in METHODS)}
    return [
        {
            "name": method.name,
            "label": method.label,
            "source": method.source,
            "unit": method.unit,
            "signed": method.signed,
            # Not drawn from the run's arrays: `web.explore.explaining` computes it on demand.
            "computed": method.name not in IN_BROWSER,
            "words": {name: method.words(trace) for name, trace in run.traces.items()},
            "why": {
                name: method.availability(trace)
                or (None if method.name in drawn else NOT_IN_BROWSER)
                for name, trace in run.traces.items()
            },
        }
        for method in methods
    ]


def build_payload(
    run: Run, eager_bytes: int = EAGER_BYTES, methods: Sequence[Method] = METHODS
) -> bytes:
    """The file that the inspector loads.

    Every head's map is included if all of them together take at most `eager_bytes`. `methods` are
    those that the page lists.
    """
    first = run.first
    eager = _together([*run.traces.values()], eager_bytes)
    arrays: dict[str, np.ndarray] = {}
    tops = {}
    for name, trace in run.traces.items():
        arrays |= _arrays(name, trace, *eager)
        tops[name] = _top(trace)
    asked = {n: t.prompt_rows for n, t in run.traces.items() if t.prompt_rows is not None}
    for name, rows in asked.items():
        arrays |= _arrays(f"{name}.prompt", rows, *_together([*asked.values()], eager_bytes))
        tops[f"{name}.prompt"] = _top(rows)
    for name, trace in run.traces.items():
        if trace.reference is not None and _reference(run, name).get("of") == name:
            attention = trace.reference.attention[0]
            for key, values in (("mean", attention.float().mean(1)), ("full", attention.float())):
                key = f"{name}.reference.{key}"
                shown = _on_cells(trace.reference, values)
                arrays[key], arrays[f"{key}.scale"] = compand(shown)
    header = {
        **run.about,
        **_geometry(first),
        "format": 1,
        "run": run.id,
        "kind": run.kind,
        "created": run.created,
        "ask": {} if run.kind == "pair" else form_values_of(run),
        "same_text": run.same_text,
        "made": run_summary(run),
        "prompt": "  ↔  ".join(dict.fromkeys(t.prompt for t in run.traces.values())),
        "model": {
            k: _plain(getattr(first.model, k)) for k in ("id", "revision", "dtype", "device")
        },
        "model_layers": first.model.layers,
        "model_heads": first.model.heads,
        "layers": list(first.layers),
        "heads": list(first.heads),
        "entropy_top": tops,
        "lazy": not eager[1],
        "methods": _methods(run, methods),
        "sinks_known": any(trace.sinks for trace in run.traces.values()),
        "variants": [_variant(run, name, trace) for name, trace in run.traces.items()],
    }
    return pack(header, arrays)


def build_token_maps(trace: Rows, start: int, stop: int) -> bytes:
    """Mean over tokens [start, stop) of every (layer, head, patch), for a run without `full`."""
    mean = _on_cells(trace, trace.attention[start:stop].float().mean(0))
    codes, scale = compand(mean)
    return pack({"start": start, "stop": stop}, {"full": codes, "full.scale": scale})


def build_map(trace: GenerationTrace, target: Target, chosen: Chosen, reduce: Reduce) -> bytes:
    """One map over all images, from which the browser computes its methods' maps.

    Args:
        trace, target: the tokens.
        chosen: layers and heads, or single heads instead.
        reduce: how they are combined.

    Raises:
        ValueError: the trace lacks one of them.
    """
    stack, (layers, heads, pairs) = explain(trace, target), chosen
    maps = [
        stack.map(layers, heads, reduce, image=image, pairs=pairs).values.ravel()
        for image in range(len(trace.layout.grids))
    ]
    return pack({}, {"map": np.concatenate(maps)})


def images_of(run: Run) -> list[Image.Image]:
    """The photos for the inspector; for a pair with different photos, those of both sides."""
    two = run.kind == "pair" and not run.about.get("one_photo")
    sides = run.traces.values() if two else (run.first,)
    return [image for trace in sides for image in trace.images]


def encode_image(image: Image.Image, longest: int = 1600) -> tuple[bytes, str]:
    """The image for the screen, at most `longest` pixels per side, and its name; lossless if
    small."""
    shown = image.convert("RGB")
    shown.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if shown.width * shown.height <= 512 * 512:
        shown.save(file, "PNG")
        return file.getvalue(), "image.png"
    shown.save(file, "JPEG", quality=92, subsampling=0)
    return file.getvalue(), "image.jpg"
