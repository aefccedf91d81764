"""The tokens of a control: equally many, none of them a sink, boxes beside the region."""

from __future__ import annotations

import pytest

from sinkscope.experiments import cut_edges
from sinkscope.experiments.preparing import prepare_study
from sinkscope.experiments.run import run_experiment
from sinkscope.experiments.samples import TextSample
from sinkscope.experiments.settings import (
    AblateMLPSettings,
    CutEdgesSettings,
    LowerAttentionSettings,
    ScanSettings,
    StudySettings,
    VisionOrTextSettings,
)
from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.models.views import ImageGrid, View
from tests.sinks.planted import Plant, painted_cells, painted_samples, planted
from tests.text_models import save_text_model

pytestmark = pytest.mark.tiny
PLANT = Plant((5, 33), seed=0, layer=1)
SAMPLES = painted_samples(4, seed=5)
FEW = {"bootstrap": 100, "controls": 2, "answer_tokens": 2}


@pytest.fixture(scope="module")
def handle(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return planted(tmp_path_factory.mktemp("planted"), PLANT)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    folder = save_text_model(tmp_path_factory.mktemp("text"), "qwen3")
    return load_model(str(folder), device="cpu", dtype="float32")


def test_a_sample_with_fewer_ordinary_tokens_than_sinks_is_left_out_and_named(
    text: ModelHandle,
) -> None:
    """With fewer control tokens, or none, sinks would look important for no reason."""
    short, long = TextSample("short", "a a"), TextSample("long", "a red star is a blue circle")
    more = TextSample("more", "a blue star is no red circle")
    settings = AblateMLPSettings(layer=0, top=1, min_share=0.0)
    asked = StudySettings(tokens=("first", "last"), **FEW)
    made = run_experiment(text, "ablate-mlp", (short, long, more), settings, asked)
    assert made.samples == ("long", "more")
    (note,) = [note for note in made.findings.notes if "no control of as many" in note]
    assert (
        note.startswith("1 of 3 samples has fewer ordinary tokens than first") and "short" in note
    )
    for name, own in (("ablate-mlp", settings), ("lower-attention", LowerAttentionSettings())):
        with pytest.raises(ValueError, match="No sample can be used: 1 of 1 sample has fewer ord"):
            run_experiment(text, name, (short,), own, asked)
    # Experiments without a drawn control look at it all the same.
    assert run_experiment(text, "scan", (short, long), ScanSettings(), asked).samples == (
        "short",
        "long",
    )


def test_positions_alone_keep_detected_sinks_out_of_the_ordinary_tokens(
    handle: ModelHandle,
) -> None:
    layouts = [handle.prepare(s.open_images(), s.prompt).layout for s in SAMPLES]
    painted = [
        {int(layout.vision_positions()[cell]) for cell in painted_cells(s.open_images()[0])}
        for s, layout in zip(SAMPLES, layouts, strict=True)
    ]
    asked = StudySettings(tokens=(0, 1, 2), **FEW)
    for ordinary in ("controls", "all"):
        study = prepare_study(handle, SAMPLES, asked, ordinary=ordinary)
        for case, sinks in zip(study.cases, painted, strict=True):
            assert sinks and not sinks & set(case.others) and case.others
        assert any("kept out of the ordinary tokens" in note for note in study.notes)
    # If ordinary tokens do not matter, no pass searches for sinks.
    assert not prepare_study(handle, SAMPLES, asked).notes


def test_positions_alone_go_by_the_profile_where_there_is_one(handle: ModelHandle) -> None:
    asked = StudySettings(tokens=(0, 1, 2), dims=PLANT.dims, tau=4.0, **FEW)
    study = prepare_study(handle, SAMPLES, asked, ordinary="controls")
    assert any("sinks by phi by the profile" in note for note in study.notes)
    for case, sample in zip(study.cases, SAMPLES, strict=True):
        vision = handle.prepare(sample.open_images(), sample.prompt).layout.vision_positions()
        cells = painted_cells(sample.open_images()[0])
        assert not set(vision[cells].tolist()) & set(case.others)


def test_a_swap_needs_a_partner_for_each_sink(handle: ModelHandle) -> None:
    asked = StudySettings(tokens=("sinks", "first"), dims=PLANT.dims, tau=4.0, **FEW)
    two = [s for s in SAMPLES if len(painted_cells(s.open_images()[0])) > 1]
    with pytest.raises(ValueError, match="2 tokens of sinks and 1 of first to swap them with"):
        run_experiment(handle, "vision-or-text", two, VisionOrTextSettings(), asked)


def grid(rows: int, columns: int) -> ImageGrid:
    view = View(range(rows * columns), rows, columns, (0, 0, 28 * columns, 28 * rows))
    return ImageGrid((view,), (28 * rows, 28 * columns), (28 * rows, 28 * columns))


@pytest.mark.parametrize("region", [(0.0, 0.0, 0.5, 0.5), (0.25, 0.3, 0.6, 0.7)])
def test_boxes_that_a_region_is_held_against_lie_clear_of_it(region: tuple[float, ...]) -> None:
    made = cut_edges._region(grid(6, 8), region, 12, 3)
    assert made.keys and made.controls and not made.overlapping
    for control in made.controls:
        assert len(control) == len(made.keys) and not set(control) & set(made.keys)
    assert len(set(made.controls)) == len(made.controls)  # no position twice


def test_a_region_that_leaves_no_room_says_that_the_boxes_overlap(handle: ModelHandle) -> None:
    made = cut_edges._region(grid(6, 8), (0.0, 0.0, 0.7, 0.7), 12, 3)
    assert made.overlapping and all(set(c) & set(made.keys) for c in made.controls)
    large = CutEdgesSettings("region", (0.0, 0.0, 0.7, 0.7))
    found = run_experiment(handle, "cut-edges", SAMPLES, large, StudySettings(**FEW)).findings
    assert any("overlaps the region" in note for note in found.notes)
    small = CutEdgesSettings("region", (0.0, 0.0, 0.3, 0.3))
    found = run_experiment(handle, "cut-edges", SAMPLES, small, StudySettings(**FEW)).findings
    assert not any("overlaps the region" in note for note in found.notes)
    with pytest.raises(ValueError, match="has no other box of 6 x 8 cells"):
        cut_edges._region(grid(6, 8), (0.0, 0.0, 1.0, 1.0), 3, 0)
