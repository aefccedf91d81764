"""Arguments of `/map` and `/export` as settings classes: which attention of a run, and its form."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import cast

from sinkscope.capture.trace import GenerationTrace
from sinkscope.config import Reduce
from sinkscope.drawing.names import Colormap
from sinkscope.drawing.view import method_and_scale
from sinkscope.methods.head_list import HeadsFrom
from sinkscope.setting import check, explained, setting
from sinkscope.visualization import View
from sinkscope.web.explore.export_files import KINDS, ExportRequest


@explained
@dataclass(frozen=True)
class Selection:
    """Which attention of a run. Names that only the drawing knows are checked there (`View`)."""

    tokens: tuple[int, ...] | None = setting(
        None, "Tokens, such as 4, or 3-5, 8: their mean.", left_out="the first"
    )
    layers: tuple[int, ...] | None = setting(
        None, "Layers, such as 2-5 or 0,3,7.", left_out="all captured"
    )
    heads: tuple[int, ...] | None = setting(
        None, "Heads, such as 0-3 or 1,6.", left_out="all captured"
    )
    heads_from: str | None = setting(
        None,
        "Single heads instead of layers and heads: localising or sinks (those that the run "
        "shows), LAYER.HEAD such as 4.1,4.3,5.0-2, or an exported list of heads (its JSON).",
        left_out="none",
    )
    reduce: Reduce = setting("mean", "How layers and heads become one map: mean, max or min.")
    scale: str = setting("percentile", "Scale of the colours: percentile, linear, log or rank.")
    image: int = setting(0, "Which image of the prompt, from 0.", low=0, high=9999)
    part: str = setting(
        "answer", "Rows of the answer's tokens (answer), or of the prompt's own (prompt)."
    )
    method: str = setting(
        "attention",
        "Which explanation: attention, relative, without_sinks or localising_heads.",
    )

    def __post_init__(self) -> None:
        check(self)

    def view(self, run: GenerationTrace | None = None) -> View:
        """The view that shows the selection.

        Args:
            run: the run whose shown or kept heads `heads_from` refers to.

        Raises:
            ValueError: naming the argument, its value and what is allowed.
        """
        method, kind = method_and_scale(self.method, self.scale)
        wanted = None if self.heads_from is None else HeadsFrom.read(self.heads_from)
        return View(
            part=self.part,  # type: ignore[arg-type]  # checked by `View`
            layers=self.layers,
            heads=self.heads,
            picked=None if wanted is None or run is None else wanted.heads_of(run),
            reduce=self.reduce,
            image=self.image,
            method=method,
            scale=kind,
        )


@explained
@dataclass(frozen=True)
class ExportChoice(Selection):
    """Which file of a run. Without tokens a figure is of the first one, an animation of all.

    What an animation can be is checked where it is made.
    """

    tokens: tuple[int, ...] | None = setting(
        None,
        "One token, or a range such as 3-8: the mean of a figure, the frames of an animation.",
        left_out="the first, or all of an animation",
    )
    own_tokens: tuple[int, ...] | None = setting(
        None,
        "One token or a range of VAR's answer (or the second run), if it shows other tokens.",
        left_out="those of the first",
    )
    kind: str = setting("pdf", f"{', '.join(KINDS)}.")
    window: int = setting(
        1, "Animation: number of tokens averaged in each frame.", low=0, high=10**6
    )
    seconds: float = setting(0.4, "Animation: time per frame.", unit="seconds")
    width: int | None = setting(
        None,
        "Animation: width of a frame.",
        low=0,
        high=10**9,
        unit="pixels",
        left_out="as fits",
    )
    difference: bool = setting(True, "With two sides, also draw the second minus the first.")
    whole_answer: bool = setting(
        False, "Use the scale of all tokens of the answer instead of the drawn one."
    )
    colormap: str = setting("inferno", "inferno, magma, plasma, viridis, cividis, gray or turbo.")

    def wanted(self, run: GenerationTrace | None = None) -> ExportRequest:
        """The request for the file, as `web.explore.export_files` takes it.

        Raises:
            ValueError: naming the argument, its value and what is allowed.
        """
        chosen, second_tokens = self.tokens or (), self.own_tokens or ()
        for name, some in (("tokens", chosen), ("own_tokens", second_tokens)):
            if some and some != tuple(range(some[0], some[-1] + 1)):
                written = ", ".join(map(str, some))
                raise ValueError(
                    f"{name} is {written!r}; allowed: one index, or a range such as 3-8."
                )
        view = dataclasses.replace(
            self.view(run),
            difference=self.difference,
            whole_answer=self.whole_answer,
            colormap=cast(Colormap, self.colormap),  # `View` checks it
        )
        return ExportRequest(
            self.kind,
            view,
            first=chosen[0] if chosen else 0,
            last=chosen[-1] if chosen else None,
            second_tokens=(second_tokens[0], second_tokens[-1]) if second_tokens else None,
            window=self.window,
            seconds=self.seconds,
            width=self.width or None,
        )
