"""One run of an experiment: the model, its samples with their tokens by role, and their passes.

`prepare_study` passes each sample through the model once, to detect its sinks and, where the
experiment looks at an answer, to fix one. An experiment then goes over the samples as often as it
needs (`Study.each`): images are opened again and nothing of a sample is kept between.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sinkscope.attention_extractor import generate
from sinkscope.capture.probes.base import Probe
from sinkscope.capture.probes.sink_scores import SinkScores
from sinkscope.capture.probes.text_inputs import TextInputs
from sinkscope.capture.run import on_device
from sinkscope.capture.session import Session, attached
from sinkscope.config import GenerationSettings
from sinkscope.experiments.bootstrap import Resampling
from sinkscope.experiments.probes import Received
from sinkscope.experiments.roles import (
    Flags,
    chosen_tokens,
    first_query,
    group_names,
    groups,
    sinks_of,
)
from sinkscope.experiments.samples import AnySample, have_images
from sinkscope.experiments.settings import StudySettings
from sinkscope.interventions.base import Intervention
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle
from sinkscope.sinks.masking import answer_tokens, read_answer
from sinkscope.sinks.progress import Progress, Stopped
from sinkscope.sinks.received import choose


class Watch:
    """Tells progress, and looks whether to stop, pass by pass."""

    def __init__(self, on_progress: Progress | None, stop: threading.Event | None) -> None:
        self.done, self.total = 0, 0
        self._tell, self.stop = on_progress, stop

    def step(self, text: str) -> None:
        """One more piece of work is done."""
        self.done += 1
        if self._tell is not None:
            self._tell(min(self.done, self.total), self.total, text)
        self.check()

    def check(self) -> None:
        """Raises `Stopped` where the run was asked to stop."""
        if self.stop is not None and self.stop.is_set():
            raise Stopped(self.done, self.total)


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
        answer: token ids; empty where the experiment looks at none.
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
        return tuple(sorted({p for own in self.groups.values() for p in own}))

    def rows(self, group: str) -> Tensor:
        """int64: where the group's tokens are among `positions`."""
        place = {position: index for index, position in enumerate(self.positions)}
        return torch.tensor([place[p] for p in self.groups[group]], dtype=torch.long)


