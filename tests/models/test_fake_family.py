"""Code above `models` must not assume contiguous image tokens, byte-level BPE, pixel bounds, a chat
template or Qwen's module paths: tested on a family that has none of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DynamicCache

from sinkscope.attention_extractor import compare, generate, prompt_rows
from sinkscope.attention_processor import image_share, patch_map, sink_share, tokens_attending_to
from sinkscope.capture.probes.base import Probe
from sinkscope.capture.probes.values import Values
from sinkscope.capture.run import RunOutOfMemoryError, memory_errors_named
from sinkscope.capture.session import attached
from sinkscope.capture.trace import GenerationTrace
from sinkscope.config import GenerationSettings, VARSettings
from sinkscope.drawing.overlay import OverlayStyle, overlay
from sinkscope.drawing.view import View as Bar
from sinkscope.drawing.view import sinks_of
from sinkscope.methods.explain import explain_map
from sinkscope.models.attention import NAME
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle
from sinkscope.models.sink_score import sink_score
from sinkscope.models.sites import SiteSelection
from sinkscope.sinks.finding.find import find
from sinkscope.sinks.finding.measure import measure
from sinkscope.sinks.samples import Sample
from sinkscope.sinks.settings import FindSettings
from sinkscope.sinks.validating.masking import hidden_log_probabilities, read_answer
from sinkscope.var_patch import redistribute
from sinkscope.web.runs.payload import build_payload
from sinkscope.web.runs.store import Run
from tests.models.fake_family import (
    IMAGE,
    RED,
    SINK,
    SMALL,
    TILE,
    make_handle,
)
from tests.web.test_payload import unpack

pytestmark = pytest.mark.tiny
GREY, PAINT = (100, 110, 90), (255, 0, 0)  # without redness, and with the most
NEW = 4


@pytest.fixture(scope="module")
def handle() -> ModelHandle:
    return make_handle()


@pytest.fixture(scope="module")
def sinking() -> ModelHandle:
    return make_handle(sinks=30.0)


def painted(
    width: int = 160, height: int = 160, box: tuple[int, int, int, int] | None = None
) -> Image.Image:
    image = Image.new("RGB", (width, height), GREY)
    if box is not None:
        image.paste(PAINT, box)
    return image


@pytest.fixture(scope="module")
def inputs(handle: ModelHandle) -> PromptInputs:
    return handle.prepare([painted(box=(0, 40, 40, 80)), painted(200, 90)], "a red star")


# --- the prompt ---------------------------------------------------------------------------------


def test_views_are_where_the_placeholders_are(handle: ModelHandle, inputs: PromptInputs) -> None:
    number = handle.tokenizer.convert_tokens_to_ids(IMAGE)
    places = [k for k, token in enumerate(inputs.token_ids) if token == number]
    layout = inputs.layout
    assert layout.vision_positions().tolist() == places
    one, two = layout.grids
    assert one.tokens == 4 * TILE**2 + SMALL**2 and two.tokens == 2 * TILE**2 + SMALL**2
    assert [view.kind for view in one.views] == ["tile"] * 4 + ["thumbnail"]
    assert not isinstance(one.views[0].positions, range), "rows end with a mark"
    for grid, segment in zip(layout.grids, layout.segments[1:3], strict=True):
        assert segment.kind == "image"
        inside = set(range(segment.start, segment.stop))
        assert inside == set(grid.positions) | set(grid.marks)
        assert not set(grid.positions) & set(grid.marks) and grid.after == segment.stop
    assert layout.after_images == layout.segments[2].stop == layout.segments[3].start
    columns = [inputs.token_ids[p] for where, p in _pairs(layout)]
    assert columns == [number] * layout.vision_tokens
    assert (one.rows, one.columns, two.rows, two.columns) == (8, 8, 4, 8)


def _pairs(layout: Any) -> list[tuple[int, int]]:
    made = []
    for columns, where in layout.vision_stretches():
        made += zip(range(columns.start, columns.stop), range(where.start, where.stop), strict=True)
    assert [column for column, _ in made] == list(range(layout.vision_tokens))
    return made


def test_texts_keep_their_blanks(handle: ModelHandle, inputs: PromptInputs) -> None:
    said = inputs.layout.segments[-1]
    assert "".join(inputs.token_texts[said.start : said.stop]).strip() == "a red star"
    trace = generate(handle, inputs, GenerationSettings(max_new_tokens=12))
    ids = [token.id for token in trace.tokens]
    whole = handle.tokenizer.decode([*inputs.token_ids, *ids])
    assert whole.endswith(trace.text.strip())


def test_it_takes_no_pixel_bounds(handle: ModelHandle) -> None:
    with pytest.raises(ValueError, match="max_pixels is 5000, but models of the family fake_vl"):
        handle.prepare([painted()], "x", max_pixels=5000)
    with pytest.raises(ValueError, match="There is no image"):
        handle.prepare([], "x")


def test_a_full_memory_names_no_setting_that_it_has_not(handle: ModelHandle) -> None:
    inputs, settings = handle.prepare([painted()], "x"), GenerationSettings()
    with pytest.raises(RunOutOfMemoryError) as error, memory_errors_named(inputs, settings):
        raise MemoryError
    tokens = inputs.layout.vision_tokens
    assert f"a smaller image (now {tokens} vision tokens), " in str(error.value)
    assert "pixels" not in str(error.value)


# --- rows ---------------------------------------------------------------------------------------


def eager(handle: ModelHandle, inputs: PromptInputs, new: int = NEW) -> Any:
    handle.model.set_attn_implementation({"text_config": "eager"})
    try:
        return handle.model.generate(
            **inputs.tensors,
            past_key_values=DynamicCache(),
            max_new_tokens=new,
            do_sample=False,
            output_attentions=True,
            return_dict_in_generate=True,
            output_logits=True,
        )
    finally:
        handle.model.set_attn_implementation({"text_config": NAME})


def test_captured_rows_are_eagers(
    handle: ModelHandle, inputs: PromptInputs, tmp_path: Path
) -> None:
    settings = GenerationSettings(max_new_tokens=NEW, prompt_rows=3)
    trace = generate(handle, inputs, settings)
    right = eager(handle, inputs)
    layout = inputs.layout
    assert [t.id for t in trace.tokens] == right.sequences[0, layout.length :].tolist()
    vision = layout.vision_positions()
    for step, layers in enumerate(right.attentions):
        for layer, rows in enumerate(layers):
            row = rows[0, :, -1]
            torch.testing.assert_close(
                trace.attention[step, layer].float(), row[:, vision], rtol=0, atol=1e-3
            )
            spans = [row[:, s.start : s.stop].sum(-1) for s in layout.segments]
            torch.testing.assert_close(
                trace.shares[step, layer, :, :-1], torch.stack(spans, -1), rtol=0, atol=1e-5
            )
    assert trace.prompt_rows is not None
    asked = prompt_rows(handle, inputs, settings=settings)
    assert asked.positions[0] == layout.after_images
    last = right.attentions[0][1][0, :, layout.length - 2, vision]
    torch.testing.assert_close(trace.prompt_rows.attention[-2, 1].float(), last, rtol=0, atol=1e-3)
    trace.save(tmp_path / "run.safetensors")
    again = GenerationTrace.open(tmp_path / "run.safetensors")
    assert again.layout == trace.layout and torch.equal(again.attention, trace.attention)
    for image, grid in enumerate(layout.grids):
        there, back = (patch_map(t, 1, image=image).values for t in (trace, again))
        assert there.shape == (grid.rows, grid.columns) and np.array_equal(there, back)
        mass = trace.attention[1][..., layout.columns(image)].float().sum(-1).mean()
        assert there.sum() == pytest.approx(float(mass), rel=1e-5)  # no token sees padding here


@pytest.mark.parametrize("box", [(0, 0), (120, 0), (0, 120), (120, 120), (40, 80)])
def test_a_painted_square_moves_the_map_to_its_pixels(
    handle: ModelHandle, box: tuple[int, int], tmp_path: Path
) -> None:
    """In the head that attends to red, the map's largest cells are those whose boxes are
    painted."""
    x, y = box
    image = painted(box=(x, y, x + 40, y + 40))
    trace = generate(
        handle, handle.prepare([image], "a star"), GenerationSettings(max_new_tokens=1)
    )
    found = patch_map(trace, 0, layers=[0], heads=[0])
    boxes = found.grid.boxes()
    inside = (
        (boxes[:, 0] >= x) & (boxes[:, 1] >= y) & (boxes[:, 2] <= x + 40) & (boxes[:, 3] <= y + 40)
    )
    assert inside.sum() == 4
    largest = np.argsort(found.values.ravel())[-4:]
    assert set(largest.tolist()) == set(np.flatnonzero(inside).tolist())
    assert found.values.ravel()[inside].sum() > 0.5 * found.values.sum()
    drawn = overlay(image, found, OverlayStyle(opacity=1.0, scale="linear", alpha_by_value=True))
    change = np.abs(drawn.astype(int) - np.asarray(image)).sum(-1)
    assert change[y : y + 40, x : x + 40].mean() > 3 * change.mean()
    (look, *_) = tokens_attending_to(trace, np.flatnonzero(inside).tolist(), layers=[0], heads=[0])
    per_token = trace.attention[0, 0, 0].float()
    seen = trace.layout.grids[0].tokens_of(np.flatnonzero(inside).tolist())
    assert look.mass == pytest.approx(float(per_token[list(seen)].sum()), rel=1e-4)
    red = np.flatnonzero(handle.prepare([image], "a").tensors["colours"][:, 0] > 0.9)
    assert set(red.tolist()) <= set(seen)


# --- sinks --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def red_inputs(sinking: ModelHandle) -> PromptInputs:
    return sinking.prepare([painted(box=(0, 40, 40, 80))], "a red star")


def test_sinks_are_at_the_red_patches(sinking: ModelHandle, red_inputs: PromptInputs) -> None:
    trace = generate(sinking, red_inputs, GenerationSettings(max_new_tokens=NEW))
    layout, colours = red_inputs.layout, red_inputs.tensors["colours"]
    red = layout.vision_positions()[colours[:, 0] > 0.9].tolist()
    assert len(red) == 4
    (first,) = [one for one in trace.sinks if one.layer == 2]  # earlier layers are not searched
    assert set(red) <= set(first.positions)
    marked = sinks_of(trace, Bar(layers=(2,)))
    boxes = layout.grids[0].boxes()
    inside = (boxes[:, 2] <= 40) & (boxes[:, 1] >= 40) & (boxes[:, 3] <= 80)
    assert set(np.flatnonzero(inside).tolist()) <= set(marked)
    assert float(sink_share(trace)[:, 2, 0].min()) > 0.3
    without = explain_map(trace, 0, "without_sinks", layers=[2], heads=[0])
    assert without.values.shape == (8, 8)
    raw = patch_map(trace, 0, layers=[2], heads=[0])
    assert np.nansum(without.values) < 0.5 * raw.values.sum()


def test_a_relative_map_is_the_ratio_of_two_maps(
    sinking: ModelHandle, red_inputs: PromptInputs
) -> None:
    settings = GenerationSettings(max_new_tokens=1, reference=True)
    trace = generate(sinking, red_inputs, settings)
    assert trace.reference is not None
    where = {"layers": [1, 2], "heads": [0, 3]}
    above, below = (patch_map(run, 0, **where).values for run in (trace, trace.reference))  # type: ignore[arg-type]
    found = explain_map(trace, 0, "relative", **where)  # type: ignore[arg-type]
    floor = np.maximum(below, 0.1 * below.mean())
    near = below > 0.5 * below.mean()  # whatever the method's floor is
    np.testing.assert_allclose(found.values[near], (above / floor)[near], rtol=1e-4)
    assert found.values.shape == (8, 8) and near.sum() > 30


@pytest.mark.parametrize("new", [1, NEW])
def test_var_redistributes_over_vision_tokens_alone(
    sinking: ModelHandle, red_inputs: PromptInputs, new: int
) -> None:
    var = VARSettings(dims=(SINK,), tau=3.0, layers=(1,))
    settings = GenerationSettings(max_new_tokens=new)
    pair = compare(sinking, red_inputs, settings, var)
    plain = generate(sinking, red_inputs, settings)
    assert [t.id for t in pair.baseline.tokens] == [t.id for t in plain.tokens]
    layout = red_inputs.layout
    states = Values(SiteSelection("block_in", (1,)))
    with attached(sinking, red_inputs, [states]) as session, torch.no_grad():
        sinking.model(**red_inputs.tensors)
    vision = torch.zeros(1, layout.length, dtype=torch.bool)
    vision[0, layout.vision_positions()] = True
    sinks = sink_score(session[states][1][0], (SINK,))[None] > 3.0
    assert bool((sinks & vision).any())
    rows = eager(sinking, red_inputs).attentions[0][1]
    expected = redistribute(rows, sinks, vision, var, first_query=layout.after_images)
    assert not torch.equal(expected, rows)
    got = pair.var.attention[0, 1].float()
    torch.testing.assert_close(
        got, expected[0, :, -1][:, layout.vision_positions()], rtol=0, atol=1e-3
    )
    assert float(image_share(pair.var)[0, 1].sum()) == pytest.approx(
        float(image_share(plain)[0, 1].sum()), rel=1e-4
    )


def test_measuring_looks_at_the_vision_tokens(handle: ModelHandle) -> None:
    """In a batch of two lengths, each token's measurements are taken at its own position."""
    images = [painted(box=(0, 40, 40, 80)), painted(200, 90, box=(100, 0, 200, 90))]
    samples = [Sample(f"s{k}", (image,), "a star") for k, image in enumerate(images)]
    stats = measure(handle, samples, FindSettings(tokens_by="norm"))
    for sample, one in zip(samples, stats, strict=True):
        prompt = handle.prepare(sample.open_images(), sample.prompt)
        states = Values(SiteSelection("block_in"))
        with attached(handle, prompt, [states]) as session, torch.no_grad():
            handle.model(**prompt.tensors)
        for layer in range(handle.info.layers):
            hidden = session[states][layer][0, prompt.layout.vision_positions()]
            rms = hidden.square().mean(-1).add(1e-6).sqrt()
            torch.testing.assert_close(one.rms[layer], rms, rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]


