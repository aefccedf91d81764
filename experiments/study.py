"""One run of an experiment: the model, its samples with their tokens by role, and their passes.

`experiments.preparing` makes it. An experiment then goes over the samples as often as it needs
(`Study.prepared_cases`): images are opened again and nothing of a sample is kept in between.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sinkscope.capture.probes.base import Probe
from sinkscope.capture.probes.text_inputs import TextInputs
from sinkscope.capture.run import on_device
from sinkscope.capture.session import Session, attached
from sinkscope.experiments.bootstrap import Resampling
from sinkscope.experiments.controls import random_tokens
from sinkscope.experiments.samples import AnySample
from sinkscope.experiments.settings import StudySettings
from sinkscope.interventions.base import Intervention
from sinkscope.jobs.job import Progress, Stopped
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle
from sinkscope.sinks.validating.masking import read_answer


class ProgressWatch:
    """Reports progress and checks whether to stop, pass by pass."""

    def __init__(self, on_progress: Progress | None, stop: threading.Event | None) -> None:
        self.done, self.total = 0, 0
        self._tell, self.stop = on_progress, stop

    def step(self, text: str) -> None:
        """Report one finished step."""
        self.done += 1
        if self._tell is not None:
            self._tell(min(self.done, self.total), self.total, text)
        self.check()

    def check(self) -> None:
        """Raises `Stopped` if a stop was requested."""
        if self.stop is not None and self.stop.is_set():
            raise Stopped(self.done, self.total, "steps")


@dataclass(frozen=True)
class Case:
    """A sample with its tokens by role.

    Attributes:
        index: among those that are used, from 0.
        sample: images and prompt.
        groups: name -> rising positions, at least one of the sink and of the reference.
        others: rising positions of the ordinary tokens.
        length: of the prompt.
        first: the first query whose attention counts.
        answer: token ids; empty if the experiment uses none.
    """

    index: int
    sample: AnySample
    groups: dict[str, tuple[int, ...]]
    others: tuple[int, ...]
    length: int
    first: int
    answer: tuple[int, ...] = ()

    @property
    def positions(self) -> tuple[int, ...]:
        """All positions of the groups, rising, each once."""
        return tuple(sorted({p for positions in self.groups.values() for p in positions}))

    def rows(self, group: str) -> Tensor:
        """int64: where the group's tokens are among `positions`."""
        place = {position: index for index, position in enumerate(self.positions)}
        return torch.tensor([place[p] for p in self.groups[group]], dtype=torch.long)


@dataclass(frozen=True)
class Pass:
    """A sample's plain pass, and the inputs to repeat it with a change.

    Attributes:
        inputs: the prompt.
        session: what the probes saw.
        keywords: what the text model was called with.
        logs: float64 (T,): log-probability of each answer token; empty without an answer.
    """

    inputs: PromptInputs
    session: Session
    keywords: dict[str, Any]
    logs: Tensor


