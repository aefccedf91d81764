"""The runner: how records are made, and how errors are reported."""

from __future__ import annotations

import dataclasses
import json
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from sinkscope.config import ModelSettings
from sinkscope.evaluation.method_specs import MethodSpec, parse_methods
from sinkscope.evaluation.record import AnswerRecord
from sinkscope.evaluation.run_folder import read_run
from sinkscope.evaluation.runner import evaluate, prepare
from sinkscope.evaluation.session import Summary, bucket_of
from sinkscope.evaluation.settings import RunConfig, RunSettings, Shard, read_config
from sinkscope.jobs.job import Stopped
from sinkscope.models.loading import ModelHandle, load_model
from tests.evaluation.scripted import Scripted, write_questions
from tests.evaluation.tasks.layouts import data_of, pope, write

PAIR = parse_methods(["default", "var:dims=3,tau=1.5"])
COLOUR = [{"question": f"Colour {n}?", "answer": "red"} for n in range(5)]


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> ModelHandle:
    return load_model(ModelSettings(str(tiny_folder)))


def config(path: Path, methods: tuple[MethodSpec, ...] = PAIR, **others: Any) -> RunConfig:
    return RunConfig(RunSettings("jsonl", data=str(path), **others), ModelSettings(), methods)


def run(
    handle: ModelHandle, wanted: RunConfig, folder: Path, engine: Any = None, **others: Any
) -> Summary:
    return evaluate(handle, wanted, prepare(wanted.run), folder, engine=engine, **others)


def records(folder: Path) -> list[AnswerRecord]:
    return sorted(read_run(folder).records(), key=lambda one: one.index)


def same(record: AnswerRecord) -> AnswerRecord:
    """Without the parts that may differ between two runs of one configuration."""
    return dataclasses.replace(record, seconds=None, host={})


# --- around the answers ---------------------------------------------------------------------------


def test_each_method_has_its_record_with_score_and_place(tiny: ModelHandle, tmp_path: Path) -> None:
    path = write_questions(tmp_path / "data", COLOUR[:2])
    engine = Scripted(lambda work: ("Red.", "blue"))
    done = run(tiny, config(path), tmp_path / "run", engine)
    assert done.complete
    assert (done.questions, done.answered, done.failed) == (2, 2, 0)
    made = records(tmp_path / "run")
    assert [(r.index, r.method, r.score) for r in made] == [
        (0, "default", 1.0),
        (0, PAIR[1].name, 0.0),
        (1, "default", 1.0),
        (1, PAIR[1].name, 0.0),
    ]
    assert made[0].truth == "red"
    assert made[0].extraction == "red"
    assert made[0].log_probabilities == (-0.5, -0.25)
    assert made[0].details["judge"] == "exact_match"


