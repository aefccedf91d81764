"""VAR in a running model: equal to its dense form in eager attention, live or side by side."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

from sinkscope.attention_extractor import compare, generate
from sinkscope.capture.trace import GenerationTrace
from sinkscope.config import GenerationSettings, VARSettings
from sinkscope.models.attention import NAME
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.var_patch import redistribute

pytestmark = pytest.mark.tiny
SETTINGS = GenerationSettings(max_new_tokens=7)
DIMS = (3, 40)


@pytest.fixture(scope="module")
def handle(tiny_folder: Path) -> ModelHandle:
    return load_model(str(tiny_folder), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def inputs(handle: ModelHandle, photo: Image.Image) -> PromptInputs:
    pictures = [photo, photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT).crop((0, 0, 120, 90))]
    return handle.prepare(pictures, "What is there?")


@pytest.fixture(scope="module")
def var(handle: ModelHandle, inputs: PromptInputs) -> VARSettings:
    """Thresholds for which this random model has a few sinks and several heads qualify."""
    probe = VARSettings(DIMS, tau=0.0, layers=(1, 2), min_image_mass=0.0, max_sink_share=1.0)
    report = generate(handle, inputs, GenerationSettings(max_new_tokens=1), probe).var
    assert report is not None
    scores = sorted(s for layer in report["layers"] for s in layer["scores"])
    cut = int(0.9 * len(scores))
    tau = (scores[cut] + scores[cut + 1]) / 2  # not near any score: rounding has no effect
    return VARSettings(DIMS, tau=tau, keep=0.3, layers=(1, 2), min_image_mass=0.05)


@contextmanager
def dense_var(handle: ModelHandle, inputs: PromptInputs, var: VARSettings) -> Iterator[None]:
    """Eager attention with the dense redistribution on its full matrices."""
    sinks: dict[int, torch.Tensor] = {}
    vision = torch.zeros(inputs.layout.length, dtype=torch.bool)
    vision[inputs.layout.vision_positions()] = True
    first = inputs.layout.after_images
    real = modeling_qwen2_5_vl.eager_attention_forward

    def padded(mask: torch.Tensor, keys: int) -> torch.Tensor:
        return torch.nn.functional.pad(mask, (0, keys - len(mask)))[None]

    def eager(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        output, weights = real(module, query, key, value, mask, **kwargs)
        layer = getattr(module, "layer_idx", None)
        if layer not in (var.layers or ()):
            return output, weights
        keys, queries = weights.shape[3], weights.shape[2]
        row = first if queries > 1 else 0
        new = redistribute(weights, padded(sinks[layer], keys), padded(vision, keys), var, row)
        repeated = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        return torch.matmul(new, repeated).transpose(1, 2), new

    def look(layer: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            if hidden.shape[1] > 1:
                x = hidden[0].double()
                phi = x[:, list(var.dims)].abs().amax(-1) / (x.pow(2).mean(-1) + 1e-6).sqrt()
                sinks[layer] = phi > var.tau

        return hook

    hooks = [
        layer.register_forward_pre_hook(look(index), with_kwargs=True)
        for index, layer in enumerate(handle.stack.layers)
    ]
    modeling_qwen2_5_vl.eager_attention_forward = eager
    handle.model.set_attn_implementation({"text_config": "eager"})
    try:
        yield
    finally:
        modeling_qwen2_5_vl.eager_attention_forward = real
        handle.model.set_attn_implementation({"text_config": NAME})
        for hook in hooks:
            hook.remove()


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal up to float16 storage and float32 rounding through a few layers."""
    return a.shape == b.shape and bool((a.float() - b.float()).abs().max() < 2e-3)


def same(a: GenerationTrace, b: GenerationTrace) -> bool:
    return [t.id for t in a.tokens] == [t.id for t in b.tokens] and close(a.attention, b.attention)


def test_a_run_equals_dense_redistribution_in_eager_attention(
    handle: ModelHandle, inputs: PromptInputs, var: VARSettings
) -> None:
    settings = dataclasses.replace(SETTINGS, prompt_rows=64)
    trace = generate(handle, inputs, settings, var)
    assert trace.var is not None
    assert trace.var["changed"]
    with dense_var(handle, inputs, var):
        eager = handle.model.generate(
            **inputs.tensors,
            max_new_tokens=SETTINGS.max_new_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_attentions=True,
            output_logits=True,
        )
    assert [t.id for t in trace.tokens] == eager.sequences[0, inputs.layout.length :].tolist()
    vision = inputs.layout.vision_positions()
    for t, (weights, logits) in enumerate(zip(eager.attentions, eager.logits, strict=True)):
        rows = torch.stack([layer[0, :, -1] for layer in weights])
        assert close(trace.attention[t], rows[..., vision])
        probability = torch.softmax(logits[0].float(), -1)[trace.tokens[t].id]
        assert trace.tokens[t].probability == pytest.approx(float(probability), rel=1e-4)
    assert trace.prompt_rows is not None  # the prompt's own rows, as changed by VAR
    for r, position in enumerate(trace.prompt_rows.positions):
        rows = torch.stack([layer[0, :, position] for layer in eager.attentions[0]])
        assert close(trace.prompt_rows.attention[r], rows[..., vision])


