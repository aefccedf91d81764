"""The Sinks tab without a model: the data sent for made-up results, and the rules of its files."""

from __future__ import annotations

import gzip
from typing import Any

import pytest

from sinkscope.web.components.assets import STATIC, read_static
from sinkscope.web.explore.model_events import choosing_dims
from sinkscope.web.runs.loaded_model import LoadedModel
from sinkscope.web.sinks.payload import build_sinks_payload, profile_name
from tests.sinks.made_up import findings, validation
from tests.web.scripted import fake_handle
from tests.web.test_payload import unpack


def test_weight_and_templates_of_the_whole_page() -> None:
    names = [p.name for p in STATIC.iterdir() if not p.name.startswith("standalone")]
    # Four tabs and fifteen methods; a third of it is sent (benchmarks.page).
    text = "".join(read_static(name) for name in names).encode()
    assert len(text) < 260_000 and len(gzip.compress(text)) < 78_000
    for part in (read_static("sinks.html"), read_static("sinks.css")):
        assert not any(sign in part for sign in ("${", "{{", "`", "\\", "<script"))
    assert "innerHTML" not in read_static("sinks") and "outerHTML" not in read_static("sinks")


def test_scripts_lose_comments_and_indentation_alone() -> None:
    for folder in (path for path in STATIC.iterdir() if path.is_dir()):
        for file in folder.iterdir():
            # A text over several lines could hold what looks like a comment or indentation.
            for line in file.read_text(encoding="utf-8").splitlines():
                if not line.strip().startswith("//"):
                    assert line.split("//")[0].count("`") % 2 == 0 or line.count("`") % 2 == 0, line
                code, comment, _ = line.partition(" // ")
                if comment and not line.strip().startswith("//"):
                    assert all(code.count(quote) % 2 == 0 for quote in "\"'`"), line
        lines = read_static(folder.name).splitlines()
        assert lines and not any(line.startswith(("//", " ", "\t")) or not line for line in lines)


def test_sentences_and_cells_of_a_made_up_result() -> None:
    header, arrays = unpack(build_sinks_payload(findings(), validation(), "", [], {}))
    assert header["verdict"].startswith("Dimensions 458, 2570 · tau 20.0 · confidence ")
    table = header["candidates"]
    assert len(table["rows"]) == len(table["why"]) == len(table["kept"])
    assert {len(row) for row in table["rows"]} == {len(table["columns"])}
    kept = [row[0] for row, is_kept in zip(table["rows"], table["kept"], strict=True) if is_kept]
    assert kept == ["458", "2570"]
    layers = len(header["layers"])
    assert {len(row) for row in header["contrast"]["values"]} == {layers}
    assert header["checked"]["word"].startswith("Validation: ")
    assert {len(row) for row in header["checked"]["rows"]} == {len(header["checked"]["columns"])}
    assert arrays == {} and header["samples"] == []


def test_none_found_is_said() -> None:
    why = "There is nothing to validate."
    header, _ = unpack(build_sinks_payload(findings(found=False), None, why, [], {}))
    assert header["verdict"].startswith("No sinks found on ")
    assert header["candidates"]["reason"] == findings(found=False).reason
    assert header["checked"] == {
        "word": "Not validated",
        "text": why,
        "more": [],
        "columns": [],
        "rows": [],
    }


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("owner/name-7B", "name-7B.toml"),
        ("/home/me/models/x y/", "x-y.toml"),
        ('C:\\m\\<b>"&', "-b---.toml"),
    ],
)
def test_names_of_profiles(model: str, name: str) -> None:
    import dataclasses

    made = findings()
    info = dataclasses.replace(made.model, id=model)
    assert profile_name(dataclasses.replace(made, model=info)) == name


def test_this_browsers_dimensions_and_the_way_back() -> None:
    loaded = LoadedModel()
    loaded.use(fake_handle(profile=False))
    choose: Any = choosing_dims(loaded)
    compare, note, _, back = choose("17, 101", "demo")
    assert compare["interactive"] and back["visible"]
    assert note.startswith("Sink dimensions 17, 101, only in this browser: found on demo. ")
    _, note, _, back = choose("17,", "")
    assert note.startswith("Sink dimensions is '17,'") and back["visible"]
    compare, note, _, back = choose(" ", "demo")  # this model has no profile
    assert not compare["interactive"] and not back["visible"]
    assert "The Sinks tab can find them" in note