def test_faulty_rows_are_recorded_and_the_rest_is_answered(
    tiny: ModelHandle, tmp_path: Path
) -> None:
    """A missing image, a broken one, no answer, an unknown letter, a duplicate id."""
    choice = {"question": "Which?", "choices": ["red", "blue"]}
    path = write_questions(
        tmp_path / "data",
        [
            COLOUR[0],
            {**COLOUR[1], "image": "missing.png"},
            {**COLOUR[2], "image": "broken.png"},
            {"question": "No answer?"},
            {**choice, "answer": "D"},
            {**COLOUR[3], "id": "0"},
            {**choice, "answer": "A"},
        ],
    )
    (path.parent / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    engine = Scripted(lambda work: ("red", "red"))
    done = run(tiny, config(path), tmp_path / "run", engine)
    assert (done.questions, done.answered, done.failed) == (7, 2, 5)
    assert not done.complete
    reasons = dict(done.failures)
    assert "missing.png does not exist" in reasons["1"]
    assert "broken.png is damaged" in reasons["2"]
    assert (
        "Line 4 of questions.jsonl has no answer; keys present: id, image, cluster, question"
        in (reasons["row-4"])
    )
    assert "allowed: A, B" in reasons["row-5"]
    assert reasons["0"] == "The id 0 is in the data twice."
    made = records(tmp_path / "run")
    assert [one.index for one in made] == [n for n in range(7) for _ in PAIR]
    assert {one.index for one in made if one.error} == {1, 2, 3, 4, 5}
    assert all((one.score is None) == bool(one.error) for one in made)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["complete"] is False
    assert len(summary["failures"]) == 5


def test_a_later_line_without_a_column_is_that_lines_fault(
    tiny: ModelHandle, tmp_path: Path
) -> None:
    """JSON lines may have different keys; only the first line decides which columns the file
    has."""
    data_of("older-blink", tmp_path)
    path = tmp_path / "blink_validation.jsonl"
    first, second = path.read_text().splitlines()
    path.write_text("\n".join([first, '{"id": "9", "image": "red.png"}', second]) + "\n")
    wanted = RunConfig(RunSettings("older-blink", data=str(path)), ModelSettings(), PAIR)
    done = run(tiny, wanted, tmp_path / "run", Scripted(lambda work: ("red", "red")))
    assert (done.questions, done.answered, done.failed) == (3, 2, 1)
    assert "has no conversations; columns present: id, image" in dict(done.failures)["9"]
    path.write_text('{"id": "9"}\n')
    with pytest.raises(ValueError, match=r"no column 'conversations'.*present: id"):
        prepare(wanted.run)


def test_failures_are_tried_again_by_the_next_run(tiny: ModelHandle, tmp_path: Path) -> None:
    path = write_questions(tmp_path / "data", COLOUR)
    first = Scripted(
        lambda work: OSError("the disk is away") if "3" in work.prompt else ("red", "red")
    )
    assert run(tiny, config(path), tmp_path / "run", first).failed == 1
    second = Scripted(lambda work: ("red", "red"))
    assert run(tiny, config(path), tmp_path / "run", second).complete
    assert second.asked == ["Colour 3?"]
    assert [one.index for one in records(tmp_path / "run")] == [n for n in range(5) for _ in PAIR]


def test_a_run_in_which_all_fails_is_given_up(tiny: ModelHandle, tmp_path: Path) -> None:
    rows = [{"question": f"Q{n}", "answer": "x", "image": "missing.png"} for n in range(80)]
    path = write_questions(tmp_path / "data", rows)
    with pytest.raises(ValueError, match=r"50 questions in a row failed.*missing.png"):
        run(tiny, config(path), tmp_path / "run", Scripted(lambda work: ("", "")))
    assert len(records(tmp_path / "run")) == 50 * 2


def test_a_stopped_run_goes_on(tiny: ModelHandle, tmp_path: Path) -> None:
    path = write_questions(tmp_path / "data", COLOUR)
    stop = threading.Event()
    reports: list[tuple[int, int]] = []

    def tell(done: int, total: int, text: str) -> None:
        reports.append((done, total))
        if done == 2:
            stop.set()

    engine = Scripted(lambda work: ("red", "red"))
    with pytest.raises(Stopped):
        run(tiny, config(path), tmp_path / "run", engine, stop=stop, on_progress=tell)
    assert reports == [(n, 5) for n in range(1, len(reports) + 1)]
    assert 2 <= len(reports) < 5  # only the questions in progress were finished
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["complete"], summary["ended"]) == (False, False)
    rest = Scripted(lambda work: ("red", "red"))
    assert run(tiny, config(path), tmp_path / "run", rest).complete
    assert len(engine.asked) == len(reports)
    assert sorted(engine.asked + rest.asked) == [f"Colour {n}?" for n in range(5)]


