"""Attaching to a run: probes that read, interventions that change, removed at the end.

    rows, scores = Rows(layers=(3,)), SinkScores(dims, tau)
    var = VAR((settings,))
    with attached(handle, inputs, probes=[rows, scores], interventions=[var]) as session:
        handle.model.generate(**tensors)        # or any forward pass
    session[rows], session[scores], session[var]

Order: at each site all interventions act, in the order listed, and then all probes read. In
attention, masks are applied first, then rows are changed, and probes see the changed rows. A site
without probes and interventions has no hook, and with nothing attached the model is plain SDPA bit
for bit. Everything is removed when the `with` block ends, also by an exception.

The handle's lock must be held around a session; two on one model at a time are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sinkscope.capture.probes.base import Probe, Reader
from sinkscope.interventions.base import ActiveIntervention, Intervention, overrides
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle
from sinkscope.models.plan import PLAN_KEY, ForwardPlan, LayerPlan, RowChange, SiteReader
from sinkscope.models.run_info import RunInfo, Step
from sinkscope.models.sites import (
    MODULE_SITES,
    NO_END,
    NO_LAYER,
    WHOLE_MODEL,
    HookPoint,
    SiteSelection,
    put,
    take,
)
from sinkscope.models.stack import TextStack

if TYPE_CHECKING:
    from sinkscope.capture.prefix import BatchPrefix, Prefix


class Session:
    """What is attached to a run. `session[probe]` and `session[intervention]` are their results, by
    the object that was given; they can be read inside the `with` and after it.

    Attributes:
        run: what the probes and interventions were given.
        acting: what acts, in order.
        row_changes: layer -> what changes its rows, in order.
    """

    def __init__(
        self,
        run: RunInfo,
        readers: Sequence[tuple[Probe, Reader]],
        acting: Sequence[tuple[Intervention, ActiveIntervention]],
    ) -> None:
        self.run = run
        self.acting = tuple(active for _, active in acting)
        self.row_changes: dict[int, list[RowChange]] = {}
        self._parts: list[tuple[object, Reader | ActiveIntervention]] = [*readers, *acting]

    def __getitem__(self, part: Probe | Intervention) -> Any:
        for given, active in self._parts:
            if given is part:
                return active.result()
        raise KeyError(f"{part!r} is not attached to this session; give the object itself.")


@contextmanager
def attached(
    handle: ModelHandle,
    inputs: PromptInputs | Sequence[PromptInputs],
    probes: Sequence[Probe] = (),
    interventions: Sequence[Intervention] = (),
    *,
    batch: int = 1,
    new_tokens: int = 0,
    prefix: Prefix | BatchPrefix | None = None,
    gradients: bool = False,
    room: int = 0,
    step: Step | None = None,
) -> Iterator[Session]:
    """Attach probes and interventions to every forward pass of the model inside the `with`.

    Passes count their positions from the key/value cache they are given: one without a cache begins
    at position 0 again.

    Args:
        handle: a loaded model; its lock must be held.
        inputs: the prompt that passes through it; or several, one per batch row, padded on the left
            to the length of the longest.
        probes: what to read.
        interventions: what to change, in order.
        batch: how many rows of one prompt pass at once.
        new_tokens: maximum number of tokens after the prompt.
        prefix: the positions that a run continues from, if any.
        gradients: record what autograd needs, else nothing is recorded (`torch.no_grad`). What
            probes see then is part of the graph: the model's output can be differentiated with
            respect to it.
        room: capacity of the cache in positions, if it is fixed.
        step: the counter of positions, instead of one made here.

    Raises:
        ValueError: a site, layer or position that the model does not have, or a part that does not
            fit the model or the prompt; or, inside the `with`, a way of generating that cannot be
            captured.
    """
    prompts = [inputs] * batch if isinstance(inputs, PromptInputs) else list(inputs)
    whole = max(prompt.layout.length for prompt in prompts)
    if prefix is not None and prefix.whole is not None:
        whole = prefix.whole
    start = 0 if prefix is None else prefix.length
    step = step or Step()
    step.start = start
    run = RunInfo(
        model=handle.info,
        layouts=tuple(prompt.layout for prompt in prompts),
        length=whole,
        new_tokens=new_tokens,
        device=handle.device,
        start=start,
        known_dims=() if prefix is None else prefix.dims,
        known={} if prefix is None else prefix.scores,
        step=step,
        columns=None if prefix is None else prefix.columns,
        room=room,
    )
    longest, last = handle.stack.longest, whole + max(0, new_tokens - 1)
    if longest is not None and last > longest:
        raise ValueError(
            f"Prompt and answer may take {last} positions, but {handle.info.id} has learned "
            f"{longest}; give a shorter prompt, or ask for fewer new tokens (max_new_tokens)."
        )
    readers = [(probe, probe.begin(run)) for probe in probes]
    acting = [(intervention, intervention.begin(run)) for intervention in interventions]
    session = Session(run, readers, acting)
    wiring = _Wiring(handle.stack, run, gradients)
    for _, one in acting:
        wiring.add_changes(one)
    for _, one in acting:
        wiring.add_readers(one)
    for _, reader in readers:
        wiring.add_readers(reader)
    session.row_changes = wiring.row_changes()
    with ExitStack() as undo:
        undo.enter_context(torch.set_grad_enabled(gradients))
        wiring.hook_in(undo)
        yield session


@dataclass
class _SiteHook:
    """One module's hook: its interventions and its readers."""

    name: str
    layer: int
    point: HookPoint
    edits: list[tuple[SiteSelection, ActiveIntervention]]
    reads: list[tuple[SiteSelection, SiteReader]]


