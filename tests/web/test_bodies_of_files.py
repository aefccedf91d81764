"""Uploads and logins on the running app: accepted bodies other than small JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sinkscope.web.runs.payload import encode_image
from sinkscope.web.server.bodies import JSON_BYTES
from tests.web.conftest import Site, start_site
from tests.web.raw_requests import MULTIPART, form, send
from tests.web.scripted import ScriptedEngine, fake_handle
from tests.web.synthetic import scene
from tests.web.test_bodies import through

PHOTO = encode_image(scene(60, 40))[0]


def left_over() -> set[Path]:
    """Files directly in the folder of uploads; finished ones are in folders."""
    from gradio.utils import get_upload_folder

    return {path for path in Path(get_upload_folder()).iterdir() if path.is_file()}


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (form(('name="files"', b"x" * 1000)), MULTIPART, 400),  # a field: all of it in memory
        (form(('name="other"; filename="a.png"', PHOTO)), MULTIPART, 400),  # would stay for ever
        (
            form(('name="files"; filename="a.png"', PHOTO), ('name="more"', b"x")),
            MULTIPART,
            400,
        ),
        (form(('name="files"; filename="a.png"', b"x" * 200_000)), MULTIPART, 413),
        (form(('filename="a.png"', PHOTO)), MULTIPART, 400),
        (form(('name="files"; filename="a.png"', PHOTO)), "application/json", 400),
        (form(('name="files"; filename="a.png"', PHOTO)), "multipart/form-data", 400),
        (form(('name="files"; filename="a.png"', PHOTO)), "text/plain; boundary=x", 400),
        (form(('name="files"; filename="a.png"', PHOTO)), None, 400),
        (b"no parts at all", MULTIPART, 400),
        (b'{"data": []}', "application/json", 400),
    ],
)
def test_an_upload_has_only_files(
    guarded: Site, body: bytes, kind: str | None, status: int
) -> None:
    before = left_over()
    for place in ("/gradio_api/upload", "/gradio_api/upload?upload_id=abc"):
        for sent in (body, (body[i : i + 50] for i in range(0, len(body), 50))):
            assert send(guarded, place, sent, kind)[0] == status
    assert left_over() == before


def test_the_whole_upload_has_a_limit() -> None:
    read, answered = [], []
    start = form(('name="files"; filename="a.png"', b""))[:-9]

    async def receive() -> dict[str, Any]:
        read.append(1)
        body = start if len(read) == 1 else b"x" * 1000
        return {"type": "http.request", "body": body, "more_body": True}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(Exception, match="maximum allowed size"):
            while True:
                await receive()
        answered.append(1)

    through(app, receive, "/gradio_api/upload", (b"content-type", MULTIPART.encode()))
    assert answered and len(read) == 11


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/upload/",
        "/gradio_api/process_recording",
        "/gradio_api/component_server",
        "/gradio_api/call/generate",
        "//gradio_api/upload",
        "/upload",
        "/x/gradio_api/upload",
    ],
)
def test_files_are_taken_by_the_upload_alone(guarded: Site, path: str) -> None:
    body = form(('name="video"; filename="a.mp4"', b"x" * 1000))
    assert send(guarded, path, body, MULTIPART)[0] == 400
    large = form(('name="files"; filename="a.mp4"', b"x" * (JSON_BYTES + 1)))
    assert send(guarded, path, large, MULTIPART)[0] == 413


def test_a_login_is_a_small_form(tmp_path: Path) -> None:
    from gradio_client import Client

    site = start_site(tmp_path, ScriptedEngine(), handle=fake_handle(), auth="me:secret")
    try:
        right = (('name="username"', b"me"), ('name="password"', b"secret"))
        assert send(site, "/login", form(*right), MULTIPART)[0] == 200  # as the page sends it
        wrong = form(right[0], ('name="password"', b"x"))
        assert send(site, "/login", wrong, MULTIPART)[0] == 400
        huge = form(right[0], ('name="password"', b"x" * 20_000))
        assert send(site, "/login", huge, MULTIPART)[0] == 413
        assert send(site, "/login", b"\xff\xfe", "application/json")[0] == 422
        assert send(site, "/gradio_api/upload", form(), MULTIPART)[0] == 401
        client = Client(site.url, auth=("me", "secret"), verbose=False)
        client.close()
    finally:
        site.app.blocks.close(verbose=False)
