"""The folder of a run: its state after any interruption, and what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sinkscope.config import ModelSettings
from sinkscope.evaluation.method_specs import MethodSpec
from sinkscope.evaluation.record import AnswerRecord
from sinkscope.evaluation.run_folder import RunFolder, read_run
from sinkscope.evaluation.settings import RunConfig, RunSettings, Shard, read_config

METHODS = (MethodSpec("default"), MethodSpec("var", {"dims": (1, 2), "tau": 3.0, "keep": 0.25}))
CONFIG = RunConfig(RunSettings("demo", limit=10), ModelSettings(), METHODS)


def record(index: int, method: str = "default", error: str | None = None) -> AnswerRecord:
    return AnswerRecord(
        task="demo",
        protocol="fixed",
        question=f"q{index}",
        index=index,
        method=method,
        prompt_hash="0",
        answer=None if error else "ein Stern ★",
        extraction=None,
        score=None if error else 1.0,
        details={},
        truth="x",
        category="",
        cluster=f"q{index}",
        fields={},
        log_probabilities=None if error else (-0.1,),
        error=error,
    )


def pair(index: int, error: str | None = None) -> list[AnswerRecord]:
    return [record(index, "default", error), record(index, "var", error)]


def written(folder: Path, *groups: list[AnswerRecord]) -> Path:
    with RunFolder(folder, CONFIG) as out:
        for group in groups:
            out.append(group)
        return out.path


def test_a_record_is_the_same_after_it_is_written(tmp_path: Path) -> None:
    written(tmp_path, pair(0), pair(1))
    assert list(read_run(tmp_path).records()) == pair(0) + pair(1)


def test_the_configuration_is_the_same_after_it_is_written(tmp_path: Path) -> None:
    odd = RunConfig(
        RunSettings(
            "jsonl",
            data='C:\\a "b"\nc\t★.jsonl',
            parts=("x y", "z"),
            limit=3,
            judge="substring-legacy",
        ),
        ModelSettings("a/b", revision="abc", max_pixels=100_000),
        (
            MethodSpec("default"),
            MethodSpec("var keep=0", {"dims": (4,), "layers": None, "keep": 0.0}),
        ),
    )
    path = tmp_path / "run.toml"
    path.write_text(odd.toml(), encoding="utf-8")
    assert not odd.differences(read_config(path))
    assert read_config(path).run == odd.run
    assert read_config(path).model == odd.model


@pytest.mark.parametrize("cut", range(1, 900, 37))
def test_any_cut_of_the_file_leaves_whole_questions(tmp_path: Path, cut: int) -> None:
    """Whatever a killed process has left of the last group: earlier groups are kept, and only
    they."""
    path = written(tmp_path, pair(0), pair(1))
    data = path.read_bytes()
    size = max(0, len(data) - cut)
    path.write_bytes(data[:size])
    first = len("".join(one.line() for one in pair(0)).encode())
    with RunFolder(tmp_path, CONFIG) as out:
        assert out.done == ({0, 1} if size == len(data) else {0} if size >= first else set())
        missing = [n for n in (0, 1) if n not in out.done]
        for index in missing:
            out.append(pair(index))
    assert list(read_run(tmp_path).records()) == pair(0) + pair(1)


def test_failed_questions_are_cut_out_and_tried_again(tmp_path: Path) -> None:
    written(tmp_path, pair(0), pair(1, "image is broken"), pair(2))
    with RunFolder(tmp_path, CONFIG) as out:
        assert out.done == {0, 2}
        out.append(pair(1))
    assert list(read_run(tmp_path).records()) == pair(0) + pair(2) + pair(1)


def test_a_failure_of_one_method_alone_takes_the_other_with_it(tmp_path: Path) -> None:
    written(tmp_path, [record(0), record(0, "var", "full")])
    with RunFolder(tmp_path, CONFIG) as out:
        assert out.done == set()


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, pair(0), pair(1))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "{broken}\n", *lines[2:]]))
    with pytest.raises(ValueError, match=r"Line 2 of records\.jsonl is damaged, because"):
        RunFolder(tmp_path, CONFIG).__enter__()
    assert path.read_text().count("\n") == 4  # nothing was cut off


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (dataclasses.replace(CONFIG, run=RunSettings("demo", limit=11)), "run.limit is 10 there"),
        (dataclasses.replace(CONFIG, run=RunSettings("blink", limit=10)), 'run.task is "demo"'),
        (dataclasses.replace(CONFIG, model=ModelSettings("a/b")), "model.model"),
        (dataclasses.replace(CONFIG, methods=METHODS[:1]), "methods is"),
        (dataclasses.replace(CONFIG, methods=METHODS[::-1]), "methods is"),
        (
            dataclasses.replace(
                CONFIG, methods=(METHODS[0], MethodSpec("var", {"dims": (1, 2), "keep": 0.5}))
            ),
            "method var: keep is 0.25 there and 0.5 here",
        ),
    ],
)
def test_another_run_or_a_changed_configuration_is_refused(
    tmp_path: Path, changed: RunConfig, words: str
) -> None:
    path = written(tmp_path, pair(0))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="holds another run") as caught:
        RunFolder(tmp_path, changed).__enter__()
    assert words in str(caught.value)
    assert path.read_bytes() == before


def test_shards_and_the_whole_run_do_not_share_a_folder(tmp_path: Path) -> None:
    written(tmp_path, pair(0))
    with pytest.raises(ValueError, match=r"records of the whole run, and shard 1/2"):
        RunFolder(tmp_path, CONFIG, Shard(1, 2)).__enter__()
    other = tmp_path / "other"
    with RunFolder(other, CONFIG, Shard(1, 2)) as out:
        out.append(pair(0))
    with pytest.raises(ValueError, match="records of shards of 2, and shard 1/3"):
        RunFolder(other, CONFIG, Shard(1, 3)).__enter__()
    assert read_run(other).missing == (2,)
    assert not read_run(other).complete


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="not empty and holds no run"):
        RunFolder(tmp_path, CONFIG).__enter__()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"The folder .* cannot be written"):
        RunFolder(tmp_path / "file" / "run", CONFIG).__enter__()


def test_a_folder_in_which_no_file_can_be_made_is_named() -> None:
    """/proc exists and nobody can create files in it, not even root."""
    if not Path("/proc/self").is_dir():
        pytest.skip("there is no /proc here")
    for folder in ("/proc/sinkscope", "/proc/self/fd/sinkscope/run"):
        with pytest.raises(ValueError, match=f"The folder {folder} cannot be written: .+"):
            RunFolder(Path(folder), CONFIG).__enter__()


def test_a_run_that_may_be_read_and_not_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like a finished run of another user: it is not changed, and can be read."""
    path = written(tmp_path, pair(0))
    before, own = path.read_bytes(), Path.open

    def denied(self: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if self == path and mode != "rb":
            raise PermissionError(13, "Permission denied", str(self))
        return own(self, mode, *rest, **named)

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(ValueError, match=r"cannot be written: Permission denied\."):
        RunFolder(tmp_path, CONFIG).__enter__()
    assert len(list(read_run(tmp_path).records())) == 2
    assert path.read_bytes() == before


def test_two_processes_cannot_write_one_folder(tmp_path: Path) -> None:
    with (
        RunFolder(tmp_path, CONFIG),
        pytest.raises(ValueError, match="being written by another process"),
    ):
        RunFolder(tmp_path, CONFIG).__enter__()
    with RunFolder(tmp_path, CONFIG):
        pass  # free again


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no run\.toml"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        read_run(tmp_path / "missing")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[run]\ntask = 3", "task is 3"),
        ("[run]\nlimit = 3", "task"),
        ("[run]\ntask = 'demo'\nlimits = 3", "'limits'; allowed: task"),
        ("[run]\ntask = 'demo'\nlimit = 0", "limit is 0"),
        ("[runs]\ntask = 'demo'", "'runs'; allowed"),
        ("[model]\nmodel = 'demo'", "no table \\[run\\]"),
        ("[run]\ntask = 'demo'\n[[methods]]\nname = 'a'\n[[methods]]\nname = 'a'", "given twice"),
        ("[run]\ntask = 'demo'\n[[methods]]\nvar = {}", "allowed: name"),
        ("run", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_config(path)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_wrong_shard_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="allowed: 1/N to N/N"):
        Shard.read(text)
