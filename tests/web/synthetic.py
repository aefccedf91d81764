"""Made-up traces for the page's tests: seeded, any size, two sinks, an object that moves.

They belong to no model. They guarantee: rows sum to one, sinks are where the trace says, and every
number of the trace agrees with its attention, so that the page's arithmetic can be checked against
plain NumPy.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from sinkscope.capture.trace import (
    Alternative,
    GeneratedToken,
    GenerationTrace,
    LayerSinks,
    ModelInfo,
    PromptToken,
    PromptTrace,
)
from sinkscope.models.family import PromptLayout, Segment
from sinkscope.models.views import one_view

WORDS = (
    "The", " image", " shows", " a", " red", " ball", " on", " green", " grass", ",", " next",
    " to", " a", " brown", " house", " under", " a", " bright", " sun", ".", "\n", "No", " people",
    " can", " be", " seen", ".",
)  # fmt: skip
HOSTILE = (
    '<img src=x onerror="window.__hit=1">',
    "${window.__hit=2}",
    "{{value}}",
    "</script><script>window.__hit=3</script>",
    " `",
    "\\",
    "\u202egnp",
    "\x00\t",
    "",
    " 日本",
    "🦊",
)


def scene(width: int = 420, height: int = 300) -> Image.Image:
    """Sky, grass, a house and a ball: enough to see whether a map is in the right place."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    u, v = x / width, y / height
    picture = np.stack([0.62 + 0.2 * v, 0.76 + 0.1 * v, 0.88 + 0 * v], -1)
    picture[v > 0.68] = (0.42, 0.56, 0.30)
    picture[(abs(u - 0.72) < 0.1) & (v > 0.4) & (v < 0.8)] = (0.58, 0.44, 0.33)
    picture[(abs(u - 0.72) < 0.14 * (v - 0.22) / 0.18) & (v > 0.22) & (v <= 0.4)] = (
        0.44,
        0.18,
        0.15,
    )
    picture[((u - 0.28) * width / height) ** 2 + (v - 0.62) ** 2 < 0.025] = (0.80, 0.32, 0.22)
    picture += np.random.default_rng(0).normal(0, 0.02, picture.shape)
    return Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))


# A run's decoding information if the checkpoint sets nothing.
GREEDY = {"used": {"max_new_tokens": 64}, "checkpoint": {}, "words": "greedy decoding"}


