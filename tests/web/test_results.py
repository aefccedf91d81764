"""Results of Sinks, Experiments and Evaluate: their owners if users log in, and their end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sinkscope.config import AppSettings, Settings
from sinkscope.jobs.runner import Runner
from sinkscope.web.evaluate.run import EvaluateHandlers
from sinkscope.web.evaluate.store import GONE, EvaluateStore
from sinkscope.web.experiments.run import ExperimentsHandlers
from sinkscope.web.experiments.store import ExperimentResult
from sinkscope.web.runs.inspector import served
from sinkscope.web.runs.loaded_model import LoadedModel
from sinkscope.web.runs.owners import user_now
from sinkscope.web.runs.results import LONGEST_SECONDS, MOST_RESULTS, ResultStore
from sinkscope.web.runs.served_files import ServedFiles
from sinkscope.web.server.current_request import _SCOPE, USER
from sinkscope.web.server.read_only import READ_ONLY
from sinkscope.web.sinks.run import SinksHandlers
from sinkscope.web.sinks.store import SinksResult, SinksStore


@pytest.fixture
def user() -> Any:
    """Sets the current user from here on."""
    before = _SCOPE.get()
    yield lambda name: _SCOPE.set({} if name is None else {USER: name})
    _SCOPE.set(before)


def of_experiment() -> ExperimentResult:
    return ExperimentResult("an-experiment", None, {"phase": "ready"})  # type: ignore[arg-type]


def of_sinks() -> SinksResult:
    return SinksResult(None, value={"phase": "ready"})  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [of_experiment, of_sinks])
def test_a_result_is_its_users_alone(make: Any, user: Any, tmp_path: Path) -> None:
    store: Any = SinksStore(tmp_path, owned=True) if make is of_sinks else ResultStore(owned=True)
    user("ann")
    kept = make()
    store.put(kept)
    assert store.get(kept.id) is kept
    for other in ("bob", None):
        user(other)
        assert store.get(kept.id) is None
        store.delete(kept.id)
    user("ann")
    assert store.get(kept.id) is kept  # nobody else has deleted it
    store.delete(kept.id)
    assert store.get(kept.id) is None
    user(None)
    nobodys = make()
    store.put(nobodys)
    assert store.get(nobodys.id) is None
    open_to_all: ResultStore[Any] = ResultStore()
    open_to_all.put(nobodys)
    assert open_to_all.get(nobodys.id) is nobodys  # nobody logs in: the id is enough


def test_the_work_of_a_job_knows_who_asked(user: Any) -> None:
    runner = Runner(2)
    for name in ("ann", "bob"):
        user(name)
        assert runner.result(runner.job("s", "sinks"), lambda job: user_now()) == name


def files(folder: Path, *names: str) -> list[Path]:
    made = [folder / name / "file.png" for name in names]
    for path in made:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
    return made


def test_what_was_made_of_a_result_goes_with_it(tmp_path: Path) -> None:
    runs = ServedFiles()
    own, of_both, of_run, of_two = files(tmp_path, "own", "both", "run", "two")
    runs.add(["run"], [of_both, of_run])
    now = [0.0]
    store: ResultStore[ExperimentResult] = ResultStore(lambda: now[0], copies=ServedFiles(runs))
    for name in ("first", "second"):
        store.put(ExperimentResult(name, None, {}))  # type: ignore[arg-type]
    for name, paths in (("first", [own, of_both, of_two]), ("second", [of_two])):
        for path in paths:
            store.keep(name, {"data": {"url": served(path)}})
    store.delete("first")
    assert [path.is_file() for path in (own, of_both, of_run, of_two)] == [False, True, True, True]
    runs.drop("run")
    assert [path.is_file() for path in (of_both, of_run, of_two)] == [False, False, True]
    now[0] = LONGEST_SECONDS + 1
    assert store.get("second") is None and not of_two.is_file()
    for number in range(MOST_RESULTS + 1):
        (path,) = files(tmp_path, f"many-{number}")
        store.keep(str(number), {"url": served(path)})
        store.put(ExperimentResult(str(number), None, {}))  # type: ignore[arg-type]
    there = [(tmp_path / f"many-{n}" / "file.png").is_file() for n in range(MOST_RESULTS + 1)]
    assert there == [False] + [True] * MOST_RESULTS


def begun(store: EvaluateStore) -> str:
    run_id = store.new()
    with store.writing(run_id) as folder:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "records.jsonl").write_text("{}\n")
    return run_id


def test_an_evaluation_is_its_users_alone_and_can_be_deleted(user: Any, tmp_path: Path) -> None:
    store = EvaluateStore(tmp_path / "runs", owned=True)
    user("ann")
    run_id = begun(store)
    place = store.find(run_id)
    store = EvaluateStore(tmp_path / "runs", owned=True)  # the app was restarted
    (picture,) = files(tmp_path, "picture")
    store.keep(run_id, {"url": served(picture)})
    assert store.find(run_id) == place
    for other in ("bob", None):
        user(other)
        for refused in (store.find, store.delete):
            with pytest.raises(ValueError, match="no longer on the server"):
                refused(run_id)
    user("ann")
    with store.writing(run_id), pytest.raises(ValueError, match="under way; stop it first"):
        store.delete(run_id)
    store.delete(run_id)
    assert not (tmp_path / "runs" / run_id).exists() and not picture.is_file()
    with pytest.raises(ValueError, match="no longer"):
        store.delete(run_id)
    anybody = EvaluateStore(tmp_path / "open")
    user(None)
    assert anybody.find(begun(anybody))  # nobody logs in: the id is enough


@pytest.mark.parametrize("login", [False, True])
def test_the_tabs_ask_whose_it_is_where_users_log_in(login: bool, tmp_path: Path) -> None:
    more: dict[str, Any] = {"auth": "ann:secret"} if login else {}
    settings = Settings(app=AppSettings(cache_dir=str(tmp_path), **more))
    assert settings.app.login == login
    for kind in (SinksHandlers, ExperimentsHandlers, EvaluateHandlers):
        made: Any = kind(settings, LoadedModel(), Runner(2))
        assert made.store._owned == login


@pytest.mark.parametrize("read_only", [False, True])
def test_deleting_through_the_page(read_only: bool, tmp_path: Path) -> None:
    settings = Settings(app=AppSettings(cache_dir=str(tmp_path), read_only=read_only))
    sinks = SinksHandlers(settings, LoadedModel(), Runner(2))
    trials = ExperimentsHandlers(settings, LoadedModel(), Runner(2))
    asked = EvaluateHandlers(settings, LoadedModel(), Runner(2))
    one, other, run_id = of_sinks(), of_experiment(), begun(asked.store)
    sinks.store.put(one)
    trials.store.put(other)
    cases = (
        (sinks.forget_sinks, sinks.open_sinks, one.id, {}),
        (trials.forget_experiment, trials.open_experiment, other.id, {}),
        (asked.forget_evaluation, asked.store.find, run_id, {"error": GONE}),
    )
    for forget, look, name, again in cases:
        said = forget({"run": name})
        if read_only:
            assert said == {"error": READ_ONLY}
            continue
        assert said == {}
        assert forget({"run": name}) == again
        if forget == asked.forget_evaluation:
            with pytest.raises(ValueError, match="no longer"):
                look(name)
        else:
            assert "error" in look({"run": name})
    if read_only:
        assert sinks.store.get(one.id) and trials.store.get(other.id)
        assert asked.store.find(run_id)
