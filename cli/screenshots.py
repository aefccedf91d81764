"""`screenshots`: pictures of the page for the documents, taken from the running app in Chromium.

Needs playwright (requirements-dev.txt) and a Chromium. Their content is computed live: the example
run is the bundled one, and the question about the photo is asked.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from sinkscope.cli.common import clear_errors
from sinkscope.utils import PROJECT

FOLDER = PROJECT / "docs" / "images"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync")
READY = "document.querySelector('[data-testid=inspector]')?.dataset.ready"


def screenshots(
    output: Annotated[Path, typer.Option(help="Folder of the pictures.")] = FOLDER,
    model: Annotated[str, typer.Option(help="demo, a hub id or a folder.")] = "demo",
    photo: Annotated[
        Path | None, typer.Option(help="The photo of first-light.png; default: an example.")
    ] = None,
    prompt: Annotated[str, typer.Option(help="The question.")] = "Describe the image.",
    word: Annotated[
        str | None, typer.Option(help="Word of the answer to click; default: the third.")
    ] = None,
) -> None:
    """Take the pictures in docs/images: first view in light, dark and narrow, and a question."""
    with clear_errors():
        chromium = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
        if chromium is None:
            raise ValueError(f"There is no Chromium on this machine ({', '.join(CHROMIUM)}).")
        output.mkdir(parents=True, exist_ok=True)
        from playwright.sync_api import sync_playwright

        from sinkscope.config import AppSettings, Settings
        from sinkscope.models.loading import load_model
        from sinkscope.web.launch import launch
        from sinkscope.web.page import build_app
        from sinkscope.web.runs.example import read_examples

        handle = load_model(model)
        with tempfile.TemporaryDirectory() as cache, socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            probe.close()
            app = build_app(Settings(app=AppSettings(port=port, cache_dir=cache)), handle)
            address = launch(app, wait=False)
            try:
                with sync_playwright() as playwright:
                    browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
                    for name, width, scheme in (
                        ("light", 1440, "light"),
                        ("dark", 1440, "dark"),
                        ("narrow", 390, "light"),
                    ):
                        page = _open(browser, address, width, scheme)
                        # The first window; of a phone's page down to both maps.
                        high = 900 if width > 600 else 2700
                        _take(page, output / f"first-view-{name}.png", width, high)
                    page = _open(browser, address, 1440, "light")
                    image = photo or read_examples()[0].image
                    _ask(page, image, prompt, word)
                    _take(page, output / "first-light.png", 1440, 1280)
                    browser.close()
            finally:
                app.blocks.close(verbose=False)


def _open(browser: Any, address: str, width: int, scheme: str) -> Any:
    """The page with its example run drawn."""
    context = browser.new_context(
        viewport={"width": width, "height": 900 if width > 600 else 844}, color_scheme=scheme
    )
    page = context.new_page()
    page.goto(address)
    page.wait_for_function(READY)
    return page


def _ask(page: Any, image: Path, prompt: str, word: str | None) -> None:
    """Upload, ask, wait for the answer, click a word of it."""
    remove = page.locator("#image button[aria-label='Remove Image']")
    if remove.count():
        remove.first.click()
    page.set_input_files("#image input[type=file]", str(image))
    page.wait_for_selector("#image img")
    page.fill("#prompt textarea", prompt)
    before = page.evaluate(READY)
    page.click("#generate")
    page.wait_for_function(f"before => {READY} && {READY} !== before", arg=before)
    tokens = page.locator("[data-testid=strip-baseline] .token")
    if word is not None:
        tokens = tokens.filter(has_text=word)
    if tokens.count() == 0:
        raise ValueError(f"word is {word!r}, which the answer does not hold.")
    tokens.nth(0 if word is not None else min(2, tokens.count() - 1)).click()


def _take(page: Any, path: Path, width: int, height: int) -> None:
    """The top of the page, in full colour, as a small PNG."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(300)  # until animations have ended
    clip = {"x": 0, "y": 0, "width": width, "height": height}
    page.screenshot(path=str(path), full_page=True, clip=clip, animations="disabled")
    from PIL import Image

    with Image.open(path) as picture:
        picture.convert("RGB").save(path, optimize=True)
    typer.echo(f"Wrote {path}", err=True)
