"""The page in Chromium: one server and one browser per session, one context per test.

The server's engine is scripted (`tests/web/scripted.py`), so tests decide when a token comes. A
test fails on any console error, and on any request to another machine.
"""

from __future__ import annotations

import dataclasses
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio.utils import get_upload_folder
from PIL import Image

from sinkscope.attention_extractor import generate
from sinkscope.config import AppSettings, GenerationSettings, ImageLimits, ModelSettings, Settings
from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.models.source import DEMO
from sinkscope.web.explore.handlers import Handlers
from sinkscope.web.launch import launch
from sinkscope.web.page import App, build_app
from sinkscope.web.runs.example import read_examples
from sinkscope.web.runs.loaded_model import LoadedModel
from sinkscope.web.runs.store import Run, RunStore
from tests.web.scripted import ScriptedEngine, fake_handle
from tests.web.synthetic import make_pair

INSPECTOR = "document.querySelector('[data-testid=inspector]').parentElement.inspector"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclasses.dataclass
class Site:
    """A running app and the engine that drives it."""

    app: App
    url: str
    engine: ScriptedEngine


def start_site(folder: Path, engine: ScriptedEngine, **options: Any) -> Site:
    """Start an app on a free port. `page` contains further app settings by name."""
    page = AppSettings(
        port=free_port(),
        cache_dir=str(folder),
        store_megabytes=200,
        queue_size=2,
        auth=options.pop("auth", None),
        **options.pop("page", {}),
    )
    scripted = {"engine": engine.engine(), "estimate": engine.estimate, "examples": []}
    start = Settings(
        model=options.pop("model", ModelSettings()),
        images=options.pop("images", ImageLimits()),
        app=page,
    )
    token = options.pop("token", None)  # by default the page requires no token
    app = build_app(start, **{**scripted, **options})
    return Site(app, launch(app, wait=False, token=token), engine)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The app with a scripted engine and a made-up comparison as its example."""
    example = Run(make_pair(), kind="example")
    made = start_site(
        tmp_path_factory.mktemp("cache"), ScriptedEngine(), handle=fake_handle(), example=example
    )
    yield made
    made.engine.release()
    made.app.blocks.close(verbose=False)


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The app with example pictures."""
    example = Run(make_pair(), kind="example")
    options = {"handle": fake_handle(), "example": example, "examples": read_examples()}
    made = start_site(tmp_path_factory.mktemp("cache"), ScriptedEngine(), **options)
    yield made
    made.engine.release()
    made.app.blocks.close(verbose=False)


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """An app of its own for hostile requests; it accepts files of up to 100 kB."""
    folder = tmp_path_factory.mktemp("cache")
    example = Run(make_pair(), kind="example")
    options = {"example": example, "images": ImageLimits(max_bytes=100_000)}
    made = start_site(folder, ScriptedEngine(), handle=fake_handle(), **options)
    yield made
    made.app.blocks.close(verbose=False)


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[App, str]]:
    """The app with the bundled model, and its address."""
    if not (DEMO / "config.json").is_file():
        pytest.skip("the bundled model is not there; make it with: sinkscope demo train")
    page = AppSettings(port=free_port(), cache_dir=str(tmp_path_factory.mktemp("cache")))
    app = build_app(Settings(app=page))
    yield app, launch(app, wait=False)
    app.blocks.close(verbose=False)


@pytest.fixture(scope="session")
def handle(tiny_folder: Path) -> ModelHandle:
    """The tiny random model, for tests of the page that compute something."""
    return load_model(str(tiny_folder), device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def run(handle: ModelHandle, photo: Image.Image) -> Run:
    """Its answer of 5 tokens about 5 x 6 patches; tests that need another run make their own."""
    inputs = handle.prepare([photo.resize((168, 140))], "What is it?")
    settings = GenerationSettings(max_new_tokens=5, reference=False)
    return Run({"baseline": generate(handle, inputs, settings)})


@pytest.fixture
def handlers(tmp_path: Path, handle: ModelHandle, run: Run) -> Handlers:
    """The handlers behind the page's events, with that model and that run, without a page."""
    loaded = LoadedModel()
    loaded.use(handle)
    settings = Settings(app=AppSettings(cache_dir=str(tmp_path)))
    made = Handlers(settings, loaded, RunStore(tmp_path, 10**8))
    made.store.put(run, keep_on_disk=False)
    return made


@pytest.fixture
def uploads(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """For handlers without a server: files in any temporary folder of the tests count as
    uploads."""
    folder = tmp_path_factory.getbasetemp()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    return folder


@pytest.fixture
def no_system_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files cannot be created in the system's temporary folder; the app's own folder still
    works."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", get_upload_folder())  # or Gradio asks the system again
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))


