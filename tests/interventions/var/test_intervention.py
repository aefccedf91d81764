"""One run of VAR on a made-up attention layer, against the dense form on whole matrices."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sinkscope.config import VARSettings
from sinkscope.interventions.var.checks import acting_layers, validate_var
from sinkscope.interventions.var.intervention import VARIntervention
from sinkscope.interventions.var.redistribute import redistribute
from sinkscope.models import kernels
from sinkscope.models.kernels import attention_rows, rows_times_values
from sinkscope.models.sink_score import sink_mask, sink_score

PROMPT, NEW, HIDDEN, LAYERS, LAYER = 150, 5, 16, 6, 3
SCALE = 0.3
SETTINGS = VARSettings(dims=(2, 9), tau=3.2, max_sink_share=0.8, min_image_mass=0.1)


class Stage:
    """Hidden states, queries, keys and values of one layer for a prompt and five new tokens."""

    def __init__(self, batch: int = 1, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        total = PROMPT + NEW

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.hidden = normal(1, PROMPT, HIDDEN).expand(batch, -1, -1)
        self.query, self.key = normal(1, 4, total, 8), normal(1, 2, total, 8)
        self.value = normal(1, 2, total, 8)
        self.vision = torch.zeros(PROMPT, dtype=torch.bool)
        self.vision[4:40] = self.vision[44:60] = True  # two images
        self.hidden = self.hidden.clone()
        self.hidden[:, [0, 7, 20, 50, 70], 2] = 30.0  # sinks in both images and in the text
        self.query, self.key, self.value = (
            t.expand(batch, -1, -1, -1).clone() for t in (self.query, self.key, self.value)
        )

    def plain(self, start: int, stop: int) -> Tensor:
        return attention_rows(
            self.query[:, :, start:stop], self.key[:, :, :stop], SCALE, None, start
        )

    def begin(self, *settings: VARSettings | None) -> VARIntervention:
        return VARIntervention(settings, self.vision, LAYERS, PROMPT + NEW)

    def observe(self, var: VARIntervention, start: int = 0, stop: int = PROMPT) -> None:
        var.observe(LAYER, self.hidden[:, start:stop], start)

    def prefill(self, var: VARIntervention, start: int = 0, stop: int = PROMPT) -> Tensor:
        """The corrected output of the queries start .. stop - 1."""
        output = rows_times_values(self.plain(start, stop), self.value[:, :, :stop])
        query, key = self.query[:, :, start:stop], self.key[:, :, :stop]
        return var.correct(LAYER, query, key, self.value[:, :, :stop], output, SCALE, None)

    def decode(self, var: VARIntervention) -> list[Tensor]:
        """The rescaled rows of the new tokens, one per step."""
        return [
            var.rows(LAYER, self.plain(position, position + 1), position)
            for position in range(PROMPT, PROMPT + NEW)
        ]

    def expected(self, start: int, stop: int, settings: VARSettings) -> Tensor:
        """Rows of the dense form, with the sinks of the whole prompt."""
        sinks, vision = torch.zeros(2, 1, stop, dtype=torch.bool)
        found = sink_mask(self.hidden[:1], settings.dims, settings.tau, settings.dialect)
        known = min(stop, PROMPT)
        sinks[:, :known], vision[:, :known] = found[:, :known], self.vision[:known]
        first = max(0, 60 - start)
        return redistribute(self.plain(start, stop)[:1], sinks, vision, settings, first)

    def expected_output(self, settings: VARSettings) -> Tensor:
        return rows_times_values(self.expected(0, PROMPT, settings), self.value[:1, :, :PROMPT])


@pytest.fixture(autouse=True, params=["as on a CPU", "as on a GPU"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs twice: the code path for GPUs also runs on a CPU."""
    if request.param == "as on a GPU":
        monkeypatch.setattr(kernels, "is_on_host", lambda device: False)
    return str(request.param)


@pytest.mark.parametrize("dialect", ["official", "paper"])
def test_prefill_and_decode_are_the_dense_form(dialect: str) -> None:
    stage, own = Stage(), replace(SETTINGS, dialect=dialect)
    var = stage.begin(own)
    stage.observe(var)
    out = stage.prefill(var)
    plain = rows_times_values(stage.plain(0, PROMPT), stage.value[:, :, :PROMPT])
    torch.testing.assert_close(out, stage.expected_output(own), rtol=0, atol=1e-12)
    assert torch.equal(out[:, :, :60], plain[:, :, :60])
    assert float((out - plain).abs().max()) > 0.05
    for step, rows in enumerate(stage.decode(var), PROMPT):
        torch.testing.assert_close(rows, stage.expected(step, step + 1, own), rtol=0, atol=1e-12)
        assert not torch.equal(rows, stage.plain(step, step + 1))