def test_limit_takes_the_first_and_parts_take_a_category(tiny: ModelHandle, tmp_path: Path) -> None:
    rows = [{**row, "category": "even" if n % 2 == 0 else "odd"} for n, row in enumerate(COLOUR)]
    path = write_questions(tmp_path / "data", rows)
    engine = Scripted(lambda work: ("red", "red"))
    run(tiny, config(path, limit=2), tmp_path / "a", engine)
    run(tiny, config(path, parts=("odd",), limit=1), tmp_path / "b", engine)
    assert engine.asked == ["Colour 0?", "Colour 1?", "Colour 1?"]


def test_shards_share_the_questions_and_clusters_stay_whole(
    tiny: ModelHandle, tmp_path: Path
) -> None:
    rows = [{"question": f"Q{n}", "answer": "red", "cluster": f"image-{n % 7}"} for n in range(28)]
    path = write_questions(tmp_path / "data", rows)
    engine = Scripted(lambda work: ("red", "red"))
    run(tiny, config(path), tmp_path / "whole", engine)
    for number in (1, 2, 3):
        run(tiny, config(path), tmp_path / "parts", engine, shard=Shard(number, 3))
    together = read_run(tmp_path / "parts")
    assert together.complete
    assert list(map(same, records(tmp_path / "parts"))) == list(
        map(same, records(tmp_path / "whole"))
    )
    for path in together.files:
        number = int(path.stem.split("-")[1])
        for line in path.read_text().splitlines():
            assert bucket_of(json.loads(line)["cluster"]) % 3 == number - 1


def test_an_id_that_stands_twice_is_found_across_shards(tiny: ModelHandle, tmp_path: Path) -> None:
    names = [next(f"c{n}" for n in range(99) if bucket_of(f"c{n}") % 2 == part) for part in (0, 1)]
    rows = [{**COLOUR[0], "id": "same", "cluster": name} for name in names]
    path = write_questions(tmp_path / "data", rows)
    engine = Scripted(lambda work: ("red", "red"))
    failed = [
        run(tiny, config(path), tmp_path / "run", engine, shard=Shard(number, 2)).failures
        for number in (1, 2)
    ]
    assert failed == [(), (("same", "The id same is in the data twice."),)]


def test_the_runs_own_file_makes_the_same_run(tiny: ModelHandle, tmp_path: Path) -> None:
    path = write_questions(tmp_path / "data", COLOUR)
    engine = Scripted(lambda work: ("red", "blue"))
    run(tiny, config(path), tmp_path / "a", engine)
    again = read_config(tmp_path / "a" / "run.toml")
    run(tiny, again, tmp_path / "b", engine)
    assert list(map(same, records(tmp_path / "a"))) == list(map(same, records(tmp_path / "b")))
    assert (tmp_path / "a" / "run.toml").read_text() == (tmp_path / "b" / "run.toml").read_text()


