"""Values of the generator behind Run in the Sinks tab, on tiny models with planted sinks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from PIL import Image

import sinkscope.sinks.finding.find
from sinkscope.attention_extractor import RunOutOfMemoryError
from sinkscope.config import AppSettings, ImageLimits, Settings
from sinkscope.jobs.job import Stopped
from sinkscope.jobs.runner import Runner
from sinkscope.models.loading import ModelHandle
from sinkscope.models.profiles import read_profile
from sinkscope.sinks.finding.stats import SampleStats
from sinkscope.web.runs.inspector import html_component
from sinkscope.web.runs.job_values import UNFORESEEN
from sinkscope.web.runs.loaded_model import LoadedModel
from sinkscope.web.runs.request import Request
from sinkscope.web.runs.results import LONGEST_SECONDS, MOST_RESULTS
from sinkscope.web.sinks.request import IMAGES, Picture, SinksRequest, draw_samples
from sinkscope.web.sinks.run import GONE, SinksFunctions, SinksHandlers
from sinkscope.web.sinks.store import MOST_FOLDERS, SinksResult, SinksStore
from tests.sinks.planted import Plant, painted_samples, planted
from tests.web.image_openers import opener
from tests.web.test_payload import unpack

pytestmark = pytest.mark.tiny

DIMS = (7, 30)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    plant = Plant(DIMS, seed=2, decoys=(40,), first=(20,), layers=5)
    return planted(tmp_path_factory.mktemp("planted"), plant)


@pytest.fixture(scope="module")
def upload(tmp_path_factory: pytest.TempPathFactory) -> tuple[Picture, ...]:
    folder = tmp_path_factory.mktemp("upload")
    made = []
    for sample in painted_samples(12):
        path = folder / f"{sample.id}.png"
        sample.open_images()[0].save(path)
        made.append(Picture(path.name, path))
    return tuple(made)


Make = Callable[..., SinksHandlers]


@pytest.fixture
def make(tmp_path: Path, uploads: Path, model: ModelHandle) -> Make:
    def build(engine: SinksFunctions | None = None, handle: Any = model) -> SinksHandlers:
        loaded = LoadedModel()
        if handle is not None:
            loaded.use(handle)
        limits = ImageLimits(max_megapixels=1.0)
        settings = Settings(images=limits, app=AppSettings(cache_dir=str(tmp_path), queue_size=2))
        made = SinksHandlers(settings, loaded, Runner(2), engine)
        with gr.Blocks():
            made.component = html_component("sinks", None)
        return made

    return build


def request_for(upload: tuple[Picture, ...], **changes: Any) -> SinksRequest:
    return SinksRequest(IMAGES, upload, **{"samples": 8, "held_out": 2, **changes})


def drain(handlers: SinksHandlers, request: SinksRequest, session: str = "s") -> list[Any]:
    """All values; the error that ends them is left out, because the last value contains it."""
    values = []
    try:
        values.extend(handlers.run(request, session))
    except gr.Error as error:
        assert values or error
        values.append({"phase": "error", "message": error.message})
    return values


def opened(value: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    return unpack(Path(value["data"]["url"].split("file=", 1)[1]).read_bytes())


@pytest.mark.usefixtures("no_system_temporary")
def test_from_upload_to_profile(make: Make, upload: tuple[Picture, ...], tmp_path: Path) -> None:
    kept: dict[str, SampleStats] = {}

    def watching(*args: Any, **hooks: Any) -> Any:
        found = sinkscope.sinks.finding.find.find(*args, **hooks)
        for path in hooks["work"].glob("**/*.st"):
            from safetensors import safe_open

            with safe_open(path, "pt") as file:
                one = SampleStats.open(path, file.metadata()["key"])
            kept[one.id] = one
        return found

    handlers = make(SinksFunctions(find=watching))
    values = drain(handlers, request_for(upload))
    assert [v["phase"] for v in values[:-1]] == ["running"] * (len(values) - 1)
    last = values[-1]
    assert last["phase"] == "ready", last
    header, arrays = opened(last)
    assert tuple(header["dims"]) == DIMS
    assert header["verdict"].startswith("Dimensions 7, 30 · tau ")
    rows = {row[0]: row for row in header["candidates"]["rows"]}
    assert rows["7"][1] == "kept" and rows["40"][1] == "no: always on"
    assert rows["20"][1] == "no: first token only"
    # The data sent equals the measurements, up to a step of its codes.
    assert len(header["samples"]) == 8 == len(kept)
    for place in header["samples"]:
        stats = kept[place["id"]]
        tokens = place["rows"] * place["columns"]
        got = arrays["phi"][:, place["start"] : place["start"] + tokens]
        expected = stats.phi(DIMS).numpy()
        step = header["phi_top"] / 65535
        np.testing.assert_allclose(got * step, expected, atol=step)
    # No image is in both, and the two that were held out are the ones validated.
    result = handlers.store.get(last["run"])
    assert result is not None and result.validation is not None
    used = set(result.findings.sample_ids)
    assert used.isdisjoint(sample.id for sample in result.validation.samples)
    assert len(result.validation.samples) == 2 and result.validation.held_out
    assert header["checked"]["word"] == "Validation: too few samples"
    # Done: nothing is left to resume.
    assert list((tmp_path / "page_sinks").iterdir()) == []
    assert not (tmp_path / "sinks").exists()  # of the command line

    file = handlers.profile_file({"run": last["run"], "tau": 4.5})
    assert file["name"].endswith(".toml") and "/" not in file["name"]
    profile = read_profile(Path(file["url"].split("file=", 1)[1]))
    assert (profile.dims, profile.tau) == (DIMS, 4.5)
    assert "set by hand" in profile.note
    untouched = read_profile(
        Path(handlers.profile_file({"run": last["run"]})["url"].split("file=", 1)[1])
    )
    assert untouched == result.findings.profile()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"samples": 0}, "samples is 0; allowed: a whole number from 1 to 200"),
        ({"samples": 1e9}, "samples is 1000000000"),
        ({"samples": float("nan")}, "samples is nan"),
        ({"samples": None}, "samples is None"),
        ({"held_out": -1}, "held_out is -1; allowed: a whole number from 0 to 200"),
        ({"held_out": 2.5}, "held_out is 2.5"),
        ({"prompt": " \n"}, "The question is empty"),
        ({"prompt": None}, "The question is empty"),
        ({"prompt": "x" * 20_001}, "has 20001 characters"),
        ({"top_percent": 0}, "top_percent is 0"),
        ({"top_percent": float("inf")}, "top_percent is inf"),
        ({"seed": -1}, "seed is -1"),
        ({"source": "/etc"}, "source is '/etc'; allowed: Example scenes, My images"),
        ({"pictures": ()}, "There is no image"),
        ({"pictures": (Picture("a", Path("a")),) * 301}, "301 files were given; allowed: at most"),
    ],
)
def test_hostile_requests_are_one_sentence(make: Make, changes: dict[str, Any], words: str) -> None:
    request = SinksRequest(**{"source": IMAGES, "pictures": (Picture("a", Path("a")),), **changes})
    handlers = make(SinksFunctions(find=None, validate=None))  # type: ignore[arg-type]
    values = []
    with pytest.raises(gr.Error) as error:
        values.extend(handlers.run(request, "s"))
    assert words in str(error.value.message)
    assert handlers.runner.under_way == ()


def test_bad_images_are_listed_and_skipped(
    make: Make, upload: tuple[Picture, ...], tmp_path: Path
) -> None:
    huge, torn = tmp_path / "huge.png", tmp_path / "torn.png"
    Image.new("L", (2000, 1000)).save(huge)  # beyond this start's one megapixel
    torn.write_bytes(upload[0].path.read_bytes()[:200])
    name = "../../<img src=x onerror=alert(1)>.png"
    bad = (Picture("huge.png", huge), Picture(name, torn), Picture("again.png", upload[3].path))
    values = drain(make(), request_for((*upload[:6], *bad), samples=8, held_out=0))
    header, _ = opened(values[-1])
    notes = "\n".join(header["notes"])
    assert "2.0 megapixels; at most 1 are allowed" in notes and "damaged or cut off" in notes
    assert "again.png is the same picture as 003.png" in notes or "003.png is the same" in notes
    assert "The upload has 6 usable samples; 8 were asked for" in notes
    assert len(header["samples"]) == 6
    assert header["checked"]["text"] == "No samples were to be held out for it."

    values = drain(make(), request_for(bad[:2]))
    assert values[-1]["phase"] == "error"
    assert values[-1]["message"].startswith("None of the 2 images can be used; ")


def test_what_is_drawn_depends_on_the_seed_alone(
    upload: tuple[Picture, ...], uploads: Path
) -> None:
    limits = ImageLimits()

    def ids(pictures: tuple[Picture, ...], **changes: Any) -> list[list[str]]:
        both = draw_samples(request_for(pictures, **changes), opener(), limits)
        return [[sample.id for sample in part.samples] for part in (both.find, both.validate)]

    first = ids(upload)
    assert ids(upload[::-1]) == first
    assert [len(part) for part in first] == [8, 2] and set(first[0]).isdisjoint(first[1])
    assert ids(upload, seed=1) != first
    # Fewer than requested: both keep their proportion, and finding gets at least one.
    assert [len(part) for part in ids(upload[:6], samples=20, held_out=10)] == [4, 2]
    assert [len(part) for part in ids(upload[:1], samples=1, held_out=200)] == [1, 0]
    twins = (Picture("a.png", upload[0].path), Picture("a.png", upload[1].path))
    assert sorted(ids(twins, samples=2, held_out=0)[0]) == ["a.png", "a.png (2)"]


def test_stopped_halfway_keeps_what_was_measured_and_goes_on(
    make: Make, upload: tuple[Picture, ...], tmp_path: Path
) -> None:
    measured: list[str] = []
    handlers = make()

    def counting(*args: Any, on_progress: Any = None, **hooks: Any) -> Any:
        def report(done: int, total: int, text: str) -> None:
            if text.startswith("Measured ") and text != "Measured before":
                measured.append(text)
                if len(measured) == 3:
                    handlers.stop("s")
            if on_progress:
                on_progress(done, total, text)

        return sinkscope.sinks.finding.find.find(*args, on_progress=report, **hooks)

    handlers.engine = SinksFunctions(find=counting)
    last = drain(handlers, request_for(upload))[-1]
    assert last["phase"] == "stopped" and last["message"] == "Stopped after 3 of 8 samples"
    header, _ = opened(last)
    assert len(header["samples"]) == 3 and tuple(header["dims"]) == DIMS
    assert header["checked"]["text"].endswith("press Run again to go on.")
    assert len(list((tmp_path / "page_sinks").glob("**/*.st"))) == 3

    first = list(measured)
    last = drain(handlers, request_for(upload))[-1]
    assert last["phase"] == "ready"
    again = measured[3:]
    assert len(again) == 5 and set(again).isdisjoint(first)
    # Another browser measures again.
    assert drain(handlers, request_for(upload, held_out=0), "other")[-1]["phase"] == "ready"
    assert len(measured) == 3 + 5 + 8


def test_stopped_before_anything_and_while_waiting(make: Make, upload: tuple[Picture, ...]) -> None:
    handlers = make()

    def at_once(*args: Any, **hooks: Any) -> Any:
        handlers.stop("s")
        return sinkscope.sinks.finding.find.find(*args, **hooks)

    handlers.engine = SinksFunctions(find=at_once)
    last = drain(handlers, request_for(upload))[-1]
    assert last == {
        "phase": "error",
        "message": "Stopped before a sample was measured; nothing was found yet.",
    }
    with handlers.runner.line.place():  # another user's answer is being generated
        run = handlers.run(request_for(upload), "s")
        assert next(run)["position"] == 1
        handlers.stop("s")
        assert next(run)["message"] == "Stopped while it was waiting; nothing was measured."
        assert list(run) == []
    assert handlers.runner.under_way == ()


def test_a_closed_tab_ends_the_run(make: Make, upload: tuple[Picture, ...]) -> None:
    begun, ended = threading.Event(), threading.Event()

    def endless(*args: Any, stop: threading.Event, **hooks: Any) -> Any:
        begun.set()
        assert stop.wait(30)
        ended.set()
        raise Stopped(0, 8)

    handlers = make(SinksFunctions(find=endless))
    run = handlers.run(request_for(upload), "s")
    next(run)
    assert begun.wait(30)
    run.close()
    assert ended.is_set() and handlers.runner.under_way == ()
    with handlers.runner.line.place() as before:
        assert before(0) == 0


def test_no_sinks_no_model_no_memory_and_a_fault(
    make: Make, upload: tuple[Picture, ...], tmp_path: Path
) -> None:
    null = planted(tmp_path / "null", Plant((), seed=6, decoys=(11,), layers=4))
    handlers = make(handle=null)
    last = drain(handlers, request_for(upload))[-1]
    header, arrays = opened(last)
    assert header["verdict"].startswith("No sinks found on 8 samples")
    assert "No sink dimension was found" in header["candidates"]["reason"]
    assert header["samples"] == [] and arrays == {}
    assert header["checked"]["text"] == "There is nothing to validate."
    assert "no profile to write" in handlers.profile_file({"run": last["run"]})["error"]

    last = drain(make(handle=None), request_for(upload))[-1]
    assert last["message"] == "No model is loaded. Choose one under Model and press Load."

    def full(*args: Any, **hooks: Any) -> Any:
        raise RunOutOfMemoryError("Memory is full.")

    def broken(*args: Any, **hooks: Any) -> Any:
        raise RuntimeError("secret path /home/someone/thing.py")

    assert (
        drain(make(SinksFunctions(find=full)), request_for(upload))[-1]["message"]
        == "Memory is full."
    )
    assert (
        drain(make(SinksFunctions(find=broken)), request_for(upload))[-1]["message"] == UNFORESEEN
    )


def test_validation_that_fails_leaves_the_findings(make: Make, upload: tuple[Picture, ...]) -> None:
    handlers = make()

    def refusing(*args: Any, **hooks: Any) -> Any:
        raise ValueError("None of the 2 samples can be used.")

    def full(*args: Any, **hooks: Any) -> Any:
        raise RunOutOfMemoryError("Memory is full.")

    def stopping(*args: Any, **hooks: Any) -> Any:
        raise Stopped(1, 2)

    handlers.engine = SinksFunctions(validate=refusing)
    last = drain(handlers, request_for(upload))[-1]
    assert last["phase"] == "ready"
    assert opened(last)[0]["checked"]["text"] == "None of the 2 samples can be used."
    handlers.engine = SinksFunctions(validate=full)
    last = drain(handlers, request_for(upload))[-1]
    assert opened(last)[0]["checked"]["text"] == "Memory is full."
    handlers.engine = SinksFunctions(validate=stopping)
    last = drain(handlers, request_for(upload))[-1]
    assert last["phase"] == "stopped"
    assert last["message"] == "Validating was stopped after 1 of 2 samples"
    assert tuple(opened(last)[0]["dims"]) == DIMS


@pytest.mark.parametrize(
    "ask", [None, [], "x", {}, {"run": None}, {"run": 5}, {"run": "../../etc"}, {"run": ["x"]}]
)
def test_questions_about_nothing(make: Make, ask: Any) -> None:
    handlers = make()
    assert handlers.open_sinks(ask) == {"error": GONE}
    assert handlers.profile_file(ask) == {"error": GONE}


def test_a_tau_that_cannot_be_one_is_refused(make: Make, upload: tuple[Picture, ...]) -> None:
    handlers = make()
    run = drain(handlers, request_for(upload, held_out=0))[-1]["run"]
    for tau in ("20", True, float("nan"), float("inf"), -1, 0, 1e9, [3]):
        assert "tau is" in handlers.profile_file({"run": run, "tau": tau})["error"]


def test_results_are_few_and_not_for_long(tmp_path: Path) -> None:
    now = [1000.0]
    store = SinksStore(tmp_path / "work", clock=lambda: now[0])
    results = [SinksResult(None) for _ in range(MOST_RESULTS + 1)]  # type: ignore[arg-type]
    for result in results:
        store.put(result)
    assert store.get(results[0].id) is None and store.get(results[1].id) is results[1]
    now[0] += LONGEST_SECONDS + 1
    assert store.get(results[-1].id) is None

    import os

    for number in range(MOST_FOLDERS + 3):
        folder = tmp_path / "work" / f"{number:02}"
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder, (now[0] - number, now[0] - number))
    wanted = store.work("10")  # the oldest, but asked for
    left = sorted(path.name for path in (tmp_path / "work").iterdir())
    assert wanted.is_dir() and left == [f"{n:02}" for n in range(MOST_FOLDERS - 1)] + ["10"]
    now[0] += LONGEST_SECONDS + 100
    store.work("new")
    assert list((tmp_path / "work").iterdir()) == []


def test_a_browsers_own_dimensions_leave_the_model_alone(model: ModelHandle) -> None:
    before = model.profile
    own = Request("x", "y", compare=True, dims_of=model.info.id, values={"dims": "7, 30"})
    made = own.var(model)
    assert made is not None and made.dims == (7, 30)
    assert model.profile is before
    with pytest.raises(ValueError, match="were found on another, but"):
        Request("x", "y", compare=True, dims_of="another", values={"dims": "7"}).var(model)
    with pytest.raises(ValueError, match="dims is 'x'"):
        Request("x", "y", compare=True, values={"dims": "x"}).var(model)
    with pytest.raises(ValueError, match="find them in the Sinks tab"):
        Request("x", "y", compare=True).var(model)
