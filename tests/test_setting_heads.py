"""Single heads of single layers, as users write them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sinkscope.config import VARSettings
from sinkscope.methods.heads import HeadChoice, HeadList
from sinkscope.setting import heads_text, layer_heads


@pytest.mark.parametrize(
    ("said", "made"),
    [
        ("4.1", ((4, 1),)),
        (" 5.0-2, 4.3 ", ((4, 3), (5, 0), (5, 1), (5, 2))),
        ([[4, 1], (2, 7)], ((2, 7), (4, 1))),
        ('{"chosen": [{"layer": 3, "head": 0}, {"layer": 1, "head": 2}]}', ((1, 2), (3, 0))),
    ],
)
def test_what_is_said_is_read(said: Any, made: tuple[tuple[int, int], ...]) -> None:
    assert layer_heads("heads", said) == made
    assert VARSettings((1,), heads=said).heads == made
    assert layer_heads("heads", heads_text(made)) == made


@pytest.mark.parametrize(
    "said",
    ["4", "4.1;5.2", "4.-1", "4.3-1", "a.b", "{", '{"chosen": 3}', '{"chosen": [{"layer": 1}]}',
     [4, 1], [(4, 1, 2)], [(4, -1)], [(4, 1.5)], [(True, 1)], [("4", 1)], 7, {"layer": 1}, b"4.1"],
)  # fmt: skip
def test_what_is_none_is_refused_by_name(said: Any) -> None:
    with pytest.raises(ValueError, match=r"^heads is .*; allowed: .*LAYER\.HEAD"):
        VARSettings((1,), heads=said)


def test_no_head_and_one_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="heads names no head"):
        VARSettings((1,), heads=())
    with pytest.raises(ValueError, match=r"heads has head 4\.1 twice"):
        VARSettings((1,), heads="4.0-2,4.1")


def test_a_list_that_was_exported_is_taken(tmp_path: Any) -> None:
    chosen = (HeadChoice(4, 1, 0.5, 0.2), HeadChoice(2, 3, 0.4, 0.3))
    found = HeadList("localising", "demo", "sha256:1", chosen)
    found.save(tmp_path / "heads.json")
    text = (tmp_path / "heads.json").read_text()
    assert VARSettings((1,), heads=text).heads == found.layer_heads() == ((2, 3), (4, 1))
    assert json.loads(text)["chosen"][0]["layer"] == 4
