"""Validating on the tiny random model: measurements, refusals, skipped samples, stopping."""

from __future__ import annotations

import copy
import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sinkscope.capture.probes.values import Values
from sinkscope.config import VARSettings
from sinkscope.interventions.var.selection import select_rows
from sinkscope.jobs.job import Stopped
from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.models.profiles import SinkProfile
from sinkscope.models.sink_score import sink_score
from sinkscope.models.sites import SiteSelection
from sinkscope.sinks.finding.findings import UsedSample
from sinkscope.sinks.samples import Sample, SampleSet
from sinkscope.sinks.validating.masking import answer_tokens, hidden_log_probabilities, read_answer
from sinkscope.sinks.validating.readout import PromptReading
from sinkscope.sinks.validating.settings import ValidateSettings
from sinkscope.sinks.validating.validate import held_out, used_by_finding, validate

pytestmark = pytest.mark.tiny
TAU = 1.9  # on this random model phi of two dimensions exceeds it at few tokens
FAST = ValidateSettings(
    answer_tokens=4, random_draws=2, dims_draws=2, min_samples=2, bootstrap=200, sweep_samples=1
)


@pytest.fixture(scope="module")
def handle(tiny_folder: Path) -> ModelHandle:
    return load_model(str(tiny_folder), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def profile(handle: ModelHandle) -> SinkProfile:
    info = handle.info
    return SinkProfile(
        info.id, info.family, info.hidden_size, info.layers, (3, 9), TAU, "made up", "low"
    )


def sample(number: int, **other: Any) -> Sample:
    pixels = np.random.default_rng(number).integers(0, 255, (84, 112, 3), dtype=np.uint8)
    given = {"prompt": "What is it?", "answer": "a red star."}
    return Sample(f"s{number}", (Image.fromarray(pixels),), **{**given, **other})


def test_reading_equals_dense_attention(handle: ModelHandle, profile: SinkProfile) -> None:
    one = sample(0).open_images()[0]
    inputs = handle.prepare([one, one.resize((56, 84))], "What is it?")
    layout, taus = inputs.layout, (1.5, TAU, 2.6)
    draws = ((1, 2), (30, 40))
    settings = dataclasses.replace(FAST, min_ratio=1.5)  # several high tokens an image
    probe = PromptReading(profile, draws, taus, settings)
    answer = answer_tokens(handle, "a red star.", 4)
    scored = read_answer(handle, inputs, answer, [probe])
    assert torch.equal(
        scored.log_probabilities, read_answer(handle, inputs, answer).log_probabilities
    )
    got = scored.session[probe].reading()

    model = copy.deepcopy(handle.model)
    model.set_attn_implementation({"text_config": "eager"})
    out = model(**inputs.tensors, output_attentions=True, output_hidden_states=True)
    vision = layout.vision_positions()
    selected = []
    for layer, weights in enumerate(out.attentions):
        states = out.hidden_states[layer][0]
        torch.testing.assert_close(
            got.phi[layer], sink_score(states, profile.dims)[vision], rtol=0, atol=1e-4
        )
        for draw, dims in enumerate(draws):
            torch.testing.assert_close(
                got.random_phi[draw, layer], sink_score(states, dims)[vision], rtol=0, atol=1e-4
            )
        rows = weights[0].double().mean(0)
        gained = torch.stack(
            [(rows[k + 1 :, k] * torch.arange(k + 2, layout.length + 1)).mean() for k in vision]
        )
        torch.testing.assert_close(
            got.attention[layer], (gained / gained.sum()).float(), rtol=0, atol=1e-5
        )
        for grid in layout.grids:
            inside = torch.isin(vision, torch.tensor(list(grid.positions)))
            own = gained[inside]
            high = own >= settings.min_ratio * np.median(own.numpy())
            assert torch.equal(got.high[layer][inside], high)
            best = torch.zeros_like(high)
            best[own.argmax()] = True  # one per cent of so few tokens is one token
            assert torch.equal(got.top[layer][inside], high & best)
        if 2 <= layer <= handle.info.layers - 2:
            is_vision = torch.zeros(1, layout.length, dtype=torch.bool)
            is_vision[0, vision] = True
            sinks = [sink_score(states, profile.dims)[None] > tau for tau in taus]
            chosen = [
                select_rows(weights, s, is_vision, VARSettings(profile.dims, tau))
                for s, tau in zip(sinks, taus, strict=True)
            ]
            behind = layout.after_images
            selected.append([float(c[:, :, behind:].float().mean()) for c in chosen])
    assert got.high.sum() > got.top.sum() > 0
    assert got.selected == pytest.approx(np.mean(selected, axis=0).tolist())
    assert max(got.selected) > 0 and got.attention.sum(1) == pytest.approx(np.ones(4), abs=1e-5)


def test_a_whole_validation(handle: ModelHandle, profile: SinkProfile) -> None:
    reports: list[tuple[int, int, str]] = []
    samples = [sample(n) for n in (2, 0, 1)]
    made = validate(
        handle, profile, samples, FAST, found_on=("else",), on_progress=lambda *t: reports.append(t)
    )
    assert reports == [(1, 3, "s0"), (2, 3, "s1"), (3, 3, "s2")]
    assert [one.id for one in made.samples] == ["s0", "s1", "s2"]
    assert [layer.layer for layer in made.layers] == list(range(handle.info.layers))
    assert all(one.answer.startswith("a red") and not one.own for one in made.samples)
    assert {one.question for one in made.samples} == {"What is it?"}
    assert made.held_out and made.wanted == 3 and made.seconds > 0
    assert {one.name for one in made.hidden} == {
        "sinks", "random", "random_dims", "attended", "image",
    }  # fmt: skip
    at_tau = next(point for point in made.sweep if point.tau == TAU)
    assert at_tau.samples == 1, "sweep_samples"
    assert at_tau.sinks == pytest.approx(made.samples[0].changes["sinks"])
    flagged = [point.flagged for point in made.sweep]
    assert flagged == sorted(flagged, reverse=True) and flagged[0] > flagged[-1]

    # the same numbers in any order, in any batch, and again
    again = validate(
        handle,
        profile,
        sorted(samples, key=lambda s: s.id),
        dataclasses.replace(FAST, batch_tokens=1),
        found_on=("else",),
    )
    assert again.layers == made.layers
    for one, other in zip(made.samples, again.samples, strict=True):
        assert one.changes == pytest.approx(other.changes, abs=1e-5)


def test_changes_are_those_of_hiding(handle: ModelHandle, profile: SinkProfile) -> None:
    given = sample(5)
    made = validate(handle, profile, [given], FAST).samples[0]
    inputs = handle.prepare(given.open_images(), given.prompt)
    vision = inputs.layout.vision_positions()
    stream = Values(SiteSelection("block_in"))
    scored = read_answer(handle, inputs, answer_tokens(handle, "a red star.", 4), [stream])
    seen = [
        sink_score(states[0], profile.dims)[vision] for states in scored.session[stream].values()
    ]
    flagged = torch.stack([scores > TAU for scores in seen[2:]]).any(0)
    assert 0 < int(flagged.sum()) == made.hidden < made.tokens == len(vision)
    hidden = torch.zeros(3, inputs.layout.length, dtype=torch.bool)
    hidden[1, vision[flagged]] = True
    hidden[2, vision] = True
    logs = hidden_log_probabilities(handle, scored, hidden).mean(1)
    assert made.log_probability == pytest.approx(float(logs[0]), abs=1e-5)
    assert made.changes["sinks"] == pytest.approx(float(logs[1] - logs[0]), abs=1e-5)
    assert made.changes["image"] == pytest.approx(float(logs[2] - logs[0]), abs=1e-5)


def test_flags_before_layer_2_hide_nothing(handle: ModelHandle, profile: SinkProfile) -> None:
    samples = [sample(n) for n in range(12)]

    def hidden(layers: tuple[int, ...] | None) -> list[int]:
        settings = dataclasses.replace(FAST, layers=layers, sweep_samples=0)
        return [one.hidden for one in validate(handle, profile, samples, settings).samples]

    assert hidden(None) == hidden((2, 3)) != hidden((0, 1, 2, 3))


def test_own_layers_and_queries_behind_the_image(handle: ModelHandle, profile: SinkProfile) -> None:
    plain = validate(handle, profile, [sample(5)], FAST).samples[0]
    for other in ({"hide_in": "own_layers"}, {"from_queries": "after_image"}):
        made = validate(handle, profile, [sample(5)], dataclasses.replace(FAST, **other)).samples[0]
        assert made.hidden == plain.hidden and set(made.changes) == set(plain.changes)
        assert abs(made.changes["sinks"] - plain.changes["sinks"]) > 1e-5, other


def test_the_models_own_answer(handle: ModelHandle, profile: SinkProfile) -> None:
    from sinkscope.attention_extractor import generate
    from sinkscope.config import GenerationSettings

    given = sample(3, answer=None)
    made = validate(handle, profile, [given], FAST).samples[0]
    trace = generate(
        handle,
        handle.prepare(given.open_images(), given.prompt),
        GenerationSettings(max_new_tokens=4),
    )
    assert made.own and made.answer == "".join(token.text for token in trace.tokens)
    logs = np.log([token.probability for token in trace.tokens])
    assert made.log_probability == pytest.approx(float(logs.mean()), abs=1e-4)
    forced = dataclasses.replace(FAST, answers="own")
    assert validate(handle, profile, [sample(3)], forced).samples[0] == made


def test_a_profile_that_flags_nothing(handle: ModelHandle, profile: SinkProfile) -> None:
    none = dataclasses.replace(profile, tau=7.9)
    made = validate(handle, none, [sample(n) for n in range(2)], FAST, found_on=())
    assert made.verdict.word == "flags nothing"
    assert made.hidden == () and set(made.samples[0].changes) == {"image"}
    everything = dataclasses.replace(profile, tau=1e-3)
    made = validate(handle, everything, [sample(n) for n in range(2)], FAST, found_on=())
    assert made.verdict.word == "flags too much"
    assert set(made.samples[0].changes) == {"sinks", "image"}
    assert made.samples[0].changes["sinks"] == made.samples[0].changes["image"]


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"layers": 5}, "for qwen2_5_vl with hidden size 64 and 5 layers; the model .* 4 layers"),
        ({"hidden_size": 128}, "hidden size 128 and 4 layers; the model .* hidden size 64"),
        ({"family": "llava"}, "is for llava with .*; the model .* is qwen2_5_vl"),
        ({"model": "Qwen/Other"}, "of Qwen/Other, and the model is .*: their sizes agree"),
    ],
)
def test_a_profile_of_another_model_is_refused(
    handle: ModelHandle, profile: SinkProfile, other: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        validate(handle, dataclasses.replace(profile, **other), [sample(0)], FAST)


def test_layers_that_the_model_lacks(handle: ModelHandle, profile: SinkProfile) -> None:
    with pytest.raises(ValueError, match=r"layers is \(1, 4\); allowed: .* 0 to 3"):
        validate(handle, profile, [sample(0)], dataclasses.replace(FAST, layers=(1, 4)))


def test_samples_of_finding_are_refused(handle: ModelHandle, profile: SinkProfile) -> None:
    samples = [sample(n) for n in range(3)]
    # identical pixels under another name and with another question
    renamed = dataclasses.replace(samples[1], id="other", prompt="Where is it?", digests=())
    used = UsedSample("elsewhere", "f", samples[1].digests)
    for found_on, count in ((("s0", "s2"), 2), ((used,), 1), (samples[1].digests, 1)):
        with pytest.raises(ValueError, match=f"{count} of 3 samples were used in finding"):
            validate(handle, profile, samples, FAST, found_on=found_on)
    assert used_by_finding([samples[0], renamed], (used,)) == (renamed,)
    namesake = UsedSample("s0", "f", samples[1].digests)  # another folder has an s0 as well
    assert used_by_finding([samples[0]], (namesake,)) == ()
    with pytest.raises(ValueError, match=r"\(other\).*allow_finding_samples"):
        validate(handle, profile, [samples[0], renamed], FAST, found_on=(used,))
    allowed = dataclasses.replace(FAST, allow_finding_samples=True)
    made = validate(handle, profile, [samples[0], renamed], allowed, found_on=(used,))
    assert not made.held_out
    assert any("used in finding the profile, so this is no evidence" in w for w in made.warnings)


def test_held_out_takes_the_others() -> None:
    samples = tuple(sample(n) for n in range(5))
    kept = held_out(SampleSet(samples, (), 5, "x"), 3, ("s1", *samples[3].digests))
    assert [one.id for one in kept.samples] == ["s0", "s2", "s4"] and kept.wanted == 3
    many = SampleSet(tuple(sorted(map(sample, range(20)), key=lambda one: one.id)), (), 20, "x")
    drawn = [one.id for one in held_out(many, 10, None).samples]
    assert len(drawn) == 10 and drawn == sorted(drawn)
    assert drawn != [one.id for one in many.samples[:10]]  # not by name


def test_unreadable_samples_are_listed_and_skipped(
    handle: ModelHandle, profile: SinkProfile, tmp_path: Path
) -> None:
    path = tmp_path / "gone.png"
    sample(7).open_images()[0].save(path)
    gone = Sample("gone", (path,), "What is it?", "yes.")
    path.write_bytes(b"no image")
    listed = SampleSet((gone, sample(0)), (("early", "early is damaged."),), 4, "x")
    made = validate(handle, profile, listed, FAST)
    assert [one.id for one in made.samples] == ["s0"]
    assert [name for name, _ in made.skipped] == ["early", "gone"]
    said = " ".join(made.warnings)
    assert "1 sample could be used; 4 were asked for" in said and "2 samples were skipped" in said
    assert made.verdict.word == "too few samples"
    with pytest.raises(ValueError, match="The only sample cannot be used; the first: "):
        validate(handle, profile, [gone], FAST)
    with pytest.raises(ValueError, match="Two samples have the id s0; allowed: each id once"):
        validate(handle, profile, [sample(0), sample(0)], FAST)
    with pytest.raises(ValueError, match="There is no sample"):
        validate(handle, profile, [], FAST)


def test_what_is_no_fault_of_a_sample_is_no_reason_to_skip_it(
    handle: ModelHandle, profile: SinkProfile
) -> None:
    head = handle.model.lm_head
    spoil = head.register_forward_hook(lambda module, given, out: out * float("nan"))
    try:
        with pytest.raises(ValueError, match="output is not a number"):
            validate(handle, profile, [sample(0), sample(1)], FAST)
    finally:
        spoil.remove()


def test_stop(handle: ModelHandle, profile: SinkProfile) -> None:
    stop = threading.Event()

    def after_one(done: int, total: int, name: str) -> None:
        stop.set()

    with pytest.raises(Stopped) as stopped:
        validate(
            handle, profile, [sample(n) for n in range(3)], FAST, on_progress=after_one, stop=stop
        )
    assert (stopped.value.done, stopped.value.total) == (1, 3)
    assert not handle.lock.locked()
    with pytest.raises(Stopped):  # while the model's own answer is being generated
        validate(handle, profile, [sample(0, answer=None)], FAST, stop=stop)


def test_stop_between_batches(handle: ModelHandle, profile: SinkProfile) -> None:
    class Third(threading.Event):
        """Set from the third query on: before the second batch of the first sample."""

        reads = 0

        def is_set(self) -> bool:
            self.reads += 1
            return self.reads >= 3

    one_by_one = dataclasses.replace(FAST, batch_tokens=1)
    stop = Third()
    with pytest.raises(Stopped):
        validate(handle, profile, [sample(5)], one_by_one, stop=stop)
    assert stop.reads == 3
    assert not handle.lock.locked()
    assert all(not layer._forward_pre_hooks for layer in handle.stack.layers)
