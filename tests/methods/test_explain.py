"""Explanation methods: results by hand, refusals, and a user-defined method."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sinkscope.attention_processor import patch_map
from sinkscope.capture.trace import GenerationTrace
from sinkscope.cli.picture import Drawing
from sinkscope.drawing.panels import Painter
from sinkscope.drawing.view import View, make_side, method_and_scale
from sinkscope.methods.base import MapStack, Method, Needs, Progress, Target
from sinkscope.methods.explain import METHODS, explain, explain_map, listed, method_of
from sinkscope.models.views import one_view
from sinkscope.setting import settings_of
from sinkscope.web.api.selection import Selection
from sinkscope.web.runs.payload import IN_BROWSER, NOT_IN_BROWSER, build_payload
from sinkscope.web.runs.store import Run
from tests.capture.test_storage import prompt_trace, small_trace
from tests.web.synthetic import make_trace
from tests.web.test_payload import unpack


@pytest.fixture
def trace() -> GenerationTrace:
    """3 tokens, layers 0 and 3, 3 heads, one image of 2 x 3 cells at positions 2..7."""
    return small_trace()


def with_reference(trace: GenerationTrace, row: list[float]) -> GenerationTrace:
    """The run with one row of a generic prompt, the same in all heads."""
    made = torch.tensor(row, dtype=torch.float16).expand(1, 2, 3, 6)
    reference = dataclasses.replace(prompt_trace(trace, 1), attention=made)
    return dataclasses.replace(trace, reference=reference, prompt_rows=prompt_trace(trace, 2))


# --- the methods ----------------------------------------------------------------------------------


def test_attention_has_a_slot_for_each_token_layer_and_head(trace: GenerationTrace) -> None:
    stack = explain(trace, [0, 2])
    assert stack.axes == (("token", (0, 2)), ("layer", (0, 3)), ("head", trace.heads))
    rows = trace.attention[[0, 2]].float().flatten(0, 2)
    np.testing.assert_array_equal(stack.values, rows)
    assert (stack.unit, stack.signed, stack.normalisation) == ("attention mass", False, "none")
    assert explain(trace, "answer").axes[0] == ("token", (0, 1, 2))
    for token, layers, heads, reduce in (
        (1, None, None, "mean"),
        ([0, 2], [3], None, "max"),
        ([1], None, [2], "min"),
    ):
        made = explain_map(trace, token, "attention", layers, heads, reduce)  # type: ignore[arg-type]
        expected = patch_map(trace, token, layers, heads, reduce)  # type: ignore[arg-type]
        np.testing.assert_allclose(made.values, expected.values, rtol=1e-6)
        assert made.label == expected.label


def test_a_relative_map_is_divided_by_the_generic_prompts(trace: GenerationTrace) -> None:
    run = with_reference(trace, [0.4, 0.1, 0.1, 0.0, 0.2, 0.1])  # its mean is 0.15
    heat = explain_map(run, 1, "relative", [3], [2])
    own = trace.attention[1, 1, 2].float().numpy()
    divisor = np.array([0.4, 0.1, 0.1, 0.015, 0.2, 0.1])  # never below a tenth of the mean
    np.testing.assert_allclose(heat.values.ravel(), own / divisor, rtol=2e-3)
    assert heat.unit == "times the generic prompt" and "'of this'" in heat.normalisation
    of_prompt = explain_map(run, Target((0,), "prompt"), "relative").values.ravel()
    assert run.prompt_rows is not None
    rows = run.prompt_rows.attention[0].float().mean(dim=(0, 1)).numpy()
    np.testing.assert_allclose(of_prompt, rows / divisor, rtol=2e-3)
    # Each slot is a ratio of its own; a map is the ratio of the combined slots.
    stack = explain(run, 1, "relative")
    slots = trace.attention[1].float().flatten(0, 1).numpy() / divisor
    np.testing.assert_allclose(stack.values, slots, rtol=2e-3)
    whole = trace.attention[1].float().mean(dim=(0, 1)).numpy() / divisor
    np.testing.assert_allclose(stack.map().values.ravel(), whole, rtol=2e-3)
    # Divided by itself it is 1 wherever the floor has no effect.
    assert run.reference is not None
    same = dataclasses.replace(run, attention=run.reference.attention.expand(3, 2, 3, 6))
    values = explain_map(same, 0, "relative").values.ravel()
    np.testing.assert_allclose(values, [1, 1, 1, 0, 1, 1], rtol=1e-6)


def test_a_generic_prompt_that_saw_nothing(trace: GenerationTrace) -> None:
    run = with_reference(trace, [0.0] * 6)
    assert (explain_map(run, 0, "relative").values == 0).all()


@pytest.mark.parametrize(("h", "w"), [(2, 12), (6, 4), (2, 2), (4, 12)])  # half as many rows, ...
def test_maps_of_other_patches_are_never_divided(trace: GenerationTrace, h: int, w: int) -> None:
    (grid,) = trace.layout.grids
    other = one_view(2, 1, h, w, 2, grid.resized, grid.original)
    reference = dataclasses.replace(
        prompt_trace(trace, 1),
        layout=dataclasses.replace(trace.layout, grids=(other,)),
        attention=torch.ones(1, 2, 3, other.tokens, dtype=torch.float16),
    )
    run = dataclasses.replace(trace, reference=reference, prompt_rows=prompt_trace(trace, 2))
    wrong = rf"cut into other patches \({h // 2} x {w // 2}\) than the run's own \(2 x 3\)"
    for target in (Target((0,)), Target((0,), "prompt")):
        with pytest.raises(ValueError, match=wrong):
            explain_map(run, target, "relative")
    further = one_view(
        5, 1, 4, 6, 2, grid.resized, grid.original
    )  # a longer system message before it
    moved = dataclasses.replace(
        prompt_trace(trace, 1), layout=dataclasses.replace(trace.layout, grids=(further,))
    )
    same = dataclasses.replace(trace, reference=moved)
    assert explain_map(same, 0, "relative").values.shape == (2, 3)


def test_sinks_are_missing_from_their_layers(trace: GenerationTrace) -> None:
    clean = explain_map(trace, 0, "without_sinks", layers=[3]).values.ravel()
    assert np.isnan(clean).nonzero()[0].tolist() == [2, 5]  # positions 4 and 7, span from 2
    raw = patch_map(trace, 0, layers=[3]).values.ravel()
    np.testing.assert_allclose(clean[[0, 1, 3, 4]], raw[[0, 1, 3, 4]])
    # Over both layers too: a mean over only one of them is not comparable with the others.
    both = explain_map(trace, 0, "without_sinks").values.ravel()
    assert np.isnan(both).nonzero()[0].tolist() == [2, 5]
    mean = patch_map(trace, 0).values.ravel()
    np.testing.assert_allclose(both[[0, 1, 3, 4]], mean[[0, 1, 3, 4]], rtol=1e-6)
    first = explain_map(trace, 0, "without_sinks", layers=[0], reduce="min").values.ravel()
    assert not np.isnan(first).any()  # no sinks are known there
    assert not trace.attention.isnan().any()  # the run is not touched


# --- what is refused ------------------------------------------------------------------------------


def test_what_a_run_cannot_give_says_why(trace: GenerationTrace) -> None:
    bare = dataclasses.replace(trace, reference=None, sinks=())
    why = {each.method.name: each.why_not for each in listed(bare)}
    assert why["attention"] is None
    with pytest.raises(ValueError, match=r"method is 'relative', which .*without reference=True"):
        explain(bare, 0, "relative")
    reported = dataclasses.replace(bare, extra={"no_reference": "it was stopped"})
    with pytest.raises(ValueError, match="no generic prompt to compare with: it was stopped"):
        explain(reported, 0, "relative")
    with pytest.raises(ValueError, match=r"'without_sinks', which .* no sink dimensions are known"):
        explain(bare, 0, "without-sinks")


def test_mistakes_name_what_is_allowed(trace: GenerationTrace) -> None:
    for target, method, words in (
        (0, "guess", "method is 'guess'; allowed: attention, relative, without_sinks"),
        (9, "attention", "token is .9,.; allowed: 0 to 2"),
        ("prompt", "attention", "target is 'prompt'; allowed: tokens, 'answer', or a Target"),
        (Target((0,), "prompt"), "attention", "no rows of its prompt"),
    ):
        with pytest.raises(ValueError, match=words):
            explain(dataclasses.replace(trace, prompt_rows=None), target, method)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"layers is \[1\]; the trace holds layers 0, 3"):
        explain(trace, 0).map(layers=[1])
    with pytest.raises(ValueError, match="image is 4; the prompt has 1"):
        explain(trace, 0).map(image=4)
    with pytest.raises(ValueError, match="reduce is 'sum'"):
        explain(trace, 0).map(reduce="sum")  # type: ignore[arg-type]


def test_a_stack_checks_its_shape(trace: GenerationTrace) -> None:
    layout, one = trace.layout, np.zeros((1, 6), np.float32)
    for values, axes, words in (
        (one, (("head", (0,)), ("token", (0,))), "axes are"),
        (one, (("token", (0, 1)),), "the axes have 2 slots"),
        (one[:, :5], (("token", (0,)),), "6 vision tokens"),
        (one.astype(np.float64), (("token", (0,)),), "values are float64"),
    ):
        with pytest.raises(ValueError, match=words):
            MapStack(values, axes, layout, "odds")  # type: ignore[arg-type]
    alone = MapStack(one, (("token", (0,)),), layout, "odds")
    with pytest.raises(ValueError, match="this method has no heads to choose"):
        alone.map(heads=[0])


# --- one from outside -----------------------------------------------------------------------------


class Centre(Method):
    """Example: distance of a patch from the image's middle, with a sign."""

    name = "centre"
    source = "nobody"
    unit = "steps"
    signed = True

    def availability(self, run: GenerationTrace) -> str | None:
        return None if run.layout.grids[0].columns > 3 else "the image is too narrow"

    def explain(
        self,
        run: GenerationTrace,
        target: Target,
        session: Any = None,
        progress: Progress | None = None,
    ) -> MapStack:
        grid = run.layout.grids[0]
        across = abs(np.arange(grid.columns) - (grid.columns - 1) / 2)
        values = np.tile(2 - across, grid.rows)[None].repeat(len(target.tokens), 0)
        axes = (("token", target.tokens),)
        return MapStack(values.astype(np.float32), axes, run.layout, self.unit, self.signed)


