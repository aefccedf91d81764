"""Validating a sink profile on samples that finding has not used.

    validation = validate(handle, profile, read_samples("photos", 30), found_on=findings)
    print(validation.verdict.word, validation.verdict.text)

There are two kinds of evidence; docs/method.md has the equations. First: do the flagged tokens
receive the attention? This is counted in each layer, for all layers. Second: does the answer need
them? The model reads a fixed answer with the flagged tokens hidden from all later queries, and with
as many other tokens hidden: random ones, those chosen by random dimensions, and the most attended
of the rest. The second kind does not use attention, so it is independent of how the dimensions were
chosen.

A sample passes through the model once unchanged, and then through its text part once for each
different set of hidden tokens, several sets as one batch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sinkscope.attention_extractor import generate
from sinkscope.capture.run import end_tokens, memory_errors_named
from sinkscope.config import GenerationSettings
from sinkscope.jobs.job import Progress, Stopped
from sinkscope.models.family import PromptInputs
from sinkscope.models.images import ImageError
from sinkscope.models.loading import ModelHandle
from sinkscope.models.profiles import SinkProfile, check_fits
from sinkscope.models.sink_score import FIRST_LAYER
from sinkscope.sinks.finding.findings import Findings, UsedSample
from sinkscope.sinks.finding.measure import check_window
from sinkscope.sinks.samples import Sample, SampleSet, read_samples
from sinkscope.sinks.validating import evidence
from sinkscope.sinks.validating.evidence import Candidates, Reading
from sinkscope.sinks.validating.masking import answer_tokens, hidden_log_probabilities, read_answer
from sinkscope.sinks.validating.readout import PromptReading
from sinkscope.sinks.validating.settings import ValidateSettings
from sinkscope.sinks.validating.summary import Record, SweepRecord, summarise
from sinkscope.sinks.validating.validation import SampleEvidence, Validation
from sinkscope.utils import none_usable, number_of, sha256

FoundOn = Findings | Iterable[UsedSample] | Iterable[str]


def validate(
    handle: ModelHandle,
    profile: SinkProfile,
    samples: SampleSet | Sequence[Sample],
    settings: ValidateSettings | None = None,
    *,
    found_on: FoundOn | None = None,
    on_progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Validation:
    """Validate a profile.

    Args:
        handle: a loaded model; its lock is taken sample by sample.
        profile: dimensions and tau to validate; made for this model.
        samples: from `sinks.samples.read_samples`, or samples.
        settings: see there.
        found_on: what finding used: its `Findings`, its samples, or their ids and image digests;
            None if that is not known (a published profile).
        on_progress: called after each sample with done, total and its id.
        stop: set it to end the run; the current sample is discarded.

    Returns:
        The result. Samples that cannot be read are in `skipped`.

    Raises:
        ValueError: the profile is for another model or size, the settings name a layer that the
            model does not have, finding used one of the samples, or no sample can be used.
        Stopped: `stop` was set.
        RunOutOfMemoryError: the device's memory is full.
    """
    settings = settings or ValidateSettings()
    info, began = handle.info, time.perf_counter()
    check_fits(profile, info.id, info.family, info.hidden_size, info.layers)
    layers = _layers(settings, info.layers)
    if not isinstance(samples, SampleSet):
        if not samples:
            raise ValueError("There is no sample to validate on; give at least one.")
        samples = read_samples(samples, len(samples))
    seen = used_by_finding(samples.samples, found_on)
    if seen and not settings.allow_finding_samples:
        raise ValueError(_refusal(seen, len(samples.samples)))
    task = _Task(
        handle,
        profile,
        settings,
        layers,
        evidence.random_dimensions(profile, settings.dims_draws, settings.seed),
        settings.sweep(profile),
        stop,
    )
    records: list[Record] = []
    skipped = list(samples.skipped)
    ordered = sorted(samples.samples, key=lambda sample: sample.id)
    for done, sample in enumerate(ordered):
        if stop is not None and stop.is_set():
            raise Stopped(done, len(ordered))
        try:
            try:
                asked = _prepare(task, sample)
            except (ImageError, ValueError) as error:  # an error of the sample
                skipped.append((sample.id, str(error)))
            else:
                more = len(records) < settings.sweep_samples
                records.append(_one(task, sample, asked, sweeps=more))
        except _Interrupted:
            raise Stopped(done, len(ordered)) from None
        if on_progress is not None:
            on_progress(done + 1, len(ordered), sample.id)
    if not records:
        first = f"; the first: {skipped[0][1]}" if skipped else ""
        raise ValueError(f"{none_usable(len(skipped), 'sample')}{first}")
    result = summarise(
        profile=profile,
        model=info,
        settings=settings,
        layers=layers,
        taus=task.taus,
        records=records,
        skipped=tuple(sorted(skipped)),
        wanted=samples.wanted,
        found_on_them=len(seen),
        known=found_on is not None,
    )
    return replace(result, seconds=time.perf_counter() - began)


def used_by_finding(samples: Iterable[Sample], found_on: FoundOn | None) -> tuple[Sample, ...]:
    """The samples that finding has used: those that share an image with its samples.

    Of samples only pixels and texts are compared, because `1.jpg` in another folder is another
    picture. Strings in `found_on` are also compared with ids.
    """
    seen = seen_by_finding(found_on)
    return tuple(sample for sample in samples if seen(sample))


def seen_by_finding(found_on: FoundOn | None) -> Callable[[Sample], bool]:
    """A function: whether finding has used a sample, as in `used_by_finding`. For
    `read_samples(unless=...)`, so that one file can serve both."""
    names: set[str] = set()
    for used in (found_on.samples if isinstance(found_on, Findings) else found_on) or ():
        names |= {used} if isinstance(used, str) else {used.fingerprint, *used.images}
    return lambda sample: bool(names & {sample.id, sample.fingerprint(), *sample.digests})


def held_out(samples: SampleSet, count: int, found_on: FoundOn | None) -> SampleSet:
    """`count` samples of a larger set that finding has not used.

    Read as many more samples as finding used, and one folder serves both.
    """
    seen = {sample.id for sample in used_by_finding(samples.samples, found_on)}
    kept = [sample for sample in samples.samples if sample.id not in seen]
    # Not the first ones by id: otherwise the names of subfolders would decide.
    drawn = sorted(kept, key=lambda sample: sha256(sample.fingerprint().encode()))[:count]
    by_id = tuple(sorted(drawn, key=lambda sample: sample.id))
    return replace(samples, samples=by_id, wanted=count)


@dataclass(frozen=True)
class _Task:
    """What is the same for every sample."""

    handle: ModelHandle
    profile: SinkProfile
    settings: ValidateSettings
    layers: tuple[int, ...]
    random_dims: tuple[tuple[int, ...], ...]
    taus: tuple[float, ...]
    stop: threading.Event | None

    def go_on(self) -> None:
        """Raise `_Interrupted` if stop is set."""
        if self.stop is not None and self.stop.is_set():
            raise _Interrupted


class _Interrupted(Exception):  # noqa: N818  (no error: the user asked for it)
    """Stop was set while a sample was processed."""


@dataclass(frozen=True)
class _PreparedSample:
    """A usable sample: its prompt, its answer's token ids, and whether the model gave them."""

    inputs: PromptInputs
    answer: tuple[int, ...]
    by_model: bool


