"""Unreadable rows in every kind of file: each is a separate, named failure, and the rest of the run
continues."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from sinkscope.config import ModelSettings
from sinkscope.evaluation.base import Faulty, Question
from sinkscope.evaluation.data import open_data
from sinkscope.evaluation.method_specs import parse_methods
from sinkscope.evaluation.run_folder import read_run
from sinkscope.evaluation.runner import evaluate, prepare
from sinkscope.evaluation.settings import RunConfig, RunSettings
from sinkscope.evaluation.tasks.listed import task_named
from sinkscope.models.loading import load_model
from tests.evaluation.scripted import Scripted, write_questions
from tests.evaluation.tasks.layouts import mmvp
from tests.test_cli import run

ROWS: list[dict[str, Any]] = [{"question": f"Colour {n}?", "answer": "red"} for n in range(4)]


def spoiled(folder: Path, kind: str) -> Path:
    """Four questions, of which the third is damaged."""
    path = write_questions(folder, ROWS)
    lines = path.read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    if kind == "jsonl":
        lines[2] = lines[2][:-3]
        path.write_text("\n".join(lines))
        return path
    other = path.with_suffix(f".{kind}")
    if kind == "json":
        lines[2] = lines[2].replace(":", " ", 1)
        other.write_text("[\n" + ",\n".join(lines) + "\n]")
    else:
        sign = "," if kind == "csv" else "\t"
        with other.open("w", newline="") as file:
            writer = csv.writer(file, delimiter=sign)
            writer.writerow(rows[0])
            for number, row in enumerate(rows):
                writer.writerow([*row.values(), *(["more"] if number == 2 else [])])
    return other


@pytest.mark.tiny
@pytest.mark.parametrize(
    ("kind", "name", "reason", "answered"),
    [
        ("jsonl", "questions row 3", "Line 3 of ", 3),
        ("json", "questions row 3", "Entry 3 of ", 2),  # the start of the fourth is unknown
        ("csv", "questions row 3", "Row 3 of ", 3),
        ("tsv", "questions row 3", "Row 3 of ", 3),
    ],
)
def test_it_is_recorded_the_rest_runs_and_the_run_resumes(
    tiny_folder: Path, tmp_path: Path, kind: str, name: str, reason: str, answered: int
) -> None:
    path = spoiled(tmp_path / "data", kind)
    handle = load_model(ModelSettings(str(tiny_folder)))
    settings = RunSettings("jsonl", data=str(path))
    wanted = RunConfig(settings, ModelSettings(), parse_methods(["default"]))
    engine = Scripted(lambda work: ("red",))
    done = evaluate(handle, wanted, prepare(settings), tmp_path / "run", engine=engine)
    assert (done.questions, done.answered, done.failed) == (answered + 1, answered, 1)
    assert not done.complete
    ((failed, said),) = done.failures
    assert failed == name
    assert said.startswith(reason)
    assert path.name in said
    again = Scripted(lambda work: ("red",))
    assert evaluate(handle, wanted, prepare(settings), tmp_path / "run", engine=again).failed == 1
    assert again.asked == []  # answered questions are not asked again
    records = list(read_run(tmp_path / "run").records())
    assert len(records) == answered + 1
    assert sum(one.error is not None for one in records) == 1


@pytest.mark.tiny
def test_the_command_says_so_with_exit_code_3(tiny_folder: Path, tmp_path: Path) -> None:
    path = spoiled(tmp_path / "data", "jsonl")
    words = (
        *("evaluate", "run", "--task", "jsonl", "--data", path, "--model", tiny_folder),
        *("-o", tmp_path / "run"),
    )
    done = run(*words)
    assert done.exit_code == 3, done.output
    said = " ".join(done.stderr.split())
    assert "is not JSON" in said
    assert "3 of 4 questions answered, 1 failed: NOT complete" in said


def test_a_row_that_is_no_object_and_one_of_the_first(tmp_path: Path) -> None:
    """The columns of the first readable row count."""
    path = write_questions(tmp_path, ROWS[:1])
    path.write_text("{\n[1]\nnull\n" + path.read_text())
    task = task_named("jsonl")
    found = list(task.read(open_data(str(path), None, task.tables)))
    assert [type(one) for one in found] == [Faulty, Faulty, Faulty, Question]
    reasons = [one.reason for one in found if isinstance(one, Faulty)]
    assert reasons[1:] == [f"Line {n} of questions.jsonl is not an object." for n in (2, 3)]
    assert len({one.id for one in found}) == 4


def test_a_damaged_row_may_be_of_any_part(tmp_path: Path) -> None:
    """`--parts` leaves out rows of other parts, and no row without a part."""
    from sinkscope.evaluation.session import items_of

    rows = [{**row, "category": "ab"[n % 2]} for n, row in enumerate(ROWS)]
    path = write_questions(tmp_path, rows)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, "{", json.dumps({"category": "b"})]))
    settings = RunSettings("jsonl", data=str(path), parts=("a",))
    found = list(items_of(prepare(settings), settings))
    assert [one.id for one in found] == ["0", "2", "questions row 5"]


def test_rows_of_several_files_are_counted_on(tmp_path: Path) -> None:
    mmvp(tmp_path)
    (first,) = (tmp_path / "data").iterdir()
    second = first.with_name("train-00001-of-00002.parquet")
    second.write_bytes(first.read_bytes())
    task = task_named("mmvp")
    data = open_data(str(tmp_path), task.hub, task.tables)
    assert [row.number for row in data.rows(task.tables[0])] == list(range(1, 9))
