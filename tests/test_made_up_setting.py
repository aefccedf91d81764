"""A VAR setting that config.py does not have: options, API, page and checks follow its field.

Only `config.VARSettings` is replaced, before anything else is imported, as a new field in config.py
would. It runs in a process of its own, so that no other test is affected.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

SCRIPT = """
import dataclasses, json, sys
from pathlib import Path
from types import SimpleNamespace

from sinkscope import config
from sinkscope.setting import setting

field = setting(0.25, "How sharp VAR is.", low=0, high=2, slider_range=(0, 1), step=0.01)
config.VARSettings = dataclasses.make_dataclass(
    "VARSettings", [("sharpness", float, field)], bases=(config.VARSettings,), frozen=True
)

import gradio as gr
from gradio_client import Client, handle_file
from PIL import Image
from typer.testing import CliRunner

from sinkscope import var_patch
from sinkscope.cli import common, compare, main
from sinkscope.web.runs import request
from tests.web.conftest import start_site
from tests.web.scripted import ScriptedEngine, fake_handle
from tests.web.synthetic import make_pair
from sinkscope.web.explore.form import build_form
from sinkscope.web.runs.store import Run

folder, results = Path(sys.argv[1]), {}
photo = folder / "photo.png"
Image.new("RGB", (60, 40), "teal").save(photo)


def error_of(call, *arguments, **named):
    try:
        return str(call(*arguments, **named))
    except Exception as error:
        return str(error)


results["check"] = error_of(config.VARSettings, dims=(1,), sharpness=5)

asked = []
common.load = lambda settings: fake_handle()
made = compare.with_profile
compare.with_profile = lambda *given: asked.append(made(*given)) or sys.exit(7)
words = ["compare", str(photo), "What?", "-o", str(folder / "out.html"), "--dims", "3"]
runner = CliRunner()
results["help"] = runner.invoke(main.app, ["compare", "--help"], env={"COLUMNS": "200"}).output
results["option refused"] = runner.invoke(main.app, [*words, "--sharpness", "3"]).output
results["option"] = runner.invoke(main.app, [*words, "--sharpness", "0.75"]).exit_code
results["option made"] = asked.pop().sharpness
runner.invoke(main.app, words)
results["option left out"] = asked.pop().sharpness

with gr.Blocks():
    slider = build_form(config.GenerationSettings(), []).controls["sharpness"]
bounds = [slider.minimum, slider.maximum, slider.value]
results["control"] = [type(slider).__name__, *bounds, slider.info]

scripted = ScriptedEngine()
site = start_site(folder, scripted, handle=fake_handle(), example=Run(make_pair()))
engine = site.app.handlers.engine


def watched(handle, inputs, settings, var, *rest, **more):
    asked.append(var)
    return engine.compare(handle, inputs, settings, var, *rest, **more)


site.app.handlers.engine = dataclasses.replace(engine, compare=watched)
client = Client(site.url, verbose=False)
api = client.view_api(return_format="dict", print_info=False)["named_endpoints"]["/compare"]
results["argument"] = [p for p in api["parameters"] if p["parameter_name"] == "sharpness"]
ask = {"image": handle_file(str(photo)), "prompt": "Hello", "api_name": "/compare"}
client.predict(**ask, sharpness=0.5)
results["argument made"] = asked.pop().sharpness
client.predict(**ask)
results["argument left out"] = asked.pop().sharpness
results["argument refused"] = error_of(client.predict, **ask, sharpness=2.5)
results["trace"] = var_patch.describe(config.VARSettings(dims=(1,), sharpness=0.5))
client.close()
site.app.blocks.close(verbose=False)
print("RESULTS" + json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("made_up")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.rpartition("RESULTS")[2])
    return found


REFUSED = "sharpness is {}; allowed: a number from 0 to 2."


def test_it_is_checked(results: dict[str, Any]) -> None:
    assert results["check"] == REFUSED.format("5")


def test_it_is_an_option(results: dict[str, Any]) -> None:
    assert "--sharpness" in results["help"] and "How sharp VAR is. From 0 to 2." in results["help"]
    assert "default: 0.25" in results["help"]
    assert REFUSED.format("3.0") in results["option refused"]
    assert results["option"] == 7 and results["option made"] == 0.75
    assert results["option left out"] == 0.25


def test_it_is_a_control_of_the_page(results: dict[str, Any]) -> None:
    assert results["control"] == ["Slider", 0, 1, 0.25, "How sharp VAR is."]


def test_it_is_an_argument_of_the_api(results: dict[str, Any]) -> None:
    (argument,) = results["argument"]
    assert argument["parameter_has_default"] and argument["parameter_default"] == 0.25
    assert argument["python_type"]["description"] == "How sharp VAR is. From 0 to 2."
    assert results["argument made"] == 0.5 and results["argument left out"] == 0.25
    assert REFUSED.format("2.5") in results["argument refused"]


def test_a_trace_says_it(results: dict[str, Any]) -> None:
    assert "sharpness 0.5" in results["trace"]
