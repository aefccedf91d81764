"""The access token in a browser: the form, the printed link, and the address afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sinkscope.web.runs.store import Run
from tests.web.conftest import Site, start_site
from tests.web.scripted import ScriptedEngine, fake_handle
from tests.web.synthetic import make_pair

pytestmark = pytest.mark.browser

TOKEN = "a-token-of-the-tests_0123456789"
READY = "[data-testid=inspector][data-ready]"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("cache")
    example = Run(make_pair(), kind="example")
    options = {"handle": fake_handle(), "example": example, "token": TOKEN}
    site = start_site(folder, ScriptedEngine(), **options)
    yield site
    site.app.blocks.close(verbose=False)


@pytest.mark.parametrize("way", ["form", "link"])
def test_the_token_opens_the_page_and_leaves_the_address(
    locked: Site, browser: Any, way: str
) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(60_000)
    if way == "link":
        page.goto(f"{locked.url}?token={TOKEN}")
    else:
        page.goto(locked.url)
        page.fill("#token", "not-the-token")
        page.click("button")
        page.wait_for_selector("[role=alert]")
        page.fill("#token", TOKEN)
        page.click("button")
    page.wait_for_selector(READY, state="attached")
    assert TOKEN not in page.url
    (cookie,) = [one for one in context.cookies() if one["name"].startswith("sinkscope-access-")]
    assert cookie["httpOnly"] and cookie["sameSite"] == "Strict" and TOKEN not in cookie["value"]
    page.reload()
    page.wait_for_selector(READY, state="attached")
    context.close()