@pytest.mark.parametrize("cuts", [(30,), (60,), (75, 100), (10, 59, 61, 149)])
def test_a_prefill_in_chunks_is_the_same(cuts: tuple[int, ...]) -> None:
    stage = Stage()
    var, parts = stage.begin(SETTINGS), []
    for low, high in zip((0, *cuts), (*cuts, PROMPT), strict=True):
        stage.observe(var, low, high)
        parts.append(stage.prefill(var, low, high))
    torch.testing.assert_close(
        torch.cat(parts, 2), stage.expected_output(SETTINGS), rtol=0, atol=1e-12
    )
    whole = stage.begin(SETTINGS)
    stage.observe(whole)
    stage.prefill(whole)
    for mine, other in zip(var.report().layers, whole.report().layers, strict=True):
        assert mine.positions == other.positions
        assert (mine.selected, mine.moved) == pytest.approx((other.selected, other.moved), abs=1e-6)


def test_a_shared_prefix_is_the_same() -> None:
    stage = Stage()
    known = {LAYER: sink_score(stage.hidden[0, :60], SETTINGS.dims)}
    var = VARIntervention([SETTINGS], stage.vision, LAYERS, PROMPT + NEW, known)
    stage.observe(var, 60)
    out = stage.prefill(var, 60)
    torch.testing.assert_close(out, stage.expected_output(SETTINGS)[:, :, 60:], rtol=0, atol=1e-12)
    assert var.report().layers[0].positions == (0, 7, 20, 50, 70)


def test_scores_at_the_wrong_place_are_refused() -> None:
    """A prefix that did not score this layer would shift all sinks."""
    stage = Stage()
    var = VARIntervention(
        [SETTINGS], stage.vision, LAYERS, PROMPT + NEW, {LAYER + 1: torch.ones(60)}
    )
    with pytest.raises(ValueError, match="start is 60, but layer 3 was observed up to position 0"):
        stage.observe(var, 60)


def test_rows_of_a_batch_have_their_own_settings() -> None:
    stage = Stage(batch=3)
    gentle = replace(SETTINGS, keep=0.9, tau=3.9, dialect="paper")
    var = stage.begin(None, SETTINGS, gentle)
    stage.observe(var)
    out, steps = stage.prefill(var), stage.decode(var)
    plain = rows_times_values(stage.plain(0, PROMPT), stage.value[:, :, :PROMPT])
    assert torch.equal(out[0], plain[0])
    assert not torch.equal(out[1], out[2])
    for row, own in ((1, SETTINGS), (2, gentle)):
        alone = Stage()
        single = alone.begin(own)
        alone.observe(single)
        assert torch.equal(alone.prefill(single)[0], out[row])
        for mine, together in zip(alone.decode(single), steps, strict=True):
            assert torch.equal(mine[0], together[row])
        assert single.report() == var.report(row)
    for position, together in enumerate(steps, PROMPT):
        assert torch.equal(together[0], stage.plain(position, position + 1)[0])
    with pytest.raises(ValueError, match="row is 0; VAR was not asked for"):
        var.report(0)


def test_what_does_not_change_is_handed_back_as_it_is() -> None:
    stage = Stage()
    var = stage.begin(SETTINGS)
    stage.observe(var)
    before_the_image = stage.plain(3, 30)
    assert var.rows(LAYER, before_the_image, 3) is before_the_image
    across = stage.plain(55, 65)
    new = var.rows(LAYER, across, 55)
    assert torch.equal(new[:, :, :5], across[:, :, :5])
    assert not torch.equal(new[:, :, 5:], across[:, :, 5:])
    torch.testing.assert_close(new, stage.expected(55, 65, SETTINGS), rtol=0, atol=1e-12)
    for nothing in (replace(SETTINGS, keep=1.0), replace(SETTINGS, tau=3.999)):
        idle = stage.begin(nothing)
        stage.observe(idle)
        assert torch.equal(idle.rows(LAYER, across, 55), across)


def test_only_the_chosen_layers() -> None:
    assert acting_layers(SETTINGS, 6) == (2, 3, 4)
    assert acting_layers(replace(SETTINGS, layers=(0, 5)), 6) == (0, 5)
    var = Stage().begin(replace(SETTINGS, layers=(1, 3)))
    assert [layer for layer in range(LAYERS) if var.acts_on(layer)] == [1, 3]