def test_it_changes_what_the_plain_model_sees(
    handle: ModelHandle, inputs: PromptInputs, var: VARSettings
) -> None:
    plain = generate(handle, inputs, SETTINGS)
    changed = generate(handle, inputs, SETTINGS, var)
    assert plain.applied == ()
    assert changed.applied[0].startswith("VAR (official)")
    assert not close(plain.attention[0], changed.attention[0])
    assert torch.allclose(changed.shares.sum(-1), torch.ones(()), atol=1e-5)  # rows still sum to 1


def test_side_by_side_equals_two_runs(
    handle: ModelHandle, inputs: PromptInputs, var: VARSettings
) -> None:
    pair = compare(handle, inputs, SETTINGS, var)
    assert same(pair.baseline, generate(handle, inputs, SETTINGS))
    assert same(pair.var, generate(handle, inputs, SETTINGS, var))
    assert pair.baseline.applied == ()
    assert pair.baseline.var is None
    assert pair.var.var is not None
    assert pair.baseline.sinks == pair.var.sinks


def test_the_prefix_serves_other_settings(
    handle: ModelHandle, inputs: PromptInputs, var: VARSettings
) -> None:
    first = compare(handle, inputs, SETTINGS, var)
    other = dataclasses.replace(var, keep=0.0, tau=var.tau * 0.9)
    again = compare(handle, inputs, SETTINGS, other, prefix=first.prefix)
    assert again.prefix is first.prefix
    assert same(again.var, generate(handle, inputs, SETTINGS, other))
    third = compare(handle, inputs, SETTINGS, var, prefix=again.prefix)  # it can be used again
    assert same(third.var, first.var)
    elsewhere = compare(
        handle, inputs, SETTINGS, dataclasses.replace(var, dims=(5,)), prefix=first.prefix
    )
    assert elsewhere.prefix is not first.prefix


def test_same_text_gives_the_rows_of_generating_it(
    handle: ModelHandle, inputs: PromptInputs, var: VARSettings
) -> None:
    pair = compare(handle, inputs, SETTINGS, var, same_text=True)
    free = generate(handle, inputs, SETTINGS, var)
    assert [t.id for t in pair.baseline.tokens] == [t.id for t in pair.var.tokens]
    common = 0
    while common < len(free.tokens) and free.tokens[common].id == pair.var.tokens[common].id:
        common += 1
    assert close(pair.var.attention[: common + 1], free.attention[: common + 1])
    for mine, theirs in zip(pair.var.tokens[:common], free.tokens[:common], strict=True):
        assert mine.probability == pytest.approx(theirs.probability, rel=1e-4)
    plain = generate(handle, inputs, SETTINGS)
    assert same(pair.baseline, plain)
    change = pair.log_probability_change
    assert len(change) == len(plain.tokens)
    assert any(abs(nats) > 1e-4 for nats in change)


def test_keep_1_is_the_plain_model(
    handle: ModelHandle, inputs: PromptInputs, var: VARSettings
) -> None:
    plain = generate(handle, inputs, SETTINGS)
    kept = generate(handle, inputs, SETTINGS, dataclasses.replace(var, keep=1.0))
    assert [t.id for t in plain.tokens] == [t.id for t in kept.tokens]
    assert torch.equal(plain.attention, kept.attention)
    assert kept.var is not None
    assert not kept.var["changed"]
    assert "keep is 1" in kept.var["reason"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tau": 7.99}, "no token is a sink. The largest sink score is"),
        ({"min_image_mass": 1.0}, "no head qualified"),
        ({"tau": 0.0, "max_sink_share": 0.5}, "so many tokens are flagged"),
    ],
)
def test_doing_nothing_is_said_and_explained(
    handle: ModelHandle, inputs: PromptInputs, var: VARSettings, change: dict[str, float], says: str
) -> None:
    trace = generate(handle, inputs, SETTINGS, dataclasses.replace(var, **change))
    assert trace.var is not None
    assert not trace.var["changed"]
    assert says in trace.var["reason"]
    assert torch.equal(trace.attention, generate(handle, inputs, SETTINGS).attention)


def test_the_report_counts_what_was_done(
    handle: ModelHandle, inputs: PromptInputs, var: VARSettings
) -> None:
    trace = generate(handle, inputs, SETTINGS, var)
    assert trace.var is not None
    assert [layer["layer"] for layer in trace.var["layers"]] == [1, 2]
    vision = set(inputs.layout.vision_positions().tolist())
    for layer in trace.var["layers"]:
        assert all(score > var.tau for score in layer["scores"])
        found = len(vision & set(layer["positions"]))
        assert layer["flagged"] == pytest.approx(found / len(vision))
        assert 0 <= layer["moved"] <= 1 - var.keep
        assert 0 <= layer["selected"] <= 1
    assert any(layer["selected"] > 0 for layer in trace.var["layers"])
    marked = {sinks.layer: set(sinks.positions) for sinks in trace.sinks}
    assert marked[2] == set(trace.var["layers"][1]["positions"])


