"""The part of a Sinks result that the browser receives: one file, packed like those of runs.

Its header contains every sentence and table cell as text, which the browser shows unchanged. Its
arrays contain, for every vision token of every sample in every layer, the score phi (`phi`, uint16
codes of [0, `phi_top`]) and the attention received in multiples of the image's median (`ratio`,
likewise), so that moving tau needs no request. The tokens of all samples are concatenated; those of
a sample begin at its `start`.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from sinkscope.interventions.var.report import MANY_FLAGGED
from sinkscope.sinks.finding.findings import Candidate, Findings, Interval, UsedSample
from sinkscope.sinks.finding.stats import DamagedStatsError, SampleStats
from sinkscope.sinks.validating.validation import Validation
from sinkscope.utils import index_ranges, number_of
from sinkscope.web.runs.payload import pack

MOST_CELLS = 4_000_000  # (layer, token) pairs sent; samples beyond have no picture
MOST_CANDIDATES = 12
NAMED = 3  # skipped samples that `SampleSet.notes` already names
MOST_SKIPPED = 300  # skipped samples named at most
LONGEST_QUOTED = 300  # characters of a question or an answer
KINDS = {
    "sink": "kept",
    "first token": "no: first token only",
    "always on": "no: always on",
}
SETS = {
    "sinks": "flagged tokens",
    "random": "as many random ones",
    "random_dims": "as many by random dimensions",
    "attended": "as many most attended others",
    "image": "the whole image",
}


def measured_in(folder: Path) -> Iterator[SampleStats]:
    """The statistics in a run's work folder; damaged files are left out."""
    for path in sorted(folder.glob("**/*.st")):
        try:
            with safe_open(path, "pt") as file:
                key = (file.metadata() or {}).get("key", "")
            yield SampleStats.open(path, key)
        except (OSError, SafetensorError, DamagedStatsError):
            continue


@dataclass(frozen=True)
class Scores:
    """The part of a sample's statistics that is sent: its full statistics are megabytes.

    Attributes:
        id: the sample's id.
        rows, columns: grid of the vision tokens of its (first) image.
        phi, ratio: float32 (L, V): score under the found dimensions, and the attention received in
            multiples of the image's median.
    """

    id: str
    rows: int
    columns: int
    phi: np.ndarray
    ratio: np.ndarray


def scores_in(folder: Path, findings: Findings) -> list[Scores]:
    """The samples of a result by id, up to `MOST_CELLS`; empty if no dimension was found."""
    used = {(sample.id, sample.fingerprint) for sample in findings.samples}
    result: list[Scores] = []
    cells = 0
    for one in measured_in(folder) if findings.dims else ():
        cells += one.rms.numel()
        if (one.id, one.fingerprint) in used and cells <= MOST_CELLS:
            if sum(rows * columns for rows, columns in one.grids) != one.rms.shape[1]:
                continue  # an image of several views: its tokens do not form one grid
            phi, ratio = one.phi(findings.dims).numpy(), one.ratio.numpy()
            result.append(Scores(one.id, *one.grids[0], phi, np.nan_to_num(ratio, posinf=0.0)))
    return sorted(result, key=lambda scores: scores.id)


def build_sinks_payload(
    findings: Findings,
    validation: Validation | None,
    why: str,
    shown: Sequence[Scores],
    images: Mapping[str, str],
) -> bytes:
    """The result as the tab loads it.

    Args:
        findings: the result of finding.
        validation: the validation on other samples, or None.
        why: why there is no validation, in words.
        shown: samples that finding used.
        images: sample id -> address of its picture.
    """
    arrays: dict[str, np.ndarray] = {}
    tops = {}
    if shown:
        for name in ("phi", "ratio"):
            values = np.concatenate([getattr(one, name) for one in shown], axis=1)
            tops[f"{name}_top"] = top = float(values.max()) or 1.0
            arrays[name] = np.rint(np.clip(values / top, 0, 1) * 65535).astype(np.uint16)
    header = {
        "model": findings.model.id,
        "verdict": _verdict(findings),
        "notes": [*findings.notes, *(why for _, why in findings.skipped[NAMED:MOST_SKIPPED])],
        "dims": list(findings.dims),
        "tau": findings.tau,
        "tau_most": math.sqrt(findings.model.hidden_size),
        "warn": MANY_FLAGGED,
        "layers": [layer.layer for layer in findings.layers],
        "candidates": _candidates(findings),
        "contrast": _contrast(findings),
        "checked": _checked(validation, why),
        "samples": _places(shown, images, findings),
        **tops,
    }
    return pack(header, arrays)


def _places(
    shown: Sequence[Scores], images: Mapping[str, str], findings: Findings
) -> list[dict[str, Any]]:
    asked = {sample.id: _question_line(sample) for sample in findings.samples}
    places, start = [], 0
    for one in shown:
        places.append(
            {
                "id": one.id,
                "start": start,
                "rows": one.rows,
                "columns": one.columns,
                "url": images.get(one.id),
                "asked": asked.get(one.id, ""),
            }
        )
        start += one.phi.shape[1]
    return places