def _prepare(task: _Task, sample: Sample) -> _PreparedSample:
    """Prepare the sample; a `ValueError` is the reason to skip it."""
    images = sample.open_images()
    inputs = task.handle.prepare(
        images,
        sample.prompt,
        sample.system,
        max_pixels=task.settings.max_pixels,
        history=sample.history,
    )
    check_window(task.handle, inputs.layout.length)
    return _PreparedSample(inputs, *_answer(task, sample, inputs))


def _one(task: _Task, sample: Sample, asked: _PreparedSample, sweeps: bool) -> Record:
    """All results for one sample."""
    handle, settings = task.handle, task.settings
    inputs, answer, by_model = asked.inputs, asked.answer, asked.by_model
    probe = PromptReading(task.profile, task.random_dims, task.taus, settings)
    counted = GenerationSettings(max_new_tokens=len(answer))
    with handle.lock, memory_errors_named(inputs, counted):
        forced = read_answer(handle, inputs, answer, [probe])
        reading = forced.session[probe].reading()
        wanted = _HiddenPatterns(inputs, reading.phi.shape)
        order = _orders(sample, inputs.layout.vision_tokens, settings)
        candidates = evidence.candidates(reading, task.profile.tau, task.layers, order)
        rows = {name: wanted.add(candidates, name, settings) for name in candidates.tokens}
        swept = [evidence.candidates(reading, tau, task.layers, order[:1]) for tau in task.taus]
        sweep_rows = [
            {
                name: wanted.add(one, name, settings)
                for name in ("sinks", "random")
                if sweeps and name in one.tokens
            }
            for one in swept
        ]
        logs = hidden_log_probabilities(
            handle,
            forced,
            wanted.patterns(),
            from_queries=settings.from_queries,
            batch_tokens=settings.batch_tokens,
            between=task.go_on,
        )
    changes = (logs - logs[0]).double().mean(1)  # nats per token; row 0 hides nothing

    def change(chosen: list[int]) -> float:
        return float(changes[chosen].mean())

    at_tau = {name: change(chosen) for name, chosen in rows.items()}
    text = str(handle.tokenizer.decode(list(answer), clean_up_tokenization_spaces=False))
    return Record(
        evidence=SampleEvidence(
            id=sample.id,
            tokens=inputs.layout.vision_tokens,
            hidden=int(candidates.pattern.any(0).sum()),
            answer=text,
            own=by_model,
            log_probability=float(logs[0].double().mean()),
            changes=at_tau,
            question=sample.prompt,
            where=sample.where,
            system=sample.system,
            history=sample.history,
        ),
        counts=evidence.counts(reading, task.profile.tau),
        attention=_attention_of_flagged(reading, task.profile.tau),
        lift=evidence.lift(reading, candidates.pattern),
        random_lift=_random_lift(reading, candidates.pattern),
        held={n: evidence.held(reading, candidates, task.layers, n) for n in candidates.tokens},
        overlap={n: evidence.overlap(candidates, n) for n in candidates.tokens},
        sweep=tuple(
            SweepRecord(
                counts=evidence.counts(reading, tau),
                hidden=float(one.pattern.any(0).float().mean()),
                changes={name: change(chosen) for name, chosen in chosen_rows.items()},
                selected=selected,
            )
            for tau, one, chosen_rows, selected in zip(
                task.taus, swept, sweep_rows, reading.selected, strict=True
            )
        ),
    )