def test_a_run_goes_on_from_another_working_folder(
    tiny: ModelHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_questions(tmp_path / "data", COLOUR)
    engine = Scripted(lambda work: ("red", "blue"))
    monkeypatch.chdir(tmp_path / "data")
    run(tiny, config(Path("questions.jsonl"), limit=3), tmp_path / "run", engine)
    monkeypatch.chdir(tmp_path)
    again = read_config(tmp_path / "run" / "run.toml")
    assert run(tiny, again, tmp_path / "run", engine).complete
    assert run(
        tiny, config(Path("data/questions.jsonl"), limit=3), tmp_path / "run", engine
    ).complete
    assert len(engine.asked) == 3


def test_changed_data_or_another_model_is_refused(tiny: ModelHandle, tmp_path: Path) -> None:
    path = write_questions(tmp_path / "data", COLOUR)
    engine = Scripted(lambda work: ("red", "red"))
    run(tiny, config(path), tmp_path / "run", engine)
    file = read_config(tmp_path / "run" / "run.toml")
    path.write_text(path.read_text().replace("Colour 4", "Shade 4"))
    with pytest.raises(ValueError, match=r"run\.data_revision is"):
        run(tiny, config(path), tmp_path / "run", engine)
    with pytest.raises(ValueError, match="is not the one that the run was made with"):
        prepare(file.run)
    run_settings = dataclasses.replace(file.run, data_revision=None, model_revision="sha256:other")
    wanted = dataclasses.replace(file, run=run_settings)
    with pytest.raises(ValueError, match=r"its revision is sha256:.*sha256:other is wanted"):
        run(tiny, wanted, tmp_path / "new", engine)


def test_provenance_names_model_data_versions_and_each_session(
    tiny: ModelHandle, tmp_path: Path
) -> None:
    path = write_questions(tmp_path / "data", COLOUR)
    engine = Scripted(lambda work: ("red", "red"))
    for _ in range(2):
        run(tiny, config(path), tmp_path / "run", engine)
    made = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert made["model"]["revision"] == tiny.info.revision
    assert made["data"]["name"] == str(path)
    assert made["protocol"]["judge"] == "by_question"
    assert len(made["sessions"]) == 2
    assert made["sessions"][0]["libraries"]["torch"]
    assert made["methods"][1]["var"]["dims"] == [3]


# --- data that cannot be used ---------------------------------------------------------------------


def test_a_missing_column_names_those_that_there_are(tmp_path: Path) -> None:
    write(tmp_path / "data" / "test-00000-of-00001.parquet", [{"question": "x", "label": "yes"}])
    with pytest.raises(ValueError, match=r"no column 'question_id'.*present: question, label"):
        prepare(RunSettings("pope", data=str(tmp_path)))


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="has no questions"):
        prepare(RunSettings("jsonl", data=str(tmp_path / "empty.jsonl")))


def test_a_part_without_questions_is_named(tmp_path: Path) -> None:
    path = write_questions(tmp_path, COLOUR)
    with pytest.raises(ValueError, match="no questions among the parts night"):
        prepare(RunSettings("jsonl", data=str(path), parts=("night",)))


def test_a_folder_without_the_table_names_its_files(tmp_path: Path) -> None:
    pope(tmp_path)
    with pytest.raises(ValueError, match=r"no Art_Style/val-.*present: data/test-00000"):
        prepare(RunSettings("blink", data=str(tmp_path)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (RunSettings("mmmu"), "task is 'mmmu'; allowed: demo, jsonl"),
        (RunSettings("demo", protocol="lmms-eval", limit=1), "the task demo has fixed"),
        (RunSettings("demo"), "has no end; give a limit"),
        (RunSettings("demo", limit=1, data="x"), "needs none"),
        (RunSettings("demo", limit=1, parts=("night",)), "the task demo has describe"),
        (RunSettings("jsonl"), "needs data"),
        (RunSettings("pope", data="/nowhere"), "does not exist; allowed: a folder"),
        (RunSettings("pope", data="hub:pope"), "names no dataset"),
        (RunSettings("demo", limit=1, judge="oracle"), "oracle"),
    ],
)
def test_wrong_settings_are_named_before_a_model_is_loaded(
    settings: RunSettings, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        prepare(settings)


# --- memory ---------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_questions(tiny: ModelHandle, tmp_path: Path) -> None:
    """Peak memory of Python objects for 200 and for 1,400 drawn questions: only one number per
    question may accumulate."""

    def peak(limit: int) -> int:
        wanted = RunConfig(RunSettings("demo", limit=limit), ModelSettings(), PAIR)
        engine = Scripted(lambda work: ("red", "red"))
        engine.asked = _Nothing()  # type: ignore[assignment]
        tracemalloc.start()
        run(tiny, wanted, tmp_path / str(limit), engine)
        reached = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return reached

    peak(20)  # imports and caches of the first use
    few, many = peak(200), peak(1400)
    assert many - few < 1200 * 300  # bytes; a single image has 80,000


class _Nothing(list[str]):
    def append(self, one: str) -> None:
        pass