def _question_line(sample: UsedSample) -> str:
    """The question asked about a picture, and where it came from, in one line."""
    if not sample.question:
        return ""
    answer = "" if sample.answer is None else f" Answer: {_short(sample.answer)}"
    where = f" ({sample.where})" if sample.where else ""
    return f"Asked: {_short(sample.question)}{answer}{where}"


def _short(text: str) -> str:
    return textwrap.shorten(text, LONGEST_QUOTED, placeholder=" ...")


def _verdict(findings: Findings) -> str:
    count = len(findings.samples)
    model = findings.model.id.rstrip("/").rsplit("/", 1)[-1]
    on = f"on {number_of(count, 'sample')} of {model}"
    if not findings.dims:
        return f"No sinks found {on}"
    word = "Dimension" if len(findings.dims) == 1 else "Dimensions"
    return (
        f"{word} {', '.join(map(str, findings.dims))} · tau {findings.tau:.1f} · "
        f"confidence {findings.confidence}, {on}"
    )


def _candidates(findings: Findings) -> dict[str, Any]:
    listed = findings.candidates[:MOST_CANDIDATES]
    columns = ["Dimension", "Kept", "On sinks", "Elsewhere", "Contrast", "Samples", "Layers"]
    return {
        "columns": columns,
        "rows": [_row(candidate, findings) for candidate in listed],
        "why": [candidate.reason for candidate in listed],
        "kept": [candidate.kind == "sink" for candidate in listed],
        "reason": findings.reason,
    }


def _row(candidate: Candidate, findings: Findings) -> list[str]:
    return [
        str(candidate.dim),
        _why_not(candidate, findings) if candidate.kind == "none" else KINDS[candidate.kind],
        f"{candidate.sink:.1f} {_between(candidate.sink_interval)}",
        f"{candidate.ordinary:.2f}",
        f"{candidate.contrast:.1f} × {_between(candidate.contrast_interval)}",
        f"{candidate.consistency:.0%}",
        index_ranges(candidate.layers, "–") or "none",
    ]


def _why_not(candidate: Candidate, findings: Findings) -> str:
    """The first threshold that the candidate fails; `Candidate.reason` lists all of them."""
    settings = findings.settings
    for interval, mean, least, what in (
        (candidate.sink_interval, candidate.sink, findings.min_magnitude, "on sinks"),
        (candidate.contrast_interval, candidate.contrast, settings.min_contrast, "× contrast"),
    ):
        if interval.low < least:
            end = "" if mean < least else "lower end "
            return f"no: {end}below {least:.1f} {what}"
    if candidate.consistency < settings.min_consistency:
        return f"no: in fewer than {settings.min_consistency:.0%} of samples"
    if candidate.dim not in findings.dims and len(candidate.run) >= settings.min_layers:
        return f"no: more than {settings.max_dims} pass"
    return f"no: in fewer than {settings.min_layers} layers running"


def _between(interval: Interval) -> str:
    return f"[{interval.low:.1f}, {interval.high:.1f}]"


def _contrast(findings: Findings) -> dict[str, Any]:
    """Contrast by layer of the table's candidates; None where a dimension is not a candidate."""
    dims = [candidate.dim for candidate in findings.candidates[:MOST_CANDIDATES]]
    rows = []
    for dim in dims:
        candidates = [layer.candidate(dim) for layer in findings.layers]
        # the quotient of two tiny values is meaningless, so it is not shown as a contrast
        rows.append([round(f.contrast, 2) if f and f.sink >= 1 else None for f in candidates])
    return {"dims": dims, "values": rows}


def _checked(validation: Validation | None, why: str) -> dict[str, Any]:
    """The validation as sentences and a table."""
    if validation is None:
        return {"word": "Not validated", "text": why, "more": [], "columns": [], "rows": []}
    agreement = validation.agreement
    lift = (
        "" if agreement.lift is None else f", and hold {agreement.lift.value:.1f} times their share"
    )
    return {
        "word": f"Validation: {validation.verdict.word}",
        "text": validation.verdict.text,
        "more": [
            f"{number_of(len(validation.samples), 'sample')} that finding did not use. Flagged "
            f"tokens against those of high attention, all layers: precision "
            f"{agreement.micro_precision:.0%}, recall {agreement.micro_recall:.0%}{lift}.",
            *validation.warnings,
            *(reason for _, reason in validation.skipped[:MOST_SKIPPED]),
            *validation.verdict.thresholds,
        ],
        "columns": ["Hidden", "Tokens", "Attention held", "Log-probability, nats per token"],
        "rows": [
            [SETS[one.name], f"{one.tokens:.1f}", f"{one.attention:.1%}", str(one.change)]
            for one in validation.hidden
        ],
    }


def profile_name(findings: Findings) -> str:
    """A file name for a profile: letters, digits, dots and dashes of the model's name."""
    last = findings.model.id.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
    return (
        "".join(c if c.isascii() and (c.isalnum() or c in ".-_") else "-" for c in last) + ".toml"
    )