class _HiddenPatterns:
    """The different sets to hide, without duplicates; the first one hides nothing."""

    def __init__(self, inputs: PromptInputs, shape: Sequence[int]) -> None:
        self._inputs, self._shape = inputs, tuple(shape)
        self._rows: dict[bytes, int] = {}
        self._patterns: list[Tensor] = []

    def add(self, candidates: Candidates, name: str, settings: ValidateSettings) -> list[int]:
        """Row indices of one set's draws."""
        own_layers = settings.hide_in == "own_layers"
        draws = range(len(candidates.tokens[name]))
        return [
            self._row(evidence.hidden_pattern(candidates, name, draw, own_layers)) for draw in draws
        ]

    def patterns(self) -> Tensor:
        """bool (sets, N) or (sets, L, N) over prompt positions."""
        vision = torch.stack([torch.zeros_like(self._patterns[0]), *self._patterns])
        places = self._inputs.layout.vision_positions()
        patterns = torch.zeros(*vision.shape[:-1], self._inputs.layout.length, dtype=torch.bool)
        patterns[..., places] = vision
        return patterns

    def _row(self, pattern: Tensor) -> int:
        key = pattern.numpy().tobytes()
        if key not in self._rows:
            self._patterns.append(pattern)
            self._rows[key] = len(self._patterns)
        return self._rows[key]


def _answer(task: _Task, sample: Sample, inputs: PromptInputs) -> tuple[tuple[int, ...], bool]:
    """The answer's token ids without the end token, and whether the model gave the answer."""
    handle, most = task.handle, task.settings.answer_tokens
    if sample.answer and task.settings.answers == "given":
        ids = answer_tokens(handle, sample.answer, most)
        if not ids:
            raise ValueError(f"The answer of {sample.id} has no token.")
        return ids, False
    short = GenerationSettings(max_new_tokens=most, layers=(0,), reduce_heads=True)
    trace = generate(handle, inputs, short, stop=task.stop)
    if trace.finish_reason == "stopped":
        raise _Interrupted
    ends = end_tokens(handle)
    ids = tuple(token.id for token in trace.tokens if token.id not in ends)
    if not ids:
        raise ValueError(f"The model's own answer to {sample.id} is empty.")
    return ids, True


def _orders(sample: Sample, tokens: int, settings: ValidateSettings) -> Tensor:
    """int64 (draws, V): random orders of the vision tokens; depend only on seed and sample."""
    mixed = int(sample.fingerprint()[:12], 16) ^ settings.seed
    generator = torch.Generator().manual_seed(mixed)
    return torch.stack(
        [torch.randperm(tokens, generator=generator) for _ in range(settings.random_draws)]
    )


def _attention_of_flagged(reading: Reading, tau: float) -> Tensor:
    """float64 (L,): share of the image's attention that flagged tokens receive."""
    return (reading.attention.double() * (reading.phi > tau)).sum(1)


def _random_lift(reading: Reading, pattern: Tensor) -> float | None:
    """Lift of as many tokens in each layer, chosen by random dimensions; mean over draws."""
    picked = [evidence.top_by_score(score, pattern) for score in reading.random_phi]
    lifts = [lift for one in picked if (lift := evidence.lift(reading, one)) is not None]
    return sum(lifts) / len(lifts) if lifts else None


def _layers(settings: ValidateSettings, count: int) -> tuple[int, ...]:
    """The layers whose flags count."""
    if settings.layers is None:
        return tuple(range(min(FIRST_LAYER, count - 1), count))
    if max(settings.layers) >= count:
        raise ValueError(
            f"layers is {settings.layers}; allowed: layers of the model, 0 to {count - 1}."
        )
    return tuple(sorted(settings.layers))


def _refusal(seen: Sequence[Sample], total: int) -> str:
    first = ", ".join(sample.id for sample in seen[:3]) + (", ..." if len(seen) > 3 else "")
    return (
        f"{len(seen)} of {number_of(total, 'sample')} were used in finding the profile "
        f"({first}), so they would confirm what they were picked by; give other samples, or set "
        "allow_finding_samples."
    )
