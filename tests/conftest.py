"""Shared by all tests: the tiny random model, a photo-like image, and the way to Chromium.

Tiers: no marker = pure; `tiny` = the seeded random model; `slow` = the bundled trained model;
`browser` = the page in Chromium. Markers select which tests a run includes; fixtures provide the
models and the browser.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

# Set before any library reads them: tests never use the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync")
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the seeded tiny random model, like a checkpoint. Shared: never write to it."""
    from tests.tiny_model import save_model

    return save_model(tmp_path_factory.mktemp("tiny_model"))


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """A 300 x 210 RGB image with smooth colours and some noise, always the same."""
    y, x = np.mgrid[0:210, 0:300].astype(np.float64)
    smooth = np.stack([x / 300, y / 210, (np.sin(x / 23) + np.cos(y / 17) + 2) / 4], axis=-1)
    noise = np.random.default_rng(0).normal(0, 0.05, smooth.shape)
    return Image.fromarray((np.clip(smooth + noise, 0, 1) * 255).astype(np.uint8))


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the system's Chromium. Without one the test is skipped, or fails in CI."""
    for name in CHROMIUM_NAMES:
        if path := shutil.which(name):
            return path
    reason = f"no Chromium on this machine (looked for {', '.join(CHROMIUM_NAMES)})"
    if os.environ.get("SINKSCOPE_REQUIRE_BROWSER") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Any]:
    """One Chromium for all tests of a process: playwright cannot be started twice in a thread."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield started
        started.close()
