"""Shared by the tests of the bundled model."""

from typing import Any

import pytest


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The bundled tokenizer, trained once because that takes longer than most tests."""
    from sinkscope.demo.folder import build_tokenizer

    return build_tokenizer()
