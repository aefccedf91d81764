"""The documents are right: links lead somewhere, commands and settings exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sinkscope.__main__ import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for link in links:
        if not re.match(r"[a-z]+:", link):
            target = page.parent / link.partition("#")[0]
            assert target.exists(), f"{page.name} links to {link}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert pages == set(re.findall(r"\]\((\w+\.md)\)", index))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_text_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    verbs = {command.name for command in app.registered_commands}
    groups = {group.name for group in app.registered_groups}
    called = set(re.findall(r"(?:^|`|\$ |bin/)sinkscope ([a-z]+)", text, re.M))
    assert called <= verbs | groups, called - verbs - groups
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert set(re.findall(r"(?<![\w-])make ([a-z]+)(?=[`\s]*(?:#|`|$))", text, re.M)) <= set(
        targets
    )


def test_the_first_lines_of_the_readme_are_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = re.search(r"```sh\n(.*?)```", text, re.S)
    assert first is not None
    assert re.findall(r"^make (\w+)", first[1], re.M) == ["run", "test"]
