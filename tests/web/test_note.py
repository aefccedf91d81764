"""A note on a view: in the link and in the saved page, as text, bounded, deleted with the run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

import pytest

from sinkscope.web.explore.handlers import LONGEST_PLACE
from sinkscope.web.runs.standalone import build_standalone
from sinkscope.web.runs.store import Run
from tests.web.conftest import Site
from tests.web.synthetic import make_pair
from tests.web.test_browser_keep import saved
from tests.web.test_browser_view import ready

EVIL = '<img src=x onerror="window.__hit=1"></script> \u202e& look'
NOTE = "[data-testid=note]"


def place_in(page: str) -> Any:
    block = re.search(r'id="value"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert block
    return json.loads(block[1])["place"]


def test_a_saved_page_opens_with_the_view_and_note_it_was_saved_with() -> None:
    run = Run(make_pair())
    place = urlencode({"t": "3-3", "note": EVIL})
    assert place_in(build_standalone(run, place=place).decode()) == place
    hostile = build_standalone(run, place="</script><script>alert(1)</script>").decode()
    assert "<script>alert" not in hostile
    assert place_in(build_standalone(run).decode()) is None
    assert place_in(build_standalone(run, token=5, place=place).decode()) == "t=5-5"


def test_the_server_takes_no_endless_view(site: Site) -> None:
    run = Run(make_pair())
    site.app.handlers.store.put(run, keep_on_disk=False)
    for place, kept in (("t=2-2", "t=2-2"), ("x" * (LONGEST_PLACE + 1), None), (["t"], None)):
        answer = site.app.handlers.page_file({"run": run.id, "place": place})
        path = answer["url"].split("file=", 1)[1]
        assert place_in(Path(path).read_text(encoding="utf-8")) == kept


@pytest.mark.browser
def test_a_note_goes_with_the_link_and_the_saved_page(
    site: Site, open_page: Callable[..., Any], browser: Any, tmp_path: Path
) -> None:
    page = open_page(site.url)
    ready(page)
    assert page.locator(NOTE).is_hidden()
    page.click("[data-testid=token-baseline-5]")
    page.click("[data-testid=save-button]")
    page.fill("[data-testid=note-text]", f"{EVIL}{'d' * 600}")
    page.keyboard.press("d")  # a letter typed in a box is not a shortcut
    shown = page.inner_text(NOTE)
    assert shown.startswith("Note: <img src=x onerror=") and len(shown) <= 506
    assert page.evaluate("window.__hit") is None and "\u202e" not in shown
    file = saved(page, "html", tmp_path)
    link = page.url
    assert parse_qs(link.partition("#")[2])["note"][0] == shown.removeprefix("Note: ")

    page.goto("about:blank")
    page.goto(link)  # as another user with the link
    page.wait_for_selector(NOTE)
    assert page.inner_text(NOTE) == shown

    context = browser.new_context()
    alone = context.new_page()
    alone.goto(file.as_uri())
    alone.wait_for_selector(NOTE)
    assert alone.inner_text(NOTE) == shown and alone.evaluate("window.__hit") is None
    chosen = alone.locator("[data-testid=token-baseline-5]")
    assert chosen.get_attribute("aria-selected") == "true"
    context.close()
