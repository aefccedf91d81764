"""`sinkscope evaluate report`: what it prints, writes and refuses, and its exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.report.made_up_run import record, scored, write_run
from tests.test_cli import refused, run

BASE = [1.0] * 20 + [0.0] * 20
MORE = [1.0] * 30 + [0.0] * 10


def test_it_prints_and_writes_beside_the_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", scored({"default": BASE, "var": MORE}))
    done = run("evaluate", "report", folder, "--no-data", "--resamples", "100")
    assert done.exit_code == 0, done.output
    assert "var is better than default" in done.stdout
    assert "report.html" in done.stderr and "report.html" not in done.stdout
    assert len(list((folder / "report").iterdir())) == 6


def test_an_incomplete_run_is_no_success(tmp_path: Path) -> None:
    records = [*scored({"default": BASE, "var": MORE})]
    records += [record("q40", 40, "default", None), record("q40", 40, "var", None)]
    folder = write_run(tmp_path / "run", records)
    done = run("evaluate", "report", folder, "--no-data", "--resamples", "100")
    assert done.exit_code == 3
    assert "THE RUN IS NOT COMPLETE" in done.stdout
    assert "No answer: q40 by default: The image is broken." in done.stdout


def test_another_baseline(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", scored({"default": BASE, "var": MORE}))
    done = run(
        "evaluate", "report", folder, "--no-data", "--baseline", "var", "-o", tmp_path / "out"
    )
    assert "default is worse than var" in done.stdout
    assert (tmp_path / "out" / "report.md").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--baseline", "other"], "baseline is 'other'"),
        (["--alpha", "2"], "alpha is 2.0"),
        (["--resamples", "0"], "resamples is 0"),
        (["--maps", "5", "--flips", "2"], "maps is 5; allowed: 0 to flips, 2"),
        (["--maps", "1", "--no-data"], "maps is 1; allowed: 0 without data"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, words: list[str], said: str) -> None:
    folder = write_run(tmp_path / "run", scored({"default": BASE, "var": MORE}))
    assert said in refused(run("evaluate", "report", folder, *words))


def test_folders_that_are_no_runs_are_named(tmp_path: Path) -> None:
    assert "is not a folder" in refused(run("evaluate", "report", tmp_path / "nothing"))
    assert "has no run.toml" in refused(run("evaluate", "report", tmp_path))
    one = write_run(tmp_path / "one", scored({"default": BASE, "var": MORE}))
    assert "output is missing" in refused(run("evaluate", "report", one, one))
