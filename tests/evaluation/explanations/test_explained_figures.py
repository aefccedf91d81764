"""From records to figures: planted maps, chance, pairs; and insertion and deletion by hand."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sinkscope.attention_extractor import generate
from sinkscope.capture.given import given_answer
from sinkscope.config import GenerationSettings, ModelSettings
from sinkscope.evaluation.explanations.compare import ABOVE, BELOW, NOT_SHOWN, compare_scores
from sinkscope.evaluation.explanations.controls import CENTRE, CONTROLS, RANDOM, control_map
from sinkscope.evaluation.explanations.folder import ScoreConfig
from sinkscope.evaluation.explanations.removal import order_of, removals
from sinkscope.evaluation.explanations.report import files, tables
from sinkscope.evaluation.explanations.scores import mask_on_cells, scored
from sinkscope.evaluation.explanations.settings import ScoreReportSettings, ScoreSettings
from sinkscope.evaluation.explanations.targets import Target, scenes
from sinkscope.evaluation.record import AnswerRecord
from sinkscope.methods.passes import passes_of
from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.models.views import one_view

QUICK = ScoreReportSettings(resamples=500)


def record(target: str, method: str, details: dict[str, object], cluster: str = "") -> AnswerRecord:
    return AnswerRecord(
        task="explain-score",
        protocol="fixed",
        question=target,
        index=int(target.rpartition("-")[2]),
        method=method,
        prompt_hash="",
        answer="a star",
        extraction=None,
        score=None,
        details=details,
        truth="star",
        category="",
        cluster=cluster or target,
        fields={},
    )


def planted(count: int) -> list[AnswerRecord]:
    """Held-out scenes: a perfect map, a blank one, and the controls, on their exact masks."""
    made = []
    for target, _ in zip(scenes(), range(count), strict=False):
        image, mask = target.load()
        rows, columns = image.height // 28, image.width // 28
        grid = one_view(
            0, 1, 2 * rows, 2 * columns, 2, (image.height, image.width), (image.height, image.width)
        )
        truth = mask_on_cells(mask, grid)
        maps = {name: control_map(name, grid, target.id, 0) for name in CONTROLS}
        maps |= {"perfect": truth.astype(np.float32), "blank": np.zeros(truth.shape, np.float32)}
        for name, values in maps.items():
            about = {"cells": int(truth.sum()), "of": truth.size}
            made.append(record(target.id, name, {**about, "scores": scored(values, truth)}))
    return made


def test_perfect_is_one_random_is_chance_blank_is_never_more() -> None:
    found = compare_scores(planted(300), QUICK)
    assert found.targets == found.clusters == 300 and 0.02 < found.chance < 0.12
    for score in ("pointing", "energy", "auc", "obj_iou"):
        one = found.figures[score]["perfect"]
        assert one.value == 1.0 and {a.verdict for a in one.against} == {ABOVE}
    sure = found.figures["pointing"]["perfect"].interval
    assert 0.98 < sure.low < 1.0 == sure.high  # even 300 of 300 is not certain
    by_chance = {"pointing": found.chance, "energy": found.chance, "auc": 0.5, "nss": 0.0}
    for score, chance in by_chance.items():
        random, blank = (found.figures[score][name] for name in (RANDOM, "blank"))
        assert random.interval.low <= chance <= random.interval.high, score
        assert blank.value <= chance + 1e-9
        assert blank.against[0].verdict in (NOT_SHOWN, BELOW)
    assert found.figures["obj_iou"]["blank"].value == 0.0


def test_differences_are_paired_and_clusters_stay_whole() -> None:
    rng = np.random.default_rng(0)
    made = []
    for k in range(60):
        base = float(rng.normal())  # large differences between targets, small ones between methods
        values = {
            RANDOM: base,
            CENTRE: base + 0.01,
            "own": base + 0.05 + 0.001 * float(rng.normal()),
        }
        for name, value in values.items():
            scores = {"nss": value, "auc": None}
            about = {"cells": 1, "of": 4, "scores": scores}
            made.append(record(f"t-{k}", name, about, cluster=f"image-{k // 3}"))
    found = compare_scores(made, QUICK)
    assert found.clusters == 20 and found.targets == 60
    own = found.figures["nss"]["own"]
    assert own.interval.high - own.interval.low > 0.2
    against = {one.control: one for one in own.against}
    ends = against[RANDOM].interval
    assert ends.high - ends.low < 0.002 and against[RANDOM].verdict == ABOVE
    assert against[CENTRE].difference == pytest.approx(0.04, abs=1e-3)
    assert np.isnan(found.figures["auc"]["own"].value)
    (control,) = found.figures["nss"][CENTRE].against
    assert control.control == RANDOM


def test_what_is_lacking_is_counted_and_said() -> None:
    made = []
    for k in range(4):
        scores = {"scores": {"nss": float(k)}, "cells": 1, "of": 4}
        lacking = {"lacking": "the image is too small"}
        made += [record(f"t-{k}", RANDOM, scores), record(f"t-{k}", CENTRE, scores)]
        made.append(record(f"t-{k}", "never", {"lacking": "no gradients <b>"}))
        made.append(record(f"t-{k}", "once", lacking if k == 2 else scores))
    for name in (RANDOM, CENTRE, "never", "once"):
        made.append(record("t-4", name, {"lacking": "the word is not there", "left_out": True}))
    found = compare_scores(made, QUICK)
    assert found.methods == (RANDOM, CENTRE, "once")
    assert (found.targets, found.common) == (3, 1)
    assert found.left_out == {"the word is not there": 1}
    written = files(found, ScoreConfig(ScoreSettings(), ModelSettings()), True)
    assert "never: no map of 4 words: no gradients &lt;b&gt;" in written["report.html"]
    assert "1 words left out: the word is not there" in written["report.md"]
    assert tables(found)[0].rows[0][0] == RANDOM
    with pytest.raises(ValueError, match="No target has scores"):
        compare_scores([], QUICK)


# --- insertion and deletion -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def handle(tiny_folder: Path) -> ModelHandle:
    return load_model(str(tiny_folder), device="cpu", dtype="float32")


@pytest.mark.tiny
def test_areas_by_hand(handle: ModelHandle, photo: Image.Image) -> None:
    inputs = handle.prepare([photo.resize((84, 56))], "What is it?")
    trace = generate(handle, inputs, GenerationSettings(max_new_tokens=3))
    answer = [token.id for token in trace.tokens]
    values = np.array([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])
    found = removals(handle, inputs, answer, [1, 2], {"m": values, "n": values * 7}, steps=3)
    assert found["m"] == found["n"]  # only the order matters

    def log_p(kept: set[int]) -> float:
        """Computed with a mask of its own that hides keys from the later queries."""
        from sinkscope.capture.session import attached
        from sinkscope.interventions.edges import CutEdges

        start = inputs.layout.grids[0].positions[0]
        cut = tuple(start + cell for cell in range(6) if cell not in kept)
        tensors = dict(inputs.tensors)
        tensors["input_ids"] = torch.tensor([[*inputs.token_ids, *answer[:-1]]])
        session = passes_of(handle, trace, inputs)
        with handle.lock, attached(handle, inputs, interventions=[CutEdges((cut,))], new_tokens=2):
            logits = handle.model(**session.tensors(), use_cache=False).logits[0, -3:]
        logs = torch.log_softmax(logits.float(), -1)
        return float(logs[1, answer[1]] + logs[2, answer[2]])

    order = [4, 5, 0, 2, 1, 3]
    assert order_of(values, 0) == order
    whole = log_p(set(range(6)))
    deletion = [log_p(set(order[k:])) - whole for k in (0, 2, 4, 6)]
    insertion = [log_p(set(order[:k])) - whole for k in (0, 2, 4, 6)]
    for area, curve in ((found["m"].deletion, deletion), (found["m"].insertion, insertion)):
        expected = sum((a + b) / 2 for a, b in itertools.pairwise(curve)) / 3
        assert area == pytest.approx(expected, abs=1e-5)


def test_equal_values_are_drawn_the_same_for_every_method() -> None:
    blank = np.zeros((4, 5))
    assert order_of(blank, 3) == order_of(blank + 1, 3) != order_of(blank, 4)
    assert sorted(order_of(blank, 3)) == list(range(20))


@pytest.mark.tiny
def test_a_given_answer_has_the_rows_of_the_generated_one(
    handle: ModelHandle, photo: Image.Image
) -> None:
    inputs = handle.prepare([photo.resize((84, 56))], "What is it?")
    settings = GenerationSettings(max_new_tokens=4, reference=True)
    ids = handle.tokenizer("a cat sits")["input_ids"]
    made = given_answer(handle, inputs, settings, "a cat sits")
    assert [token.id for token in made.tokens] == ids and made.text == "a cat sits"
    session = passes_of(handle, made, inputs)
    with session.attached():
        logits = handle.model(**session.tensors(), use_cache=False).logits[0, -len(ids) :]
    expected = torch.softmax(logits.float(), -1)[torch.arange(len(ids)), torch.tensor(ids)]
    np.testing.assert_allclose([t.probability for t in made.tokens], expected, rtol=1e-4)
    assert made.attention.shape[0] == len(ids)
    assert made.shares.sum(-1).numpy() == pytest.approx(1.0, abs=2e-3)
    with pytest.raises(ValueError, match="empty"):
        given_answer(handle, inputs, settings, "")


def test_scenes_are_exact_and_the_same_each_time() -> None:
    first = [(t.id, t.word, t.start) for t, _ in zip(scenes(), range(40), strict=False)]
    again = [(t.id, t.word, t.start) for t, _ in zip(scenes(), range(40), strict=False)]
    assert first == again

    def check(target: Target) -> None:
        image, mask = target.load()
        assert mask.shape == (image.height, image.width) and mask.any()
        assert target.expected is not None
        assert target.word in target.expected[target.start :].split(",")[0]

    for target, _ in zip(scenes(), range(40), strict=False):
        check(target)
