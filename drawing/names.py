"""Names that users choose from when drawing. Nothing is imported here, so that the command line can
refuse others at once."""

from __future__ import annotations

from typing import Literal

Colormap = Literal["inferno", "magma", "plasma", "viridis", "cividis", "gray", "turbo"]
Photo = Literal["dim", "full", "none"]
Scale = Literal["percentile", "linear", "log", "rank"]
