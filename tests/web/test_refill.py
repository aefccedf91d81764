"""The form's texts about the model, and a stored run as values of the form that made it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sinkscope.config import AppSettings, ModelSettings, Settings, VARSettings
from sinkscope.web.explore.model_events import telling_limits
from sinkscope.web.page import build_app
from sinkscope.web.runs.example import read_examples
from sinkscope.web.runs.form_values import changed_words, control_values, form_values_of
from sinkscope.web.runs.request import NAMES, Request
from sinkscope.web.runs.store import Run
from tests.web.synthetic import make_pair


@pytest.mark.parametrize(("name", "said"), [("demo", True), ("Qwen/Qwen2.5-VL-3B", False)])
def test_beside_generate_stands_what_the_bundled_model_knows(name: str, said: bool) -> None:
    loaded: Any = SimpleNamespace(handle=SimpleNamespace(info=SimpleNamespace(id=name)))
    line = telling_limits(loaded)()["text"]
    assert bool(line) is said
    assert not said or ("drawn scenes" in line and "Qwen2.5-VL 3B" in line)


def test_without_a_model_nothing_is_said_of_it() -> None:
    nothing: Any = SimpleNamespace(handle=None)
    assert telling_limits(nothing)()["text"] == ""


def asked_with(**var: Any) -> Run:
    pair = make_pair()
    report = {"settings": {"dims": [17, 101], "tau": 6.0, "keep": 0.6, **var}, "layers": []}
    settings = {**pair["baseline"].settings, "temperature": 0.5, "max_new_tokens": 64}
    traces = {name: replace(t, settings=settings) for name, t in pair.items()}
    return Run({**traces, "var": replace(traces["var"], var=report)}, same_text=True)


def model_with(*dims: int) -> Any:
    return SimpleNamespace(
        profile=SimpleNamespace(dims=dims, tau=6.0) if dims else None,
        info=SimpleNamespace(hidden_size=256, id="same"),
    )


def test_a_run_fills_the_form_with_all_that_made_it() -> None:
    run = asked_with(keep=0.25, layers=[2, 3], heads=[[2, 1], [3, 0]], control="random")
    said = json.loads(json.dumps(form_values_of(run)))  # as a link carries it
    form = control_values(said, model_with(17, 101))
    assert form["prompt"] == run.first.prompt
    assert form["compare"] and form["same_text"]
    assert (form["keep"], form["tau"], form["temperature"]) == (0.25, 6.0, 0.5)
    assert (form["control"], form["var_layers"], form["dims"]) == ("random", "2, 3", "")
    assert form["var_heads"] == "2.1, 3.0"
    assert form["top_p"] == 1.0  # not said: the default, whatever the form said before
    assert control_values(said, model_with(5))["dims"] == "17, 101"
    assert control_values(said, model_with(5), of="same")["tau"] == 6.0
    request = Request("photo.png", form["prompt"], True, True, values={k: form[k] for k in NAMES})
    again = request.var(model_with(17, 101))
    assert again is not None and (again.keep, again.layers, again.control) == (
        0.25,
        (2, 3),
        "random",
    )
    assert again.heads == ((2, 1), (3, 0))


def test_tau_and_sink_dimensions_of_another_model_are_not_taken() -> None:
    said = form_values_of(asked_with(keep=0.25))
    other = control_values(said, model_with(5), of="another")
    assert other["dims"] == "" and "tau" not in other
    assert other["compare"] and other["keep"] == 0.25
    assert not control_values(said, model_with(), of="another")[
        "compare"
    ]  # it has no profile: no VAR
    assert control_values(said, model_with(), of="same")["compare"]  # its own dimensions come along
    assert control_values(said, None, of="another")["dims"] == ""  # whichever model will be loaded


def test_what_a_link_says_in_vain_leaves_the_default() -> None:
    form = control_values({"keep": 7, "control": "<b>", "prompt": 5, "top_k": None}, model_with(1))
    assert "keep" not in form and "control" not in form and "prompt" not in form


def test_what_was_changed_since_the_run_is_said() -> None:
    asked = {**control_values(form_values_of(asked_with()), model_with(17, 101)), "image": "a.png"}
    assert changed_words(asked, asked) == ""
    assert changed_words(asked, {**asked, "image": None}) == ""  # nothing to run
    words = changed_words(asked, {**asked, "keep": 0.3})
    assert "keep" in words and "not read again" in words
    words = changed_words(asked, {**asked, "prompt": "Else?", "keep": 0.3})
    assert "prompt, keep" in words and "not read again" not in words
    plain = {**asked, "compare": False}
    assert "keep" not in changed_words(plain, {**plain, "keep": 0.3})  # without VAR it is nothing


@pytest.mark.parametrize("coming", ["synthetic", "other"])
def test_a_page_that_opens_before_its_model_has_the_tau_of_its_example(
    coming: str, tmp_path: Path
) -> None:
    # Otherwise the page says for its first second that tau was changed.
    run = replace(asked_with(), kind="example")
    settings = Settings(model=ModelSettings(model=coming), app=AppSettings(cache_dir=str(tmp_path)))
    app = build_app(settings, example=run, examples=read_examples())
    (tau,) = (
        one for one in app.blocks.blocks.values() if getattr(one, "elem_id", None) == "set-tau"
    )
    assert tau.value == (6.0 if coming == "synthetic" else VARSettings.tau)