@dataclass(frozen=True)
class Study:
    """A model, its samples, and the settings of a study.

    Attributes:
        handle: the model; its lock is taken pass by pass.
        settings: what all experiments share.
        cases: the samples that can be used.
        names: of the groups; the first is the sink, the second the reference.
        dims, tau: sink dimensions and threshold; empty and None if unknown.
        source: where the samples come from, in words.
        notes: which samples were left out, and why.
        watch: progress and stop.
    """

    handle: ModelHandle
    settings: StudySettings
    cases: tuple[Case, ...]
    names: tuple[str, ...]
    dims: tuple[int, ...]
    tau: float | None
    source: str
    notes: tuple[str, ...]
    watch: ProgressWatch = field(repr=False)

    @property
    def sink(self) -> str:
        """Name of the group of sinks."""
        return self.names[0]

    @property
    def reference(self) -> str:
        """Name of the reference group; an experiment that needs one refuses studies without
        (`experiments.checks`)."""
        return self.names[1]

    @property
    def layers(self) -> int:
        """Decoder layers of the model."""
        return self.handle.info.layers

    @property
    def resampling(self) -> Resampling:
        """Draws of samples for intervals."""
        asked = self.settings
        return Resampling(len(self.cases), asked.bootstrap, asked.confidence, asked.seed)

    @property
    def sizes(self) -> dict[str, int]:
        """How many tokens each group has, in all samples."""
        return {n: sum(len(case.groups[n]) for case in self.cases) for n in self.names}

    def seed(self, case: Case, draw: int = 0) -> int:
        """The seed of a sample's draws: from seed and content, not from its index among the
        samples."""
        return (int(case.sample.fingerprint()[:12], 16) ^ self.settings.seed) + draw

    def random(self, case: Case) -> list[tuple[int, ...]]:
        """As many ordinary tokens as the sample has sinks, at random, one draw per control."""
        count = len(case.groups[self.sink])
        return [
            random_tokens(case.others, count, self.seed(case, draw + 1))
            for draw in range(self.settings.controls)
        ]

    def plan(self, passes: int) -> None:
        """Say how many passes a sample takes in all, after those of preparing."""
        self.watch.total = self.watch.done + passes * len(self.cases)

    def prepared_cases(self, text: str) -> Iterator[tuple[Case, PromptInputs]]:
        """All samples, prepared one by one."""
        for case in self.cases:
            self.watch.check()
            yield case, prepare_inputs(self.handle, case.sample)
            self.watch.step(f"{text}: {case.sample.id}")

    def forward_pass(
        self,
        case: Case,
        inputs: PromptInputs,
        probes: Sequence[Probe] = (),
        interventions: Sequence[Intervention] = (),
    ) -> Pass:
        """One pass of a sample, with its answer after it where it has one.

        Args:
            interventions: only without an answer.
        """
        with self.handle.lock:
            if case.answer:
                assert not interventions
                forced = read_answer(self.handle, inputs, case.answer, probes)
                logs = forced.log_probabilities.double()
                return Pass(inputs, forced.session, dict(forced.keywords), logs)
            call = TextInputs()
            with attached(self.handle, inputs, [call, *probes], interventions) as session:
                self.handle.model(
                    **on_device(inputs.tensors, self.handle.device),
                    use_cache=False,
                    logits_to_keep=1,
                )
            none = torch.zeros(0, dtype=torch.float64)
            return Pass(inputs, session, dict(session[call]), none)

    def repeat_pass(
        self,
        case: Case,
        plain: Pass,
        probes: Sequence[Probe],
        interventions: Sequence[Intervention],
    ) -> tuple[Session, Tensor]:
        """The text model's pass over the same embeddings, with a change; the vision tower does not
        run again.

        Returns:
            What the probes saw, and float64 (T,) log-probabilities of the answer tokens.
        """
        handle, answer = self.handle, case.answer
        more = max(0, len(answer) - 1)
        with (
            handle.lock,
            attached(handle, plain.inputs, probes, interventions, new_tokens=more) as session,
        ):
            states = handle.stack.language_model(**plain.keywords, use_cache=False)[0]
            if not answer:
                return session, torch.zeros(0, dtype=torch.float64)
            logits = handle.stack.output_head(states[:, -len(answer) :])[0]
        work = logits.to(torch.promote_types(logits.dtype, torch.float32))
        ids = torch.tensor(answer, device=work.device)[:, None]
        logs = torch.log_softmax(work, dim=-1).gather(1, ids)[:, 0].cpu().double()
        if not bool(torch.isfinite(logs).all()):
            raise ValueError(
                f"The model's output on {case.sample.id} is not a number; load the model in "
                "bfloat16 or float32."
            )
        return session, logs


def prepare_inputs(handle: ModelHandle, sample: AnySample) -> PromptInputs:
    """A sample as model inputs."""
    return handle.prepare(
        sample.open_images(), sample.prompt, sample.system, history=sample.history
    )
