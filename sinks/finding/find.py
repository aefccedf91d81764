"""Finding the dimensions that mark a model's sinks.

    findings = find(load_model("demo"), read_samples("photos", 30))

1. Each sample passes through the model once (`sinks.finding.measure`), here or on a cluster
   (`sinks.engine`); its statistics go to a file in the work folder. Files that already exist for
   this model, these settings and this sample are not measured again.
2. `conclude` reads the files in the order of the samples' ids and decides: dimensions
   (`sinks.finding.reduce`, `sinks.finding.decide`), then tau and origins
   (`sinks.finding.calibrate`).

docs/method.md, "Finding sink dimensions", has the definitions.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from sinkscope.capture.run import out_of_memory_named
from sinkscope.jobs.job import Progress, Stopped
from sinkscope.models.info import ModelInfo
from sinkscope.models.loading import ModelHandle
from sinkscope.sinks.engine import Engine, LocalEngine
from sinkscope.sinks.finding.calibrate import Calibration, calibrate, histograms, origins, sweep
from sinkscope.sinks.finding.decide import decide
from sinkscope.sinks.finding.describe import describe_layers, describe_overall, notes_on, reason_for
from sinkscope.sinks.finding.findings import Findings, Origin, TauPoint, UsedSample
from sinkscope.sinks.finding.measure import Unusable, measure, samples_at_once
from sinkscope.sinks.finding.reduce import first_token_passes, totals, tracked, worth_tracking
from sinkscope.sinks.finding.stats import FORMAT, DamagedStatsError, SampleStats
from sinkscope.sinks.samples import Sample, SampleSet, read_samples
from sinkscope.sinks.settings import FindSettings
from sinkscope.utils import none_usable, sha256


def find(
    handle: ModelHandle,
    samples: SampleSet | Sequence[Sample],
    settings: FindSettings | None = None,
    *,
    work: Path | None = None,
    on_progress: Progress | None = None,
    stop: threading.Event | None = None,
    engine: Engine | None = None,
) -> Findings:
    """Find a model's sink dimensions.

    Args:
        handle: the model. Its lock is taken for one batch at a time; do not hold it.
        samples: the samples to pass through it; 30 are a good number, fewer than 8 say little.
        settings: the settings; by default `FindSettings()`.
        work: folder for the statistics of each sample (created if missing), a few megabytes each.
            The same call with the same folder resumes an interrupted run. None: a temporary folder.
        on_progress: called with samples done, samples in all, and the current action.
        stop: once set, the run ends after the current sample (or batch).
        engine: where samples are measured; None: here, with `handle`.

    Returns:
        The findings. If the model has no sinks, `dims` is empty and `reason` says why.

    Raises:
        Stopped: `stop` was set. The measurements so far are in `work`.
        ValueError: there is no sample, none can be used, or a setting does not fit the model.
        RunOutOfMemoryError: a batch does not fit; the text names the settings that help.
    """
    settings = settings or FindSettings()
    layers = settings.looked_at(handle.info.layers)
    given = samples if isinstance(samples, SampleSet) else read_samples(list(samples), len(samples))
    began = time.perf_counter()
    with _folder(work) as folder:
        model_folder = folder / sha256(_key(handle.info, settings).encode())[:16]
        model_folder.mkdir(parents=True, exist_ok=True)
        paths = {
            sample.id: model_folder
            / f"{sha256(_key(handle.info, settings, sample).encode())[:32]}.st"
            for sample in given.samples
        }
        keys = {sample.id: _key(handle.info, settings, sample) for sample in given.samples}
        missing, damaged = _missing(given.samples, paths, keys)
        with _memory_errors_named(handle, settings):
            unusable = _measure_all(
                engine or LocalEngine(handle),
                missing,
                settings,
                lambda stats: stats.save(paths[stats.id], keys[stats.id]),
                _Counter(len(given.samples), len(given.samples) - len(missing), on_progress, stop),
                samples_at_once(settings, handle.device),
            )
        usable = sorted(set(paths) - {one.id for one in unusable})
        if not given.samples:
            raise ValueError(f"{given.source} has no images.")
        if not usable:
            raise ValueError(
                f"{none_usable(len(unusable), 'sample')}; the first: {unusable[0].reason}"
            )
        stored = StoredStats([(paths[name], keys[name]) for name in usable])
        skipped = tuple(sorted((*given.skipped, *((one.id, one.reason) for one in unusable))))
        kept = tuple(sample for sample in given.samples if sample.id in set(usable))
        left = dataclasses.replace(given, samples=kept, skipped=skipped)
        assert stored[0].layers == layers
        return conclude(stored, left, handle.info, settings, damaged, began)


def conclude(
    stats: Sequence[SampleStats],
    samples: SampleSet,
    model: ModelInfo,
    settings: FindSettings,
    notes: Sequence[str] = (),
    began: float | None = None,
) -> Findings:
    """Decide from measured statistics, without the model.

    Args:
        stats: of all samples, sorted by id; read several times, one after the other.
        samples: the samples that were measured.
        model: the model that they were measured with.
        settings: thresholds and resampling.
        notes: put before the notes of the findings.
        began: `time.perf_counter()` at the start.
    """
    magnitude = settings.min_magnitude(model.hidden_size)
    total = totals(stats, settings, model.hidden_size)
    values = tracked(stats, worth_tracking(total, settings, magnitude), settings, magnitude)
    decision = decide(total, values, settings, magnitude)
    first = first_token_passes(total, settings, magnitude)
    overall = describe_overall(total, values, decision, first, settings, magnitude)
    dims = tuple(sorted([c.dim for c in overall if c.kind == "sink"][: settings.max_dims]))
    own_rows = [
        row
        for row in range(len(total.layers))
        if any(bool(decision.passes[row, values.dims.index(dim)]) for dim in dims)
    ]
    histogram = histograms(stats, dims, model.hidden_size) if dims else None
    calibration: Calibration | None = None
    points: tuple[TauPoint, ...] = ()
    sources: tuple[Origin, ...] = ()
    if histogram is not None:
        calibration = calibrate(histogram, own_rows)
        points = sweep(histogram, own_rows, calibration.tau)
        sources = origins(stats, dims, calibration.tau, own_rows)
    per_layer = describe_layers(total, values, decision, first, magnitude, overall, histogram)
    always = (total.ordinary >= magnitude).double().mean(0) >= 0.5
    first_dims = [c.dim for c in sorted(overall, key=lambda c: -c.first) if c.on_first_token]
    return Findings(
        model=model,
        settings=settings,
        samples=tuple(_used(one, samples) for one in stats),
        skipped=samples.skipped,
        wanted=samples.wanted,
        dims=dims,
        tau=None if calibration is None else calibration.tau,
        tau_gap=None if calibration is None else calibration.gap,
        reason=reason_for(dims, overall, total, settings, magnitude),
        notes=(
            *notes,
            *samples.notes(),
            *notes_on(dims, overall, calibration, points, sources, settings, total, decision.same),
        ),
        min_magnitude=magnitude,
        layers=per_layer,
        sink_layers=tuple(total.layers[row] for row in own_rows),
        candidates=overall,
        first_token_dims=tuple(first_dims),
        always_on=tuple(always.nonzero()[:, 0].tolist()),
        sweep=points,
        phi_edges=() if histogram is None else histogram.edges,
        origins=sources,
        stability=decision.same,
        seconds=0.0 if began is None else time.perf_counter() - began,
    )


class StoredStats(Sequence[SampleStats]):
    """Statistics in files, one in memory at a time.

    Args:
        files: path and key of each, in the order of the samples' ids.
    """

    def __init__(self, files: Sequence[tuple[Path, str]]) -> None:
        self._files = tuple(files)

    def __len__(self) -> int:
        return len(self._files)

    # No slices are taken.
    def __getitem__(self, index: int) -> SampleStats:  # type: ignore[override]
        return SampleStats.open(*self._files[index])


class _Counter:
    """Reports progress and checks whether to stop."""

    def __init__(
        self, total: int, done: int, on_progress: Progress | None, stop: threading.Event | None
    ) -> None:
        self.total, self.done = total, done
        self._tell, self._stop = on_progress, stop

    def say(self, text: str, more: int = 0) -> None:
        self.done += more
        if self._tell is not None:
            self._tell(self.done, self.total, text)

    def check(self) -> None:
        if self._stop is not None and self._stop.is_set():
            raise Stopped(self.done, self.total)


def _measure_all(
    engine: Engine,
    missing: Sequence[Sample],
    settings: FindSettings,
    keep: Callable[[SampleStats], None],
    counter: _Counter,
    size: int,
) -> list[Unusable]:
    """Measure the missing samples, `size` at a time, and pass each result to `keep`. Returns the
    samples that cannot be used."""
    batches = [tuple(missing[low : low + size]) for low in range(0, len(missing), size)]
    unusable: list[Unusable] = []
    counter.say("Measured before" if counter.done else "Measuring")
    counter.check()
    results = engine.run(functools.partial(measure, settings=settings), batches)
    try:
        for index, result in results:
            for one in result:
                if isinstance(one, Unusable):
                    unusable.append(one)
                else:
                    keep(one)
            counter.say(f"Measured {batches[index][-1].id}", len(batches[index]))
            counter.check()
    finally:
        close = getattr(results, "close", None)
        if close is not None:
            close()
    return unusable


def _memory_errors_named(
    handle: ModelHandle, settings: FindSettings
) -> AbstractContextManager[None]:
    """`out_of_memory_named` for finding: names the settings that help and their current values."""

    def words() -> str:
        pixels = "the model's own" if settings.max_pixels is None else settings.max_pixels
        setting = f" (max_pixels; now {pixels})" if handle.family.pixel_bounds else ""
        return (
            f"Memory is full. What helps: smaller images{setting}, or fewer samples at once "
            f"(batch_size; now {samples_at_once(settings, handle.device)})."
        )

    return out_of_memory_named(words)


def _used(stats: SampleStats, samples: SampleSet) -> UsedSample:
    """The information about a sample that findings store."""
    match = next((sample for sample in samples.samples if sample.id == stats.id), None)
    if match is None:
        return UsedSample(stats.id, stats.fingerprint, stats.images)
    return UsedSample(
        stats.id,
        stats.fingerprint,
        stats.images,
        match.prompt,
        match.answer,
        match.where,
        match.system,
        match.history,
    )


def _missing(
    samples: Sequence[Sample], paths: Mapping[str, Path], keys: Mapping[str, str]
) -> tuple[list[Sample], list[str]]:
    """The samples to measure, and a note on each existing file that cannot be trusted."""
    missing, notes = [], []
    for sample in samples:
        path = paths[sample.id]
        if path.exists():
            try:
                SampleStats.open(path, keys[sample.id])
                continue
            except DamagedStatsError as error:
                notes.append(f"In the work folder, {error}; {sample.id} was measured again.")
        missing.append(sample)
    return missing, notes


def _key(model: ModelInfo, settings: FindSettings, sample: Sample | None = None) -> str:
    """What statistics depend on, in words: the model as loaded, what is measured, the sample."""
    parts = [
        FORMAT,
        model.family,
        model.revision,
        model.dtype,
        model.hidden_size,
        model.layers,
        settings.measuring(),
    ]
    if sample is not None:
        parts += [sample.id, sample.fingerprint()]
    return json.dumps(parts, ensure_ascii=False)


@contextmanager
def _folder(work: Path | None) -> Iterator[Path]:
    if work is None:
        with tempfile.TemporaryDirectory(prefix="sinkscope-") as temporary:
            yield Path(temporary)
        return
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"The work folder {work} cannot be made: {error.strerror or error}."
        ) from error
    yield work
