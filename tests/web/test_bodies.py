"""Bodies of requests to the running app: files that are not uploads, odd types, odd JSON."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sinkscope.web.runs.payload import encode_image
from sinkscope.web.server.bodies import DEEPEST, DRAINED_BYTES, JSON_BYTES, Bodies, Refused, parse
from sinkscope.web.server.uploads import NO_UPLOAD
from tests.web.conftest import Site
from tests.web.raw_requests import file_of, outcome, post, send, upload
from tests.web.synthetic import scene

ROOT = Path(__file__).resolve().parents[2]
PHOTO = encode_image(scene(60, 40))[0]
GENERATE = [
    "Hello",
    5,
    "ours",
    0,
    1,
    0,
    1,
    0,
    "auto",
    False,
    *(None, None, None),
]  # prompt, the settings in their order, further images
COMPARE = ["Hello", False, "", None, 0.6, 0.5, 0.2, "official", "", "", "none", *GENERATE[1:]]


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A private photo, beside a file that is not an image."""
    Image.new("RGB", (60, 40), "red").save(tmp_path / "private.png")
    (tmp_path / "notes.txt").write_text("secret")
    return tmp_path


def shapes(folder: Path) -> dict[str, Any]:
    """Ways to name a file of the server in a request."""
    paths = {
        "image": str(folder / "private.png"),
        "text": str(folder / "notes.txt"),
        "missing": str(folder / "missing.png"),
        "folder": str(folder),
        "demo": str(ROOT / "demo" / "examples" / "four_things.png"),
        "relative": "demo/examples/four_things.png",
        "address": "http://127.0.0.1:1/x.png",
        "scheme": f"file://{folder}/private.png",
        "data": "data:image/png;base64,AAAA",
    }
    made: dict[str, Any] = {}
    for name, path in paths.items():
        made[f"{name}, plain"] = {"path": path}
        made[f"{name}, marked"] = file_of(path)
        made[f"{name}, half marked"] = {"path": path, "meta": {}}
        made[f"{name}, otherwise marked"] = {"path": path, "meta": {"_type": "file"}}
        made[f"{name}, marked by a list"] = {"path": path, "meta": ["gradio.FileData"]}
        made[f"{name}, stream"] = file_of(path, is_stream=True)
        made[f"{name}, url"] = {"url": path, "meta": {"_type": "gradio.FileData"}}
        made[f"{name}, url alone"] = {"url": path}
        made[f"{name}, both"] = {"path": None, "url": path, "orig_name": path}
        made[f"{name}, in a list"] = [{"path": path}]
        made[f"{name}, nested"] = {"image": [{"value": {"path": path}}]}
    return made


def runs(site: Site) -> int:
    return len(site.app.handlers.store._runs)


def test_the_two_holes_are_closed(guarded: Site, private: Path) -> None:
    """A picture of the server as an image, and an address, in JSON with another content type."""
    before = runs(guarded)
    image = {"path": str(private / "private.png")}
    status, text = post(guarded, "/gradio_api/call/generate", {"data": [image, *GENERATE]})
    assert (status, text) == (403, NO_UPLOAD)
    fetched = {"data": [file_of("http://127.0.0.1:1/x.png"), *GENERATE]}
    for kind in ("application/JSON", "text/plain"):
        status, text = post(guarded, "/gradio_api/call/generate", fetched, kind=kind)
        assert (status, text) == (403, NO_UPLOAD)
    assert runs(guarded) == before