def new_page(
    browser: Any, problems: list[str], url: str, width: int, scheme: str, errors: bool, path: str
) -> Any:
    context = browser.new_context(
        viewport={"width": width, "height": 1000 if width > 600 else 844}, color_scheme=scheme
    )

    def guard(route: Any) -> None:
        address = route.request.url
        if address.startswith((url, "data:", "blob:")):
            route.continue_()
        else:
            problems.append(f"request to {address}")
            route.abort()

    def report(message: Any) -> None:
        if message.type == "error" and not errors:
            problems.append(f"console: {message.text}")

    context.route("**/*", guard)
    page = context.new_page()
    page.set_default_timeout(60_000)  # only reached by a page that hangs, even on a busy machine
    page.on("pageerror", lambda error: problems.append(f"page error: {error}"))
    page.on("console", report)
    page.streams = set()  # open streams of messages: see `settled`
    page.on("request", lambda one: page.streams.add(one) if "/queue/data" in one.url else None)
    page.on("requestfinished", lambda one: page.streams.discard(one))
    page.on("requestfailed", lambda one: page.streams.discard(one))
    page.goto(f"{url}{path}" if path else f"{url}?__theme={scheme}")
    return page


def settled(page: Any) -> None:
    """Wait until no event of a page of `open_page` is running: Gradio's client logs an error for a
    stream of messages that is cut off when the page is left."""
    until = time.monotonic() + 60
    while page.streams:
        assert time.monotonic() < until, "a stream of messages does not end"
        page.wait_for_timeout(20)


def reload(page: Any, url: str = "") -> None:
    """Reload a page, or open another address in it, when no event is running."""
    settled(page)
    page.goto(url) if url else page.reload()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """`open_page(url, width=1440, scheme="light", errors=False)` returns a page, checked at the
    end.

    With `errors=True` the test expects console errors (a refused upload logs one).
    """
    pages: list[Any] = []
    problems: list[str] = []

    def open_one(
        url: str, width: int = 1440, scheme: str = "light", errors: bool = False, path: str = ""
    ) -> Any:
        pages.append(new_page(browser, problems, url, width, scheme, errors, path))
        return pages[-1]

    yield open_one
    for page in pages:
        page.context.close()
    assert problems == []


@pytest.fixture(scope="module")
def _example_page(browser: Any, site: Site) -> Iterator[tuple[Any, list[str]]]:
    problems: list[str] = []
    page = new_page(browser, problems, site.url, 1440, "light", False, "")
    page.wait_for_selector("[data-testid=inspector][data-ready]", state="attached")
    page.evaluate(f"window.fresh = {{ ...{INSPECTOR}.view }}")
    yield page, problems
    page.context.close()


@pytest.fixture
def example_page(_example_page: tuple[Any, list[str]]) -> Iterator[Any]:
    """The page as it opens, with the example on screen; one page for a whole module."""
    page, problems = _example_page
    page.evaluate(f"{INSPECTOR}.set(window.fresh)")
    yield page
    page.mouse.move(0, 0)
    assert problems == []


def open_tab(page: Any, name: str, component: str) -> None:
    """Open a tab of the page by its name once the model is loaded."""
    page.wait_for_selector("[data-testid=model-status][data-phase=ready]", timeout=120_000)
    page.click(f"button[role=tab]:has-text('{name}')")
    page.wait_for_selector(component)
