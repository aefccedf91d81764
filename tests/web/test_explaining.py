"""The page's methods that read the model, without a browser: request, stream, store, stop."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import numpy as np
import pytest

from sinkscope.methods.explain import METHODS, explain_map
from sinkscope.methods.passes import passes_of
from sinkscope.models.loading import ModelHandle
from sinkscope.web.explore.explaining import EXPLAIN, STALE, Explaining, read_explain_request
from sinkscope.web.explore.handlers import EXPIRED, Handlers
from sinkscope.web.runs.explained_store import ExplainedStore, StoredMaps
from sinkscope.web.runs.loaded_model import LoadedModel
from sinkscope.web.runs.store import Run

pytestmark = pytest.mark.tiny


@pytest.fixture
def explaining(handlers: Handlers) -> Explaining:
    return Explaining(handlers)


def asking(shown: Run, **changes: Any) -> dict[str, Any]:
    first = shown.first
    layers, heads = list(first.layers), list(first.heads)
    return {
        "ask": "7",
        "run": shown.id,
        "t0": 1,
        "t1": 1,
        "layers": layers,
        "heads": heads,
        **changes,
    }


def test_what_is_computed_is_what_python_gives_and_is_kept(
    explaining: Explaining, handle: ModelHandle, run: Run
) -> None:
    names = ["attention", "relative", "chefer", "logit_lens"]
    made = list(explaining.values(asking(run, methods=names), "me"))
    assert {value["phase"] for value in made} == {"explain"}
    assert made[-1]["done"] is True and not any(value.get("done") for value in made[:-1])
    json.dumps(made, allow_nan=False)
    side = made[-1]["sides"]["baseline"]
    assert "no generic prompt" in side["relative"]["why"]
    session = passes_of(handle, run.first)
    for name in ("attention", "chefer", "logit_lens"):
        expected = explain_map(run.first, 1, name, session=session).values.ravel()
        np.testing.assert_allclose(side[name]["values"], expected, rtol=1e-4, atol=1e-9)
    # Kept: other layers need no model, and the rest is not there yet.
    explaining.handlers.loaded = LoadedModel()
    layer = [run.first.layers[-1]]
    there = explaining.explained(asking(run, layers=layer))["sides"]["baseline"]
    expected = explain_map(run.first, 1, "attention", layer).values.ravel()
    np.testing.assert_allclose(there["attention"]["values"], expected, rtol=1e-4)
    assert "rollout" not in there and "why" in there["relative"]
    (*_, last) = explaining.values(asking(run, methods=["rollout"]), "me")
    assert "model" in last["error"]


def test_a_stop_keeps_what_is_ready(explaining: Explaining, run: Run) -> None:
    names = [one.name for one in METHODS]
    before = set(threading.enumerate())
    stopped = False
    for value in explaining.values(asking(run, methods=names), "me"):
        there = value.get("sides", {}).get("baseline", {})
        if "rollout" in there and not stopped:
            explaining.handlers.runner.stop("another", EXPLAIN)  # not its own
            assert explaining.handlers.runner.under_way
            explaining.handlers.runner.stop("me", EXPLAIN)
            stopped = True
        last = value
    assert stopped and "Stopped" in last["error"] and "kept" in last["error"]
    assert "rollout" in explaining.explained(asking(run))["sides"]["baseline"]
    until = time.monotonic() + 20
    while left := [one.name for one in set(threading.enumerate()) - before if not one.daemon]:
        assert time.monotonic() < until, left
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run": "x" * 22}, EXPIRED),
        ({"t0": 9}, STALE),
        ({"t0": True}, STALE),
        ({"t1": 0}, STALE),
        ({"layers": "all"}, STALE),
        ({"layers": [99]}, STALE),
        ({"heads": None}, STALE),
        ({"reduce": "sum"}, STALE),
        ({"methods": []}, STALE),
        ({"methods": ["x"]}, "allowed"),
    ],
)
def test_what_no_page_sends(
    explaining: Explaining, run: Run, changes: dict[str, Any], said: str
) -> None:
    ask = asking(run, **changes)
    assert said in explaining.explained(ask)["error"]
    (last,) = explaining.values(ask, "me")
    assert said in last["error"]
    assert "error" in explaining.explained(None)


def test_the_store_has_a_limit(run: Run) -> None:
    asked = read_explain_request(asking(run), run)
    assert [one.name for one in asked.methods] == [one.name for one in METHODS]
    store = ExplainedStore(most=1000)
    for k in range(5):
        store.put(("r", "baseline", (k,), "x"), StoredMaps(None, "why"))
    kept = [k for k in range(5) if store.get(("r", "baseline", (k,), "x"))]
    assert kept == [2, 3, 4]
    store.put(("r", "baseline", (4,), "x"), StoredMaps(None, "again"))
    assert store.get(("r", "baseline", (3,), "x")) is not None
