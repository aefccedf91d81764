"""Questions for the tests of judges."""

from __future__ import annotations

from typing import Any

from sinkscope.evaluation.base import Question

ANIMALS = (("A", "a cat"), ("B", "a dog"), ("C", "a black dog"), ("D", "nothing"))


def question(truth: Any, text: str = "What is it?", options: Any = ()) -> Question:
    return Question("q1", text, (), truth, tuple(options))