@dataclass(frozen=True)
class Pass:
    """A sample's plain pass, and what it takes to make it again with a change.

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
    """A model, samples, and what is asked of them.

    Attributes:
        handle: the model; its lock is taken pass by pass.
        settings: what all experiments share.
        cases: the samples that can be used.
        names: of the groups; the first is the sink, the second the reference.
        dims, tau: sink dimensions and threshold; empty and None where none are known.
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
    watch: Watch = field(repr=False)

    @property
    def sink(self) -> str:
        """Name of the group of sinks."""
        return self.names[0]

    @property
    def reference(self) -> str:
        """Name of the group that the sinks are held against.

        Raises:
            ValueError: there is no second group.
        """
        if len(self.names) < 2:
            raise ValueError(
                f"tokens has {self.names[0]} alone; this experiment holds the sinks against a "
                "second group: give two or more, such as sinks,ordinary or 0,1,8."
            )
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
        """Of a sample's draws: by seed and content, not by its place among the samples."""
        return (int(case.sample.fingerprint()[:12], 16) ^ self.settings.seed) + draw

    def check_layer(self, layer: int, after: bool = False) -> None:
        """Refuse a layer that the model does not have.

        Args:
            layer: index.
            after: there must be a layer behind it.
        """
        last = self.layers - (2 if after else 1)
        if not 0 <= layer <= last:
            why = ", the last but one: there must be a layer behind it to see an effect in"
            raise ValueError(
                f"layer is {layer}; {self.handle.info.id} has layers 0 to {self.layers - 1}; "
                f"allowed: 0 to {last}{why if after else ''}."
            )

    def plan(self, passes: int) -> None:
        """Say how many passes a sample takes in all, after those of preparing."""
        self.watch.total = self.watch.done + passes * len(self.cases)

    def each(self, text: str) -> Iterator[tuple[Case, PromptInputs]]:
        """All samples, made ready one by one."""
        for case in self.cases:
            self.watch.check()
            yield case, _inputs(self.handle, case.sample)
            self.watch.step(f"{text}: {case.sample.id}")

    def passed(
        self,
        case: Case,
        inputs: PromptInputs,
        probes: Sequence[Probe] = (),
        interventions: Sequence[Intervention] = (),
    ) -> Pass:
        """One pass of a sample, with its answer behind it where it has one.

        Args:
            interventions: only without an answer.
        """
        with self.handle.lock:
            if case.answer:
                assert not interventions
                told = read_answer(self.handle, inputs, case.answer, probes)
                logs = told.log_probabilities.double()
                return Pass(inputs, told.session, dict(told.keywords), logs)
            call = TextInputs()
            with attached(self.handle, inputs, [call, *probes], interventions) as session:
                self.handle.model(
                    **on_device(inputs.tensors, self.handle.device),
                    use_cache=False,
                    logits_to_keep=1,
                )
            none = torch.zeros(0, dtype=torch.float64)
            return Pass(inputs, session, dict(session[call]), none)

    def again(
        self,
        case: Case,
        plain: Pass,
        probes: Sequence[Probe],
        interventions: Sequence[Intervention],
    ) -> tuple[Session, Tensor]:
        """The text model's pass over the same embeddings, with a change; the vision tower's work
        is not done again.

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


def prepare_study(
    handle: ModelHandle,
    samples: Sequence[AnySample],
    settings: StudySettings,
    *,
    source: str = "the given samples",
    answers: bool = False,
    least: int = 1,
    watch: Watch | None = None,
) -> Study:
    """Detect each sample's sinks, and fix its answer.

    Args:
        handle: a loaded model; do not hold its lock.
        samples: with images, or without; not both.
        settings: what all experiments share.
        source: where the samples come from, in words.
        answers: whether the experiment looks at an answer.
        least: samples that it needs.
        watch: progress and stop.

    Raises:
        ValueError: too few samples, no sinks in them, a role, position or dimension that does not
            exist, or images for a model that sees none.
        Stopped: it was asked to stop.
    """
    watch = watch or Watch(None, None)
    images = have_images(samples)
    sees = handle.family.sees_images
    if images and not sees:
        raise ValueError(
            f"{handle.info.id} is a text model and sees no images; give prompts, a text file with "
            "one a line."
        )
    if sees and not images:
        raise ValueError(
            f"{handle.info.id} is asked about images; give a folder of images or a file of "
            "questions, not prompts alone."
        )
    if len(samples) < least:
        raise ValueError(
            f"There is {len(samples)} sample; this experiment's spread over samples needs "
            f"{least} or more."
        )
    tokens = chosen_tokens(settings, images)
    dims, tau = _dims(handle, settings)
    detects = images and any(token in ("sinks", "ordinary") for token in tokens)
    by = _detector(handle, settings, dims, tau) if detects else ""
    watch.total = len(samples)
    names, cases, without, notes = group_names(tokens), [], [], []
    for sample in samples:
        watch.check()
        inputs = _inputs(handle, sample)
        flags = _flags(handle, inputs, settings, by, dims, tau) if detects else None
        mixed = int(sample.fingerprint()[:12], 16) ^ settings.seed
        found, others = groups(tokens, inputs.layout, flags, mixed)
        if all(found[name] for name in names[:2]):
            answer = _answer(handle, sample, inputs, settings, watch) if answers else ()
            first = first_query(inputs.layout)
            cases.append(
                Case(len(cases), sample, found, others, inputs.layout.length, first, answer)
            )
        else:
            without.append(sample.id)
        watch.step(f"Looking for sinks: {sample.id}")
    if not cases:
        raise ValueError(_none(handle, names, by, dims, tau, len(samples), settings))
    if without:
        some = ", ".join(without[:3]) + (", ..." if len(without) > 3 else "")
        notes.append(
            f"{len(without)} of {len(samples)} samples have no {names[0]} or nothing to hold them "
            f"against and were left out: {some}."
        )
    if len(cases) < least:
        raise ValueError(
            f"{len(cases)} of {len(samples)} samples can be used; this experiment's spread over "
            f"samples needs {least} or more. {' '.join(notes)}"
        )
    return Study(handle, settings, tuple(cases), names, dims, tau, source, tuple(notes), watch)


def _inputs(handle: ModelHandle, sample: AnySample) -> PromptInputs:
    return handle.prepare(
        sample.open_images(), sample.prompt, sample.system, history=sample.history
    )


def _dims(handle: ModelHandle, settings: StudySettings) -> tuple[tuple[int, ...], float | None]:
    """Sink dimensions and threshold."""
    size = handle.info.hidden_size
    if settings.dims is not None and max(settings.dims) >= size:
        raise ValueError(
            f"dims is {settings.dims}; {handle.info.id} has dimensions 0 to {size - 1}."
        )
    profile = handle.profile
    dims = settings.dims or (profile.dims if profile is not None else ())
    tau = settings.tau
    if tau is None and profile is not None and settings.dims is None:
        tau = profile.tau
    return dims, tau


def _detector(
    handle: ModelHandle, settings: StudySettings, dims: tuple[int, ...], tau: float | None
) -> str:
    """profile or attention.

    Raises:
        ValueError: the profile is asked for and there is none.
    """
    known = bool(dims) and tau is not None
    if settings.sinks_by == "profile" and not known:
        raise ValueError(
            f"sinks_by is 'profile', but no sink dimensions with a threshold are known of "
            f"{handle.info.id}; give dims and tau, find a profile (sinkscope sinks find), or "
            "choose attention."
        )
    if settings.sinks_by == "auto":
        return "profile" if known else "attention"
    return settings.sinks_by


def _flags(
    handle: ModelHandle,
    inputs: PromptInputs,
    settings: StudySettings,
    by: str,
    dims: tuple[int, ...],
    tau: float | None,
) -> Flags:
    """Which vision tokens are sinks, from one plain pass."""
    probe: Probe = SinkScores(dims) if by == "profile" else Received()
    with handle.lock, attached(handle, inputs, [probe]) as session:
        handle.model(**on_device(inputs.tensors, handle.device), use_cache=False, logits_to_keep=1)
        vision = inputs.layout.vision_positions()
        if by == "profile":
            scores = session[probe].scores()
            phi = torch.stack([scores[layer].cpu()[vision] for layer in sorted(scores)])
            return sinks_of(phi > tau)
        tokens = tuple(grid.tokens for grid in inputs.layout.grids)
        chosen = [
            choose(layer[0].cpu()[vision], tokens, settings.top_percent, settings.min_ratio)
            for _, layer in sorted(session[probe].items())
        ]
    # A token that is neither is ordinary in no layer.
    sinks = sinks_of(torch.stack([choice.sinks for choice in chosen])).sinks
    ordinary = torch.stack([choice.ordinary for choice in chosen]).all(0)
    return Flags(sinks, ordinary & ~sinks)


def _answer(
    handle: ModelHandle,
    sample: AnySample,
    inputs: PromptInputs,
    settings: StudySettings,
    watch: Watch,
) -> tuple[int, ...]:
    """The answer's token ids without the one that ends it."""
    if sample.answer and settings.answers == "given":
        ids = answer_tokens(handle, sample.answer, settings.answer_tokens)
        if ids:
            return ids
    short = GenerationSettings(
        max_new_tokens=settings.answer_tokens, layers=(0,), reduce_heads=True
    )
    trace = generate(handle, inputs, short, stop=watch.stop)
    watch.check()
    told = tuple(token.id for token in trace.tokens)
    ended = trace.finish == "end" and len(told) > 1
    return told[:-1] if ended else told


def _none(
    handle: ModelHandle,
    names: Sequence[str],
    by: str,
    dims: tuple[int, ...],
    tau: float | None,
    samples: int,
    settings: StudySettings,
) -> str:
    """Why no sample can be used."""
    if names[0] != "sinks":
        return (
            f"None of the {samples} samples has both {' and '.join(names[:2])}; choose other "
            "tokens."
        )
    why = f"no vision token has phi > {tau:g} on dims {dims}" if by == "profile" else ""
    why = why or f"no vision token gets {settings.min_ratio:g} times the median attention"
    return (
        f"No sinks in these {samples} samples: {why} in half of the layers of "
        f"{handle.info.id}. There are the tokens first, last, or positions such as 0,1,8; "
        "or lower the threshold (tau, min_ratio)."
    )
