"""Scripts of later tabs: not in the page, sent when their tab opens, and errors are shown."""

from __future__ import annotations

import gzip
import re
import urllib.error
import urllib.request
from typing import Any

import pytest

from sinkscope.web.components.assets import read_static
from sinkscope.web.components.parts import LATE, script_of
from tests.web.conftest import Site


def fetch(address: str) -> tuple[bytes, Any]:
    asked = urllib.request.Request(address, headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(asked) as answer:
        return answer.read(), answer.headers


def test_a_later_tab_has_a_line_that_fetches_its_script() -> None:
    for name in LATE:
        line = script_of(name)
        assert len(line) < 900 and re.search(rf"part/{name}\.js\?[0-9a-f]{{12}}", line)
        assert "@" not in line
        assert 'class="alert"' in read_static(f"{name}.html")  # where a failure is shown
    assert script_of("inspector") == read_static("inspector")


def test_the_page_carries_none_of_them_and_is_light(site: Site) -> None:
    """Data sent when the page opens: all our files are in it, and Gradio's description."""
    config, headers = fetch(f"{site.url}config")
    assert headers["Content-Encoding"] == "gzip"
    text = gzip.decompress(config).decode()
    assert "element.inspector" in text  # the first tab's script is there
    for name in ("element.sinks", "element.experiment", "element.evaluation"):
        assert name not in text
    for name in LATE:
        address = re.search(rf"part/{name}\.js\?[0-9a-f]{{12}}", text)
        assert address
        sent, headers = fetch(site.url + address[0])
        assert headers["Content-Type"].startswith("text/javascript")
        assert "immutable" in headers["Cache-Control"] and headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(sent).decode() == read_static(name)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        fetch(f"{site.url}part/../config.py.js")


@pytest.mark.browser
def test_it_comes_when_its_tab_is_opened(site: Site, open_page: Any) -> None:
    page = open_page(site.url)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_selector("[data-testid=inspector][data-ready]")
    assert not [one for one in asked if "/part/" in one]
    page.get_by_role("tab", name="Sinks", exact=True).click()
    page.wait_for_function("document.querySelector('[data-testid=finder]').parentElement.sinks")
    assert [one.split("?")[0] for one in asked if "/part/" in one] == [f"{site.url}part/sinks.js"]


@pytest.mark.browser
def test_a_script_that_does_not_come_is_said(site: Site, open_page: Any) -> None:
    page = open_page(site.url, errors=True)
    page.wait_for_selector("[data-testid=inspector][data-ready]")
    page.route("**/part/**", lambda route: route.fulfill(status=503))
    page.get_by_role("tab", name="Evaluate", exact=True).click()
    page.wait_for_selector("#evaluate .alert:has-text('could not be loaded')")