def test_no_call_takes_a_file_of_the_machine(guarded: Site, private: Path) -> None:
    """Every endpoint and event, with every form, in any place of the body."""
    config = json.loads(send(guarded, "/config", method="GET", kind=None)[1])
    kinds = {component["id"]: component["type"] for component in config["components"]}
    before, tried = runs(guarded), 0
    every = shapes(private)
    for event in config["dependencies"]:
        takes = [kinds[one] for one in event["inputs"]]
        takes_files = {"image", "file"} & set(takes)
        # An event that takes no file also gets one, in the event's data.
        for file in every.values() if takes_files else [every["image, plain"]]:
            data = [
                [file] if kind == "file" else file if kind == "image" else "x" for kind in takes
            ]
            body = {
                "fn_index": event["id"],
                "data": data,
                "event_data": None if takes_files else {"index": [{"deep": file}]},
                "session_hash": "stranger",
            }
            name = event["api_name"] or "predict"
            places = ("queue/join", "run/predict", f"call/{name}", f"api/{name}")
            for place in (places[tried % 4],) if takes_files else places:
                status, text = post(guarded, f"/gradio_api/{place}", body)
                assert (status, text) == (403, NO_UPLOAD), (place, body)
                tried += 1
    for name in ("generate", "compare"):
        for file in every.values():
            body = {"image": file, "prompt": "Hello"}
            answer = post(guarded, f"/gradio_api/call/v2/{name}", body)
            assert answer == (403, NO_UPLOAD)
    assert tried > 400 and runs(guarded) == before


def test_nor_as_a_plain_string(guarded: Site, private: Path) -> None:
    """A string may also be a prompt, so the component refuses it."""
    before = runs(guarded)
    said = set()
    for path in ("private.png", "notes.txt", "missing.png"):
        for name, rest in (("generate", GENERATE), ("compare", COMPARE)):
            body = {"data": [str(private / path), *rest]}
            status, text = post(guarded, f"/gradio_api/call/{name}", body)
            assert status == 200
            said.add(outcome(guarded, name, json.loads(text)["event_id"]))
    (one,) = said
    assert NO_UPLOAD in one and str(private) not in one and runs(guarded) == before


def events_of(site: Site, takes: str) -> list[dict[str, Any]]:
    config = json.loads(send(site, "/config", method="GET", kind=None)[1])
    kinds = {component["id"]: component["type"] for component in config["components"]}
    found = []
    for event in config["dependencies"]:
        event["kinds"] = [kinds[one] for one in event["inputs"]]
        if takes in event["kinds"]:
            found.append(event)
    return found


def test_not_after_gradio_has_made_the_component_anew(guarded: Site, private: Path) -> None:
    """An update of a component creates another one for that session."""
    config = json.loads(send(guarded, "/config", method="GET", kind=None)[1])
    images = {c["id"] for c in config["components"] if c["type"] == "image"}
    values = {c["id"]: c["props"].get("value") for c in config["components"]}
    refill = next(
        e for e in config["dependencies"] if images & set(e["outputs"]) and e["backend_fn"]
    )
    body = {
        "fn_index": refill["id"],
        "data": [None if one in images else values.get(one) for one in refill["inputs"]],
        "session_hash": "anew",
        "event_data": {},  # no run: no control changes
    }
    assert post(guarded, "/gradio_api/run/predict", body)[0] == 200
    ahead = next(e for e in events_of(guarded, "image") if not e["queue"])
    path = str(private / "private.png")
    for session in ("anew", "another"):
        data = [path if kind == "image" else "x" for kind in ahead["kinds"]]
        body = {"fn_index": ahead["id"], "data": data, "session_hash": session}
        _, text = post(guarded, "/gradio_api/run/predict", body)
        assert json.loads(text)["error"] == NO_UPLOAD


def test_a_file_of_a_tab_is_an_upload(guarded: Site, private: Path) -> None:
    """In Sinks, Experiments and Evaluate: each control gets its value, the file controls a path."""
    config = json.loads(send(guarded, "/config", method="GET", kind=None)[1])
    shows = {one["id"]: one["props"].get("value") for one in config["components"]}
    for one in config["components"]:
        if ["My images", "My images"] in (one["props"].get("choices") or []):
            shows[one["id"]] = "My images"
    path = str(private / "private.png")
    events = events_of(guarded, "file")
    assert len(events) == 3
    for number, event in enumerate(events):
        data = [
            [path] if kind == "file" else shows[one]
            for kind, one in zip(event["kinds"], event["inputs"], strict=True)
        ]
        session = f"tab-{number}"
        body = {"fn_index": event["id"], "data": data, "session_hash": session}
        status, text = post(guarded, "/gradio_api/queue/join", body)
        assert status == 200 and "event_id" in text
        address = f"/gradio_api/queue/data?session_hash={session}"
        body = send(guarded, address, method="GET", kind=None)[1]
        assert NO_UPLOAD in body and path not in body, body[-1500:]