def test_planted_sinks_are_found(sinking: ModelHandle) -> None:
    random = np.random.default_rng(0)
    samples = []
    for index in range(10):
        noise = random.normal(0, 12, (160, 160, 3)) + np.array(GREY)
        image = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))
        x, y = (int(20 * k) for k in random.integers(0, 8, 2))
        image.paste(PAINT, (x, y, x + 20, y + 20))
        samples.append(Sample(f"{index:02}", (image,), "a red star"))
    found = find(sinking, samples, FindSettings(bootstrap=100, halves=10))
    assert SINK in found.dims and set(found.dims) <= {SINK, RED}, found.sentence()


@pytest.mark.parametrize("from_queries", ["later", "after_image"])
def test_hidden_tokens_are_those_of_a_dense_mask(
    sinking: ModelHandle, red_inputs: PromptInputs, from_queries: Any
) -> None:
    layout, answer = red_inputs.layout, (5, 70, 9)
    colours = red_inputs.tensors["colours"]
    red = layout.vision_positions()[colours[:, 0] > 0.9]
    hidden = torch.zeros(2, layout.length, dtype=torch.bool)
    hidden[1, red] = True
    with sinking.lock:
        scored = read_answer(sinking, red_inputs, answer)
        found = hidden_log_probabilities(sinking, scored, hidden, from_queries=from_queries)
    embeds = scored.keywords["inputs_embeds"]
    places = torch.arange(embeds.shape[1])
    first = layout.after_images if from_queries == "after_image" else 0
    for row, gone in zip(found, hidden, strict=True):
        away = torch.zeros(len(places), dtype=torch.bool)
        away[: layout.length] = gone
        seen = places[:, None] >= places
        seen &= ~(away & (places[:, None] > places) & (places[:, None] >= first))
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        with torch.no_grad():
            states = sinking.model.reader(inputs_embeds=embeds, attention_mask=mask[None, None])[0]
        right = sinking.model.say(states[0, -len(answer) :]).log_softmax(-1)
        expected = right[torch.arange(len(answer)), list(answer)]
        torch.testing.assert_close(row, expected, rtol=0, atol=1e-4)
    assert (found[0] - found[1]).abs().max() > 1e-3