class Forward(Centre):
    """Example: needs a model."""

    name = "forward"
    needs: Needs = "forward"


def test_a_method_from_outside_is_explained_drawn_and_listed() -> None:
    run, methods = make_trace(), (*METHODS, Centre())
    heat = explain_map(run, [3, 4], "centre", methods=methods)
    assert heat.values.shape == (8, 12) and heat.values[0, 5] == 1.5 and heat.signed
    assert "2 tokens" in heat.label
    panel = Painter([make_side("", run)], View(method=Centre()), 96).panels([3])[0]
    assert panel.words.startswith("steps per patch · linear, the same on both sides of 0")
    assert panel.colormap == "coolwarm" and panel.ticks[0][1] == "−3.5"
    assert [each.method.name for each in listed(run, methods)][-1] == "centre"
    header, _ = unpack(build_payload(Run({"baseline": run}), methods=methods))
    assert header["methods"][-1] == {
        "name": "centre", "label": "centre", "source": "nobody", "unit": "steps",
        "signed": True, "computed": True,
        "words": {"baseline": "steps per patch"}, "why": {"baseline": NOT_IN_BROWSER},
    }  # fmt: skip
    narrow = make_trace(columns=3)
    assert listed(narrow, methods)[-1].why_not == "the image is too narrow"
    with pytest.raises(ValueError, match="'centre', which is not possible here: the image is too"):
        explain(narrow, 0, Centre())


