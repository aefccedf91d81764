"""The tiny text model of each architecture, made once."""

from __future__ import annotations

import pytest

from sinkscope.models.loading import ModelHandle, load_model
from tests.text_models import configs, save_text_model


@pytest.fixture(scope="session", params=tuple(configs()))
def text_handle(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ModelHandle:
    """Loaded from a folder, like a user's model. Shared: never change it."""
    folder = save_text_model(tmp_path_factory.mktemp("text"), request.param)
    return load_model(str(folder), device="cpu", dtype="float32")
