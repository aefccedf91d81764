"""VAR limited to some heads, against the dense form in float64, and in whole runs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from PIL import Image

from sinkscope.attention_extractor import generate
from sinkscope.capture.saved_prompt import var_settings_of
from sinkscope.capture.trace import GenerationTrace
from sinkscope.config import VARSettings
from sinkscope.interventions.var.checks import acting_layers, validate_var
from sinkscope.interventions.var.intervention import VARIntervention
from sinkscope.interventions.var.redistribute import redistribute
from sinkscope.models import kernels
from sinkscope.models.kernels import rows_times_values
from sinkscope.models.loading import ModelHandle
from sinkscope.models.sink_score import sink_mask
from tests.capture.steps import GREEDY, VAR, handle, ids, looped, shared
from tests.interventions.var.test_intervention import (
    LAYER,
    LAYERS,
    NEW,
    PROMPT,
    SETTINGS,
    Stage,
)

__all__ = ["handle", "shared"]

SOME = dataclasses.replace(SETTINGS, heads=((LAYER, 1), (LAYER, 2)))


@pytest.mark.parametrize("free", [True, False], ids=["as on a CPU", "as on a GPU"])
@pytest.mark.parametrize("dialect", ["official", "paper"])
def test_only_these_heads_change_and_as_in_the_dense_form(
    free: bool, dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of a limited row, a row with all heads and a plain one."""
    monkeypatch.setattr(kernels, "is_on_host", lambda device: free)
    stage = Stage(batch=3)
    some, every = (dataclasses.replace(one, dialect=dialect) for one in (SOME, SETTINGS))
    var = VARIntervention((some, every, None), stage.vision, LAYERS, PROMPT + NEW, heads=4)
    stage.observe(var)
    found = sink_mask(stage.hidden[:1], some.dims, some.tau, some.dialect)
    values = stage.value[:1, :, :PROMPT]

    def dense(start: int, stop: int, heads: list[int] | None) -> torch.Tensor:
        sinks, vision = torch.zeros(2, 1, stop, dtype=torch.bool)
        sinks[:, :PROMPT], vision[:, :PROMPT] = found[:, :stop], stage.vision[:stop]
        first = max(0, 60 - start)
        return redistribute(stage.plain(start, stop)[:1], sinks, vision, some, first, heads)

    out = stage.prefill(var)
    plain = rows_times_values(stage.plain(0, PROMPT)[:1], values)
    limited = rows_times_values(dense(0, PROMPT, [1, 2]), values)
    torch.testing.assert_close(out[:1], limited, rtol=0, atol=1e-12)
    whole = rows_times_values(dense(0, PROMPT, None), values)
    torch.testing.assert_close(out[1:2], whole, rtol=0, atol=1e-12)
    assert torch.equal(out[0, [0, 3]], plain[0, [0, 3]]) and torch.equal(out[2], plain[0])
    for head in range(4):  # so each of them had something to change
        assert float((whole[0, head] - plain[0, head]).abs().max()) > 0.01, head
    for step, rows in enumerate(stage.decode(var), PROMPT):
        expected = dense(step, step + 1, [1, 2])
        torch.testing.assert_close(rows[:1], expected, rtol=0, atol=1e-12)
        assert torch.equal(rows[0, [0, 3]], stage.plain(step, step + 1)[0, [0, 3]])
    # Heads that may not change are not counted as not chosen.
    mine, other = (var.report(row).layers[0] for row in (0, 1))
    assert mine.selected > 0 and mine.moved > 0 and mine != other


def test_a_head_alone_in_its_layer_moves_what_it_moves_among_all() -> None:
    stage = Stage()
    reports = []
    for heads in ([(LAYER, 0)], [(LAYER, 1)], [(LAYER, 2)], [(LAYER, 3)], None):
        own = dataclasses.replace(SETTINGS, heads=heads)
        var = VARIntervention((own,), stage.vision, LAYERS, PROMPT + NEW, heads=4)
        stage.observe(var)
        stage.prefill(var)
        reports.append(var.report().layers[0])
    *apart, together = reports
    assert together.moved == pytest.approx(sum(one.moved for one in apart) / 4, abs=1e-6)
    assert together.selected == pytest.approx(sum(one.selected for one in apart) / 4, abs=1e-6)


@pytest.mark.tiny
def test_both_engines_keep_to_the_heads(handle: ModelHandle, photo: Image.Image) -> None:
    inputs = handle.prepare([photo], "What is there?")
    own = dataclasses.replace(VAR, layers=None, heads=((1, 0), (2, 1)))
    steps = generate(handle, inputs, GREEDY, own)
    loop = generate(handle, inputs, looped(GREEDY), own)
    plain = generate(handle, inputs, looped(GREEDY))
    assert ids(steps) == ids(loop)
    torch.testing.assert_close(
        steps.attention.float(), loop.attention.float(), rtol=1.1e-3, atol=1e-7
    )
    assert [one["layer"] for one in loop.var["layers"]] == [1, 2]
    # Up to layer 1 both runs are equal: there only head 0 may differ from the plain run.
    first = (loop.attention[0, 1] - plain.attention[0, 1]).abs().amax(-1)
    assert float(first[0]) > 1e-4 and float(first[1:].max()) == 0
    all_heads = generate(handle, inputs, GREEDY, dataclasses.replace(VAR, layers=(1, 2)))
    changed = (all_heads.attention[0, 1] - plain.attention[0, 1]).abs().amax(-1)
    assert bool((changed > 1e-4).all()), "each head had something to change"


@pytest.mark.tiny
def test_a_kept_run_says_its_heads(
    handle: ModelHandle, photo: Image.Image, tmp_path: object
) -> None:
    own = dataclasses.replace(VAR, heads=((1, 0), (2, 1)))
    run = generate(handle, handle.prepare([photo], "What is there?"), GREEDY, own)
    path = f"{tmp_path}/run.safetensors"
    run.save(path)
    opened = GenerationTrace.open(path)
    assert var_settings_of(opened) == own
    assert "heads 1.0,2.1" in str(opened.applied)


def test_heads_that_are_not_there_are_refused() -> None:
    def refusal(**changes: object) -> str:
        own = dataclasses.replace(SETTINGS, **changes)
        with pytest.raises(ValueError) as error:
            validate_var(own, 16, LAYERS, 52, 4)
        return str(error.value)

    assert refusal(heads="3.4") == "heads has 3.4; the layers of this model have heads 0 to 3."
    assert refusal(heads="6.0") == "heads has 6.0; this model has layers 0 to 5."
    assert "heads has 3.0, but layers lets VAR act only in 1, 2" in refusal(
        heads="3.0,1.0", layers=(1, 2)
    )
    own = dataclasses.replace(SETTINGS, heads="5.3,0.0")
    validate_var(own, 16, LAYERS, 52, 4)
    assert acting_layers(own, LAYERS) == (0, 5)
    with pytest.raises(ValueError, match="the number of heads is not known"):
        VARIntervention((own,), Stage().vision, LAYERS, PROMPT + NEW)


def test_why_nothing_names_the_heads() -> None:
    stage = Stage()
    own = dataclasses.replace(SOME, max_sink_share=0.0)
    var = VARIntervention((own,), stage.vision, LAYERS, PROMPT + NEW, heads=4)
    stage.observe(var)
    stage.prefill(var)
    assert "no head of those that it may change qualified" in var.report().reason
    assert isinstance(own, VARSettings)