def test_a_method_that_needs_a_model_needs_a_session() -> None:
    run, methods = make_trace(), (*METHODS, Forward())
    with pytest.raises(ValueError, match="needs forward passes of the model: give it a session"):
        explain(run, 0, "forward", methods=methods)
    assert explain(run, 0, "forward", methods=methods, session=object()).values.shape == (1, 96)


# --- the list is the same everywhere --------------------------------------------------------------


def test_the_list_is_the_same_everywhere() -> None:
    names = [method.name for method in METHODS]
    assert len(set(names)) == len(names)
    assert list(IN_BROWSER) == names[: len(IN_BROWSER)]
    from_trace = [method.name for method in METHODS if method.needs == "trace"]
    for cls in (Drawing, Selection):  # options, and arguments of the API
        words = {one.field: one.help for one in settings_of(cls)}["method"]
        assert [name for name in from_trace if name in words.replace("-", "_")] == from_trace
    for document in (Path("docs/method.md"), Path("docs/methods.md")):
        text = document.read_text(encoding="utf-8")
        assert [name for name in names if f"| `{name}` |" in text] == names, document
    header, _ = unpack(build_payload(Run({"baseline": make_trace()})))
    assert [method["name"] for method in header["methods"]] == names
    why = {method["name"]: method["why"]["baseline"] for method in header["methods"]}
    # Drawn in the browser or computed on demand: only the run itself can lack what a method needs.
    run = make_trace()
    assert why == {method.name: method.availability(run) for method in METHODS}
    computed = [method["name"] for method in header["methods"] if method["computed"]]
    assert computed == names[len(IN_BROWSER) :]
    assert header["methods"][1]["source"].startswith("arXiv 2502.17422")
    assert method_of("without-sinks") is METHODS[2]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (("attention", "clip"), ("attention", "percentile")),
        (("attention", "relative"), ("relative", "percentile")),
        (("attention", "nosink"), ("without_sinks", "linear")),
        (("relative", "log"), ("relative", "log")),
        (("", "rank"), ("attention", "rank")),
    ],
)
def test_scales_that_were_methods_still_mean_them(
    old: tuple[str, str], new: tuple[str, str]
) -> None:
    assert method_and_scale(*old) == new
