"""What of a run goes to the browser: one compact file of numbers with a JSON description in front.

    "SINK" | uint32 length of the JSON | JSON, padded to 4 bytes | the arrays, each padded to 4

All of it gzipped. The browser draws from these arrays alone, so a click needs no request. Three
kinds are always there: the mean over heads for each (token, layer, patch), which serves every view
of all heads; the shares for each (token, layer, head); and the shares of each prompt segment.
Single heads, head ranges, maximum and minimum need every (token, layer, head, patch): small runs
carry that too, large ones fetch it when it is asked for, a token or a range of tokens at a time.

Attention is stored companded, `code = round(top * sqrt(value / scale))`, with one scale for each
row. One sink often holds a hundred times what the patches around it hold; on a linear scale of 255
steps, or with one scale for the whole run, it would wipe them out. The true mass of each row
travels beside it.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from attention_processor import head_mean, image_share, sink_share
from capture.trace import GeneratedToken, GenerationTrace
from web.store import Run

MAGIC = b"SINK"
EAGER_BYTES = 3_000_000
LABELS = {"baseline": "Baseline", "var": "VAR"}


def pack(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """The file described above; its JSON gains `arrays`: name, dtype, shape, offset of each."""
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
    """A token as the strip shows it while the answer streams."""
    return {"t": token.text, "p": round(token.probability, 5)}


def _token(token: GeneratedToken) -> dict[str, Any]:
    others = [[a.text, round(a.probability, 5), int(a.id == token.id)] for a in token.alternatives]
    return {**token_delta(token), "r": token.rank, "a": others}


def _sinks(trace: GenerationTrace) -> list[dict[str, Any]]:
    column = {int(p): k for k, p in enumerate(trace.layout.vision_positions())}
    made = []
    for found in trace.sinks:
        pairs = list(zip(found.positions, found.scores, strict=True))
        made.append(
            {
                "layer": found.layer,
                "columns": [column[p] for p, _ in pairs if p in column],
                "scores": [round(s, 3) for p, s in pairs if p in column],
                "text": [
                    [p, trace.prompt_tokens[p], round(s, 3)] for p, s in pairs if p not in column
                ],
            }
        )
    return made


def _plain(value: Any) -> Any:
    """A value that JSON can hold; what it cannot becomes its text."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, str) or value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, Sequence):
        return [_plain(v) for v in value]
    return str(value)


def _variant(name: str, trace: GenerationTrace) -> dict[str, Any]:
    return {
        "name": name,
        "label": LABELS[name],
        "tokens": [_token(token) for token in trace.tokens],
        "finish": trace.finish,
        "seconds": round(trace.seconds, 3),
        "applied": list(trace.applied),
        "sinks": _sinks(trace),
        "var": _plain(trace.var),
        "settings": _plain(trace.settings),
        "seed": trace.seed,
    }


def build_payload(run: Run, eager_bytes: int = EAGER_BYTES) -> bytes:
    """The run as the inspector loads it.

    Every head's map is included where all of them together take at most `eager_bytes`.
    """
    first = run.traces["baseline"]
    cells = sum(int(np.prod(trace.attention.shape)) for trace in run.traces.values())
    fine = np.uint16 if 2 * cells <= eager_bytes else np.uint8
    eager = cells <= eager_bytes
    arrays: dict[str, np.ndarray] = {}
    tops = {}
    for name, trace in run.traces.items():
        mean = head_mean(trace).numpy()
        arrays[f"{name}.mean"], arrays[f"{name}.mean.scale"] = compand(mean, fine)
        arrays[f"{name}.image"] = _fixed(image_share(trace).numpy())
        arrays[f"{name}.sink"] = _fixed(sink_share(trace).numpy())
        entropy = trace.entropy.numpy()
        tops[name] = float(entropy.max()) if entropy.size else 0.0
        arrays[f"{name}.entropy"] = _fixed(entropy, tops[name])
        arrays[f"{name}.segments"] = _fixed(trace.shares.mean(2).numpy())
        if eager:
            arrays[f"{name}.full"], arrays[f"{name}.full.scale"] = compand(
                trace.attention.numpy(), fine
            )
    columns = [first.layout.columns(k) for k in range(len(first.layout.grids))]
    header = {
        "format": 1,
        "run": run.id,
        "kind": run.kind,
        "created": run.created,
        "same_text": run.same_text,
        "prompt": first.prompt,
        "model": {
            k: _plain(getattr(first.model, k)) for k in ("id", "revision", "dtype", "device")
        },
        "model_layers": first.model.layers,
        "model_heads": first.model.heads,
        "layers": list(first.layers),
        "heads": list(first.heads),
        "patches": first.layout.vision_tokens,
        "images": [
            {
                "rows": grid.rows,
                "columns": grid.columns,
                "start": where.start,
                "height": grid.original[0],
                "width": grid.original[1],
                "resized": list(grid.resized),
            }
            for grid, where in zip(first.layout.grids, columns, strict=True)
        ],
        "segments": [[s.kind, s.label, s.stop - s.start] for s in first.layout.segments],
        "entropy_top": tops,
        "lazy": not eager,
        "sinks_known": any(trace.sinks for trace in run.traces.values()),
        "variants": [_variant(name, trace) for name, trace in run.traces.items()],
    }
    return pack(header, arrays)


def build_token_maps(trace: GenerationTrace, start: int, stop: int) -> bytes:
    """Mean over tokens [start, stop) of every (layer, head, patch), where a run has no `full`."""
    mean = trace.attention[start:stop].float().mean(0).numpy()
    codes, scale = compand(mean)
    return pack({"start": start, "stop": stop}, {"full": codes, "full.scale": scale})


def encode_image(image: Image.Image, longest: int = 1600) -> tuple[bytes, str]:
    """The image for the screen, at most `longest` pixels a side, and a name; lossless if small."""
    shown = image.convert("RGB")
    shown.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if shown.width * shown.height <= 512 * 512:
        shown.save(file, "PNG")
        return file.getvalue(), "image.png"
    shown.save(file, "JPEG", quality=92, subsampling=0)
    return file.getvalue(), "image.jpg"
