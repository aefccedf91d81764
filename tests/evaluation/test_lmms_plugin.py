"""SinkScope as a model of lmms-eval: its arguments, its messages, and a real run of two
questions."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sinkscope.evaluation.lmms_plugin.arguments import generation, read_arguments, turns
from sinkscope.evaluation.tasks.demo import read

ROOT = Path(__file__).resolve().parent.parent.parent
PICTURE = {"type": "image", "url": "picture"}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def test_arguments() -> None:
    plain = read_arguments({"pretrained": "demo", "batch_size": 1, "max_batch_size": None})
    assert (plain.model.model, plain.method.name, plain.method.var) == ("demo", "default", None)
    assert (plain.min_pixels, plain.max_pixels) == (256 * 28 * 28, 2048 * 28 * 28)
    assert plain.decoding == "checkpoint"
    given = {"pretrained": "demo", "var": True, "keep": 0.3, "dims": "5/33", "min_pixels": 4000}
    own = read_arguments(given)
    assert own.method.var is not None
    assert (own.method.var["keep"], own.method.var["dims"]) == (0.3, (5, 33))
    assert own.min_pixels == 4000
    control = read_arguments({"pretrained": "demo", "var": "random"})
    assert control.method.var is not None and control.method.var["control"] == "random"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "lacks pretrained"),
        ({"pretrained": "demo", "temperature": 1}, "has 'temperature'; allowed: pretrained"),
        ({"pretrained": "demo", "keep": 0.3}, "keep is given, but var is not"),
        ({"pretrained": "demo", "var": "maybe"}, "var is 'maybe'; allowed: true, false, random"),
        ({"pretrained": "demo", "batch_size": 8}, "batch_size is 8; allowed: 1"),
        ({"pretrained": "demo", "decoding": "greedy"}, "decoding is 'greedy'"),
    ],
)
def test_arguments_that_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_arguments(given)


def test_generation() -> None:
    own = read_arguments({"pretrained": "demo", "seed": 3})
    greedy = generation(own, {"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1})
    assert (greedy.max_new_tokens, greedy.decoding, greedy.seed) == (16, "checkpoint", 3)
    sampled = generation(own, {"temperature": 0.5, "top_p": 0.9})
    assert (sampled.temperature, sampled.top_p, sampled.decoding) == (0.5, 0.9, "ours")
    assert generation(own, {}).max_new_tokens == 128
    with pytest.raises(ValueError, match="num_beams is 4"):
        generation(own, {"num_beams": 4})


def test_messages() -> None:
    system = {"role": "system", "content": "Be brief."}
    found = turns([system, user(PICTURE, PICTURE, text("What "), text("is it?"))], "It")
    assert found == (["picture", "picture"], "What is it?", "Be brief.")


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([user(text("What?"), PICTURE)], "image behind text"),
        ([user(text("What?"))], "It has no image"),
        ([user({"type": "video", "url": "x"})], "part of type video"),
        ([user(PICTURE), {"role": "assistant", "content": "A cat."}], "has 2 turns"),
        ([], "has 0 turns"),
    ],
)
def test_messages_that_do_not_fit(messages: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        turns(messages, "It")


def test_the_entry_point_leads_to_the_manifest_and_loads_nothing() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    points = project["entry-points"]["lmms_eval.models"]
    module, _, name = points["sinkscope"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    code = f"import sys, {module}\nprint('lmms_eval' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT / "src")},
        check=True,
    )
    assert done.stdout.split() == ["False", "False"]


TASK = """
task: two_scenes
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function two_scenes_words.visual
doc_to_text: "{{{{question}}}}"
doc_to_messages: !function two_scenes_words.messages
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 32
  temperature: 0
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
    ignore_punctuation: true
"""
WORDS = """
from PIL import Image

def visual(doc):
    return [Image.open(doc["image"]).convert("RGB")]

def messages(doc, lmms_eval_specific_kwargs=None):
    image = {"type": "image", "url": visual(doc)[0]}
    return [{"role": "user", "content": [image, {"type": "text", "text": doc["question"]}]}]
"""


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None, reason="the extra [lmms] is not installed"
)
@pytest.mark.parametrize("var", ["true", "false"])
def test_a_task_of_two_questions_in_lmms_eval_itself(tmp_path: Path, var: str) -> None:
    """lmms-eval's evaluator and score; the answers are those of `evaluation.question_batches`."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models import MODEL_REGISTRY_V2
    from lmms_eval.tasks import TaskManager

    from sinkscope.config import GenerationSettings
    from sinkscope.evaluation.lmms_plugin.manifest import manifest
    from sinkscope.evaluation.method_specs import parse_methods
    from sinkscope.evaluation.methods import resolve
    from sinkscope.evaluation.question_batches import (
        ModelQuestion,
        PreparedQuestion,
        answer_questions,
    )
    from sinkscope.models.loading import load_model

    rows, asked = [], []
    for number, question in zip(range(2), read(None), strict=False):
        picture = question.pictures[0]()
        picture.save(tmp_path / f"{number}.png")
        image = str(tmp_path / f"{number}.png")
        rows.append({"image": image, "question": question.text, "answer": question.truth})
        asked.append(question)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "two_scenes.yaml").write_text(TASK.format(data=data), encoding="utf-8")
    (tasks / "two_scenes_words.py").write_text(WORDS, encoding="utf-8")

    MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)
    made = simple_evaluate(
        model="sinkscope",
        model_args=f"pretrained=demo,var={var},keep=0,min_pixels=3136,decoding=ours"
        if var == "true"
        else "pretrained=demo,min_pixels=3136,decoding=ours",
        tasks=["two_scenes"],
        task_manager=TaskManager(include_path=str(tasks)),
        batch_size=1,
        log_samples=True,
    )

    handle = load_model("demo")
    words = ["var:keep=0"] if var == "true" else ["default"]
    methods = resolve(parse_methods(words), handle.profile, handle.info)
    settings = GenerationSettings(max_new_tokens=32)
    ours = []
    for number, question in enumerate(asked):
        with Image.open(tmp_path / f"{number}.png") as picture:
            one = ModelQuestion(
                (picture.convert("RGB"),), question.text, settings, None, 3136, 2048 * 28 * 28
            )
            ((answer,),) = answer_questions(
                handle, [PreparedQuestion(one, one.inputs(handle))], methods
            )
            ours.append(answer.text)
    samples = sorted(made["samples"]["two_scenes"], key=lambda one: one["doc_id"])
    assert [one["filtered_resps"][0] for one in samples] == ours
    right = [_same(said, row["answer"]) for said, row in zip(ours, rows, strict=True)]
    score = made["results"]["two_scenes"]["exact_match,none"]
    assert score == pytest.approx(sum(right) / 2)


def _same(one: str, other: str) -> bool:
    from sinkscope.evaluation.judges.exact_match import normalised

    return normalised(one) == normalised(other)
