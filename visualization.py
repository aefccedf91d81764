"""Drawing: the public names.

A patch map over its image, as pixels (`overlay`), as a figure with its numbers (`figure`) or all
tokens as a sheet (`contact_sheet`); of a run or several side by side, what the page shows, as a
figure (`view_figure`), as an animation over the tokens (`animate`) and as a table of shares
(`write_shares`). The code is in `drawing/`.
"""

from __future__ import annotations

from sinkscope.drawing.animation import animate, animation_steps
from sinkscope.drawing.figures import (
    caption,
    check_ending,
    contact_sheet,
    figure,
    save,
)
from sinkscope.drawing.overlay import Colormap, OverlayStyle, Pixels, overlay, scale_of
from sinkscope.drawing.scale import Scale, Scaling, scaling, signed_scaling
from sinkscope.drawing.table import write_shares
from sinkscope.drawing.text import fonts, visible
from sinkscope.drawing.view import View
from sinkscope.drawing.view_figure import view_figure

__all__ = [
    "Colormap",
    "OverlayStyle",
    "Pixels",
    "Scale",
    "Scaling",
    "View",
    "animate",
    "animation_steps",
    "caption",
    "check_ending",
    "contact_sheet",
    "figure",
    "fonts",
    "overlay",
    "save",
    "scale_of",
    "scaling",
    "signed_scaling",
    "view_figure",
    "visible",
    "write_shares",
]
