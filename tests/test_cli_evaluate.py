"""`sinkscope evaluate`: its files, its output, and its refusals."""

from __future__ import annotations

import json
import os
import re
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sinkscope.evaluation.run_folder import read_run
from sinkscope.sinks.engine import LocalEngine
from tests.evaluation.scripted import write_questions
from tests.test_cli import refused, run

VAR = "var:dims=3,tau=1.5,keep=0"
ROWS = [{"question": f"Where is object {n}?", "answer": "left"} for n in range(3)]


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", text)


# --- tier 1 ---------------------------------------------------------------------------------------


def test_tasks_are_listed_with_protocols_and_data() -> None:
    done = run("evaluate", "tasks", "--json")
    assert done.exit_code == 0
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["pope"]["protocols"] == ["fixed", "lmms-eval", "vlmevalkit"]
    assert rows["pope"]["data"] == "hub:lmms-lab-encoder/POPE"
    assert rows["demo"]["data"] == "none needed"
    assert "older-blink" in run("evaluate", "tasks").stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "task is missing"),
        (("--task", "mmmu"), "task is 'mmmu'; allowed: demo, jsonl"),
        (("--task", "demo"), "has no end; give a limit"),
        (("--task", "demo", "--limit", "0"), "limit is 0"),
        (("--task", "demo", "--limit", "2", "--method", "vra"), "allowed: default, var"),
        (("--task", "demo", "--limit", "2", "--sweep", "keep=0,1"), "no method is var"),
        (("--task", "demo", "--limit", "2", "--shard", "3/2"), "allowed: 1/N to N/N"),
        (("--task", "demo", "--limit", "2", "--retries", "99"), "retries is 99"),
        (("--task", "demo", "--limit", "2", "--protocol", "older"), "the task demo has fixed"),
        (("--task", "demo", "--limit", "2", "--workers", "0"), "workers is 0"),
        (("--task", "demo", "--limit", "2", "--judge", "llm"), "needs judge_model"),
        (("--config", "missing.toml", "--limit", "2"), "--limit and --config are given"),
        (("--config", "missing.toml"), "missing.toml cannot be read"),
    ],
)
def test_mistakes_are_said_before_a_model_is_loaded(
    words: tuple[str, ...], sentence: str, tmp_path: Path
) -> None:
    model = () if "--config" in words else ("--model", "nowhere/x")
    said = refused(run("evaluate", "run", *words, *model, "-o", tmp_path / "run"))
    assert sentence in said
    assert not (tmp_path / "run").exists()


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = ("evaluate", "run", "--task", "demo", "--limit", "1", "-o")
    assert "which is a file; allowed: a folder" in refused(run(*words, tmp_path / "file"))


@pytest.mark.parametrize("below", ["", "a/b"])
def test_an_output_where_nothing_can_be_written_is_named(below: str, tmp_path: Path) -> None:
    """Also for root: /proc accepts no files, and a file is not a folder."""
    if not Path("/proc/self").is_dir():
        pytest.skip("there is no /proc here")
    words = ("evaluate", "run", "--task", "demo", "--limit", "1", "--model", "nowhere/x", "-o")
    output = Path("/proc") / (below or "sinkscope-run")
    said = refused(run(*words, output))
    assert f"The folder {output} cannot be written: /proc: " in said
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "run"
    assert f"The folder {inside} cannot be written: {tmp_path / 'file'}: Not a directory" in (
        refused(run(*words, inside))
    )


def test_a_folder_without_the_right_to_write_is_named() -> None:
    """Root may write everywhere, so as root the command is run as another user."""
    words = ("evaluate", "run", "--task", "demo", "--limit", "1", "--model", "nowhere/x", "-o")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "file").write_text("")
        refused(run(*words, folder / "file"))  # imports everything while that is still readable
        folder.chmod(0o555)
        with somebody():
            done = run(*words, folder), run(*words, folder / "new" / "run")
        assert sorted(one.name for one in folder.iterdir()) == ["file"]
        folder.chmod(0o755)
    for one, output in zip(done, (folder, folder / "new" / "run"), strict=True):
        said = refused(one)
        assert f"The folder {output} cannot be written: {folder}: Permission denied." in said


