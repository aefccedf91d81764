"""Files of a run: a request of the inspector gives the right file, or a sentence."""

from __future__ import annotations

import dataclasses
import errno
import json
import threading
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from sinkscope.drawing.files import Drawing
from sinkscope.drawing.panels import Painter
from sinkscope.drawing.view import View, make_side
from sinkscope.jobs.job import Progress, Stopped
from sinkscope.web.explore.export_files import ExportRequest, idle, make_files, sides_of_view
from sinkscope.web.explore.exporting import exporting, read_export_request, stopping_export
from sinkscope.web.runs.drawing_process import DrawingProcess
from sinkscope.web.runs.pairs import pair_of
from sinkscope.web.runs.store import Run, new_id
from tests.web.conftest import INSPECTOR, Site
from tests.web.synthetic import make_pair, make_trace, scene

VIEW = {"layers": [1, 2], "heads": None, "each": [], "scale": "clip", "reduce": "mean"}


def export(site: Site, **question: Any) -> list[dict[str, Any]]:
    event = SimpleNamespace(_data={"ask": "1-2", "view": VIEW, **question})
    return list(exporting(site.app.handlers)(event))


def endless(
    self: DrawingProcess,
    sides: Any,
    drawing: Drawing,
    path: Path,
    on_progress: Progress,
    stop: threading.Event,
    on_frame: Callable[[], object] = lambda: None,
) -> None:
    """Replaces the drawing: more frames than anybody would wait for."""
    for frame in range(1, 10_000):
        on_progress(frame, 10_000, f"Frame {frame} of 10000")
        on_frame()
        if stop.wait(0.01):
            raise Stopped(frame, 10_000, "frames")


@pytest.fixture
def run(site: Site) -> Run:
    made = Run(make_pair())
    site.app.handlers.store.put(made, keep_on_disk=False)
    return made


def test_an_animation_tells_how_far_it_is(run: Run, tmp_path: Path) -> None:
    wanted = ExportRequest("gif", first=1, last=4, width=320)
    reports: list[tuple[int, int, str]] = []
    (path,) = make_files(run, wanted, tmp_path, lambda *at: reports.append(at))
    assert reports == [(k, 4, f"Frame {k} of 4") for k in range(1, 5)]
    with Image.open(path) as picture:
        assert picture.n_frames == 4


def test_a_stopped_animation_leaves_nothing(site: Site, run: Run, tmp_path: Path) -> None:
    stop = threading.Event()
    wanted = ExportRequest("gif", first=1, last=4, width=320)
    with pytest.raises(Stopped, match="after 2 of 4 frames"):
        make_files(run, wanted, tmp_path, lambda done, *_: done == 2 and stop.set(), stop)
    assert list(tmp_path.iterdir()) == []


def test_only_the_session_that_asked_stops_its_file(
    site: Site, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers, drawn = site.app.handlers, threading.Event()

    monkeypatch.setattr(DrawingProcess, "__call__", partialmethod(endless, on_frame=drawn.set))
    question = {"ask": "1-2", "view": VIEW, "run": run.id, "kind": "gif"}
    mine, yours = SimpleNamespace(session_hash="mine"), SimpleNamespace(session_hash="yours")
    values = exporting(handlers)(SimpleNamespace(_data=question), mine)
    assert "Frame" in next(values)["message"]
    assert drawn.wait(30)
    (job,) = handlers.runner.under_way
    stopping_export(handlers)(yours)
    handlers.stop("mine")  # Stop beside Generate is for answers
    assert not job.stopped
    stopping_export(handlers)(mine)
    *_, last = values
    assert last["error"].startswith("Stopped after ") and "of 10000 frames" in last["error"]
    assert handlers.runner.under_way == ()


def test_the_inspector_is_given_a_file(site: Site, run: Run) -> None:
    *_, last = export(site, run=run.id, kind="csv")
    assert last["phase"] == "export" and last["ask"] == "1-2"
    (file,) = last["files"]
    assert file["name"].endswith(".csv") and file["bytes"] > 1000 and "file=" in file["url"]


@pytest.mark.usefixtures("no_system_temporary")
@pytest.mark.parametrize("kind", ["csv", "png", "gif", "html", "trace"])
def test_no_file_is_made_outside_the_apps_folder(
    site: Site, run: Run, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, handlers = tmp_path / "own", site.app.handlers
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(own))
    handlers.drawing.close()  # the next one is started as this test has it
    *_, last = export(site, run=run.id, kind=kind, first=1, last=2, width=320)
    assert last.get("files"), last
    assert "error" not in handlers.trace_file({"run": run.id, "variant": "baseline"})
    assert own.is_dir() and list(own.iterdir()) == []  # what was there for a moment has gone


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({"run": new_id()}, "no longer on the server"),
        ({"run": 7}, "no longer on the server"),
        ({"kind": "exe"}, "kind is 'exe'; allowed: pdf"),
        ({"view": {"layers": ["x"]}}, "cannot be exported"),
        ({"view": {"layers": [9]}}, "trace holds layers 0-5"),
        ({"view": {"scale": "loud"}}, "scale is 'loud'"),
        ({"view": None}, "cannot be exported"),
        ({"kind": "gif", "window": 10**9}, "cannot be exported"),
        ({"kind": "gif", "window": 0}, "window is 0; allowed: 1 to 27"),
        ({"kind": "gif", "width": 5000}, "width is 5000; allowed"),
        ({"first": 0, "last": 10**6}, "last is 1000000"),
        ({"side": "b"}, "side is 'b'; allowed: baseline, var"),
    ],
)
def test_mistakes_are_sentences(site: Site, run: Run, question: dict[str, Any], words: str) -> None:
    (only,) = [
        v for v in export(site, **{"run": run.id, "kind": "pdf", **question}) if "error" in v
    ]
    assert words in only["error"] and "files" not in only


