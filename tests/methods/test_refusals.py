"""A method refuses what it cannot do, with one sentence, before any pass of the model."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from sinkscope.attention_extractor import compare, generate
from sinkscope.config import GenerationSettings, VARSettings
from sinkscope.methods.agcam import AGCAM
from sinkscope.methods.base import Method, Target
from sinkscope.methods.chefer import Chefer
from sinkscope.methods.explain import METHODS, explain, listed, method_of
from sinkscope.methods.logit_lens import LogitLens
from sinkscope.methods.occlusion import Occlusion
from sinkscope.methods.passes import passes_of
from sinkscope.methods.region_search import RegionSearch
from sinkscope.methods.rollout import Rollout
from sinkscope.methods.value_weighted import ValueWeighted
from sinkscope.methods.var import VarAttention
from sinkscope.models.stack import Projection
from tests.methods.conftest import World

pytestmark = pytest.mark.tiny

FROM_MODEL = [method.name for method in METHODS if method.needs != "trace"]
GRADIENTS = [method.name for method in METHODS if method.needs == "gradients"]


@pytest.fixture
def nothing_runs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any pass of the model fails the test."""

    def pass_of_the_model(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model was asked before the mistake was said")

    monkeypatch.setattr(type(world.handle.model), "forward", pass_of_the_model)


def refused(run: Any, target: Any, method: str | Method, session: Any) -> str:
    with pytest.raises(ValueError) as error:
        explain(run, target, method, session=session)
    words = str(error.value)
    assert len(re.findall(r"\.(\s|$)", words)) == 1 and "\n" not in words, words
    return words


@pytest.mark.parametrize("name", FROM_MODEL)
@pytest.mark.usefixtures("nothing_runs")
def test_targets_and_sessions(world: World, name: str) -> None:
    assert "token is (9,); allowed: 0 to 4" in refused(world.run, [9], name, world.passes)
    assert "give it a session" in refused(world.run, 0, name, None)
    read = dataclasses.replace(
        world.run,
        prompt_rows=SimpleNamespace(tokens=range(3)),  # type: ignore[arg-type]
    )
    assert "tokens of the answer" in refused(read, Target((0,), "prompt"), name, world.passes)


@pytest.mark.parametrize("name", FROM_MODEL)
@pytest.mark.usefixtures("nothing_runs")
def test_a_text_alone_and_an_empty_answer(world: World, name: str) -> None:
    layout = dataclasses.replace(world.run.layout, grids=())
    text = dataclasses.replace(world.run, layout=layout)
    assert "the prompt has no image" in refused(text, 0, name, world.passes)
    empty = dataclasses.replace(world.run, tokens=())
    assert "none, for the answer is empty" in refused(empty, [0], name, world.passes)
    why = {one.method.name: one.why_not for one in listed(empty)}
    assert why[name] == "the answer is empty"


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.usefixtures("nothing_runs")
def test_gradients_of_a_quantised_model(
    world: World, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    monkeypatch.setattr(world.handle.model.config, "quantization_config", form, raising=False)
    words = refused(world.run, 0, name, world.passes)
    assert "the model is quantised (bitsandbytes), and gradients need plain weights" in words


@pytest.mark.usefixtures("nothing_runs")
def test_weights_that_are_packed(world: World) -> None:
    packed = Projection(SimpleNamespace(weight=torch.zeros(2, 2, dtype=torch.uint8)))  # type: ignore[arg-type]
    stack = dataclasses.replace(world.handle.stack, output_of=lambda layer: packed)
    handle = dataclasses.replace(world.handle, stack=stack)
    for name in ("value_weighted", "chefer"):
        session = passes_of(handle, world.run, world.inputs)
        assert "packed by a quantisation" in refused(world.run, 0, name, session)


@pytest.mark.usefixtures("nothing_runs")
def test_an_image_too_small_and_windows_too_large(world: World) -> None:
    grid = world.run.layout.grids[0]
    view = dataclasses.replace(grid.views[0], positions=range(4, 8), rows=2, columns=2)
    layout = dataclasses.replace(
        world.run.layout, grids=(dataclasses.replace(grid, views=(view,)),)
    )
    small = dataclasses.replace(world.run, layout=layout)
    words = refused(small, 0, "region_search", world.passes)
    assert "the image has 4 patches, too few for regions; it needs 8" in words
    words = refused(world.run, 0, Occlusion("edges", 9), world.passes)
    assert "window is 9, and the image has 5 patches a side" in words


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Occlusion("edge"), "how is 'edge'; allowed: edges, pixels"),  # type: ignore[arg-type]
        (lambda: Occlusion("edges", 0), "window is 0; allowed: 1 to 1000"),
        (lambda: RegionSearch(1), "count is 1; allowed: 2 to 400"),
        (lambda: RegionSearch(16, "x"), "how is 'x'"),  # type: ignore[arg-type]
        (lambda: Chefer("p"), "of is 'p'; allowed: log_p, logit"),  # type: ignore[arg-type]
        (lambda: AGCAM("p"), "of is 'p'; allowed: log_p, logit"),  # type: ignore[arg-type]
        (lambda: LogitLens("p"), "show is 'p'; allowed: probability, rank"),  # type: ignore[arg-type]
        (lambda: ValueWeighted("p"), "heads is 'p'; allowed: apart, together"),  # type: ignore[arg-type]
        (lambda: Rollout(1.5), "residual is 1.5; allowed: 0 to 1"),
    ],
)
def test_settings(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        make()


def test_another_model_or_prompt(world: World) -> None:
    other = dataclasses.replace(
        world.run, model=dataclasses.replace(world.run.model, revision="another")
    )
    with pytest.raises(ValueError, match=r"was made by .* \(another\), but .* is loaded"):
        passes_of(world.handle, other)
    inputs = world.handle.prepare([Image.new("RGB", (84, 84))], world.run.prompt)
    with pytest.raises(ValueError, match="another prompt than the run's"):
        passes_of(world.handle, world.run, inputs)


# --- runs with VAR --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def var() -> VARSettings:
    return VARSettings(dims=(3, 9), tau=1.5, keep=0.3, min_image_mass=0.0, max_sink_share=1.0)


def test_the_map_under_var(world: World, var: VARSettings) -> None:
    settings = GenerationSettings(max_new_tokens=len(world.run.tokens))
    pair = compare(world.handle, world.inputs, settings, var, same_text=True)
    assert [t.id for t in pair.baseline.tokens] == [t.id for t in world.run.tokens]
    computed = explain(world.run, "answer", VarAttention(var), session=world.passes)
    own = explain(pair.var, "answer", "var")  # such a run needs no session
    assert (computed.values == own.values).all() and computed.axes == own.axes
    assert (own.values == explain(pair.var, "answer").values).all()
    assert abs(own.values - explain(pair.baseline, "answer").values).max() > 0.01
    assert "no sink dimensions are known" in refused(world.run, 0, "var", world.passes)
    beyond = VarAttention(dataclasses.replace(var, dims=(999,)))
    assert "999" in refused(world.run, 0, beyond, world.passes)


def test_a_run_with_var_is_read_with_var(world: World, var: VARSettings) -> None:
    settings = GenerationSettings(max_new_tokens=3)
    run = generate(world.handle, world.inputs, settings, var)
    session = passes_of(world.handle, run, world.inputs)
    for name in GRADIENTS:
        assert "explains only the plain model" in refused(run, 0, name, session)
    others = [name for name in FROM_MODEL if name not in (*GRADIENTS, "var")]
    ids = [token.id for token in run.tokens]
    plain = dataclasses.replace(run, var=None)
    for name in others:
        changed = explain(run, 1, name, session=session).values
        as_plain = explain(
            plain, 1, name, session=passes_of(world.handle, plain, world.inputs)
        ).values
        # a vision token comes before what VAR changes
        same = name == "logit_lens"
        assert (abs(changed - as_plain).max() < 1e-9) == same, name
    assert ids == [token.id for token in session.run.tokens]
    # the row of the pass is the run's own
    weights = explain(run, 1).values
    chain = explain(run, 1, Rollout(0.0), session=session).values
    assert weights.shape[-1] == chain.shape[-1]


def test_names_in_the_list() -> None:
    assert [method.name for method in METHODS] == [
        "attention", "relative", "without_sinks", "var", "localising_heads", "rollout",
        "value_weighted", "gradient_attention", "chefer", "agcam", "tam", "logit_lens",
        "occlusion_edges", "occlusion_pixels", "region_search",
    ]  # fmt: skip
    for method in METHODS:
        assert (method.unit and method.source) or method.name in ("attention", "without_sinks")
        assert method_of(method.name.replace("_", "-")) is method
