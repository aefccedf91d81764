"""Region search: which parts of the image are enough for a token, and which are needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from sinkscope.capture.trace import GenerationTrace
from sinkscope.jobs.job import Progress
from sinkscope.methods.base import Axes, MapStack, Needs, Target
from sinkscope.methods.masked import Cells, How, masking
from sinkscope.methods.occlusion import on_tokens
from sinkscope.methods.passes import FromPasses
from sinkscope.methods.superpixels import regions

if TYPE_CHECKING:
    from sinkscope.methods.passes import Passes

SMALLEST = 8  # cells of an image that can be cut into regions


@dataclass(frozen=True)
class RegionSearch(FromPasses):
    """Greedy choice of superpixel regions: each step adds the region that maximises

        F(S) = p(token | only the regions in S) + 1 - p(token | all regions but S)

    (sufficient, and necessary). A region's value is our own definition: the remaining change of F
    when it was chosen, sum over later steps k of |F_k - F_(k-1)|. Earlier choices never have less
    than later ones, and the last has 0. A target of several tokens has one search, with the mean of
    their p, and one map without a token axis.

    Attributes:
        count: number of regions over all images; at most one per two patches.
        how: how regions are removed (`methods.masked`). The paper masks pixels; edges are cut by
            default, which is many times faster.
    """

    count: int = 16
    how: How = "edges"

    name = "region_search"
    source = "arXiv 2509.22496 (EAGLE)"
    needs: Needs = "forward"
    unit = "change of p to come"
    description = "change of p(enough) + 1 - p(without) that was to come when the region was chosen"

    def __post_init__(self) -> None:
        if not 2 <= self.count <= 400:
            raise ValueError(f"count is {self.count!r}; allowed: 2 to 400.")
        if self.how not in ("edges", "pixels"):
            raise ValueError(f"how is {self.how!r}; allowed: edges, pixels.")

    def availability(self, run: GenerationTrace) -> str | None:
        reason = super().availability(run)
        if reason is None and run.layout.cells < SMALLEST:
            reason = (
                f"the image has {run.layout.cells} patches, too few for regions; it needs "
                f"{SMALLEST}"
            )
        return reason

    def explain(
        self,
        run: GenerationTrace,
        target: Target,
        session: Passes | None = None,
        progress: Progress | None = None,
    ) -> MapStack:
        assert session is not None
        parts = self._regions(run)
        scores = _Search(session, target, self.how, parts).run(progress)
        cells = torch.full((run.layout.cells,), float("nan"))
        for part, score in zip(parts, scores, strict=True):
            cells[list(part)] = score
        axes: Axes = (("token", target.tokens),) if len(target.tokens) == 1 else ()
        values = on_tokens(run.layout, cells)[None].float().numpy()
        normalisation = f"{len(parts)} regions, greedy"
        return MapStack(values, axes, run.layout, self.unit, normalisation=normalisation)

    def _regions(self, run: GenerationTrace) -> list[Cells]:
        """Cells of each region, of all images."""
        regions_of_images: list[Cells] = []
        before, layout = 0, run.layout
        for image, grid in zip(run.images, layout.grids, strict=True):
            size = grid.rows * grid.columns
            count = max(1, min(round(self.count * size / layout.cells), size // 2))
            label = regions(image, grid, count)
            regions_of_images += [
                tuple((before + np.flatnonzero(label == one)).tolist())
                for one in range(int(label.max()) + 1)
            ]
            before += size
        return regions_of_images


class _Search:
    def __init__(self, passes: Passes, target: Target, how: How, parts: list[Cells]) -> None:
        self._passes, self._target, self._parts = passes, target, parts
        self._masked = masking(passes, target, how, 2 * len(parts))

    def run(self, progress: Progress | None) -> list[float]:
        """Value of each region."""
        parts, left = self._parts, list(range(len(self._parts)))
        everything = tuple(cell for part in parts for cell in part)
        nothing_seen, all_seen = self._probabilities([everything, ()])
        reached = [float(nothing_seen) + 1 - float(all_seen)]
        order: list[int] = []
        while left:
            self._passes.tell(progress, len(order), len(parts), "Choosing regions", "regions")
            chosen = [cell for one in order for cell in parts[one]]
            asked: list[Cells] = []
            for one in left:
                kept = {*chosen, *parts[one]}
                asked += [tuple(cell for cell in everything if cell not in kept), tuple(kept)]
            enough, without = self._probabilities(asked).view(-1, 2).unbind(1)
            gains = enough + 1 - without
            best = int(gains.argmax())
            order.append(left.pop(best))
            reached.append(float(gains[best]))
        if progress is not None:
            progress(len(parts), len(parts), "Choosing regions")
        changes = np.abs(np.diff(reached))
        to_come = np.concatenate([np.cumsum(changes[::-1])[::-1][1:], [0.0]])
        return [float(to_come[order.index(one)]) for one in range(len(parts))]

    def _probabilities(self, hidden: list[Cells]) -> torch.Tensor:
        """(questions,): mean p of the target's tokens."""
        rows = self._masked.rows
        probabilities = [
            self._masked.log_probabilities(hidden[low : low + rows])
            for low in range(0, len(hidden), rows)
        ]
        return torch.cat(probabilities)[:, list(self._target.tokens)].exp().mean(1)
