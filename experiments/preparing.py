"""Preparing a study: one pass of each sample that detects its sinks, and an answer to measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from sinkscope.attention_extractor import generate
from sinkscope.capture.probes.base import Probe
from sinkscope.capture.probes.sink_scores import SinkScores
from sinkscope.capture.run import on_device
from sinkscope.capture.session import attached
from sinkscope.config import GenerationSettings
from sinkscope.experiments.probes import Received, on_host
from sinkscope.experiments.roles import (
    Flags,
    chosen_tokens,
    first_query,
    group_names,
    groups,
    sinks_of,
)
from sinkscope.experiments.samples import AnySample, have_images
from sinkscope.experiments.settings import StudySettings, Token
from sinkscope.experiments.study import Case, ProgressWatch, Study, prepare_inputs
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle
from sinkscope.sinks.received import choose
from sinkscope.sinks.validating.masking import answer_tokens
from sinkscope.utils import number_of


def prepare_study(
    handle: ModelHandle,
    samples: Sequence[AnySample],
    settings: StudySettings,
    *,
    source: str = "the given samples",
    answers: bool = False,
    ordinary: Literal["", "all", "controls"] = "",
    least: int = 1,
    watch: ProgressWatch | None = None,
) -> Study:
    """Detect each sample's sinks, and fix its answer.

    Args:
        handle: a loaded model; do not hold its lock.
        samples: with images, or without; not both.
        settings: what all experiments share.
        source: where the samples come from, in words.
        answers: whether the experiment looks at an answer.
        ordinary: see `catalogue.Experiment`. If they count, detected sinks are excluded from the
            ordinary tokens, also in a study that names only positions; and if controls are drawn
            from them, samples with fewer of them than sinks are left out.
        least: samples that it needs.
        watch: progress and stop.

    Raises:
        ValueError: too few samples, no sinks in them, a role, position or dimension that does not
            exist, or images for a text model.
        Stopped: `stop` was set.
    """
    watch = watch or ProgressWatch(None, None)
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
            "questions, not only prompts."
        )
    if len(samples) < least:
        raise ValueError(
            f"There is {len(samples)} sample; this experiment's spread over samples needs "
            f"{least} or more."
        )
    tokens = chosen_tokens(settings, images)
    dims, tau = _dims(handle, settings)
    roles = any(token in ("sinks", "ordinary") for token in tokens)
    detects = images and (roles or ordinary != "")
    by = _detector(handle, settings, dims, tau) if detects else ""
    watch.total = len(samples)
    names = group_names(tokens)
    cases: list[Case] = []
    left = _SkippedSamples(len(samples), names)
    notes: list[str] = []
    kept_out = 0
    _check_positions(handle, samples, tokens)
    for sample in samples:
        watch.check()
        inputs = prepare_inputs(handle, sample)
        flags = _flags(handle, inputs, settings, by, dims, tau) if detects else None
        mixed = int(sample.fingerprint()[:12], 16) ^ settings.seed
        token_groups, others = groups(tokens, inputs.layout, flags, mixed)
        room = ordinary != "controls" or len(others) >= len(token_groups[names[0]])
        if not all(token_groups[name] for name in names[:2]):
            left.without.append(sample.id)
        elif not room:
            left.narrow.append(sample.id)
        else:
            if flags is not None and not roles:
                kept_out += int(flags.sinks.sum())
            answer = _answer(handle, sample, inputs, settings, watch) if answers else ()
            first = first_query(inputs.layout)
            cases.append(
                Case(len(cases), sample, token_groups, others, inputs.layout.length, first, answer)
            )
        watch.step(f"Looking for sinks: {sample.id}")
    if not cases and left.narrow:
        raise ValueError(
            f"No sample can be used: {' '.join(left.notes())} Name fewer tokens as the sink, or "
            "give samples with more tokens."
        )
    if not cases:
        raise ValueError(_none(handle, names, by, dims, tau, len(samples), settings))
    notes += left.notes()
    if detects and not roles:
        how = "phi by the profile" if by == "profile" else "the attention they get"
        notes.append(
            f"Vision tokens that are sinks by {how} ({kept_out} in all) are kept out of the "
            "ordinary tokens."
        )
    if len(cases) < least:
        raise ValueError(
            f"{len(cases)} of {number_of(len(samples), 'sample')} can be used; this experiment's "
            f"spread over samples needs {least} or more. {' '.join(notes)}"
        )
    return Study(handle, settings, tuple(cases), names, dims, tau, source, tuple(notes), watch)


@dataclass
class _SkippedSamples:
    """Samples that cannot be used, by reason."""

    samples: int
    names: tuple[str, ...]
    without: list[str] = field(default_factory=list)
    narrow: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """In sentences."""
        lines = []
        for ids, why in (
            (self.without, f"no {self.names[0]} or nothing to hold them against"),
            (
                self.narrow,
                f"fewer ordinary tokens than {self.names[0]}, so that no control of as many "
                "random tokens can be drawn,",
            ),
        ):
            if ids:
                some = ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")
                has, was = ("has", "was") if len(ids) == 1 else ("have", "were")
                lines.append(
                    f"{len(ids)} of {number_of(self.samples, 'sample')} {has} {why} and {was} "
                    f"left out: {some}."
                )
        return lines


def _check_positions(
    handle: ModelHandle, samples: Sequence[AnySample], tokens: Sequence[Token]
) -> None:
    """Refuse positions that a prompt does not have, before any sample is passed through."""
    places = [token for token in tokens if isinstance(token, int)]
    for sample in samples if places else ():
        length = prepare_inputs(handle, sample).layout.length
        if max(places) >= length:
            raise ValueError(
                f"tokens has {max(places)}, but the prompt of {sample.id} has positions 0 to "
                f"{length - 1}."
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
        ValueError: the profile is requested and there is none.
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
            assert tau is not None  # checked by `_detector`
            return sinks_of(on_host(session[probe].scores())[:, vision] > tau)
        tokens = tuple(grid.tokens for grid in inputs.layout.grids)
        chosen = [
            choose(layer[0].cpu()[vision], tokens, settings.top_percent, settings.min_ratio)
            for _, layer in sorted(session[probe].items())
        ]
    # A token that is neither is not ordinary in any layer.
    sinks = sinks_of(torch.stack([choice.sinks for choice in chosen])).sinks
    ordinary = torch.stack([choice.ordinary for choice in chosen]).all(0)
    return Flags(sinks, ordinary & ~sinks)


def _answer(
    handle: ModelHandle,
    sample: AnySample,
    inputs: PromptInputs,
    settings: StudySettings,
    watch: ProgressWatch,
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
    ids = tuple(token.id for token in trace.tokens)
    ended = trace.finish_reason == "end" and len(ids) > 1
    return ids[:-1] if ended else ids


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
        both = " and ".join(names[:2])
        return f"None of the {samples} samples has both {both}; choose other tokens."
    why = f"no vision token has phi > {tau:g} on dims {dims}" if by == "profile" else ""
    why = why or f"no vision token gets {settings.min_ratio:g} times the median attention"
    return (
        f"No sinks in these {samples} samples: {why} in half of the layers of "
        f"{handle.info.id}. There are the tokens first, last, or positions such as 0,1,8; "
        "or lower the threshold (tau, min_ratio)."
    )