# --- the page -----------------------------------------------------------------------------------


def test_the_page_draws_cells(sinking: ModelHandle, red_inputs: PromptInputs) -> None:
    """The patches drawn by the browser are the cells of the merged map."""
    trace = generate(sinking, red_inputs, GenerationSettings(max_new_tokens=2))
    header, arrays = unpack(build_payload(Run({"baseline": trace})))
    (image,) = header["images"]
    assert (image["rows"], image["columns"], image["start"]) == (8, 8, 0)
    assert header["patches"] == 64
    codes = arrays["baseline.full"].astype(float) / np.iinfo(arrays["baseline.full"].dtype).max
    values = arrays["baseline.full.scale"][..., None] * codes**2
    right = patch_map(trace, 1, layers=[0], heads=[0]).values.ravel()
    assert np.abs(values[1, 0, 0] - right).max() < 1e-3
    (sinks,) = [one for one in header["variants"][0]["sinks"] if one["layer"] == 2]
    assert set(sinks["columns"]) == set(sinks_of(trace, Bar(layers=(2,))))


def test_a_probe_sees_all_positions(handle: ModelHandle, inputs: PromptInputs) -> None:
    class TextInputs(Probe):
        reads = (SiteSelection("text_inputs"),)

    probe = TextInputs()
    with attached(handle, inputs, [probe]) as session, torch.no_grad():
        handle.model(**inputs.tensors)
    (given,) = next(iter(session[probe].values()))
    assert given["inputs_embeds"].shape[1] == inputs.layout.length
