"""A run on two local workers of a Ray cluster has the same records as one in one process."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from sinkscope.config import ModelSettings
from sinkscope.evaluation.method_specs import parse_methods
from sinkscope.evaluation.record import AnswerRecord
from sinkscope.evaluation.run_folder import read_run
from sinkscope.evaluation.runner import evaluate, prepare
from sinkscope.evaluation.settings import RunConfig, RunSettings
from sinkscope.models.loading import load_model
from sinkscope.sinks.engine import make_engine
from tests.evaluation.scripted import write_questions

pytestmark = [
    pytest.mark.tiny,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None,
        reason="Ray is not installed (requirements-ray.txt)",
    ),
]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def test_two_workers_give_one_processs_records(tiny_folder: Path, tmp_path: Path) -> None:
    rows = [
        {"question": f"Where is object {n}?", "answer": "left", "cluster": f"c{n // 2}"}
        for n in range(7)
    ]
    rows[3]["image"] = "missing.png"
    path = write_questions(tmp_path / "data", rows)
    model = ModelSettings(str(tiny_folder), device="cpu", dtype="float32")
    handle = load_model(model)
    wanted = RunConfig(
        RunSettings("jsonl", data=str(path)),
        model,
        parse_methods(["default", "var:dims=3,tau=1.5,keep=0"]),
    )
    prepared = prepare(wanted.run)
    near = evaluate(handle, wanted, prepared, tmp_path / "near")
    engine = make_engine("ray", handle, model, workers=2)
    far = evaluate(handle, wanted, prepared, tmp_path / "far", engine=engine)
    assert (far.answered, far.failed) == (near.answered, near.failed) == (6, 1)
    assert records(tmp_path / "far") == records(tmp_path / "near")
    processes = {one.host["process"] for one in read_run(tmp_path / "far").records()}
    assert len(processes) == 2


def records(folder: Path) -> list[AnswerRecord]:
    found = (dataclasses.replace(r, seconds=None, host={}) for r in read_run(folder).records())
    return sorted(found, key=lambda one: (one.index, one.method))
