"""What a change does: to the sinks' attention in every layer, to phi, to the answer.

The arms of an experiment (plain, changed, controls) are measured on each sample in turn, in the
same arithmetic: the text model's pass over the same embeddings. A control's draws are averaged
within a sample before anything else is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sinkscope.capture.probes.base import Probe
from sinkscope.capture.probes.sink_scores import SinkScores
from sinkscope.capture.session import Session
from sinkscope.experiments.bootstrap import Interval
from sinkscope.experiments.probes import KeyAttention, on_host
from sinkscope.experiments.result import Chart, Series, Table, number, numbers
from sinkscope.experiments.streaming import Mean
from sinkscope.experiments.study import Case, Pass, Study
from sinkscope.experiments.verdict import Causal
from sinkscope.interventions.base import Intervention

PLAIN = "plain"


@dataclass(frozen=True)
class Effect:
    """One arm on one sample.

    Attributes:
        attention: float64 (G, L): mean over the group's tokens, their queries and heads; NaN if a
            group is empty or no query sees it.
        phi: float64 (G, L): the sink score at each layer's input, mean over the group's tokens;
            None without sink dimensions.
        logs: mean log-probability of the answer's tokens, nats; NaN without an answer.
    """

    attention: Tensor
    phi: Tensor | None
    logs: float


@dataclass
class Effects:
    """The arms of an experiment, sample by sample: a few numbers each.

    Attributes:
        study: whose groups they are of.
        arms: name -> one `Effect` per sample, in order.
        by_head: name -> attention (G, L, H), mean over samples.
    """

    study: Study
    arms: dict[str, list[Effect]] = field(default_factory=dict)
    by_head: dict[str, Mean] = field(default_factory=dict)

    def measure(
        self,
        arm: str,
        case: Case,
        plain: Pass,
        *draws: Sequence[Intervention],
        probes: Sequence[Probe] = (),
    ) -> list[Session]:
        """Pass a sample through with the changes of an arm; several draws are averaged.

        Args:
            arm: its name.
            case, plain: the sample and its plain pass.
            draws: what is changed; an empty list changes nothing.
            probes: additional probes.

        Returns:
            The sessions with the probes' results, one per draw.
        """
        effects, sessions, heads = [], [], []
        for changes in draws:
            attention, effect, session = self._one(case, plain, changes, probes)
            heads.append(attention)
            effects.append(effect)
            sessions.append(session)
        self.arms.setdefault(arm, []).append(_averaged(effects))
        self.by_head.setdefault(arm, Mean()).add(torch.stack(heads).mean(0))
        return sessions

    def _one(
        self, case: Case, plain: Pass, changes: Sequence[Intervention], more: Sequence[Probe]
    ) -> tuple[Tensor, Effect, Session]:
        self.study.watch.check()
        attention = KeyAttention(case.positions, case.first)
        scores = SinkScores(self.study.dims) if self.study.dims else None
        probes = [attention, *([scores] if scores is not None else []), *more]
        session, logs = self.study.repeat_pass(case, plain, probes, changes)
        phi = None
        if scores is not None:
            phi = self._grouped(case, on_host(session[scores].scores())[:, list(case.positions)])
        by_head = self._grouped(case, session[attention].mean())  # (G, L, H)
        log_probability = float(logs.mean()) if len(logs) else float("nan")
        return by_head, Effect(by_head.mean(-1), phi, log_probability), session

    def _grouped(self, case: Case, values: Tensor) -> Tensor:
        """(..., tokens) -> (G, ...): mean over each group's tokens."""
        rows = [case.rows(name) for name in self.study.names]
        empty = torch.full(values.shape[:-1], float("nan"), dtype=torch.float64)
        return torch.stack([values[..., r].mean(-1) if len(r) else empty for r in rows])

    def attention(self, arm: str) -> Tensor:
        """float64 (S, G, L)."""
        return torch.stack([effect.attention for effect in self.arms[arm]])

    def phi(self, arm: str) -> Tensor | None:
        """float64 (S, G, L), or None."""
        parts = [effect.phi for effect in self.arms[arm]]
        kept = [part for part in parts if part is not None]
        return torch.stack(kept) if kept else None

    def logs(self, arm: str) -> Tensor:
        """float64 (S,)."""
        return torch.tensor([effect.logs for effect in self.arms[arm]], dtype=torch.float64)

    def causal(self, arm: str, controls: Sequence[str], layers: range) -> Causal:
        """Condition A over some layers (`experiments.verdict`)."""
        sink = self.study.names.index(self.study.sink)
        reference = self.study.names.index(self.study.reference)

        def mean(of: str, group: int) -> Tensor:
            return self.attention(of)[:, group, layers.start : layers.stop].mean(1)

        plain, resampling = mean(PLAIN, sink), self.study.resampling
        excess = plain - mean(PLAIN, reference)

        def removed(of: str) -> Interval:
            return resampling.ratio(plain - mean(of, sink), excess)

        return Causal(
            resampling.mean(excess), removed(arm), {name: removed(name) for name in controls}
        )

    def table(self, layers: range) -> Table:
        """The effect of each arm, one row each: the sinks' attention over some layers, how much of
        the excess is gone, phi, and the answer's log-probability."""
        study, resampling = self.study, self.study.resampling
        sink = study.names.index(study.sink)
        span = slice(layers.start, layers.stop)
        rows = []
        arms = list(self.arms)
        shares = self.causal(PLAIN, arms, layers).controls
        for arm in arms:
            attention = resampling.mean(self.attention(arm)[:, sink, span].mean(1))
            change = resampling.mean(self.logs(arm) - self.logs(PLAIN))
            phi = self.phi(arm)
            scores = None if phi is None else resampling.mean(phi[:, sink, span].mean(1))
            rows.append(
                (
                    arm,
                    number(attention.value),
                    number(attention.low),
                    number(attention.high),
                    number(shares[arm].value),
                    number(shares[arm].low),
                    number(shares[arm].high),
                    None if scores is None else number(scores.value),
                    number(change.value),
                    number(change.low),
                    number(change.high),
                )
            )
        return Table(
            "effects",
            f"Attention to {study.sink}, layers {layers.start} to {layers.stop - 1}",
            (
                *("arm", "sink_attention", "sink_attention_low", "sink_attention_high"),
                *("removed", "removed_low", "removed_high", "phi"),
                *("log_probability_change", "log_probability_low", "log_probability_high"),
            ),
            tuple(rows),
            note=f"removed: share of the excess over {study.reference} that is gone; "
            "log-probability in nats per token of the answer.",
        )

    def charts(self) -> list[Chart]:
        """Attention by layer, phi by layer and the answer's log-probability, arm by arm."""
        study = self.study
        sink = study.names.index(study.sink)
        reference = study.names.index(study.reference)
        layers = tuple(range(study.layers))
        lines = [self._line(arm, arm, sink) for arm in self.arms]
        lines.append(self._line(PLAIN, f"{study.reference}, plain", reference, study.reference))
        charts = [
            Chart(
                "sink_attention",
                f"Attention to {study.sink}",
                "lines",
                layers,
                tuple(lines),
                y_label="attention",
                note="Mean over samples, heads and queries. Bands: standard deviation over heads.",
            )
        ]
        if study.dims:
            charts.append(
                Chart(
                    "phi",
                    f"Sink score phi of {study.sink}",
                    "lines",
                    layers,
                    tuple(self._phi_line(arm, sink) for arm in self.arms),
                    x_label="layer (at its input)",
                    y_label="phi, mean over samples",
                )
            )
        if bool(torch.isfinite(self.logs(PLAIN)).any()):
            changes = {
                arm: study.resampling.mean(self.logs(arm) - self.logs(PLAIN))
                for arm in self.arms
                if arm != PLAIN
            }
            charts.append(
                Chart(
                    "answer",
                    "Change of the answer's log-probability",
                    "bars",
                    tuple(changes),
                    (
                        Series(
                            "change",
                            numbers([one.value for one in changes.values()]),
                            numbers([one.low for one in changes.values()]),
                            numbers([one.high for one in changes.values()]),
                        ),
                    ),
                    x_label="",
                    y_label="nats per token",
                    note="Bars: bootstrap intervals over samples.",
                )
            )
        return charts

    def _line(self, arm: str, name: str, group: int, role: str = "") -> Series:
        by_head = self.by_head[arm].value()[group]  # (L, H)
        mean, deviation = by_head.mean(1), by_head.std(1, correction=0)
        return Series(
            name,
            numbers(mean.tolist()),
            numbers((mean - deviation).tolist()),
            numbers((mean + deviation).tolist()),
            role or arm,
        )

    def _phi_line(self, arm: str, group: int) -> Series:
        phi = self.phi(arm)
        assert phi is not None
        return Series(arm, numbers(phi[:, group].nanmean(0).tolist()), role=arm)


def _averaged(effects: Sequence[Effect]) -> Effect:
    phi = [effect.phi for effect in effects if effect.phi is not None]
    return Effect(
        torch.stack([effect.attention for effect in effects]).mean(0),
        torch.stack(phi).mean(0) if phi else None,
        sum(effect.logs for effect in effects) / len(effects),
    )
