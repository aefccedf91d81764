"""The available methods, and running one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sinkscope.attention_processor import PatchMap, map_label
from sinkscope.capture.trace import GenerationTrace
from sinkscope.config import Reduce
from sinkscope.jobs.job import Progress
from sinkscope.methods.agcam import AGCAM
from sinkscope.methods.attention import Attention
from sinkscope.methods.base import MapStack, Method, Target, rows_of, target_of
from sinkscope.methods.chefer import Chefer
from sinkscope.methods.gradient_attention import GradientAttention
from sinkscope.methods.localising import LocalisingHeads
from sinkscope.methods.logit_lens import LogitLens
from sinkscope.methods.occlusion import Occlusion
from sinkscope.methods.region_search import RegionSearch
from sinkscope.methods.relative import Relative
from sinkscope.methods.rollout import Rollout
from sinkscope.methods.tam import TokenActivation
from sinkscope.methods.value_weighted import ValueWeighted
from sinkscope.methods.var import VarAttention
from sinkscope.methods.without_sinks import WithoutSinks
from sinkscope.setting.heads import Heads

if TYPE_CHECKING:
    from sinkscope.methods.base import Session

# A method is one file and one row here. Page, command line and API list them in this order.
METHODS: tuple[Method, ...] = (
    Attention(),
    Relative(),
    WithoutSinks(),
    VarAttention(),
    LocalisingHeads(),
    Rollout(),
    ValueWeighted(),
    GradientAttention(),
    Chefer(),
    AGCAM(),
    TokenActivation(),
    LogitLens(),
    Occlusion("edges"),
    Occlusion("pixels"),
    RegionSearch(),
)


@dataclass(frozen=True)
class MethodEntry:
    """A method and whether one run can provide it.

    Attributes:
        method: the method.
        why_not: why this run cannot provide it; None if it can.
    """

    method: Method
    why_not: str | None


def listed(
    run: GenerationTrace, methods: Sequence[Method] = METHODS, *, passes: bool = True
) -> list[MethodEntry]:
    """All methods, each with its availability for this run.

    Args:
        run: the run.
        methods: the methods to check.
        passes: whether forward passes of the run's model are possible; otherwise methods that need
            them are unavailable.
    """
    entries = []
    for method in methods:
        why = method.availability(run)
        if why is None and not passes and (needs := method.needs_for(run)) != "trace":
            why = f"it needs {needs} passes of the model, and there is only the run"
        entries.append(MethodEntry(method, why))
    return entries


def method_of(wanted: str | Method, methods: Sequence[Method] = METHODS) -> Method:
    """A method by its name; `without-sinks` and `without_sinks` are the same.

    Raises:
        ValueError: there is no method of that name; the text lists the names.
    """
    if not isinstance(wanted, str):
        return wanted
    for method in methods:
        if method.name == wanted.replace("-", "_"):
            return method
    raise ValueError(
        f"method is {wanted!r}; allowed: {', '.join(method.name for method in methods)}."
    )


def explain(
    run: GenerationTrace,
    target: int | Sequence[int] | str | Target,
    method: str | Method = "attention",
    *,
    session: Session | None = None,
    progress: Progress | None = None,
    methods: Sequence[Method] = METHODS,
) -> MapStack:
    """The maps that a method gives for some tokens of a run.

    Args:
        run: the run.
        target: a token, several, "answer" for all of them, or `Target(tokens, "prompt")`.
        method: by name, or your own method.
        session: forward passes of the run's model, for a method that needs them.
        progress: called with steps done, all steps and the current step, if the method has several.
        methods: the methods among which the name is searched.

    Raises:
        ValueError: no such token or method, or one that this run cannot provide; the text says why.
    """
    chosen, resolved = method_of(method, methods), target_of(run, target)
    why_not = chosen.availability(run)
    if why_not is not None:
        raise ValueError(f"method is {chosen.name!r}, which is not possible here: {why_not}.")
    needs = chosen.needs_for(run)
    if needs != "trace" and session is None:
        raise ValueError(
            f"method is {chosen.name!r}, which needs {needs} passes of the model: give it a "
            "session (methods.passes.passes_of)."
        )
    refusal = chosen.refusal(run, resolved, session)
    if refusal is not None:
        raise ValueError(f"method is {chosen.name!r}, which is not possible here: {refusal}.")
    return chosen.explain(run, resolved, session, progress)


def explain_map(
    run: GenerationTrace,
    target: int | Sequence[int] | str | Target,
    method: str | Method = "attention",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    reduce: Reduce = "mean",
    *,
    image: int = 0,
    session: Session | None = None,
    methods: Sequence[Method] = METHODS,
    pairs: Heads | None = None,
) -> PatchMap:
    """One map of a method on one image: `explain` and `MapStack.map` in one call.

    Args:
        run, target, method, session, methods: as for `explain`.
        layers, heads, reduce, image, pairs: as for `MapStack.map`.

    Raises:
        ValueError: as `explain` and `MapStack.map`.
    """
    target = target_of(run, target)
    stack = explain(run, target, method, session=session, methods=methods)
    label = map_label(rows_of(run, target.source), target.tokens, layers, heads, reduce, pairs)
    return stack.map(layers, heads, reduce, image=image, label=label, pairs=pairs)
