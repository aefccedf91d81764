"""Occlusion: how much a token's log-probability decreases when an image patch is removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sinkscope.capture.trace import GenerationTrace
from sinkscope.jobs.job import Progress
from sinkscope.methods.base import Axes, MapStack, Needs, Target
from sinkscope.methods.masked import Cells, How, masking
from sinkscope.methods.passes import FromPasses
from sinkscope.models.family import PromptLayout

if TYPE_CHECKING:
    from sinkscope.methods.passes import Passes


@dataclass(frozen=True)
class Occlusion(FromPasses):
    """log p(token) - log p(token without the patch), for each patch of the image.

    Positive: the patch supports the token; negative: it counts against it. With a window of K x K
    patches (moved by one, cut at the edges of the image), a patch has the mean over the windows
    that cover it. `methods.masked` describes the two ways of removing a patch.

    Attributes:
        how: cut attention edges, or grey pixels.
        window: K.
    """

    how: How = "edges"
    window: int = 1

    source = "arXiv 1311.2901 (Zeiler and Fergus); edges: arXiv 2304.14767 (attention knockout)"
    needs: Needs = "forward"
    unit = "nats lost"
    signed = True

    def __post_init__(self) -> None:
        if self.how not in ("edges", "pixels"):
            raise ValueError(f"how is {self.how!r}; allowed: edges, pixels.")
        if not 1 <= self.window <= 1000:
            raise ValueError(f"window is {self.window!r}; allowed: 1 to 1000.")

    @property
    def name(self) -> str:  # type: ignore[override]  # the base class declares an attribute
        return f"occlusion_{self.how}"

    @property
    def label(self) -> str:
        return "occlusion (edges cut)" if self.how == "edges" else "occlusion (pixels grey)"

    def words(self, run: GenerationTrace) -> str:
        what = "edges to it are cut" if self.how == "edges" else "it is grey"
        return f"log p lost per patch when {what}, in nats"

    def refusal(self, run: GenerationTrace, target: Target, session: Passes | None) -> str | None:
        reason = super().refusal(run, target, session)
        sizes = [max(grid.rows, grid.columns) for grid in run.layout.grids]
        if reason is None and self.window > min(sizes):
            reason = f"window is {self.window}, and the image has {min(sizes)} patches a side"
        return reason

    def explain(
        self,
        run: GenerationTrace,
        target: Target,
        session: Passes | None = None,
        progress: Progress | None = None,
    ) -> MapStack:
        assert session is not None
        windows = windows_of(run.layout, self.window)
        asked: list[Cells] = [(), *windows]
        masked = masking(session, target, self.how, len(asked))
        parts = []
        for low in range(0, len(asked), masked.rows):
            done = max(0, low - 1)
            session.tell(progress, done, len(windows), "Taking patches away", "patches")
            parts.append(masked.log_probabilities(asked[low : low + masked.rows]))
        if progress is not None:
            progress(len(windows), len(windows), "Taking patches away")
        logs = torch.cat(parts)[:, list(target.tokens)]
        drops = logs[:1] - logs[1:]  # (windows, T)
        total = drops.new_zeros(run.layout.cells, drops.shape[1])
        cover = drops.new_zeros(run.layout.cells, 1)
        for window, drop in zip(windows, drops, strict=True):
            total[list(window)] += drop
            cover[list(window)] += 1
        values = on_tokens(run.layout, (total / cover).T)  # (T, V)
        axes: Axes = (("token", target.tokens),)
        normalisation = (
            "none" if self.window == 1 else f"mean over windows of {self.window} x {self.window}"
        )
        return MapStack(
            values.float().numpy(),
            axes,
            run.layout,
            self.unit,
            signed=True,
            normalisation=normalisation,
        )


def windows_of(layout: PromptLayout, size: int) -> list[Cells]:
    """Every window of size x size cells (cut at the edges) of every image's map."""
    windows: list[Cells] = []
    before = 0
    for grid in layout.grids:
        for top in range(max(1, grid.rows - size + 1)):
            for left in range(max(1, grid.columns - size + 1)):
                windows.append(
                    tuple(
                        before + row * grid.columns + column
                        for row in range(top, min(top + size, grid.rows))
                        for column in range(left, min(left + size, grid.columns))
                    )
                )
        before += grid.rows * grid.columns
    return windows


def on_tokens(layout: PromptLayout, cells: torch.Tensor) -> torch.Tensor:
    """Values of cells (..., C) for the vision tokens that see them (..., V): a token that sees
    several cells gets their mean, divided by the number of frames."""
    parts, before = [], 0
    for grid in layout.grids:
        image_cells = cells[..., before : before + grid.rows * grid.columns]
        before += grid.rows * grid.columns
        frames = max(view.frames for view in grid.views)
        if grid.plain:
            parts.append(image_cells.repeat(*[1] * (image_cells.dim() - 1), frames) / frames)
            continue
        sees = [list(grid.cells_of((token,))) for token in range(grid.tokens)]
        missing = image_cells.new_full(image_cells.shape[:-1], float("nan"))
        parts.append(
            torch.stack(
                [image_cells[..., one].mean(-1) if one else missing for one in sees], dim=-1
            )
        )
    return torch.cat(parts, dim=-1)