def test_the_control_takes_as_many_other_tokens(
    handle: ModelHandle, inputs: PromptInputs, var: VARSettings
) -> None:
    real = generate(handle, inputs, SETTINGS, var).var
    control = generate(handle, inputs, SETTINGS, dataclasses.replace(var, control="random")).var
    assert real is not None
    assert control is not None
    vision = set(inputs.layout.vision_positions().tolist())
    for a, b in zip(real["layers"], control["layers"], strict=True):
        sinks, chosen = vision & set(a["positions"]), vision & set(b["positions"])
        assert len(sinks) == len(chosen)
        assert not sinks & chosen
    first, control_first = real["layers"][0], control["layers"][0]  # later inputs differ
    assert set(first["positions"]) - vision == set(control_first["positions"]) - vision


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dims": (64,)}, "allows 0 to 63"),
        ({"tau": 8.5}, "never exceeds sqrt"),
        ({"layers": (9,)}, "layers 0 to 3"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_compute(
    handle: ModelHandle, inputs: PromptInputs, var: VARSettings, change: dict[str, Any], says: str
) -> None:
    bad = dataclasses.replace(var, **change)
    for run in (generate, compare):
        with pytest.raises(ValueError, match=says):
            run(handle, inputs, SETTINGS, bad, on_token=lambda *_: pytest.fail("it ran"))
    assert not handle.lock.locked()


def test_stop_and_errors_leave_the_plain_model(
    handle: ModelHandle, inputs: PromptInputs, var: VARSettings
) -> None:
    plain = generate(handle, inputs, SETTINGS)
    stop = threading.Event()
    partial = compare(handle, inputs, SETTINGS, var, stop=stop, on_token=lambda *_: stop.set())
    assert len(partial.var.tokens) == len(partial.baseline.tokens) == 1
    assert partial.baseline.finish_reason == "stopped"

    def fail(*_: object) -> None:
        raise RuntimeError("the page went away")

    with pytest.raises(RuntimeError, match="went away"):
        generate(handle, inputs, SETTINGS, var, on_token=fail)
    again = generate(handle, inputs, SETTINGS)
    assert torch.equal(plain.attention, again.attention)


def test_two_threads_with_different_settings_on_one_handle(
    handle: ModelHandle, inputs: PromptInputs, var: VARSettings
) -> None:
    wanted = [None, var, dataclasses.replace(var, keep=0.0), dataclasses.replace(var, dims=(9,))]
    alone = [generate(handle, inputs, SETTINGS, own) for own in wanted]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda own: generate(handle, inputs, SETTINGS, own), wanted))
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a.attention, b.attention)


def test_each_answer_of_a_pair_is_cut_at_its_own_end(
    handle: ModelHandle, inputs: PromptInputs, var: VARSettings
) -> None:
    free = compare(handle, inputs, SETTINGS, var)
    own = handle.model.generation_config.eos_token_id
    try:
        handle.model.generation_config.eos_token_id = free.baseline.tokens[1].id
        pair = compare(handle, inputs, SETTINGS, var)
    finally:
        handle.model.generation_config.eos_token_id = own
    ids = [t.id for t in free.baseline.tokens]
    end = ids.index(free.baseline.tokens[1].id)
    assert [t.id for t in pair.baseline.tokens] == ids[: end + 1]
    assert pair.baseline.finish_reason == "end"
    assert pair.baseline.attention.shape[0] == end + 1


def test_a_model_whose_output_is_no_number_is_refused(
    tiny_folder: Path, inputs: PromptInputs
) -> None:
    broken = load_model(str(tiny_folder), device="cpu", dtype="float32")
    broken.model.lm_head.weight[7, 0] = float("nan")
    with pytest.raises(ValueError, match="not a number"):
        generate(broken, inputs, SETTINGS)


def test_a_control_without_other_tokens_says_so(
    handle: ModelHandle, inputs: PromptInputs, var: VARSettings
) -> None:
    every = dataclasses.replace(var, tau=0.0, control="random", max_sink_share=1.0)
    report = generate(handle, inputs, SETTINGS, every).var
    assert report is not None
    assert all(layer["flagged"] == 1 for layer in report["layers"])
    assert "control acts on fewer tokens" in " ".join(report["warnings"])


def test_a_report_survives_its_file(
    handle: ModelHandle, inputs: PromptInputs, var: VARSettings, tmp_path: Path
) -> None:
    trace = generate(handle, inputs, SETTINGS, var)
    trace.save(tmp_path / "run.safetensors")
    assert GenerationTrace.open(tmp_path / "run.safetensors").var == trace.var
    marked = {sinks.layer for sinks in trace.sinks}
    assert {1, 2} <= marked  # also the layer before the third, since VAR was told to act there
