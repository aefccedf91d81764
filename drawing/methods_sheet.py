"""All methods on one token as small multiples, and the same as a page and as numbers."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from sinkscope.attention_processor import PatchMap
from sinkscope.drawing.figures import caption, save
from sinkscope.drawing.overlay import (
    OverlayStyle,
    Pixels,
    bar_colours,
    overlay,
    pixels_of,
    refuse,
    scale_of,
)
from sinkscope.drawing.text import fonts, printable, visible
from sinkscope.methods.together import MethodResult, agreement
from sinkscope.utils import plain_values, write_bytes_atomically

ENDINGS = (".png", ".pdf", ".svg", ".html", ".npz")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
WEAK = (
    "Methods disagree, and a map shows what its formula says, not what the model used; raw "
    "attention is a weak explanation. `sinkscope explain-score` measures how well each finds "
    "what a word names."
)


@dataclass(frozen=True)
class Sheet:
    """The content of a sheet.

    Attributes:
        image: the image under the maps.
        results: the outcome of each method, in order.
        words: the text of the token or tokens.
        title: the answer that contains them.
        note: model and prompt.
    """

    image: Image.Image | Pixels
    results: Sequence[MethodResult]
    words: str
    title: str = ""
    note: str = ""

    def maps(self) -> list[tuple[MethodResult, PatchMap]]:
        """The methods with a map."""
        return [(one, one.patches) for one in self.results if one.patches is not None]

    def lacking(self) -> list[str]:
        """The methods without a map, each with its reason."""
        return [f"{one.method.label}: {one.why_not}" for one in self.results if one.patches is None]


def check_sheet_ending(path: Path) -> str:
    """The kind of file that a path's ending names; ValueError if it is not one of `ENDINGS`."""
    if path.suffix.lower() not in ENDINGS:
        raise refuse("output", str(path), f"a file ending in {', '.join(ENDINGS)}")
    return path.suffix.lower()[1:]


def write_sheet(sheet: Sheet, path: Path, style: OverlayStyle | None = None) -> None:
    """Write the small multiples (.png, .pdf, .svg), a page (.html) or the numbers (.npz).

    Raises:
        ValueError: no method has a map, or another ending.
        OSError: the file cannot be written.
    """
    kind = check_sheet_ending(path)
    if not sheet.maps():
        raise ValueError("No method gave a map: " + "; ".join(sheet.lacking()) + ".")
    if kind == "html":
        text = methods_page(sheet, style)
        write_bytes_atomically(path, text.encode("utf-8", "replace"))
    elif kind == "npz":
        write_bytes_atomically(path, _numbers(sheet))
    else:
        save(methods_figure(sheet, style), path)


def methods_figure(sheet: Sheet, style: OverlayStyle | None = None) -> Figure:
    """An overlay for each method, each with its own colour bar, and their rank correlations."""
    style = style or OverlayStyle()
    maps = sheet.maps()
    small = Image.fromarray(pixels_of(sheet.image))
    small.thumbnail((480, 480))
    columns = min(len(maps), 4)
    rows = math.ceil(len(maps) / columns)
    wide = 2.6
    tall = min(max(wide * 0.85 * small.height / small.width, 0.6), 3 * wide) + 0.45
    heading = textwrap.wrap(printable(sheet.title), 90)[:4]
    matrix = 1.0 + 0.24 * len(maps) if len(maps) > 1 else 0.0
    size = (max(columns * wide, 7.5), rows * tall + matrix + 0.24 * len(heading) + 1.6)
    drawn = Figure(figsize=size, layout="constrained")
    title = "\n".join([visible(sheet.words), *heading])
    drawn.suptitle(title, fontsize=11, family=fonts(), parse_math=False)
    above, *below = drawn.subfigures(
        1 + bool(matrix), 1, squeeze=False, **_heights(rows * tall, matrix)
    )[:, 0]
    grid = above.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, (one, patches) in zip(grid, maps, strict=False):
        scale = scale_of(patches, style)
        axes.imshow(overlay(small, patches, style, scale), interpolation="none")
        axes.set_title(one.method.label, parse_math=False, fontsize=10)
        colours = ScalarMappable(Normalize(0, 1), bar_colours(scale, style.colormap))
        bar = above.colorbar(colours, ax=axes, fraction=0.05, pad=0.02)
        places = [position for position, _ in scale.ticks]
        bar.set_ticks(places, labels=[text for _, text in scale.ticks])
        bar.ax.tick_params(labelsize=6)
        bar.set_label(patches.unit, fontsize=7)
    for part in below:
        _correlations(part.subplots(), maps)
    lines = [
        maps[0][1].label + " (of the axes that a method has)",
        f"Each method has its own scale of colours ({style.scale}).",
        *(f"Not possible: {reason}" for reason in sheet.lacking()),
        WEAK.replace("`", ""),
        sheet.note,
    ]
    caption(drawn, lines, characters=round(size[0] * 13))
    return drawn


