"""One map as a figure with its numbers, all tokens as a sheet, and shared parts of figures."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from sinkscope.attention_processor import PatchMap
from sinkscope.drawing.overlay import (
    OverlayStyle,
    Pixels,
    bar_colours,
    overlay,
    pixels_of,
    refuse,
    scale_of,
)
from sinkscope.drawing.printing import print_figure
from sinkscope.drawing.text import fonts, missing_note, printable, set_fonts, visible
from sinkscope.utils import write_atomically

SHEET_LIMIT = 96  # more pictures on one sheet would be too small to read


def figure(
    image: Image.Image | Pixels,
    patch_map: PatchMap,
    style: OverlayStyle | None = None,
    *,
    token: str = "",
    prompt: str = "",
    share: float | None = None,
    note: str = "",
) -> Figure:
    """One overlay with all that is needed to read it: token, colour bar in numbers, and a caption.

    Args:
        image, patch_map, style: as for `overlay`.
        token: text of the token that the map explains, for the title.
        prompt: shown below the token.
        share: attention mass of the same rows on this whole image, unscaled, from 0 to 1.
        note: a last line, such as model and prompt.
    """
    style = style or OverlayStyle()
    scale = scale_of(patch_map, style)
    pixels = overlay(image, patch_map, style, scale)
    height, width = pixels.shape[:2]
    wide = 8.0
    tall = min(max(wide * 0.85 * height / width, 1.0), 24.0)
    drawn = Figure(figsize=(wide, tall + 1.6), layout="constrained")
    axes = drawn.add_subplot()
    axes.imshow(pixels, interpolation="none" if max(height, width) < 500 else "antialiased")
    axes.set_axis_off()
    # Both are above the photo, the token in the larger letters.
    asked = "\n".join(_wrapped(prompt, 80, 3))
    if token:
        drawn.suptitle(visible(token), parse_math=False, family=fonts(), fontsize=16)
    if asked:
        axes.set_title(asked, parse_math=False, family=fonts(), fontsize=9.5, color="0.35")
    # Next to the photo and exactly as tall, whatever its shape.
    bar = drawn.colorbar(
        ScalarMappable(Normalize(0, 1), bar_colours(scale, style.colormap)),
        cax=axes.inset_axes((1.02, 0, 0.04, 1)),
    )
    bar.set_ticks(
        [position for position, _ in scale.ticks], labels=[text for _, text in scale.ticks]
    )
    bar.set_label(patch_map.unit)
    lines = [patch_map.label, f"{scale.words}; normalisation: {patch_map.normalisation}"]
    if share is not None:
        lines.append(f"attention on this image: {share:.1%} of the whole row")
    caption(drawn, [*lines, note], characters=96)
    return drawn


def contact_sheet(
    image: Image.Image | Pixels,
    maps: Sequence[PatchMap],
    tokens: Sequence[str],
    shares: Sequence[float],
    style: OverlayStyle | None = None,
    *,
    title: str = "",
    note: str = "",
) -> Figure:
    """A small overlay for each token of an answer, in reading order, under the answer itself.

    Each picture has its own colour scale, because tokens differ in their total attention to the
    image; the number next to the token shows it (`shares`, attention mass from 0 to 1).

    Raises:
        ValueError: there is no map, or the three sequences differ in length.
    """
    if not maps or not len(maps) == len(tokens) == len(shares):
        raise ValueError("A sheet needs at least one map, and a token and a share for each.")
    style = style or OverlayStyle()
    small = Image.fromarray(pixels_of(image))
    small.thumbnail((360, 360))
    count = min(len(maps), SHEET_LIMIT)
    columns = min(count, 6)
    rows = math.ceil(count / columns)
    wide = 1.9
    tall = min(max(wide * small.height / small.width, 0.4), 3 * wide)
    heading = textwrap.wrap(printable(title), 90)
    size = (max(columns * wide, 7.0), rows * (tall + 0.35) + 0.24 * len(heading) + 1.0)
    drawn = Figure(figsize=size, layout="constrained")
    drawn.suptitle("\n".join(heading), fontsize=11, family=fonts(), parse_math=False)
    grid = drawn.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, patch_map, token, share in zip(grid, maps[:count], tokens, shares, strict=False):
        axes.imshow(overlay(small, patch_map, style), interpolation="none")
        label = f"{visible(token)}  {share:.0%}"
        axes.set_title(label, parse_math=False, family=fonts(), fontsize=9)
    lines = [
        "percentages: attention mass on this image. Colours: "
        f"{style.scale.replace('percentile', 'percentile clip')}, each picture for itself.",
        f"first {count} of {len(maps)} tokens" if len(maps) > count else "",
        note,
    ]
    caption(drawn, lines, characters=110)
    return drawn


def save(picture: Figure | Pixels, path: Path) -> None:
    """Write a figure (.png, .pdf or .svg) or pixels (.png) atomically.

    Raises ValueError for another ending, OSError where the file cannot be written.
    """
    kind = check_ending(path, figure=isinstance(picture, Figure))
    if isinstance(picture, Figure):
        # A date in the file would make two runs with the same seed differ.
        dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
        options: dict[str, Any] = {"format": kind, "dpi": 160, "metadata": dates.get(kind)}
        write_atomically(path, lambda file: print_figure(picture, file, **options))
    else:
        write_atomically(path, lambda file: Image.fromarray(picture).save(file, kind))


def check_ending(path: Path, *, figure: bool = True) -> str:
    """The format that a path's ending names; ValueError if `save` does not write it."""
    allowed = (".png", ".pdf", ".svg") if figure else (".png",)
    if path.suffix.lower() not in allowed:
        raise refuse("output", str(path), f"a file ending in {', '.join(allowed)}")
    return path.suffix.lower()[1:]


def _wrapped(text: str, characters: int, most: int) -> list[str]:
    """Lines of at most so many characters; if there are more than `most`, the last ends in "…"."""
    return textwrap.wrap(printable(text), characters, max_lines=most, placeholder=" …")


def caption(drawn: Figure, lines: Sequence[str], characters: int) -> None:
    """Lines of small text under a figure, each wrapped to at most four lines; as the last step its
    texts get their fonts."""
    from matplotlib.text import Text

    above = [artist.get_text() for artist in drawn.findobj(Text)]
    lines = [*lines, *missing_note(*above, *lines)]
    parts = [part for line in lines for part in _wrapped(line, characters, 4)]
    drawn.supxlabel("\n".join(parts), fontsize=8, family=fonts(), parse_math=False)
    set_fonts(drawn)
