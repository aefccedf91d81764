"""The message "VAR cannot run" is shown only while it is true: gone once sink dimensions exist."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sinkscope.web.runs.loaded_model import LoadedModel
from sinkscope.web.runs.store import Run
from tests.web.conftest import Site, start_site
from tests.web.scripted import ScriptedEngine, fake_handle
from tests.web.synthetic import make_pair
from tests.web.test_browser_view import ready

pytestmark = pytest.mark.browser

# Whether Compare with VAR says that it cannot run, and whether it can be ticked.
SAID = """() => {
  const box = document.querySelector("#compare");
  return [box.innerText.includes("VAR cannot run"), !box.querySelector("input").disabled];
}"""
CANNOT, CAN = [True, False], [False, True]
PROFILE = """model = "fake"
family = "none"
hidden_size = 4096
layers = 6
dims = [3, 5]
tau = 6.5
source = "measured"
confidence = "high"
"""


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Site]:
    """An app whose model has no profile; the model `with` has one, `without` has none."""
    loaded = LoadedModel(lambda settings, on_progress: fake_handle(settings.model == "with"))
    made = start_site(
        tmp_path,
        ScriptedEngine(),
        handle=fake_handle(False),
        loaded=loaded,
        example=Run(make_pair(), kind="example"),
    )
    yield made
    made.app.blocks.close(verbose=False)


def becomes(page: Any, said: list[bool]) -> None:
    page.wait_for_function(f"said => JSON.stringify(({SAID})()) === JSON.stringify(said)", arg=said)


def load(page: Any, name: str) -> None:
    page.fill("#model-name input", name)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Load", exact=True).click()


def test_it_is_said_only_while_it_is_so(
    bare: Site, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    page = open_page(bare.url)
    ready(page)
    becomes(page, CANNOT)
    page.click("#var-settings > button, #var-settings .label-wrap")
    dims = page.locator("#sink-dims :is(input, textarea)")

    dims.fill("3, 5")  # typed
    dims.blur()
    becomes(page, CAN)
    dims.fill("")
    dims.blur()
    becomes(page, CANNOT)

    file = tmp_path / "sink_profile.toml"
    file.write_text(PROFILE)
    page.set_input_files("#profile-file input[type=file], input[type=file][accept*=toml]", file)
    becomes(page, CAN)  # an uploaded profile
    assert dims.input_value() == "3, 5"
    page.click("#own-dims")
    becomes(page, CANNOT)

    page.click("#model > button, #model .label-wrap")
    load(page, "with")  # a model with a profile
    becomes(page, CAN)
    page.check("#compare input")
    load(page, "without")
    becomes(page, CANNOT)
    assert not page.is_checked("#compare input")  # a run would be refused
