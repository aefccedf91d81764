"""A sink profile uploaded to the page: used in this browser, or refused with a clear text."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from gradio.data_classes import FileData

from sinkscope.web.explore.model_events import tau_end
from sinkscope.web.explore.profile_upload import taking_profile

GOOD = """model = "some/model"
family = "qwen2_5_vl"
hidden_size = 256
layers = 6
dims = [17, 101]
tau = 6.0
source = "measured"
confidence = "high"
"""


@pytest.fixture
def upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("sinkscope.web.server.uploads.get_upload_folder", lambda: str(tmp_path))

    def make(text: str) -> FileData:
        path = tmp_path / "x.toml"
        path.write_text(text)
        return FileData(path=str(path), orig_name="mine.toml")

    return make


def slot_with(hidden_size: int, layers: int = 6) -> Any:
    info = SimpleNamespace(id="demo", hidden_size=hidden_size, layers=layers)
    return SimpleNamespace(handle=SimpleNamespace(info=info))


def test_a_profile_fills_dimensions_and_tau(upload: Any) -> None:
    dims, model, tau = taking_profile(slot_with(256))(upload(GOOD))
    assert (dims, model) == ("17, 101", "demo")
    assert (tau["value"], tau["maximum"]) == (6.0, tau_end(256))


@pytest.mark.parametrize(
    ("text", "loaded", "said"),
    [
        ("tau = ", slot_with(256), "mine.toml"),
        (GOOD, slot_with(2048), "hidden_size 256"),
        ("#" * 200_000, slot_with(256), "larger"),
    ],
)
def test_another_file_is_refused_by_its_own_name(
    upload: Any, text: str, loaded: Any, said: str, tmp_path: Path
) -> None:
    with pytest.raises(gr.Error) as caught:
        taking_profile(loaded)(upload(text))
    assert said in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_no_file_outside_of_the_uploads_is_read(upload: Any) -> None:
    with pytest.raises(gr.Error, match="not uploaded here"):
        taking_profile(slot_with(256))(FileData(path="/etc/passwd"))
