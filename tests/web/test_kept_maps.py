"""Maps and figures of methods that read the model, over the API: those that the page has stored."""

from __future__ import annotations

import re
from pathlib import Path

import gradio as gr
import numpy as np
import pytest

from sinkscope.drawing.files import draw
from sinkscope.methods.explain import explain
from sinkscope.methods.head_list import PickedHeads
from sinkscope.methods.heads import localising_heads
from sinkscope.methods.passes import passes_of
from sinkscope.models.loading import ModelHandle
from sinkscope.web.api.endpoints import Api
from sinkscope.web.explore import explaining
from sinkscope.web.explore.exporting import read_export_request
from sinkscope.web.explore.handlers import Handlers
from sinkscope.web.explore.head_lists import HeadLists
from sinkscope.web.runs.explained_store import StoredMaps
from sinkscope.web.runs.store import Run

pytestmark = pytest.mark.tiny


@pytest.fixture
def api(handlers: Handlers) -> Api:
    with gr.Blocks():
        handlers.component = gr.HTML()
    handlers.drawing = draw  # type: ignore[assignment]  # here, not in a process of its own
    return Api(handlers, ())


def test_what_is_kept_is_drawn(api: Api, handlers: Handlers, handle: ModelHandle, run: Run) -> None:
    stack = explain(run.first, (1, 2), "chefer", session=passes_of(handle, run.first))
    lens = explain(run.first, 1, "gradient_attention", session=passes_of(handle, run.first))
    handlers.explained.put((run.id, "baseline", (1, 2), "chefer"), StoredMaps(stack))
    handlers.explained.put((run.id, "baseline", (1,), "gradient_attention"), StoredMaps(lens))
    made, picture = api.map(run.id, tokens="1-2", method="chefer")
    np.testing.assert_allclose(np.array(made["values"]), stack.map().values, rtol=1e-6)
    assert made["unit"] == stack.unit and made["methods"]["chefer"] is None
    assert "passes of the model" in made["methods"]["rollout"]
    assert Path(picture).read_bytes()[:4] == b"\x89PNG"
    (file,) = api.export(run.id, kind="svg", tokens="1-2", method="chefer")
    text = Path(file).read_text()
    assert "Chefer" in text or "chefer" in text
    # Of layers and heads, where the method has them.
    pairs = PickedHeads(((0, 1), (1, 0)))
    made, _ = api.map(run.id, tokens="1", method="gradient_attention", heads_from="0.1,1.0")
    expected = lens.map(pairs=pairs.pairs).values
    np.testing.assert_allclose(np.array(made["values"]), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"tokens": "1", "method": "chefer"}, "chefer is not computed for this word: "),
        (
            {"tokens": "1", "method": "chefer", "part": "prompt"},
            "explains words of the answer|no rows of its prompt",
        ),
        ({"tokens": "99", "method": "chefer"}, "token is .*99.*; (allowed: 0 to |the answer has )"),
        ({"tokens": "1", "method": "relative"}, "not possible here"),
        ({"tokens": "1", "method": "x"}, "method is 'x'; allowed: "),
    ],
)
def test_what_is_not_kept_is_refused_in_a_sentence(
    api: Api, run: Run, said: dict[str, str], words: str
) -> None:
    for call in (api.map, api.export):
        with pytest.raises(ValueError) as error:
            call(run.id, **said)
        assert re.search(words, str(error.value)), error.value
        assert "session" not in str(error.value) and "\n" not in str(error.value)


def test_an_animation_of_them_is_refused(api: Api, run: Run) -> None:
    with pytest.raises(ValueError, match="An animation needs the maps of every word"):
        api.export(run.id, kind="gif", method="chefer")


def test_single_heads_over_the_api(api: Api, run: Run) -> None:
    found = localising_heads([run.first]).picked()
    for said in ("localising", localising_heads([run.first]).as_json()):
        made, _ = api.map(run.id, tokens="1", heads_from=said)
        rows = run.first.attention[1].float().numpy()
        of = np.mean([rows[run.first.layers.index(a), run.first.heads.index(b)]
                      for a, b in found.pairs], 0)  # fmt: skip
        np.testing.assert_allclose(np.array(made["values"]).ravel(), of, rtol=1e-4)
        assert f"mean over {len(found.pairs)} heads (" in made["label"]
    (file,) = api.export(run.id, kind="svg", tokens="1", heads_from="localising")
    assert "localising head" in Path(file).read_text()
    with pytest.raises(ValueError, match=r"heads_from names 99\.0, and .* has"):
        api.map(run.id, tokens="1", heads_from="99.0")
    with pytest.raises(ValueError, match="no layers, heads or layers one by one with them"):
        api.map(run.id, tokens="1", heads_from="localising", layers="0")


def test_single_heads_that_no_page_asks_for(handlers: Handlers, run: Run) -> None:
    pair = [0, 1]
    view = read_export_request(
        {"kind": "pdf", "view": {"picked": {"pairs": [pair], "kind": ""}}}
    ).view
    assert view.picked == PickedHeads(((0, 1),))
    for picked in ("all", 7, {}, {"pairs": []}, {"pairs": [[0]]}, {"pairs": [pair], "kind": "x"}):
        with pytest.raises(ValueError) as error:
            read_export_request({"kind": "pdf", "view": {"picked": picked}})
        assert "\n" not in str(error.value) and len(str(error.value)) < 400
    lists = HeadLists(handlers)
    for ask in (None, {}, {"run": run.id}, {"run": run.id, "text": 5}, {"run": "x", "text": "{}"}):
        assert set(lists.read_heads(ask)) == {"error"}
    for ask in ({}, {"run": run.id}, {"run": run.id, "which": ["sinks"]}, {"which": "sinks"}):
        (last,) = lists.values(ask, "me")
        assert last["phase"] == "heads" and "error" in last
    (last,) = lists.values({"run": run.id, "which": "localising"}, "me")
    assert last["pairs"] and last["kind"] == "localising"
    again = lists.read_heads({"run": run.id, "text": last["file"], "name": "h.json"})
    assert again["pairs"] == last["pairs"]
    chosen = explaining.read_explain_request(
        {"run": run.id, "t0": 0, "t1": 0, "layers": [0], "heads": [0], "pairs": [pair]}, run
    )
    assert chosen.choice.pairs == ((0, 1),)
    with pytest.raises(ValueError, match=r"heads is 99\.1; the run kept"):
        explaining.read_explain_request(
            {"t0": 0, "t1": 0, "layers": [0], "heads": [0], "pairs": [[99, 1]]}, run
        )
