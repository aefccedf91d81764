"""Paths, headings and names mentioned in the documents exist in the current tree."""

from __future__ import annotations

import fnmatch
import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_import_rules import tracked

ROOT = Path(__file__).resolve().parent.parent
#: CHANGELOG and LOG describe the past, so they may name removed things.
PAGES = sorted(
    page
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    if page.name not in ("CHANGELOG.md", "LOG.md")
)
PARTS = {link.name.removesuffix(".py") for link in (ROOT / "src" / "sinkscope").iterdir()}
#: Files that only exist elsewhere: in other projects, in a checkpoint's folder, in a user's clone.
ELSEWHERE = {"other_tools.md", "models.md"}
WRITTEN = {"cache/", "outputs/"}
SKIPPED = {".git", ".venv", ".ci", "cache", "outputs", "node_modules"}


def _walk(folder: Path) -> Iterator[str]:
    """Paths below the root; folders end with a slash. Links are not followed."""
    for path in folder.iterdir():
        if path.name not in SKIPPED:
            inside = path.is_dir() and not path.is_symlink()
            yield path.relative_to(ROOT).as_posix() + ("/" if path.is_dir() else "")
            yield from _walk(path) if inside else ()


#: Each path, and each of its endings: `capture/engine/step.py` may be named as `engine/step.py`.
ENDINGS = {
    "/".join(parts[start:])
    for path in _walk(ROOT)
    for parts in [path.split("/")]
    for start in range(len(parts) - path.endswith("/"))
}


def _quoted(page: Path) -> list[str]:
    """The text in backticks outside code blocks."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.findall(r"`([^`\n]+)`", text)


def _found(name: str) -> bool:
    """Whether `models.images.open_image` can be imported, or is a field of a class."""
    value: object = importlib.import_module("sinkscope")
    path = "sinkscope"
    for part in name.split("."):
        path = f"{path}.{part}"
        if hasattr(value, part):
            value = getattr(value, part)
        elif hasattr(value, "__path__") and importlib.util.find_spec(path) is not None:
            value = importlib.import_module(path)
        else:  # a field without a default has an annotation, and no value on the class
            return inspect.isclass(value) and part in inspect.get_annotations(value)
    return True


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in ELSEWHERE], ids=lambda page: page.name
)
def test_files_in_the_text_exist(page: Path) -> None:
    named = {
        quoted
        for quoted in _quoted(page)
        if re.fullmatch(r"\w[\w./*-]*(\.(py|js|css)|/)", quoted) and "NAME" not in quoted
    }
    missing = {name for name in named - ENDINGS - WRITTEN if not fnmatch.filter(ENDINGS, name)}
    assert not missing, f"{page.name} names {missing}, which do not exist"


#: Variables of the documents' examples, and what they hold.
VARIABLES = {
    "trace": "capture.trace.GenerationTrace",
    "pair": "attention_extractor.Comparison",
    "handle": "models.loading.ModelHandle",
}


def _python_names(quoted: list[str]) -> list[str]:
    """The names of our modules and their content among quoted texts."""
    return [
        match[1]
        for text in quoted
        if (match := re.match(r"(?:sinkscope\.)?((?:[A-Za-z_]\w*\.)+[A-Za-z_]\w*)(?:\(|$)", text))
        and match[1].partition(".")[0] in PARTS
        and match[1].rpartition(".")[2] not in ("py", "js", "json", "jsonl", "toml", "md", "html")
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_names_in_the_text_exist(page: Path) -> None:
    missing = [name for name in _python_names(_quoted(page)) if not _found(name)]
    assert not missing, f"{page.name} names {missing}, which cannot be imported"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_attributes_in_the_text_exist(page: Path) -> None:
    """Such as `trace.finish_reason`."""
    missing = []
    for quoted in _quoted(page):
        variable, _, attribute = re.split(r"[\s(\[=]", quoted, maxsplit=1)[0].partition(".")
        first = attribute.partition(".")[0]
        if variable in VARIABLES and first and not _found(f"{VARIABLES[variable]}.{first}"):
            missing.append(quoted)
    assert not missing, f"{page.name} names {missing}, which do not exist"


def test_names_in_docstrings_and_comments_exist() -> None:
    missing = []
    for path in tracked("*.py", "*.js", "*.css"):
        quoted = re.findall(r"`([^`\n]+)`", (ROOT / path).read_text(encoding="utf-8"))
        missing += [f"{path}: {name}" for name in _python_names(quoted) if not _found(name)]
    assert not missing, missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_imports_in_the_examples_work(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = [
        f"{module} {name}"
        for module, names in re.findall(r"from sinkscope([\w.]*) import ([\w, ]+)", text)
        for name in (one.strip().partition(" as ")[0] for one in names.split(","))
        if not _found(f"{module}.{name}".strip("."))
    ]
    assert not missing, f"{page.name} imports {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_headings(page: Path) -> None:
    for target, anchor in re.findall(
        r"\]\(([^)\s:#]*)#([^)\s]+)\)", page.read_text(encoding="utf-8")
    ):
        goal = page.parent / target if target else page
        if goal.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", goal.read_text(encoding="utf-8"), re.M)
            anchors = {
                re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings
            }
            assert anchor in anchors, f"{page.name} links to {target}#{anchor}"
