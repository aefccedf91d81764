"""The attention of the heads that localise: few heads encode where an object is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sinkscope.capture.trace import GenerationTrace
from sinkscope.jobs.job import Progress
from sinkscope.methods.attention import attention_of
from sinkscope.methods.base import Axes, MapStack, Method, Target, rows_of
from sinkscope.methods.heads import HeadList, best_heads, elbow, has_heads, spatial_entropy

if TYPE_CHECKING:
    from sinkscope.methods.base import Session


@dataclass(frozen=True)
class LocalisingHeads(Method):
    """The mean over the `best` heads that localise, chosen for each token by its own row, or over
    the heads of a list made from many runs (`methods.heads.localising_heads`).

    Kept are heads whose image mass is above the elbow of all heads' sorted masses; of those, the
    ones with the lowest spatial entropy. If no head has a spot, the map is missing.

    Attributes:
        best: how many heads.
        chosen: use the first heads of this list instead.
    """

    best: int = 3
    chosen: HeadList | None = None

    name = "localising_heads"
    source = "arXiv 2503.06287 (Your Large Vision-Language Model Only Needs A Few Attention Heads)"

    def __post_init__(self) -> None:
        if not 1 <= self.best <= 1000:
            raise ValueError(f"best is {self.best!r}; allowed: 1 to 1000.")

    def availability(self, run: GenerationTrace) -> str | None:
        if not run.layout.grids:
            return "the prompt has no image"
        if not has_heads(run):
            return "the run kept only the mean over heads"
        return None if self.chosen is None else self._foreign(run, self.chosen)

    def words(self, run: GenerationTrace) -> str:
        return f"attention mass per patch, mean of {self.best} heads that localise"

    def explain(
        self,
        run: GenerationTrace,
        target: Target,
        session: Session | None = None,
        progress: Progress | None = None,
    ) -> MapStack:
        rows = rows_of(run, target.source)
        attention = attention_of(rows, target.tokens).numpy()  # (T, L, H, V)
        values = np.stack([self._of_token(run, token_attention) for token_attention in attention])
        if self.chosen is None:
            normalisation = (
                f"mean of the {self.best} heads that localise, chosen by the token's own row"
            )
        else:
            normalisation = f"mean of the first {self.best} heads of a list"
        axes: Axes = (("token", target.tokens),)
        return MapStack(values, axes, rows.layout, self.unit, normalisation=normalisation)

    def _of_token(self, run: GenerationTrace, attention: np.ndarray) -> np.ndarray:
        if self.chosen is not None:
            heads = [
                (run.layers.index(one.layer), run.heads.index(one.head))
                for one in self.chosen.chosen[: self.best]
            ]
        else:
            mass = attention.sum(-1)
            entropy = np.full(mass.shape, np.inf)
            for head in zip(*np.nonzero(mass >= elbow(mass.ravel())), strict=True):
                entropy[head] = spatial_entropy(attention[head], run.layout)
            heads = best_heads(mass, entropy, self.best)
        if not heads:
            return np.full(attention.shape[-1], np.nan, dtype=np.float32)
        mean: np.ndarray = np.mean([attention[head] for head in heads], axis=0)
        return mean

    def _foreign(self, run: GenerationTrace, given: HeadList) -> str | None:
        if not given.chosen:
            return "the list of heads is empty"
        if given.revision != run.model.revision:
            return f"the list of heads is of another model ({given.model})"
        lacking = [
            f"{one.layer}.{one.head}"
            for one in given.chosen[: self.best]
            if one.layer not in run.layers or one.head not in run.heads
        ]
        return f"the run did not keep the heads {', '.join(lacking)}" if lacking else None