def make_trace(
    words: tuple[str, ...] = WORDS,
    rows: int = 8,
    columns: int = 12,
    layers: int = 6,
    heads: int = 8,
    seed: int = 0,
    sink_weight: float = 9.0,
    image: Image.Image | None = None,
    finish: str = "end",
    prompt: str = "Describe the image.",
    probability: float | None = None,
) -> GenerationTrace:
    """One trace. `sink_weight` scales the attention on sinks; with 0, no sinks are known."""
    random = np.random.default_rng(seed)
    image = scene() if image is None else image
    T, V, P = len(words), rows * columns, 4
    grid = one_view(
        P, 1, rows * 2, columns * 2, 2, (rows * 28, columns * 28), (image.height, image.width)
    )
    bounds = [
        ("system", 0, P),
        ("image", P, P + V),
        ("user", P + V, P + V + 6),
        ("template", P + V + 6, P + V + 9),
    ]
    segments = tuple(Segment(k, a, b, 0 if k == "image" else None) for k, a, b in bounds)
    layout = PromptLayout(P + V + 9, segments, (grid,))
    r, c = np.mgrid[0:rows, 0:columns]
    attention = random.gamma(0.6, 1.0, (T, layers, heads, V)) * 0.15 / V
    for t in range(T):
        centre = (0.62, 0.28) if t % 3 else (0.55, 0.72)
        blob = np.exp(
            -(((r + 0.5) / rows - centre[0]) ** 2 + ((c + 0.5) / columns - centre[1]) ** 2) / 0.02
        ).ravel()
        strength = random.random((layers, heads, 1)) * np.linspace(0.2, 1.0, layers)[:, None, None]
        attention[t] += strength * blob / blob.sum() * 0.6
    where = (columns // 2 + 1, (rows - 2) * columns + columns - 2)
    for column in where:
        attention[..., column] += sink_weight * 0.1 * random.random((T, layers, heads))
    share = 0.08 + 0.4 * random.random((T, layers, heads, 1))
    attention *= share / attention.sum(-1, keepdims=True)
    rest = random.dirichlet(np.ones(4), (T, layers, heads)) * (1 - attention.sum(-1, keepdims=True))
    shares = np.concatenate([rest[..., :1], attention.sum(-1, keepdims=True), rest[..., 1:]], -1)
    sinks = [
        LayerSinks(
            n,
            tuple(P + w for w in where) if sink_weight and n >= 2 else (),
            (12.5, 9.25) if sink_weight and n >= 2 else (),
        )
        for n in range(layers)
    ]
    tokens = []
    for t, word in enumerate(words):
        p = float(random.beta(5, 1.4)) if probability is None else probability
        others = tuple(Alternative(900 + k, f" other{k}", (1 - p) / (k + 2)) for k in range(4))
        tokens.append(GeneratedToken(t, word, p, 0, (Alternative(t, word, p), *others)))
    entropy = random.random((T, layers, heads)) * 4
    made = GenerationTrace(
        tokens=tuple(tokens),
        layout=layout,
        images=(image,),
        prompt=prompt,
        prompt_tokens=tuple(f"p{n}" for n in range(layout.length)),
        attention=torch.tensor(attention).to(torch.float16),
        layers=tuple(range(layers)),
        heads=tuple(range(heads)),
        shares=torch.tensor(shares, dtype=torch.float32),
        entropy=torch.tensor(entropy, dtype=torch.float32),
        sinks=tuple(sinks),
        applied=(),
        model=ModelInfo("synthetic", "0" * 12, "none", "float32", "cpu", layers, heads, 64),
        settings={"max_new_tokens": 64, "temperature": 0.0},
        seed=0,
        finish_reason=finish,
        seconds=1.5,
        extra={"decoding": GREEDY},
    )
    after = tuple(range(P + V, layout.length))
    return replace(
        made,
        prompt_rows=make_rows(made, after, seed + 1),
        reference=make_rows(made, (layout.length - 1,), 99, prompt="Describe anything."),
    )


def with_more(trace: GenerationTrace, images: tuple[Image.Image, ...]) -> GenerationTrace:
    """The same answer to a question about several images, all with the same number of patches.

    Each image receives half the attention of the one before it, mirrored; the last two receive the
    same. Rows of the prompt and of the generic prompt are left out.
    """
    if not images:
        return trace
    (grid,), V = trace.layout.grids, trace.layout.cells
    start, (rows, columns) = grid.views[0].positions[0], (grid.rows, grid.columns)
    parts = [0.5 ** (k + 1) for k in range(len(images))]
    parts.append(parts[-1])
    pieces = [trace.attention.float() * part for part in parts]
    pieces = [piece.flip(-1) if k % 2 else piece for k, piece in enumerate(pieces)]
    grids = [grid]
    for k, image in enumerate(images, 1):
        place, size = start + k * V, (image.height, image.width)
        grids.append(one_view(place, 1, rows * 2, columns * 2, 2, grid.resized, size))
    moved, more = [], len(images) * V
    for one in trace.layout.segments:
        if one.kind == "image":
            at = range(start, start + more + V, V)
            moved += [Segment("image", p, p + V, k) for k, p in enumerate(at)]
        else:
            by = more if one.start > start else 0
            moved.append(Segment(one.kind, one.start + by, one.stop + by))
    share = trace.shares[..., 1:2]
    images_share = [share * part for part in parts]
    return replace(
        trace,
        layout=PromptLayout(trace.layout.length + more, tuple(moved), tuple(grids)),
        images=(*trace.images, *images),
        prompt_tokens=tuple(f"p{n}" for n in range(trace.layout.length + more)),
        attention=torch.cat(pieces, -1).to(torch.float16),
        shares=torch.cat([trace.shares[..., :1], *images_share, trace.shares[..., 2:]], -1),
        prompt_rows=None,
        reference=None,
    )


def make_rows(
    trace: GenerationTrace, positions: tuple[int, ...], seed: int, prompt: str = ""
) -> PromptTrace:
    """Rows of the prompt: uniform attention on the image, except one patch for each row."""
    random = np.random.default_rng(seed)
    _, layers, heads, V = trace.attention.shape
    R = len(positions)
    attention = random.gamma(2.0, 1.0, (R, layers, heads, V))
    for r in range(R):
        attention[r, ..., (7 * r + 3) % V] += V / 8
    attention *= 0.3 / attention.sum(-1, keepdims=True)
    shares = np.zeros((R, layers, heads, 5))
    shares[..., 1], shares[..., 0] = 0.3, 0.7
    return PromptTrace(
        positions,
        tuple(PromptToken(p, trace.prompt_tokens[p]) for p in positions),
        trace.layout,
        torch.tensor(attention).to(torch.float16),
        trace.layers,
        trace.heads,
        torch.tensor(shares, dtype=torch.float32),
        torch.tensor(random.random((R, layers, heads)), dtype=torch.float32),
        trace.sinks,
        trace.model,
        prompt,
    )


def make_pair(
    words: tuple[str, ...] = WORDS, other: tuple[str, ...] | None = None, **sizes: object
) -> dict[str, GenerationTrace]:
    """A baseline and a VAR trace; VAR has less on its sinks, and its answer may differ."""
    other = (*words[:21], " There", " is", " a", " dog", ".") if other is None else other
    baseline = make_trace(words, **sizes)  # type: ignore[arg-type]
    var = make_trace(other, **{**sizes, "sink_weight": 1.0, "seed": 1})  # type: ignore[arg-type]
    report = {"warnings": [], "rows_changed": 310, "rows": 480}
    return {
        "baseline": baseline,
        "var": replace(var, applied=("VAR(tau=6, keep=0.6)",), var=report),
    }
