"""The API behind the page, as `gradio_client` and a notebook see it."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from tests.web.conftest import Site
from tests.web.synthetic import WORDS
from tests.web.test_payload import unpack


def test_names_are_documented(site: Site) -> None:
    from gradio_client import Client

    client = Client(site.url, verbose=False)
    api = client.view_api(return_format="dict", print_info=False)
    assert set(api["named_endpoints"]) == {
        "/generate",
        "/stop",
        "/load_model",
        "/model_state",
        "/find_sinks",
        "/stop_sinks",
    }
    named = [p["parameter_name"] for p in api["named_endpoints"]["/generate"]["parameters"]]
    assert named[:4] == ["image", "prompt", "compare", "same_text"]
    client.close()


def test_a_run_from_a_notebook(site: Site, tmp_path: Path) -> None:
    from gradio_client import Client, handle_file

    path = tmp_path / "photo.png"
    Image.new("RGB", (60, 40), "teal").save(path)
    client = Client(site.url, verbose=False)
    value = client.predict(
        image=handle_file(str(path)), prompt="Hello", compare=True, api_name="/generate"
    )
    assert value["phase"] == "ready"
    with urllib.request.urlopen(f"{site.url}{value['data']['url']}", timeout=20) as file:
        header, arrays = unpack(file.read())
    assert [v["name"] for v in header["variants"]] == ["baseline", "var"]
    assert [t["t"] for t in header["variants"][0]["tokens"]] == list(WORDS)
    assert arrays["var.full"].shape[0] == len(WORDS)

    with pytest.raises(Exception, match="prompt is empty"):
        client.predict(image=handle_file(str(path)), prompt="", api_name="/generate")
    client.close()
