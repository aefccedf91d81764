"""Common style of the sink figures: colours, axes, legend, title and footnotes.

Colours are those of Okabe and Ito. Line style and marker encode the same distinction, so that a
figure stays readable with colour blindness and in black-and-white print.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

SINK, ORDINARY, FIRST, BLACK, PURPLE, GREY = (
    "#d55e00",
    "#0072b2",
    "#009e73",
    "#000000",
    "#aa4499",
    "#767676",
)


def tau_axis(axes: Axes, taus: Sequence[float], tau: float, at: Axes | None = None) -> None:
    axes.set_xlabel("tau")
    axes.set_xlim(min(taus), max(taus))
    (at or axes).annotate(
        f"tau = {tau:.3g}",
        (tau, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 2),
        textcoords="offset points",
        ha="center",
        fontsize=8,
    )


def place_tau(axes: Axes, tau: float) -> None:
    axes.annotate(
        f"tau = {tau:.3g}",
        (1, tau),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8,
    )


def shares_axis(axes: Axes, name: str) -> None:
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylabel(name)
    plain(axes)


def layer_axis(axes: Axes, layers: Sequence[int] | npt.NDArray[np.int_]) -> None:
    axes.set_xlabel("layer (at its input)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=14))
    axes.set_xlim(min(layers) - 0.4, max(layers) + 0.4)
    plain(axes)


def plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


def legend(axes: Axes, columns: int = 2) -> None:
    """Place the legend above the axes, where it hides nothing."""
    axes.legend(
        frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(-0.01, 1.05), ncols=columns
    )


def add_title(figure: Figure, title: str, *lines: str) -> None:
    """Add the title above and footnotes below, in the common style."""
    figure.suptitle(title, fontsize=11, parse_math=False)
    width = int(17 * figure.get_figwidth())
    wrapped = [part for line in lines for part in textwrap.wrap(line, width)[:4]]
    figure.supxlabel("\n".join(wrapped), fontsize=7.5, parse_math=False)