@contextmanager
def somebody() -> Iterator[None]:
    """A user that is not root."""
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


# --- tier 2 ---------------------------------------------------------------------------------------


@pytest.mark.tiny
def test_a_run_goes_on_repeats_and_refuses_another(tiny_folder: Path, tmp_path: Path) -> None:
    path = write_questions(tmp_path / "data", ROWS)
    common = (
        *("evaluate", "run", "--task", "jsonl", "--data", path, "--model", tiny_folder),
        *("--method", "default", "--method", VAR),
    )
    done = run(*common, "-o", tmp_path / "a", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["complete"] is True
    assert "3 of 3 questions answered, 0 failed: complete" in plain(done.stderr)
    made = read_run(tmp_path / "a")
    assert made.complete
    assert [one.method for one in made.records()] == ["default", VAR] * 3
    before = made.files[0].read_bytes()
    assert run(*common, "-o", tmp_path / "a").exit_code == 0  # nothing is left to do
    assert made.files[0].read_bytes() == before
    again = run("evaluate", "run", "--config", tmp_path / "a" / "run.toml", "-o", tmp_path / "b")
    assert again.exit_code == 0, again.output
    answers = [[one.answer for one in read_run(tmp_path / n).records()] for n in ("a", "b")]
    assert answers[0] == answers[1]
    other = run(*common, "-o", tmp_path / "a", "--limit", "2")
    assert "holds another run: run.limit is not given there and 2 here" in refused(other)


@pytest.mark.tiny
def test_failures_are_named_and_the_exit_code_says_so(tiny_folder: Path, tmp_path: Path) -> None:
    path = write_questions(tmp_path / "data", [*ROWS, {**ROWS[0], "image": "missing.png"}])
    words = (
        *("evaluate", "run", "--task", "jsonl", "--data", path, "--model", tiny_folder),
        *("-o", tmp_path / "run"),
    )
    done = run(*words)
    assert done.exit_code == 3
    assert "missing.png does not exist" in plain(done.stderr)
    assert "3 of 4 questions answered, 1 failed: NOT complete" in plain(done.stderr)
    (path.parent / "missing.png").write_bytes((path.parent / "red.png").read_bytes())
    assert run(*words).exit_code == 0
    assert read_run(tmp_path / "run").complete


@pytest.mark.tiny
def test_interrupted_it_says_what_remains_and_goes_on(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_questions(tmp_path / "data", ROWS)
    words = (
        *("evaluate", "run", "--task", "jsonl", "--data", path, "--model", tiny_folder),
        *("--batch-tokens", "0", "-o", tmp_path / "run"),
    )
    plain_run = LocalEngine.run

    def stopped_at_once(self: Any, task: Any, items: Any) -> Iterator[Any]:
        for made in plain_run(self, task, items):
            os.kill(os.getpid(), signal.SIGINT)
            yield made

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        patched.setattr(LocalEngine, "run", stopped_at_once)
        done = run(*words)
    assert done.exit_code == 130, done.output
    said = plain(done.stderr)
    assert "Stopping after the current step; Ctrl-C again stops at once." in said
    assert "Stopped after 1 of 3 questions; 2 remain. Their records are kept in" in said
    assert signal.getsignal(signal.SIGINT) is before
    assert len(list(read_run(tmp_path / "run").records())) == 1
    assert run(*words).exit_code == 0
    assert read_run(tmp_path / "run").complete


@pytest.mark.tiny
def test_the_older_judge_warns(tiny_folder: Path, tmp_path: Path) -> None:
    path = write_questions(tmp_path / "data", ROWS[:1])
    done = run(
        *("evaluate", "run", "--task", "jsonl", "--data", path, "--model", tiny_folder),
        *("--judge", "substring-legacy", "-o", tmp_path / "run"),
    )
    assert "Warning: substring-legacy takes every answer" in plain(done.stderr)
    (record,) = read_run(tmp_path / "run").records()
    assert record.details["own"]["judge"] == "by_question"