def _heights(maps: float, matrix: float) -> dict[str, Any]:
    return {"height_ratios": [maps, matrix]} if matrix else {}


def _correlations(axes: Any, maps: Sequence[tuple[MethodResult, PatchMap]]) -> None:
    """The matrix of rank correlations, in colours and numbers; columns by the rows' numbers."""
    values = agreement([patches for _, patches in maps])
    places = range(len(maps))
    axes.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    axes.set_title("agreement: rank correlation of the maps", fontsize=10)
    axes.set_xticks(places, [str(k + 1) for k in places], fontsize=7)
    names = [f"{k + 1} {one.method.label}" for k, (one, _) in enumerate(maps)]
    axes.set_yticks(places, names, fontsize=7)
    for i in places:
        for k in places:
            text = "" if math.isnan(values[i, k]) else f"{values[i, k]:.2f}"
            colour = "white" if abs(values[i, k]) > 0.6 else "black"
            axes.text(k, i, text, ha="center", va="center", fontsize=6.5, color=colour)


def methods_page(sheet: Sheet, style: OverlayStyle | None = None) -> str:
    """One HTML file without script or request: overlays, reasons, and the rank correlations."""
    style = style or OverlayStyle()
    maps = sheet.maps()
    cards = []
    for one, patches in maps:
        scale = scale_of(patches, style)
        pixels = overlay(sheet.image, patches, style, scale)
        label, source = html.escape(one.method.label), html.escape(one.method.source)
        about = [html.escape(f"{patches.unit}; {scale.words}")]
        if patches.normalisation != "none":
            about.append(html.escape(patches.normalisation))
        if source:
            about.append(source)
        cards.append(
            f'<figure><img src="{_data(pixels)}" alt="{label} over the image">'
            f"<figcaption><b>{label}</b><br>{'<br>'.join(about)}</figcaption></figure>"
        )
    names = [html.escape(one.method.label) for one, _ in maps]
    rows = [
        f'<tr><th scope="row">{name}</th>'
        + "".join(f"<td>{'–' if math.isnan(v) else f'{v:.2f}'}</td>" for v in values)
        + "</tr>"
        for name, values in zip(names, agreement([p for _, p in maps]), strict=True)
    ]
    heads = "".join(f'<th scope="col">{name}</th>' for name in names)
    lacking = "".join(f"<li>{html.escape(reason)}</li>" for reason in sheet.lacking())
    lacking = f"<h2>Not possible here</h2><ul>{lacking}</ul>" if lacking else ""
    word = html.escape(visible(sheet.words))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{word} · SinkScope</title><style>{_STYLE}</style></head><body>"
        f"<h1>{word}</h1><p>{html.escape(printable(sheet.title))}</p>"
        f'<div class="maps">{"".join(cards)}</div>{lacking}'
        "<h2>Agreement (Spearman's rank correlation)</h2>"
        f'<div class="wide"><table><tr><td></td>{heads}</tr>{"".join(rows)}</table></div>'
        f"<p>{html.escape(maps[0][1].label)}. {html.escape(WEAK)}</p>"
        f"<p>{html.escape(sheet.note)}</p></body></html>\n"
    )


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:1rem auto;padding:0 1rem}"
    ".maps{display:grid;grid-template-columns:repeat(auto-fill,minmax(13rem,1fr));gap:1rem}"
    "figure{margin:0}img{width:100%;image-rendering:pixelated}figcaption{font-size:.8rem}"
    ".wide{overflow-x:auto}table{border-collapse:collapse;font-size:.8rem}"
    "td,th{padding:.15rem .5rem;text-align:right;white-space:nowrap}"
)


def _data(pixels: Pixels) -> str:
    """As a data URL; large photos are scaled down first."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((720, 720))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _numbers(sheet: Sheet) -> bytes:
    """An .npz: `map_NAME` float32 (rows, columns) of each method, `boxes` float64 (rows * columns,
    4) in pixels of the image, `agreement`, and `about`, a JSON text."""
    maps = sheet.maps()
    about = {
        "format": "sinkscope-explain",
        "words": sheet.words,
        "answer": sheet.title,
        "note": sheet.note,
        "label": maps[0][1].label,
        "methods": {
            one.method.name: {
                "unit": patches.unit,
                "signed": patches.signed,
                "normalisation": patches.normalisation,
                "source": one.method.source,
                "seconds": one.seconds,
            }
            for one, patches in maps
        },
        "lacking": {one.method.name: one.why_not for one in sheet.results if one.patches is None},
    }
    arrays: dict[str, Any] = {f"map_{one.method.name}": patches.values for one, patches in maps}
    arrays["boxes"] = maps[0][1].grid.boxes()
    arrays["agreement"] = agreement([patches for _, patches in maps])
    arrays["about"] = np.array(json.dumps(plain_values(about), ensure_ascii=False))
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()