@pytest.mark.parametrize("name", ["gone.png", "", "../private.png", "link.png"])
def test_an_upload_that_is_gone_or_leads_away(guarded: Site, private: Path, name: str) -> None:
    there = Path(upload(guarded, PHOTO))
    link = there.with_name("link.png")
    link.unlink(missing_ok=True)
    link.symlink_to(private / "private.png")
    image = file_of(f"{there.parent}/{name}")
    status, text = post(guarded, "/gradio_api/call/generate", {"data": [image, *GENERATE]})
    if status == 200:
        text = outcome(guarded, "generate", json.loads(text)["event_id"])
    else:
        assert status == 403
    assert NO_UPLOAD in text and str(there.parent) not in text


def test_from_upload_to_export(guarded: Site) -> None:
    path = upload(guarded, PHOTO, "mine é.png")
    image = file_of(path, url=f"{guarded.url}gradio_api/file={path}", orig_name="mine.png")
    for kind in ("application/json", "application/JSON", "application/json; charset=utf-8"):
        body = {"data": [image, *GENERATE]}
        status, text = post(guarded, "/gradio_api/call/generate", body, kind=kind)
        assert status == 200, text
        said = outcome(guarded, "generate", json.loads(text)["event_id"])
        assert "event: complete" in said
    run = json.loads(said.rsplit("data: ", 1)[1])[0]["run"]
    named = {"run": run, "kind": "trace"}  # by name, as clients should
    status, text = post(guarded, "/gradio_api/call/v2/export", named)
    said = outcome(guarded, "export", json.loads(text)["event_id"])
    assert "event: complete" in said and ".safetensors" in said


# --- types and JSON -------------------------------------------------------------------------------

PLACES = ("/gradio_api/call/generate", "/gradio_api/queue/join", "/gradio_api/component_server/")


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "application/JSON",
        "APPLICATION/JSON; charset=utf-16",
        "text/plain",
        "text/plain;charset=UTF-8",
        "application/x-www-form-urlencoded",
        "application/octet-stream",
        "image/png",
        "multipart/form-data; boundary=x",
        "nonsense",
        "",
        None,
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "QUERY"])
def test_every_body_is_looked_at(guarded: Site, kind: str | None, method: str) -> None:
    bad = {"data": [file_of("http://127.0.0.1:1/x.png"), *GENERATE], "session_hash": "s"}
    large = b'{"data": ["' + b"x" * JSON_BYTES + b'"]}'
    for place in PLACES:
        assert post(guarded, place, bad, kind=kind, method=method) == (403, NO_UPLOAD)
        assert send(guarded, place, large, kind, method)[0] == 413


def through(app: Any, receive: Any, path: str, *headers: tuple[bytes, bytes]) -> list[Any]:
    """The answer of `Bodies` in front of an app to a request."""
    answers: list[Any] = []

    async def answer(message: Any) -> None:
        answers.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": list(headers)}
    with ThreadPoolExecutor(1) as thread:  # a browser leaves a loop in this thread
        thread.submit(asyncio.run, Bodies(app, 10_000)(scope, receive, answer)).result()
    return answers


async def no_app(*_: Any) -> None:
    raise AssertionError("the app was reached")


@pytest.mark.parametrize("said", [(), ((b"content-length", b"300000000"),)])
def test_a_large_body_is_not_read_to_its_end(said: Any) -> None:
    read = []

    async def receive() -> dict[str, Any]:
        read.append(1)
        return {"type": "http.request", "body": b" " * 250_000, "more_body": True}

    answers = through(no_app, receive, "/gradio_api/call/generate", *said)
    assert answers[0]["status"] == 413 and len(read) * 250_000 <= DRAINED_BYTES + 250_000


