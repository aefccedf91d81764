"""The documents that the page links to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from sinkscope.web.components.assets import read_static
from sinkscope.web.documents import DOCS, Documents, as_page


@pytest.fixture
def client() -> TestClient:
    return TestClient(Documents(Starlette()))  # type: ignore[arg-type]


def test_every_document_is_a_page_whose_links_lead_on(client: TestClient) -> None:
    pages = {path.name: client.get(f"/read/{path.name}").text for path in DOCS.glob("*.md")}
    ids = {name: set(re.findall(r'id="([^"]*)"', page)) for name, page in pages.items()}
    assert "relative-maps" in ids["method.md"]
    for name, page in pages.items():
        for link in re.findall(r'<a href="([^"]*)"', page):
            if re.match(r"[a-z]+:|\.\./$", link):
                continue
            target, _, place = link.partition("#")
            target = target or name
            if target not in pages:
                assert client.get(f"/read/{target}").status_code == 200, f"{name} links to {link}"
                continue
            assert not place or place in ids[target], f"{name} links to {link}"


def test_a_report_leads_back_to_the_documents(client: TestClient) -> None:
    page = client.get("/read/reports/scenes/report.md")
    assert page.status_code == 200 and "<table>" in page.text
    for link in re.findall(r"<nav>.*?</nav>", page.text)[0].split('href="')[1:]:
        there = (page.url.join(link.partition('"')[0])).path
        assert there in ("/", "/read/index.md"), there
    assert client.get("/read/reports/scenes/changed.csv").status_code == 404


def test_the_inspectors_links_lead_to_them(client: TestClient) -> None:
    links = re.findall(r'href="([^"]*)"', read_static("inspector.html"))
    assert len(links) >= 5
    for link in links:
        path, _, place = link.partition("#")
        page = client.get(f"/{path}")
        assert page.status_code == 200, link
        assert not place or f'id="{place}"' in page.text, link


@pytest.mark.parametrize(
    "name",
    ["../app.py", "..%2fapp.py", "%2e%2e/config.py", "images", "method", "/etc/passwd", "x.md"],
)
def test_nothing_else_is_served(client: TestClient, name: str) -> None:
    answer = client.get(f"/read/{name}")
    assert answer.status_code == 404
    assert "import" not in answer.text
    assert client.post("/read/method.md").status_code == 404


def test_html_in_a_document_stays_text(tmp_path: Path) -> None:
    page = as_page("# <script>x</script>\n\n<img src=x onerror=y> [a](javascript:alert(1))")
    assert "<script>x" not in page
    assert "<img" not in page
    assert 'href="javascript' not in page
