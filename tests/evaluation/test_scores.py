"""Every task and protocol on its published layout, with answers by hand: the score equals the one
computed on paper. A test engine gives the answers; data, prompts, records, judges and metrics are
the real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sinkscope.config import ModelSettings
from sinkscope.evaluation.method_specs import MethodSpec
from sinkscope.evaluation.run_folder import read_run
from sinkscope.evaluation.runner import evaluate, prepare
from sinkscope.evaluation.settings import RunConfig, RunSettings
from sinkscope.evaluation.tasks.listed import TASKS, task_named
from sinkscope.evaluation.work import Work
from sinkscope.models.loading import ModelHandle, load_model
from tests.evaluation.scripted import Scripted
from tests.evaluation.tasks.layouts import data_of

Answers = Callable[[Work], str]


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> ModelHandle:
    return load_model(ModelSettings(str(tiny_folder)))


def always(text: str) -> Answers:
    return lambda work: text


def by(**answers: str) -> Answers:
    """The answer of the first key that occurs in the prompt (_ is a blank)."""

    def answer(work: Work) -> str:
        for key, said in answers.items():
            if key.replace("_", " ") in work.prompt:
                return said
        raise AssertionError(work.prompt)

    return answer


# BLINK: each part has one question with truth A and one with B, so "A" is right in half of each.
# SAT: truths B, A. POPE: yes (snowboard) and no (dog) in three subsets. MMVP: truths A, B, B, A.
# TextVQA: nine of ten say dakota: each of them finds 8 others, the tenth 9: min(1, n/3) is 1.
# VizWiz: eight say unanswerable, one paper: for nine annotators one of the others says paper (1/3),
# for the annotator who said it none does (0).
# MME: two images; "Yes" to all: accuracy 50, accuracy+ 0 in each category.
# CHAIR: image 42 has chair and dog; 73 has bed and motorcycle.
CASES: list[tuple[str, str, Answers, dict[str, float]]] = [
    ("blink", "fixed", always("The answer is A."), {"accuracy": 0.5, "macro_accuracy": 0.5}),
    ("blink", "lmms-eval", always("The answer is A."), {"accuracy": 0.0}),  # it reads T
    ("blink", "lmms-eval", always("(A)"), {"accuracy": 0.5}),
    ("blink", "vlmevalkit", always("The answer is A."), {"accuracy": 0.5}),
    ("sat", "fixed", always("The answer is B."), {"accuracy": 0.5}),
    ("sat", "lmms-eval", always("The answer is B."), {"accuracy": 0.0}),  # its first word is The
    ("sat", "lmms-eval", always("B."), {"accuracy": 0.5}),
    (
        "pope",
        "fixed",
        always("Yes."),
        {"accuracy": 0.5, "precision": 0.5, "recall": 1.0, "f1": 2 / 3, "yes_ratio": 1.0},
    ),
    ("pope", "fixed", by(snowboard="Yes, there is.", dog="No."), {"accuracy": 1.0, "f1": 1.0}),
    ("pope", "lmms-eval", always("Yes."), {"accuracy": 0.0, "yes_ratio": 0.5}),  # the truth's
    ("pope", "lmms-eval", always("yes"), {"accuracy": 0.5, "f1": 2 / 3}),
    ("pope", "vlmevalkit", always("Yes."), {"f1": 2 / 3, "accuracy": 0.5}),
    ("mmvp", "fixed", always("(a)"), {"pair_accuracy": 0.0, "accuracy": 0.5}),
    ("mmvp", "lmms-eval", always("A cat"), {"pair_accuracy": 0.0, "accuracy": 0.5}),
    ("mmvp", "vlmevalkit", always("Open"), {"accuracy": 0.5}),
    ("textvqa", "fixed", always("Dakota"), {"accuracy": 1.0}),
    ("textvqa", "fixed", always("nous les gosses"), {"accuracy": 0.9 * (1 / 3)}),
    ("textvqa", "lmms-eval", always("dakota."), {"accuracy": 1.0}),
    ("textvqa", "vlmevalkit", always("dakota"), {"accuracy": 1.0}),
    ("gqa", "fixed", by(overcast="No.", dress="a woman"), {"accuracy": 0.5}),
    ("gqa", "lmms-eval", by(overcast="No.", dress="Woman"), {"accuracy": 1.0}),
    ("gqa", "vlmevalkit", by(overcast="No.", dress="Woman"), {"accuracy": 0.5}),
    ("vizwiz", "fixed", always("Unanswerable"), {"accuracy": 1.0}),
    ("vizwiz", "fixed", always("paper"), {"accuracy": 9 / 10 * (1 / 3)}),
    ("vizwiz", "lmms-eval", always("unanswerable"), {"accuracy": 1.0}),
    ("mme", "fixed", always("Yes"), {"perception": 50.0, "cognition": 50.0, "total": 100.0}),
    (
        "mme",
        "fixed",
        by(red_bus="Yes", blue_bus="No", python="yes.", c_plus="no"),
        {"perception": 200.0, "cognition": 200.0, "total": 400.0},
    ),
    ("mme", "lmms-eval", always("The answer is yes"), {"total": 0.0}),  # not in its first letters
    ("mme", "vlmevalkit", always("The answer is yes"), {"total": 100.0}),
    (
        "chair",
        "fixed",
        always("A dog and a cat sit on a chair."),
        # 42: dog, cat (not there), chair; 73: none of three is there
        {"chair_s": 1.0, "chair_i": 4 / 6, "recall": 2 / 4, "mentions": 3.0},
    ),
    ("chair", "lmms-eval", always("A room."), {"chair_s": 0.0, "recall": 0.0}),
    ("chair", "var-paper", always("A dog."), {"chair_s": 0.5, "chair_i": 0.5, "recall": 1 / 4}),
    ("older-blink", "fixed", always("red"), {"accuracy": 0.5}),
    ("older-sat", "fixed", always("(B) blue"), {"accuracy": 0.5}),
    (
        "jsonl",
        "fixed",
        by(What_colour="Red!", Which="the blue one", Alike="No, they differ."),
        {"accuracy": 1.0},
    ),
]


@pytest.mark.parametrize(
    ("name", "protocol", "answers", "expected"), CASES, ids=lambda value: str(value)[:12]
)
def test_hand_computed_scores(
    name: str,
    protocol: str,
    answers: Answers,
    expected: dict[str, float],
    tiny: ModelHandle,
    tmp_path: Path,
) -> None:
    figures = run(tiny, tmp_path, name, protocol, lambda work: [_mme(answers, work)])
    for figure, value in expected.items():
        assert figures[figure] == pytest.approx(value), (figure, figures)


def _mme(answers: Answers, work: Work) -> str:
    """In a key, `c_plus` stands for c++."""
    return answers(Work(work.pictures, work.prompt.replace("c++", "c plus"), work.system))


def test_every_task_and_protocol_has_a_case() -> None:
    there = {(name, protocol) for name, protocol, _, _ in CASES}
    assert there == {
        (task.name, one.name) for task in TASKS if task.name != "demo" for one in task.protocols
    }


def run(
    handle: ModelHandle, folder: Path, name: str, protocol: str, answer: Any
) -> dict[str, float]:
    """The figures of a run over the small data of a task."""
    given, images = data_of(name, folder / "data")
    settings = RunSettings(
        name, protocol, data=given, images=None if images is None else str(images)
    )
    wanted = RunConfig(settings, ModelSettings(), (MethodSpec("default"),))
    done = evaluate(handle, wanted, prepare(settings), folder / "run", engine=Scripted(answer))
    assert done.complete, done.failures
    judged = [record.judged() for record in read_run(folder / "run").records()]
    figures = task_named(name).protocol(protocol).metric.figures(judged)
    assert json.dumps(figures)
    return figures