def test_the_control_takes_as_many_random_tokens() -> None:
    stage = Stage()

    def positions(seed: int, layer: int = LAYER) -> tuple[int, ...]:
        own = replace(SETTINGS, control="random", seed=seed)
        var = stage.begin(own)
        var.observe(layer, stage.hidden, 0)
        return var.report().layers[0].positions

    first = positions(0)
    assert first == positions(0)
    assert {0, 70} <= set(first)  # text sinks stay
    for seed in range(40):
        chosen = set(positions(seed)) - {0, 70}
        assert len(chosen) == 3 and not chosen & {7, 20, 50}
        assert all(bool(stage.vision[position]) for position in chosen)
    others = [positions(1), positions(0, LAYER + 1), positions(1, LAYER - 1)]
    assert len({first, *others}) == 4


def test_report_counts_each_row_once_and_ends_with_the_answer() -> None:
    stage = Stage()
    var = stage.begin(SETTINGS)
    stage.observe(var)
    stage.prefill(var)
    prefill = var.report()
    var.rows(LAYER, stage.plain(PROMPT - 1, PROMPT), PROMPT - 1)  # the recorded row comes again
    assert var.report() == prefill
    stage.decode(var)
    everything = var.report().layers[0]
    assert var.report(answer_tokens=1) == prefill
    assert var.report(answer_tokens=NEW + 1).layers[0] == everything

    (layer,) = prefill.layers
    before, after = stage.plain(0, PROMPT), stage.expected(0, PROMPT, SETTINGS)
    sinks = list(layer.positions)
    moved = (before - after)[0, :, 60:, sinks].sum(-1)
    assert layer.layer == LAYER and sinks == [0, 7, 20, 50, 70]
    assert layer.moved == pytest.approx(float(moved.mean()), rel=1e-5)
    assert layer.selected == pytest.approx(float((moved > 0).double().mean()), rel=1e-5)
    assert layer.flagged == pytest.approx(3 / 52)
    scores = sink_score(stage.hidden[0], SETTINGS.dims)
    assert layer.scores == pytest.approx(scores[sinks].tolist())
    assert layer.largest_score == pytest.approx(float(scores.max()))
    assert prefill.changed and prefill.reason == "" and prefill.warnings == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"keep": 1.0}, "keep is 1"),
        ({"tau": 3.999}, r"no token is a sink.*3\.9.*layer 3.*tau is 3\.999"),
        ({"min_image_mass": 1.0}, r"no head qualified.*1 of its attention.*min_image_mass"),
        ({"tau": 0.0}, "so many tokens are flagged"),
    ],
)
def test_a_run_that_changes_nothing_says_why(change: dict[str, float], reason: str) -> None:
    stage = Stage()
    var = stage.begin(replace(SETTINGS, **change))  # type: ignore[arg-type]
    stage.observe(var)
    plain = rows_times_values(stage.plain(0, PROMPT), stage.value[:, :, :PROMPT])
    assert torch.equal(stage.prefill(var), plain)
    report = var.report()
    assert not report.changed
    assert re.search(reason, report.reason), report.reason
    crowded = change.get("tau") == 0
    assert [("52 of" in w or "100%" in w) for w in report.warnings] == [True] * crowded


def test_sinks_outside_the_image_alone_are_named() -> None:
    stage = Stage()
    stage.hidden[:, [7, 20, 50], 2] = 0.1
    for dialect, changes in (("official", False), ("paper", True)):
        var = stage.begin(replace(SETTINGS, dialect=dialect))
        stage.observe(var)
        stage.prefill(var)
        report = var.report()
        assert report.changed == changes
        assert ("outside the image" in report.reason) != changes


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"dims": (2, 16)}, r"dims has \[16\].*0 to 15"),
        ({"tau": 4.1}, r"tau is 4\.1.*sqrt\(hidden size\) = 4\.0"),
        ({"layers": (2, 6)}, r"layers has \[6\].*0 to 5"),
    ],
)
def test_settings_that_cannot_work_are_refused(change: dict[str, object], complaint: str) -> None:
    own = replace(SETTINGS, **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=complaint):
        validate_var(own, HIDDEN, LAYERS, 52)


def test_prompts_and_models_without_room_are_refused() -> None:
    validate_var(SETTINGS, HIDDEN, LAYERS, 52)
    with pytest.raises(ValueError, match="no image"):
        validate_var(SETTINGS, HIDDEN, LAYERS, 0)
    with pytest.raises(ValueError, match="3 layers leave none"):
        validate_var(SETTINGS, HIDDEN, 3, 52)
    with pytest.raises(ValueError, match="vision marks no"):
        VARIntervention([SETTINGS], torch.zeros(8, dtype=torch.bool), LAYERS, 9)
