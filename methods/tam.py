"""Token activation map: the token's logit at every vision token, minus what earlier text tokens
explain there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from sinkscope.capture.probes.values import Values
from sinkscope.capture.trace import GenerationTrace
from sinkscope.jobs.job import Progress
from sinkscope.methods.base import Axes, MapStack, Needs, Target
from sinkscope.methods.passes import FromPasses
from sinkscope.methods.unembed import lacking, logits_of, normed
from sinkscope.models.family import PromptLayout
from sinkscope.models.sites import SiteSelection
from sinkscope.models.stack import TextStack

if TYPE_CHECKING:
    from sinkscope.methods.passes import Passes


@dataclass(frozen=True)
class TokenActivation(FromPasses):
    """Of token c with id y_c, at vision token j and with context tokens i:

        s_c(j) = relu(logit of y_c by the last hidden state at j)
        e(j)   = sum_i w_i s_i(j),   w_i = relu(logit of y_c at i's position) / their sum
        map    = filter(relu(s_c - a e)),   a = <s_c, e> / <e, e>  (least squares)

    Context are the user's words, read at their own positions, and the answer tokens before c, read
    at the positions that predicted them, as in the published code; tokens with c's own id are left
    out. The filter replaces each patch by a weighted mean of its sorted 3 x 3 neighbourhood
    (reflected at the edges), weights exp(-(rank - 4)^2 / (2 cv^2)), cv = std / mean: uniform
    neighbourhoods give their median, varied ones their mean. Values stay logits: the published code
    scales them together with the text's to 0 .. 1.

    Attributes:
        smooth: apply that filter. It smooths, which matters when methods are compared.
    """

    smooth: bool = True

    name = "tam"
    source = "arXiv 2506.23270 (Token Activation Map, xmed-lab/TAM)"
    needs: Needs = "forward"
    unit = "logit"
    description = "logit of the token per patch, without what other words explain"

    def lacking(self, stack: TextStack) -> str | None:
        return lacking(stack)

    def explain(
        self,
        run: GenerationTrace,
        target: Target,
        session: Passes | None = None,
        progress: Progress | None = None,
    ) -> MapStack:
        assert session is not None
        session.tell(progress, 0, 1, "Reading the last hidden states")
        stack, layout = session.handle.stack, run.layout
        last = (len(stack.layers) - 1,)
        states = Values(SiteSelection("block_out", last))
        hidden = normed(stack, session.read(states)[states][last[0]][0])  # (N, D)
        words = [
            position
            for segment in layout.segments
            if segment.kind == "user"
            for position in range(segment.start, segment.stop)
        ]
        latest = max(target.tokens)
        ids = [session.inputs.token_ids[p] for p in words] + list(session.answer[: latest + 1])
        places = [*words, *(session.position(t) for t in range(latest + 1))]
        kinds = sorted(set(ids))
        column = [kinds.index(one) for one in ids]
        relu = torch.relu(logits_of(stack, hidden, kinds)).double().cpu().numpy()  # (N, kinds)
        seen = relu[layout.vision_positions().numpy()][:, column].T  # (context, V)
        at_words = relu[places]
        maps = np.stack(
            [
                self._map(layout, seen, at_words, ids, column, len(words) + token)
                for token in target.tokens
            ]
        )
        axes: Axes = (("token", target.tokens),)
        normalisation = "interference of other words taken off" + (
            ", 3 x 3 rank-Gaussian filter" if self.smooth else ""
        )
        return MapStack(
            maps.astype(np.float32), axes, layout, self.unit, normalisation=normalisation
        )

    def _map(
        self,
        layout: PromptLayout,
        seen: np.ndarray,
        at_words: np.ndarray,
        ids: Sequence[int],
        column: Sequence[int],
        which: int,
    ) -> np.ndarray:
        activation = seen[which]
        others = [i for i in range(which) if ids[i] != ids[which]]
        weights = at_words[others, column[which]]
        if len(others) and weights.sum() > 0:
            interference = weights @ seen[others] / weights.sum()
            square = float(interference @ interference)
            if square > 0:
                activation = np.maximum(
                    activation - (activation @ interference) / square * interference, 0
                )
        return filtered(activation, layout) if self.smooth else activation


def filtered(values: np.ndarray, layout: PromptLayout) -> np.ndarray:
    """Values of all vision tokens (V,), each view's filtered on its own grid."""
    result, before = np.empty_like(values), 0
    for grid in layout.grids:
        for view in grid.views:
            size = view.rows * view.columns
            for frame in range(view.frames):
                cells = slice(before + frame * size, before + (frame + 1) * size)
                part = values[cells].reshape(view.rows, view.columns)
                result[cells] = rank_gaussian(part).ravel()
            before += view.tokens
    return result


def rank_gaussian(values: np.ndarray, size: int = 3) -> np.ndarray:
    """The rank-Gaussian filter of a map (rows, columns); see `TokenActivation`."""
    around = size // 2
    # a side of one cell cannot be reflected
    padded = values
    for axis in (0, 1):
        width = [(around, around) if one == axis else (0, 0) for one in (0, 1)]
        mode: Literal["reflect", "edge"] = "reflect" if values.shape[axis] > around else "edge"
        padded = np.pad(padded, width, mode=mode)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size))
    ordered = np.sort(windows.reshape(*values.shape, -1), axis=-1)
    mean, spread = ordered.mean(-1), ordered.std(-1)
    cv = np.divide(spread, mean, out=np.zeros_like(mean), where=mean > 0)
    rank = np.arange(size * size) - size * size // 2
    # with cv 0 only the middle rank counts
    weight = np.exp(-(rank**2) / np.maximum(2 * cv[..., None] ** 2, 1e-12))
    smoothed: np.ndarray = (ordered * weight).sum(-1) / weight.sum(-1)
    return np.where(mean > 0, smoothed, 0)