class _Wiring:
    """Turns the requests of a session's parts into a forward plan and hooks."""

    def __init__(self, stack: TextStack, run: RunInfo, gradients: bool) -> None:
        self._stack, self._run = stack, run
        self._plan = ForwardPlan({}, run.step, run.length, run.batch, gradients)
        self._sites: dict[tuple[str, int], _SiteHook] = {}
        self._logits: list[tuple[SiteSelection, SiteReader]] = []
        self._inputs: list[tuple[SiteSelection, SiteReader]] = []
        self._anything = False

    def add_changes(self, acting: ActiveIntervention) -> None:
        """Append an intervention."""
        for at in getattr(acting, "edits", ()):
            for layer in self._layers(at.layers, at.site):
                if at.site not in MODULE_SITES:
                    raise ValueError(
                        f"site is {at.site!r}, which can be read and not edited; allowed: "
                        f"{', '.join(MODULE_SITES)}."
                    )
                self._site(at.site, layer).edits.append((at, acting))
        layers = self._layers(getattr(acting, "layers", None), "rows")
        for layer in layers if overrides(acting, "rows") else ():
            plan = self._layer(layer)
            change = _InRange(acting, self._range(acting))
            plan.fast = acting if overrides(acting, "correct") and not plan.changes else None
            plan.changes.append(change)
        for layer in layers if overrides(acting, "mask") else ():
            self._layer(layer).masks.append(acting)

    def add_readers(self, looker: ActiveIntervention | Reader) -> None:
        """Add a reader: a probe, or an intervention that reads."""
        for at in getattr(looker, "reads", ()):
            if at.site in WHOLE_MODEL:
                (self._logits if at.site == "logits" else self._inputs).append((at, looker))
                self._anything = True
                continue
            for layer in self._layers(at.layers, at.site):
                if at.site == "rows":
                    self._layer(layer).rows.append((at, looker))
                elif at.site == "queries_keys":
                    self._layer(layer).keys.append((at, looker))
                else:
                    self._site(at.site, layer).reads.append((at, looker))

    def row_changes(self) -> dict[int, list[RowChange]]:
        """layer -> what changes its rows, in order."""
        return {
            n: layer_plan.changes
            for n, layer_plan in self._plan.layers.items()
            if layer_plan.changes
        }

    def hook_in(self, undo: ExitStack) -> None:
        """Register the hooks, to be removed by `undo`."""
        if not self._anything:
            return
        model = self._stack.language_model
        undo.callback(model.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
        for site in self._sites.values():
            module = site.point.module
            if site.point.side == "input":
                hook = module.register_forward_pre_hook(self._at_input(site), with_kwargs=True)
            else:
                hook = module.register_forward_hook(self._at_output(site))
            undo.callback(hook.remove)
        if self._logits:
            head = self._stack.output_head
            undo.callback(head.register_forward_hook(self._at_logits).remove)

    def _begin(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before each pass of the text model: advance the step, pass the plan on."""
        if kwargs.get(PLAN_KEY) is not None:
            raise RuntimeError("Another session is attached to this model; leave it first.")
        size, queries = _sizes(args, kwargs)
        self._plan.begin_forward(queries, size, _passed(kwargs.get("past_key_values")))
        step = self._run.step
        for at, looker in self._inputs:
            given = dict(kwargs) if not args else {"input_ids": args[0], **kwargs}
            looker.see(at.site, NO_LAYER, given, range(step.start, step.start + queries))
        return args, {**kwargs, PLAN_KEY: self._plan}

    def _at_logits(self, module: nn.Module, args: tuple[Any, ...], logits: Tensor) -> None:
        stop = self._run.step.start + self._run.step.length
        first, count = stop - logits.shape[1], logits.shape[1]
        for at, looker in self._logits:
            if positions := at.positions_in(first, count):
                looker.see(at.site, NO_LAYER, take(logits, positions, first), positions)

    def _at_input(self, site: _SiteHook) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given = args[0] if args else kwargs["hidden_states"]
            new = self._passing(site, given)
            if new is given:
                return None
            if args:
                return (new, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": new}

        return hook

    def _at_output(self, site: _SiteHook) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            given = output[0] if isinstance(output, tuple) else output
            new = self._passing(site, given)
            if new is given:
                return None
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return hook

    def _passing(self, site: _SiteHook, given: Tensor) -> Tensor:
        """Change, show and return the values of a site in the current pass; `given` itself if
        unchanged."""
        step = self._run.step
        values = whole = site.point.values(given)
        seen = False
        for at, acting in site.edits:
            if positions := at.positions_in(step.start, step.length):
                part = take(values, positions, step.start)
                new = acting.edit(site.name, site.layer, part, positions)
                if new.shape != part.shape:
                    raise ValueError(
                        f"{type(acting).__name__} made {tuple(new.shape)} of {site.name} "
                        f"{tuple(part.shape)} in layer {site.layer}; the shape must stay."
                    )
                values = put(values, positions, step.start, new.to(part.dtype))
        for at, looker in site.reads:
            if positions := at.positions_in(step.start, step.length):
                part = take(values, positions, step.start)
                if self._plan.gradients:
                    if not part.requires_grad:
                        part = part.detach().requires_grad_()
                    # Readers must see the tensor that the model uses, or nothing depends on it.
                    values = put(values, positions, step.start, part)
                looker.see(site.name, site.layer, part, positions)
                seen = True
        if values is whole and (site.point.heads is None or not (seen and self._plan.gradients)):
            return given  # otherwise readers would see a view that nothing depends on
        return site.point.replaced(given, values)

    def _layers(self, layers: Sequence[int] | None, site: str) -> Sequence[int]:
        count = len(self._stack.layers)
        wrong = [layer for layer in layers or () if not 0 <= layer < count]
        if wrong:
            raise ValueError(
                f"layers has {wrong} at {site}; this model has layers 0 to {count - 1}."
            )
        return range(count) if layers is None else layers

    def _layer(self, layer: int) -> LayerPlan:
        self._anything = True
        return self._plan.layers.setdefault(layer, LayerPlan())

    def _site(self, name: str, layer: int) -> _SiteHook:
        self._anything = True
        if (name, layer) not in self._sites:
            point = self._stack.point(name, layer)
            self._sites[name, layer] = _SiteHook(name, layer, point, [], [])
        return self._sites[name, layer]

    def _range(self, acting: ActiveIntervention) -> range:
        """The queries whose rows an intervention may change."""
        given: range | None = getattr(acting, "row_positions", None)
        return range(self._run.after_image, NO_END) if given is None else given


@dataclass(frozen=True)
class _InRange:
    """An intervention on rows, with its range of queries."""

    acting: ActiveIntervention
    row_positions: range

    def rows(self, layer: int, rows: Tensor, first_position: int) -> Tensor:
        new = self.acting.rows(layer, rows, first_position)
        if new.shape != rows.shape:
            raise ValueError(
                f"{type(self.acting).__name__} made {tuple(new.shape)} of rows "
                f"{tuple(rows.shape)} in layer {layer}; the shape must stay."
            )
        return new


def _sizes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int]:
    """Batch rows and positions of a pass, from the arguments of the text model
    (`models.stack.TextStack.language_model`)."""
    embeds = kwargs.get("inputs_embeds")
    given = embeds if embeds is not None else kwargs.get("input_ids", args[0] if args else None)
    if given is None:
        raise RuntimeError(
            "The text model was called with neither inputs_embeds nor input_ids; its family "
            "adapter names the wrong module as language_model."
        )
    return int(given.shape[0]), int(given.shape[1])


def _passed(cache: Any) -> int | None:
    """How many positions a cache holds; None if only the device knows (a static cache)."""
    if cache is None:
        return 0
    length = cache.get_seq_length()
    return length if isinstance(length, int) else None
