"""The last prompt is found again, and no other one is mistaken for it."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from sinkscope.web.explore.kept_prompt import LastPrompt


class Handle:
    def prepare(self, images: list[Image.Image], prompt: str) -> Any:
        return SimpleNamespace(images=images, prompt=prompt)


RED, BLUE = Image.new("RGB", (4, 3), "red"), Image.new("RGB", (4, 3), "blue")


def test_the_same_prompt_brings_its_prefix() -> None:
    last, handle = LastPrompt(), Handle()
    inputs, prefix = last.prepare(handle, [RED], "What?")  # type: ignore[arg-type]
    assert prefix is None
    last.keep(inputs, "prefix")
    again = last.prepare(handle, [RED.copy()], "What?")  # type: ignore[arg-type]
    assert again == (inputs, "prefix")
    assert again[0] is inputs


def test_dropping_frees_what_was_kept() -> None:
    class Prefix:
        pass

    last, handle, prefix = LastPrompt(), Handle(), Prefix()
    inputs, _ = last.prepare(handle, [RED], "What?")  # type: ignore[arg-type]
    last.keep(inputs, prefix)
    alive = weakref.ref(prefix)
    del prefix
    last.drop()
    assert alive() is None
    last.keep(inputs, "of a run that was under way")
    assert last.prepare(handle, [RED], "What?")[1] is None  # type: ignore[arg-type]


def test_the_cache_before_is_gone_when_another_prompt_is_prepared() -> None:
    class Full(Handle):
        def prepare(self, images: list[Image.Image], prompt: str) -> Any:
            if prompt == "full":
                raise ValueError("no")
            return super().prepare(images, prompt)

    last, handle = LastPrompt(), Full()
    inputs, _ = last.prepare(handle, [RED], "What?")  # type: ignore[arg-type]
    last.keep(inputs, "prefix")
    with pytest.raises(ValueError, match="no"):
        last.prepare(handle, [RED], "full")  # type: ignore[arg-type]
    assert last.prepare(handle, [RED], "What?")[1] is None  # type: ignore[arg-type]


def test_another_prompt_image_or_model_does_not() -> None:
    handle = Handle()
    for other in (
        (handle, [RED], "Who?"),
        (handle, [BLUE], "What?"),
        (handle, [RED, BLUE], "What?"),
        (Handle(), [RED], "What?"),
    ):
        last = LastPrompt()
        inputs, _ = last.prepare(handle, [RED], "What?")  # type: ignore[arg-type]
        last.keep(inputs, "prefix")
        new, prefix = last.prepare(*other)  # type: ignore[arg-type]
        assert new is not inputs
        assert prefix is None
        last.keep(inputs, "too late")  # of the prompt before
        assert last.prepare(*other)[1] is None  # type: ignore[arg-type]
