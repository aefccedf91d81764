"""Combining samples: counts, means and intervals by hand; the file; the warnings."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from sinkscope.models.info import ModelInfo
from sinkscope.models.profiles import SinkProfile
from sinkscope.sinks.validating.settings import ValidateSettings
from sinkscope.sinks.validating.summary import Record, SweepRecord, estimate, summarise
from sinkscope.sinks.validating.validation import SampleEvidence, Validation

PROFILE = SinkProfile("m", "f", 64, 4, (1, 2), 3.0, "somewhere", "low")
MODEL = ModelInfo("m", "r", "f", "float32", "cpu", 4, 2, 64)
SETTINGS = ValidateSettings(min_samples=2, bootstrap=400)
# flagged, high, top, flagged and high, flagged and top
COUNTS = torch.tensor([[0, 2, 1, 0, 0], [0, 0, 0, 0, 0], [2, 2, 1, 2, 1], [1, 3, 0, 0, 0]])


def record(name: str, changes: dict[str, float], counts: torch.Tensor = COUNTS) -> Record:
    flagged = "sinks" in changes
    return Record(
        SampleEvidence(name, 10, 2 if flagged else 0, "a star", True, -0.5, changes),
        counts,
        torch.tensor([0.0, 0.0, 0.5, 0.2], dtype=torch.float64),
        4.0 if flagged else None,
        1.0 if flagged else None,
        dict.fromkeys(changes, 0.25),
        dict.fromkeys(changes, 0.5),
        (
            SweepRecord(counts * 2, 0.4, {}, 0.5),
            SweepRecord(counts, 0.2, {n: changes[n] for n in changes if n in ("sinks", "random")},
                        0.75),
        ),
    )  # fmt: skip


FULL = {"sinks": -0.1, "random": -0.4, "random_dims": -0.2, "attended": -1.0, "image": -3.0}
LESS = {"sinks": -0.3, "random": -0.2, "random_dims": -0.2, "attended": -2.0, "image": -5.0}


def summed(records: list[Record], **other: Any) -> Validation:
    given: dict[str, Any] = {
        "profile": PROFILE,
        "model": MODEL,
        "settings": SETTINGS,
        "layers": (2, 3),
        "taus": (1.5, 3.0),
        "records": records,
        "skipped": (),
        "wanted": len(records),
        "found_on_them": 0,
        "known": True,
    }
    return summarise(**{**given, **other})


def test_agreement_counts_every_layer() -> None:
    made = summed([record("a", FULL), record("b", LESS)])
    assert [layer.layer for layer in made.layers] == [0, 1, 2, 3]
    assert [layer.flagged_share for layer in made.layers] == [0.0, 0.0, 4 / 20, 2 / 20]
    # layer 0: nothing flagged, something to find: 0 and 0. Layer 1: nothing either way: 1 and 1.
    # layer 3: flagged without high attention: 0; nothing to recall, but something flagged: 0.
    assert [layer.precision for layer in made.layers] == [0.0, 1.0, 1.0, 0.0]
    assert [layer.recall for layer in made.layers] == [0.0, 1.0, 1.0, 0.0]
    assert made.agreement.micro_precision == pytest.approx(4 / 6)
    assert made.agreement.micro_recall == pytest.approx(2 / 4)
    assert made.agreement.macro_precision == made.agreement.macro_recall == 0.5
    assert [layer.attention for layer in made.layers] == [0.0, 0.0, 0.5, 0.2]


def test_changes_are_means_over_samples_and_contrasts_are_paired() -> None:
    without = record("c", {"image": -9.0}, COUNTS * 0)
    crowded = record("d", {"sinks": -7.0, "image": -7.0})  # no control of the same size
    made = summed([record("a", FULL), record("b", LESS), without, crowded])
    by = {one.name: one for one in made.hidden}
    assert tuple(by) == ("sinks", "random", "random_dims", "attended", "image")
    assert by["sinks"].change.value == pytest.approx((-0.1 - 0.3 - 7.0) / 3)
    assert by["random"].change.value == pytest.approx(-0.3) and by["random"].change.samples == 2
    assert by["image"].change.value == pytest.approx(-6.0) and by["image"].tokens == 10.0
    assert made.contrasts["random"].value == pytest.approx((0.3 - 0.1) / 2)
    assert made.contrasts["attended"].value == pytest.approx((0.9 + 1.7) / 2)
    assert made.contrasts["random"].low <= made.contrasts["random"].value
    assert any("In 1 sample more than half" in warning for warning in made.warnings)


def test_sweep_points() -> None:
    made = summed([record("a", FULL), record("b", LESS)])
    low, own = made.sweep
    assert (low.tau, own.tau) == (1.5, 3.0)
    assert own.flagged == pytest.approx((4 / 20 + 2 / 20) / 2) and own.most == 4 / 20
    assert low.flagged == pytest.approx(2 * own.flagged)
    assert own.precision == pytest.approx(4 / 6) and own.recall == pytest.approx(2 / 4)
    assert (own.sinks, own.random, own.samples) == (pytest.approx(-0.2), pytest.approx(-0.3), 2)
    assert (low.sinks, low.random, low.samples) == (None, None, 0)
    assert own.hidden == pytest.approx(0.2) and own.selected == pytest.approx(0.75)


def test_intervals() -> None:
    same = estimate([0.5] * 12, SETTINGS)
    assert (same.value, same.low, same.high, same.samples) == (0.5, 0.5, 0.5, 12)
    values = [float(v) for v in torch.randn(400, generator=torch.Generator().manual_seed(0))]
    wide = estimate(values, SETTINGS)
    assert wide.low < wide.value < wide.high
    # the normal theory of a mean over 400: 1.96 / 20 on each side
    assert (wide.high - wide.low) / 2 == pytest.approx(1.96 / 20, rel=0.2)
    narrow = estimate(values, dataclasses.replace(SETTINGS, confidence=0.5))
    assert wide.low < narrow.low < narrow.high < wide.high
    assert estimate(values, SETTINGS) == wide


def test_order_of_samples_plays_no_part() -> None:
    generator = random.Random(0)
    records = [
        record(f"s{i}", {name: generator.uniform(-1, 0) for name in FULL}) for i in range(12)
    ]
    mixed = records[:]
    generator.shuffle(mixed)
    assert summed(records) == summed(mixed)


def test_nothing_flagged_is_said_and_can_be_saved(tmp_path: Path) -> None:
    made = summed([record(n, {"image": -3.0}, COUNTS * 0) for n in "abc"])
    assert made.verdict.word == "flags nothing"
    assert made.hidden == () and made.contrasts == {} and made.agreement.lift is None
    made.save(tmp_path / "v.json")
    assert Validation.open(tmp_path / "v.json") == made


def test_file_comes_back_as_it_was(tmp_path: Path) -> None:
    made = summed(
        [record("a", FULL), record("b ü", LESS)],
        skipped=(("c.png", "c.png is damaged."),),
        wanted=5,
        found_on_them=1,
        settings=dataclasses.replace(SETTINGS, layers=(2, 3), taus=(1.5, 3.0)),
    )
    path = tmp_path / "v.json"
    made.save(path)
    assert Validation.open(path) == made
    assert not made.held_out
    said = " ".join(made.warnings)
    assert "1 of the samples was used in finding" in said
    assert "2 samples could be used; 5 were asked for" in said
    assert "1 sample was skipped: c.png is damaged." in said


def test_a_file_of_before_questions_were_kept_still_opens(tmp_path: Path) -> None:
    made = summed([record("a", FULL), record("b", LESS)])
    path = tmp_path / "v.json"
    made.save(path)
    values = json.loads(path.read_text())
    for sample in values["samples"]:
        for key in ("question", "where", "system", "history"):
            del sample[key]
    path.write_text(json.dumps(values))
    assert Validation.open(path) == made


def test_unknown_origin_is_said() -> None:
    made = summed([record("a", FULL), record("b", LESS)], known=False)
    assert any("not known on which samples" in warning for warning in made.warnings)
    assert made.held_out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: [], "is not a validation"),
        (lambda v: {**v, "format": "x"}, "is not a validation"),
        (lambda v: {**v, "version": 9}, "version 9"),
        (lambda v: {k: x for k, x in v.items() if k != "sweep"}, "damaged.*sweep"),
        (lambda v: {**v, "layers": [{"layer": 0}]}, "damaged"),
        (lambda v: {**v, "settings": {**v["settings"], "margin": -1}}, "margin is -1"),
        (lambda v: {**v, "agreement": None}, "damaged"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, change: Any, says: str) -> None:
    path = tmp_path / "v.json"
    summed([record("a", FULL), record("b", LESS)]).save(path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=says):
        Validation.open(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        Validation.open(tmp_path / "missing.json")
    (tmp_path / "v.json").write_bytes(b"\xff{")
    with pytest.raises(ValueError, match="is not JSON"):
        Validation.open(tmp_path / "v.json")
