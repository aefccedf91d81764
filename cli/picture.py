"""How `heatmap` and `show` draw: one set of options, as a settings class."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from sinkscope.config import Reduce
from sinkscope.drawing.names import Colormap, Photo, Scale
from sinkscope.setting import check, explained, refuse, setting

if TYPE_CHECKING:
    from sinkscope.cli.drawing import Selection
    from sinkscope.drawing.overlay import OverlayStyle
    from sinkscope.methods.head_list import HeadsFrom


@explained
@dataclass(frozen=True)
class Drawing:
    """Which attention is drawn and how; checked before anything is imported that draws."""

    token: str = setting(
        "all", "Which token to explain: its index from 0, a word of the answer, or all."
    )
    layers: tuple[int, ...] | None = setting(None, "Layers, such as 2-5 or 0,3,7.", left_out="all")
    heads: tuple[int, ...] | None = setting(None, "Heads, such as 0-3 or 1,6.", left_out="all")
    heads_from: str | None = setting(
        None,
        "Single heads instead of layers and heads: localising or sinks (those that this run "
        "shows), a list of heads (a .json file), or LAYER.HEAD such as 4.1,4.3,5.0-2.",
        left_out="none",
    )
    reduce: Reduce = setting("mean", "How layers and heads become one map.")
    colormap: str = setting("inferno", "inferno, magma, plasma, viridis, cividis, gray or turbo.")
    opacity: float = setting(0.8, "Opacity of the strongest cell.", low=0.0, high=1.0)
    photo: Photo = setting("dim", "The photo under the map: dimmed, unchanged, or hidden.")
    scale: str = setting(
        "percentile",
        "percentile (one huge value does not hide the rest), linear, log or rank.",
    )
    smooth: bool = setting(False, "Interpolate between cells.")
    sinks: bool = setting(True, "Mark attention sinks with a boxed x, if the model's are known.")
    method: str = setting(
        "attention",
        "Which explanation: attention, relative (divided by the map of a generic prompt on the "
        "same image, which removes attention that every prompt has), without-sinks or "
        "localising-heads.",
    )
    relative: bool = setting(False, "The same as --method relative.")
    figure: bool = setting(False, "With --token: add title, colour bar and caption.")

    def __post_init__(self) -> None:
        check(self)
        for name, choices in (("colormap", get_args(Colormap)), ("scale", get_args(Scale))):
            if getattr(self, name) not in choices:
                raise refuse(name, getattr(self, name), ", ".join(choices))
        if self.heads_from and (self.layers or self.heads):
            raise ValueError("heads_from is given; allowed: no layers or heads with it.")

    def method_named(self) -> str:
        """The method that `method` and `relative` name, as `methods.explain.METHODS` calls it.

        Raises:
            ValueError: there is no such method, or the two name different ones.
        """
        if self.method in ("attention", "relative") and not self.relative:
            return self.method
        from sinkscope.methods.explain import method_of  # imported late: it needs torch

        name = method_of(self.method).name
        if self.relative and name not in ("attention", "relative"):
            raise ValueError(
                f"method is {self.method!r} and --relative is given; allowed: one of them."
            )
        return "relative" if self.relative else name

    def selection(self, image: int = 0) -> Selection:
        """Which attention, of which image of the prompt (from 0).

        Raises:
            ValueError: there is no such method.
        """
        from sinkscope.cli.drawing import Selection

        return Selection(
            token=self.token,
            layers=self.layers,
            heads=self.heads,
            reduce=self.reduce,
            sinks=self.sinks,
            image=image,
            method=self.method_named(),
            photo=self.photo,
            heads_from=self.single_heads(),
        )

    def check_token(self, most: int) -> None:
        """Refuse an index, or a range such as 2-4, that an answer of so many tokens cannot have.

        Raises:
            ValueError: naming both.
        """
        match = re.fullmatch(r"\s*(?:(\d{1,9})\s*-)?\s*(\d{1,9})\s*", self.token)
        if match is not None and int(match[2]) >= most:
            raise ValueError(
                f"token is {self.token!r}, and max_new_tokens allows {most} of them, from 0."
            )

    def single_heads(self) -> HeadsFrom | None:
        """Which single heads, where they are asked for.

        Raises:
            ValueError: it is not a list of heads, or its file cannot be read.
        """
        if self.heads_from is None:
            return None
        from sinkscope.methods.head_list import HeadsFrom

        return HeadsFrom.read(self.heads_from, files=True)

    def style(self) -> OverlayStyle:
        """How values become colours.

        Raises:
            ValueError: there is no such colour map or scale.
        """
        from sinkscope.drawing.overlay import OverlayStyle

        # The options allow only these values.
        return OverlayStyle(self.colormap, self.opacity, self.scale, smoothing=self.smooth)  # type: ignore[arg-type]
