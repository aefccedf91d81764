"""Requests as a stranger's program could send them: any method, type and body."""

from __future__ import annotations

import http.client
import json
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any

from tests.web.conftest import Site

BOUNDARY = "x"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"


def send(
    site: Site,
    path: str,
    body: bytes | Iterable[bytes] | None = None,
    kind: str | None = "application/json",
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Status and text of the answer. An iterable is sent in chunks, without its length."""
    address = urllib.parse.urlsplit(site.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
    chunked = body is not None and not isinstance(body, bytes)
    given = {**({"content-type": kind} if kind else {}), **(headers or {})}
    try:
        if chunked:
            given["transfer-encoding"] = "chunked"
        try:
            connection.request(method, path, body, given, encode_chunked=chunked)
        except (BrokenPipeError, ConnectionResetError):
            assert chunked  # refused before all of it was sent
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace")
    finally:
        connection.close()


def post(site: Site, path: str, content: Any, **options: Any) -> tuple[int, str]:
    return send(site, path, json.dumps(content).encode(), **options)


def form(*parts: tuple[str, bytes]) -> bytes:
    """A multipart body from pairs: (the text after `form-data; `, content)."""
    made = b"".join(
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; {about}\r\n\r\n".encode() + data + b"\r\n"
        for about, data in parts
    )
    return made + f"--{BOUNDARY}--\r\n".encode()


def upload(site: Site, data: bytes, name: str = "photo.png") -> str:
    """Upload a file; returns the path that Gradio gives it."""
    body = form((f'name="files"; filename="{name}"', data))
    status, text = send(site, "/gradio_api/upload", body, MULTIPART)
    assert status == 200, text
    (path,) = json.loads(text)
    return str(path)


def file_of(path: Any, **more: Any) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


def outcome(site: Site, name: str, event: str) -> str:
    """All messages of `GET call/<name>/<event>`."""
    return send(site, f"/gradio_api/call/{name}/{event}", method="GET", kind=None)[1]