def test_bodies_in_chunks_are_looked_at(guarded: Site) -> None:
    body = json.dumps({"data": [file_of("/etc/hostname"), *GENERATE]}).encode()
    pieces = (body[i : i + 7] for i in range(0, len(body), 7))
    assert send(guarded, "/gradio_api/call/generate", pieces) == (403, NO_UPLOAD)


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "gzip, identity", "GZIP"])
def test_compressed_bodies_are_refused(guarded: Site, encoding: str) -> None:
    headers = {"content-encoding": encoding}
    for place in (*PLACES, "/gradio_api/upload"):
        status, text = send(guarded, place, b"\x1f\x8b", headers=headers)
        assert status == 415 and "compressed" in text


ODD = {
    "a key twice": (b'{"data": [], "data": [1]}', 400),
    "a file with its path twice": (
        b'{"data": [{"path": "/etc/hostname", "path": "x", "meta": {}}]}',
        400,
    ),
    "NaN": (b'{"data": [NaN]}', 400),
    "Infinity": (b'{"data": [-Infinity]}', 400),
    "too large a number": (b'{"data": [1e999]}', 400),
    "a long integer": (b'{"data": [' + b"9" * 5000 + b"]}", 400),
    "an integer beyond 64 bit": (b'{"data": [' + b"9" * 21 + b"]}", 400),
    "half a character": (b'{"data": ["\\ud800"]}', 400),
    "half a character as a key": (b'{"data": [{"\\ud800": 1}]}', 400),
    "UTF-16": ('{"data": []}'.encode("utf-16"), 400),
    "UTF-16 without a mark": ('{"data": []}'.encode("utf-16-le"), 400),
    "UTF-32": ('{"data": []}'.encode("utf-32"), 400),
    "a byte order mark": (b'\xef\xbb\xbf{"data": []}', 400),
    "no UTF-8": (b'{"data": ["\xff"]}', 400),
    "two values": (b'{"data": []} {"data": []}', 400),
    "no JSON": (b"data=1", 400),
    "a comment": (b'{"data": [] /* x */}', 400),
    "deep": (b'{"data": ' + b"[" * 100 + b"]" * 100 + b"}", 400),
    "very deep": (b'{"data": ' + b"[" * 40_000 + b"]" * 40_000 + b"}", 400),
    "very deep mappings": (b'{"a":' * 40_000 + b"1" + b"}" * 40_000, 400),
    "deeper still": (b"[" * 500_000 + b"]" * 500_000, 413),
    "many values": (b'{"data": [' + b"[]," * 400_000 + b"1]}", 413),
    "not closed": (b'{"data": [', 400),
}


@pytest.mark.parametrize("name", ODD)
def test_json_that_readers_could_take_differently_is_refused(guarded: Site, name: str) -> None:
    body, expected = ODD[name]
    for place in (*PLACES, "/gradio_api/call/v2/generate", "/gradio_api/reset", "/nowhere"):
        begun = time.monotonic()
        status, text = send(guarded, place, body)
        assert status == expected and text.startswith("The "), (place, text)
        assert time.monotonic() - begun < 5


def test_what_is_usual_passes() -> None:
    for text in ('{"data": ["é", 1.5, -3, true, null]}', "[]", '"x"', '{"a": "\\ud83d\\ude00"}'):
        assert parse(text.encode()) == json.loads(text)
    assert parse(b"[" * DEEPEST + b"]" * DEEPEST)
    with pytest.raises(Refused):
        parse(b"[" * (DEEPEST + 2) + b"]" * (DEEPEST + 2))


@pytest.mark.parametrize("body", [b"[]", b'"x"', b"7", b"null", b'{"data": "x"}', b"{}", b""])
def test_json_that_is_no_question_is_refused_by_gradio(guarded: Site, body: bytes) -> None:
    for place in PLACES:
        assert send(guarded, place, body)[0] in (400, 422)


def test_who_goes_away_gets_no_answer() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    assert through(no_app, receive, "/gradio_api/call/generate") == []
