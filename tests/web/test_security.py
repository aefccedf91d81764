"""Every row of the security table, against the running app."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from sinkscope.config import AppSettings
from sinkscope.web.runs.payload import encode_image
from sinkscope.web.server.uploads import NO_UPLOAD
from tests.web.conftest import Site
from tests.web.synthetic import scene

ROOT = Path(__file__).resolve().parents[2]


def call(
    site: Site, path: str, headers: dict[str, str] | None = None, body: object = None
) -> tuple[int, dict[str, str], str]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(site.url.rstrip("/") + path, data, headers or {})
    if data is not None:
        request.add_header("content-type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, dict(answer.headers), answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read().decode("utf-8", "replace")


def test_the_page_has_the_headers(site: Site) -> None:
    status, headers, _ = call(site, "/")
    headers = {name.lower(): value for name, value in headers.items()}
    assert status == 200
    assert "connect-src 'self'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


def test_a_rebound_name_is_refused(site: Site) -> None:
    assert call(site, "/", {"host": "attacker.example"})[0] == 400
    assert call(site, "/config", {"host": "attacker.example:7860"})[0] == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://attacker.example"},
        {"origin": "http://127.0.0.1:1"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"},
    ],
)
def test_another_sites_page_is_refused(site: Site, headers: dict[str, str]) -> None:
    assert call(site, "/config", headers)[0] == 403
    assert call(site, "/gradio_api/queue/join", headers, {"data": []})[0] == 403


def test_a_link_from_elsewhere_may_open_the_page(site: Site) -> None:
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert call(site, "/", headers)[0] == 200


def test_own_origin_works(site: Site) -> None:
    assert call(site, "/config", {"origin": site.url.rstrip("/")})[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=http://127.0.0.1:1/x",
        "/gradio_api/file=https%3A%2F%2Fattacker.example",
        "/gradio_api/file=http%253A%252F%252Fattacker.example",
        "/gradio_api/file=http:/attacker.example",
        "/gradio_api/proxy=http://127.0.0.1:1/x",
        "/gradio_api/proxy%3Dhttps://attacker.example",
        "/file=http://attacker.example",
        "/gradio_api/file/http://127.0.0.1:1/x",  # the older address of the same route
        "/gradio_api/file/https%3A%2F%2Fattacker.example",
        "/gradio_api/file=HTTPS://attacker.example",
        "/gradio_api/file=ftp://attacker.example",
    ],
)
def test_addresses_are_not_fetched(site: Site, path: str) -> None:
    status, _, text = call(site, path)
    assert status == 403 and "other addresses" in text


@pytest.mark.parametrize("key", ["path", "url"])
def test_a_file_to_be_fetched_is_refused(site: Site, key: str) -> None:
    file = {key: "http://127.0.0.1:1/x.png", "meta": {"_type": "gradio.FileData"}}
    for place in (
        "/gradio_api/call/generate",
        "/gradio_api/queue/join",
        "/gradio_api/run/generate",
    ):
        status, _, text = call(site, place, body={"data": [file, "Hello"]})
        assert (status, text) == (403, NO_UPLOAD)


@pytest.mark.parametrize(
    "path",
    [
        "app.py",
        "web/explore/handlers.py",
        "../../etc/passwd",
        "/etc/passwd",
        "requirements.txt",
        ".",
    ],
)
def test_files_of_the_machine_are_not_served(site: Site, path: str) -> None:
    for target in (path, str(ROOT / path)):
        status, _, text = call(site, f"/gradio_api/file={urllib.parse.quote(target)}")
        assert status in (403, 404) and "import" not in text and "root:" not in text


def test_a_request_too_large_is_refused(site: Site) -> None:
    assert call(site, "/gradio_api/call/generate", body={"data": ["x" * 2_500_000]})[0] == 413


def test_stored_runs_are_not_served_as_files(site: Site) -> None:
    cache = Path(site.app.settings.app.cache_dir) / "runs"
    cache.mkdir(exist_ok=True)
    (cache / "secret.txt").write_text("secret")
    status, _, text = call(site, f"/gradio_api/file={cache / 'secret.txt'}")
    assert status == 403 and "secret" not in text.replace("secret.txt", "")


def test_questions_of_the_inspector_answer_strangers_with_a_sentence(site: Site) -> None:
    component = site.app.handlers.component
    assert component is not None
    for name, ask in (
        ("open_run", {"run": "x" * 22}),
        ("open_run", "../../x"),
        ("token_maps", None),
    ):
        body = {"component_id": component._id, "fn_name": name, "data": ask, "session_hash": "s"}
        status, _, text = call(site, "/gradio_api/component_server/", body=body)
        assert status == 200 and "no longer on the server" in text
    body = {"component_id": component._id, "fn_name": "get_config", "data": 1, "session_hash": "s"}
    assert call(site, "/gradio_api/component_server/", body=body)[0] == 404


def test_another_address_demands_a_password() -> None:
    with pytest.raises(ValueError, match="auth"):
        AppSettings(host="0.0.0.0")
    AppSettings(host="0.0.0.0", auth="me:secret")


def described(site: Site) -> dict[str, Any]:
    page: dict[str, Any] = json.loads(call(site, "/config")[2])
    return page


def test_an_uploaded_page_is_never_shown_as_one(site: Site) -> None:
    part = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="../../evil.html"\r\n'
        b"Content-Type: text/html\r\n\r\n<script>alert(1)</script>\r\n--x--\r\n"
    )
    kind = {"content-type": "multipart/form-data; boundary=x"}
    request = urllib.request.Request(f"{site.url}gradio_api/upload", part, kind)
    with urllib.request.urlopen(request, timeout=20) as answer:
        (path,) = json.loads(answer.read())
    assert ".." not in path and Path(path).name == "evil.html"
    status, headers, _ = call(site, f"/gradio_api/file={path}")
    headers = {name.lower(): value for name, value in headers.items()}
    assert status == 200
    assert headers["content-type"] == "application/octet-stream"
    assert headers["content-disposition"].startswith("attachment")
    assert headers["x-content-type-options"] == "nosniff"


def test_a_burst_fills_the_queue_and_nothing_else(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # These clients hold no stream: on a busy machine the first would be gone before the last comes.
    monkeypatch.setattr(site.app.handlers.runner, "deserted", lambda session, since: False)
    config = described(site)
    components = {component["id"]: component for component in config["components"]}
    event = next(e for e in config["dependencies"] if e["api_name"] == "answer")
    part = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        + encode_image(scene(60, 40))[0]
        + b"\r\n--x--\r\n"
    )
    kind = {"content-type": "multipart/form-data; boundary=x"}
    request = urllib.request.Request(f"{site.url}gradio_api/upload", part, kind)
    with urllib.request.urlopen(request, timeout=120) as answer:
        file = {"path": json.loads(answer.read())[0], "meta": {"_type": "gradio.FileData"}}
    data = [components[one]["props"].get("value") for one in event["inputs"]]
    data[:2] = [file, "endless"]
    site.engine.hold()
    try:
        statuses = [
            call(
                site,
                "/gradio_api/queue/join",
                body={"fn_index": event["id"], "data": data, "session_hash": f"burst{n}"},
            )[0]
            for n in range(40)
        ]
        assert set(statuses) <= {200, 503}  # 503: refused at once
        last = 39 - statuses[::-1].index(200)
        address = f"{site.url}gradio_api/queue/data?session_hash=burst{last}"
        with urllib.request.urlopen(address, timeout=120) as answer:
            assert "runs are waiting already; try again in a little while" in answer.read().decode()
        assert call(site, "/")[0] == 200
    finally:
        site.engine.release()
