"""Logit lens: what the residual stream at a vision token decodes to, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from sinkscope.capture.probes.base import Probe, Reader
from sinkscope.capture.trace import GenerationTrace
from sinkscope.jobs.job import Progress
from sinkscope.methods.base import Axes, MapStack, Needs, Target
from sinkscope.methods.passes import FromPasses
from sinkscope.methods.unembed import lacking, log_probabilities, normed, ranks
from sinkscope.models.run_info import RunInfo
from sinkscope.models.sites import Positions, SiteSelection
from sinkscope.models.stack import TextStack

if TYPE_CHECKING:
    from sinkscope.methods.passes import Passes


@dataclass(frozen=True)
class LogitLens(FromPasses):
    """The token's probability (or rank) if the output head is applied to a vision token's residual
    stream after each layer:

        p_lj(token) = softmax(W_U norm(x_lj))[token]

    It shows what a patch encodes, not what the answer read: a vision token comes before the
    question, so its map is the same for every question about the image. The model is not trained to
    predict there, and early layers use another basis than the output head.

    Attributes:
        show: probability, or the rank in the vocabulary (0 is the most probable).
    """

    show: Literal["probability", "rank"] = "probability"

    name = "logit_lens"
    source = "nostalgebraist 2020 (interpreting GPT: the logit lens); arXiv 2410.07149"
    needs: Needs = "forward"
    unit = "probability"

    def __post_init__(self) -> None:
        if self.show not in ("probability", "rank"):
            raise ValueError(f"show is {self.show!r}; allowed: probability, rank.")

    def lacking(self, stack: TextStack) -> str | None:
        return lacking(stack)

    def words(self, run: GenerationTrace) -> str:
        if self.show == "rank":
            return "rank of the token by the output head per patch, 0 for the most probable"
        return "probability of the token by the output head per patch"

    def explain(
        self,
        run: GenerationTrace,
        target: Target,
        session: Passes | None = None,
        progress: Progress | None = None,
    ) -> MapStack:
        assert session is not None
        session.tell(progress, 0, 1, "Reading vision tokens layer by layer")
        ids = tuple(session.answer[token] for token in target.tokens)
        lens = _Lens(session.handle.stack, session.vision_range(), ids, self.show)
        seen: dict[int, torch.Tensor] = session.read(lens)[lens]
        values = torch.stack([part.float().cpu() for part in seen.values()])  # (L, V, T)
        flat = values.permute(2, 0, 1).reshape(-1, run.layout.vision_tokens).numpy()
        axes: Axes = (("token", target.tokens), ("layer", tuple(seen)))
        unit = self.unit if self.show == "probability" else "rank"
        return MapStack(flat, axes, run.layout, unit)


@dataclass(frozen=True)
class _Lens(Probe):
    """`session[probe]` is layer -> (V, ids): the states themselves are not kept."""

    stack: TextStack
    positions: Positions
    ids: tuple[int, ...]
    show: str

    def begin(self, run: RunInfo) -> Reader:
        return _LensReader(self)


class _LensReader(Reader):
    def __init__(self, lens: _Lens) -> None:
        self.reads = (SiteSelection("block_out", None, lens.positions),)
        self._lens = lens
        self._kept: dict[int, torch.Tensor] = {}

    def see(self, site: str, layer: int, values: Any, positions: Sequence[int]) -> None:
        stack = self._lens.stack
        states = normed(stack, values[0].to(stack.unembedding.device))
        if self._lens.show == "rank":
            self._kept[layer] = ranks(stack, states, self._lens.ids)
        else:
            self._kept[layer] = log_probabilities(stack, states, self._lens.ids).exp()

    def result(self) -> dict[int, torch.Tensor]:
        return self._kept