def test_a_full_disk_is_said_without_its_folders(
    site: Site, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    (only,) = [v for v in export(site, run=run.id, kind="html") if "error" in v]
    assert only["error"] == "The file cannot be written: No space left on device."


def test_each_side_has_its_own_tokens_where_the_page_gave_it_a_choice(
    run: Run, tmp_path: Path
) -> None:
    ask = {"kind": "png", "view": VIEW, "first": 3, "last": 3, "own": [22, 23]}
    wanted = read_export_request(ask)
    assert (wanted.first, wanted.last, wanted.second_tokens) == (3, 3, (22, 23))
    seen: list[Drawing] = []
    make_files(run, wanted, tmp_path, drawn_by=lambda sides, drawing, *rest: seen.append(drawing))
    again = Drawing.of(json.loads(json.dumps(seen[0].values())))  # as sent to another process
    assert again == seen[0] and again.second_tokens == (22, 23)
    for broken in ([1], [1, 2, 3], ["1", 2], 7, [True, 2]):
        with pytest.raises(ValueError, match="cannot be exported"):
            read_export_request({**ask, "own": broken})


def test_what_an_older_page_asks_for_is_understood() -> None:
    for given, method, scale in (
        ({"scale": "clip"}, "attention", "percentile"),
        ({"scale": "relative"}, "relative", "percentile"),
        ({"scale": "log", "method": "relative"}, "relative", "log"),
    ):
        view = read_export_request({"kind": "pdf", "view": given}).view
        assert (view.method, view.scale) == (method, scale)
    with pytest.raises(ValueError, match="method is 'magic'; allowed: attention, relative"):
        read_export_request({"kind": "pdf", "view": {"method": "magic"}})


def test_sides_and_difference() -> None:
    run = Run(make_pair())
    both = read_export_request({"kind": "pdf", "view": {**VIEW, "difference": True}})
    sides, view = sides_of_view(run, both)
    assert list(sides) == ["Baseline", "VAR"] and view.difference and view.layers == (1, 2)
    one, view = sides_of_view(run, dataclasses.replace(both, side="var"))
    assert list(one) == ["VAR"] and not view.difference
    alone, _ = sides_of_view(Run({"baseline": make_trace()}), both)
    assert list(alone) == [""]
    other = Run({"baseline": make_trace(image=scene().rotate(180))})
    pair = pair_of((run, "baseline"), (other, "baseline"), ("One", "Two"))
    sides, view = sides_of_view(pair, both)
    assert list(sides) == ["A · One · baseline", "B · Two"] and not view.difference


def test_an_effect_that_was_none_is_not_drawn() -> None:
    pair = make_pair()
    quiet = dataclasses.replace(pair["var"], var={"changed": False})
    assert idle(Run({**pair, "var": quiet})) and not idle(Run(pair))


@pytest.mark.browser
@pytest.mark.parametrize(
    ("method", "scale"),
    [
        *(("attention", scale) for scale in ("percentile", "linear", "log", "rank")),
        *(("relative", scale) for scale in ("percentile", "log")),
        *(("without_sinks", scale) for scale in ("percentile", "rank")),
    ],
)
def test_a_figure_has_the_scale_of_the_screen(
    method: str, scale: str, example_page: Any, site: Site
) -> None:
    """Ticks, words and shares under the figures, and the numbers of the difference."""
    run = site.app.handlers.store.get(example_page.evaluate(f"{INSPECTOR}.run.id"))
    assert run is not None
    view = View(method=method, scale=scale, layers=(1, 2, 3), difference=True)  # type: ignore[arg-type]
    sides, view = sides_of_view(run, ExportRequest("pdf", view))
    painter = Painter([make_side(n, t) for n, t in sides.items()], view, 60, idle=idle(run))
    chosen = {"t0": 8, "t1": 9, "l0": 1, "l1": 3, "scale": scale, "difference": True}
    chosen["method"] = method
    example_page.evaluate(f"changes => {INSPECTOR}.set(changes)", chosen)
    for name, panel in zip(("baseline", "var", "difference"), painter.panels([8, 9]), strict=True):
        figure = example_page.locator(f"[data-testid=panel-{name}]")
        assert figure.locator(".ticks span").all_inner_texts() == [text for _, text in panel.ticks]
        assert figure.locator(".stat").inner_text() == panel.numbers
        if name != "difference":
            assert figure.locator(".words").inner_text() == panel.words


@pytest.mark.browser
def test_stop_ends_the_file_in_the_making(
    open_page: Any, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DrawingProcess, "__call__", endless)
    page = open_page(site.url)
    page.wait_for_selector("[data-ready]", state="attached")
    page.click("[data-testid=save-button]")
    assert page.is_hidden("[data-testid=stop-save]")
    page.click("[data-testid=save-gif]")
    status = page.locator(".save .status-text")
    page.wait_for_function(
        "document.querySelector('.save .status-text').textContent.startsWith('Frame')"
    )
    page.click("[data-testid=stop-save]")
    page.wait_for_function(
        "document.querySelector('.save .status-text').textContent.startsWith('Not')"
    )
    assert status.inner_text().startswith("Not saved: Stopped after ")
    assert page.is_hidden("[data-testid=stop-save]")
    assert site.app.handlers.runner.under_way == ()
