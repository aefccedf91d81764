"""What the form says of the model, and a stored run as the form that made it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sinkscope.web.model_events import telling_limits


@pytest.mark.parametrize(("name", "said"), [("demo", True), ("Qwen/Qwen2.5-VL-3B", False)])
def test_beside_generate_stands_what_the_bundled_model_knows(name: str, said: bool) -> None:
    slot: Any = SimpleNamespace(handle=SimpleNamespace(info=SimpleNamespace(id=name)))
    line = telling_limits(slot)()["text"]
    assert bool(line) is said
    assert not said or ("drawn scenes" in line and "Qwen2.5-VL 3B" in line)


def test_without_a_model_nothing_is_said_of_it() -> None:
    nothing: Any = SimpleNamespace(handle=None)
    assert telling_limits(nothing)()["text"] == ""
