"""`sinkscope region`: its table, its file, its refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sinkscope.attention_extractor import generate
from sinkscope.config import GenerationSettings
from sinkscope.experiments.answers import prompt_and_answer
from sinkscope.experiments.boxes import Box
from sinkscope.experiments.region import region_test
from sinkscope.experiments.region_settings import RegionSettings
from sinkscope.models.images import open_image
from sinkscope.models.loading import load_model
from tests.test_cli import refused, run


@pytest.fixture(scope="module")
def image(photo: Image.Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "photo.png"
    photo.resize((168, 140)).save(path)
    return path


@pytest.mark.tiny
def test_numbers_are_those_of_python(image: Path, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = run(
        *("region", image, "What is it?", "--box", "56,28,84,84", "--model", tiny_folder),
        *("--max-new-tokens", "4", "--random-boxes", "7", "--seed", "3", "-o", out),
        *("--dtype", "float32", "--device", "cpu"),
    )
    assert done.exit_code == 0, done.output
    handle = load_model(str(tiny_folder), device="cpu", dtype="float32")
    inputs = handle.prepare([open_image(image)], "What is it?")
    trace = generate(handle, inputs, GenerationSettings(max_new_tokens=4, seed=3))
    effect = region_test(
        handle, prompt_and_answer(handle, trace), Box(1, 2, 2, 1), RegionSettings("cut", 7, 3)
    )
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["test"] == effect.to_json()
    assert found["format"] == "sinkscope-region" and found["answer"] == trace.text
    lines = done.stdout.splitlines()
    assert sum(line.lstrip()[:2].strip().isdigit() for line in lines) == len(trace.tokens)
    assert f"Rows 1–2, column 2. {effect.sentence()}" in done.stdout


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"--box": "1,2,3"}, "box is '1,2,3'; allowed: x0,y0,x1,y1"),
        ({"--box": "a,b,c,d"}, "box is 'a,b,c,d'"),
        ({"--output": "out.csv"}, "output is 'out.csv'; allowed: a .json file"),
        ({"--how": "blur"}, "blur"),
        ({"--random-boxes": "0"}, "random_boxes is 0"),
    ],
)
def test_mistakes_are_said_before_a_model_is_loaded(
    image: Path, given: dict[str, Any], words: str
) -> None:
    options = {"--box": "0,0,28,28", "--model": "missing", **given}
    said = run("region", image, "What?", *(part for pair in options.items() for part in pair))
    if "--how" in given:  # typer's own text
        assert said.exit_code == 2 and words in said.output
    else:
        assert words in refused(said)


@pytest.mark.tiny
@pytest.mark.parametrize(
    ("box", "words"),
    [
        ("0,0,500,20", "box is 0,0,500,20; allowed: x0,y0,x1,y1 with 0 <= x0 < x1 <= 168"),
        ("0,0,168,140", "has no other place on this image"),
    ],
)
def test_a_box_that_is_not_on_the_image(
    image: Path, tiny_folder: Path, box: str, words: str
) -> None:
    said = run("region", image, "What?", "--box", box, "--model", tiny_folder)
    assert words in said.stderr and said.exit_code == 2 and "Traceback" not in said.output
