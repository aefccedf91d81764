"""A running app against hostile requests: an answer within seconds, and no 500."""

from __future__ import annotations

import http.client
import json
import random
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sinkscope.web.runs.job_values import UNFORESEEN
from sinkscope.web.runs.store import Run
from sinkscope.web.server.events import UNKNOWN_EVENT
from tests.hostile.app import endpoints
from tests.hostile.corpus import SCALARS, changed, encoded, garbled, json_bombs, value
from tests.hostile.limits import ANSWER_SECONDS, WAITED_SECONDS, Touched, bounded_memory, share
from tests.web.conftest import Site, start_site
from tests.web.raw_requests import MULTIPART, file_of, form, send, upload
from tests.web.scripted import ScriptedEngine, fake_handle
from tests.web.synthetic import make_pair

API = "/gradio_api"
ROUTES = (
    f"{API}/call/generate", f"{API}/call/map", f"{API}/call/nothing", f"{API}/queue/join",
    f"{API}/component_server/", f"{API}/run/predict", f"{API}/reset", f"{API}/cancel", "/login",
    f"{API}/stream/1", f"{API}/vibe-edit/", f"{API}/process_recording", "/", "/nothing",
)  # fmt: skip
PATHS = (
    "/", "/config", f"{API}/info", f"{API}/file=", f"{API}/file=/etc/passwd",
    f"{API}/file=../../../../etc/passwd", f"{API}/file=/proc/kmsg", f"{API}/file=/dev/zero",
    f"{API}/queue/data?session_hash=", f"{API}/queue/status", f"{API}/upload_progress?upload_id=x",
    f"{API}/proxy=http://127.0.0.1:1/", "/docs/", "/docs/../../x", "/static/x", "/theme.css",
    f"{API}/heartbeat/", "/assets/%2e%2e/%2e%2e/etc/passwd", "/%00", "/svelte/..%2f..%2f",
)  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("cache")
    example = Run(make_pair(), kind="example")
    made = start_site(folder, ScriptedEngine(), handle=fake_handle(), example=example)
    yield made
    made.engine.release()
    made.app.blocks.close(verbose=False)


@pytest.fixture(scope="module")
def run_id(site: Site) -> str:
    run = Run(make_pair())
    site.app.handlers.store.put(run)
    return run.id


class Client:
    """Sends requests, and checks each answer against the rules for all answers."""

    def __init__(self, site: Site) -> None:
        self.site, self.slowest, self.count = site, 0.0, 0

    def send(self, path: str, body: bytes | None, **options: Any) -> tuple[int, str]:
        begun, begun_computing = time.monotonic(), time.process_time()
        status, text = send(self.site, path, body, **options)
        took, computed = time.monotonic() - begun, time.process_time() - begun_computing
        self.slowest, self.count = max(self.slowest, took), self.count + 1
        shown = (
            f"{options.get('method', 'POST')} {path[:200]} {(body or b'')[:300]!r}: {text[:300]}"
        )
        assert computed < ANSWER_SECONDS, f"{computed:.1f} s of the processor: {shown}"
        assert took < WAITED_SECONDS, f"{took:.1f} s: {shown}"
        assert status < 500, f"{status}: {shown}"
        self.look(text, shown)
        return status, text

    def look(self, text: str, shown: str) -> None:
        places = (self.site.app.settings.app.cache_dir, "Traceback", "site-packages", "root:x:0")
        assert not [place for place in places if place in text], shown


def harmless(site: Site, act: Callable[[Client, random.Random], None], count: int) -> None:
    """Repeat an action; nothing is written outside the app's folders, and the app still answers."""
    from gradio.utils import get_upload_folder

    client, rng = Client(site), random.Random(count)
    client.send("/", None, method="GET", kind=None)  # late imports happen now
    cache = Path(site.app.settings.app.cache_dir)
    faults: list[str] = []
    with Touched(cache, cache.parent, Path(get_upload_folder())) as touched, bounded_memory():
        for _ in range(count):
            try:
                act(client, rng)
            except (AssertionError, http.client.HTTPException, OSError) as error:
                faults.append(f"{type(error).__name__}: {error}"[:500])
    listing = "\n".join(faults[:10])
    assert not faults, f"{len(faults)} of {client.count} requests:\n{listing}"
    assert touched.written == []
    assert not [name for name in touched.read if name.startswith(("/etc/passwd", "/proc/kmsg"))]
    assert client.send("/config", None, method="GET", kind=None)[0] == 200


def test_addresses(site: Site) -> None:
    def act(client: Client, rng: random.Random) -> None:
        path = rng.choice(PATHS)
        if rng.random() < 0.5:
            path += urllib.parse.quote(str(value(rng))[:300])
        method = rng.choice(("GET", "GET", "GET", "HEAD", "OPTIONS", "DELETE", "PUT", "PATCH"))
        if "queue/data" in path or "heartbeat" in path:  # streams, by their nature
            return
        client.send(path, None, method=method, kind=None)

    harmless(site, act, share(0.05, 40))


def test_an_event_that_there_is_none_of(site: Site) -> None:
    Client(site).send(f"{API}/call/generate/nothing", None, method="GET", kind=None)
    for path in ("call/generate/nothing", "call/v2/generate/nothing", "call/none/nothing/"):
        status, said = send(site, f"{API}/{path}", method="GET", kind=None)
        assert (status, json.loads(said)["error"]) == (404, UNKNOWN_EVENT)


def test_bodies(site: Site) -> None:
    bombs = list(json_bombs(50_000).values())
    sound = encoded({"data": ["a", 1, None, {"path": "x"}], "fn_index": 0, "session_hash": "s"})
    kinds = ("application/json", "text/plain", None, "application/x-www-form-urlencoded", MULTIPART)

    def act(client: Client, rng: random.Random) -> None:
        body = rng.choice(bombs) if rng.random() < 0.3 else garbled(sound, rng)
        if rng.random() < 0.3:
            body = encoded(changed(json.loads(sound), rng))
        client.send(rng.choice(ROUTES), body, kind=rng.choice(kinds))

    harmless(site, act, share(0.1, 50))


def test_uploads(site: Site) -> None:
    sound = form(('name="files"; filename="a.png"', b"\x89PNG" + bytes(100)))
    names = [str(one)[:200] for one in SCALARS]

    def act(client: Client, rng: random.Random) -> None:
        if rng.random() < 0.5:
            name = rng.choice(names).replace('"', "").replace("\r", "").replace("\n", "")
            about = f'name="files"; filename="{name}"'
            client.send(f"{API}/upload", form((about, b"x" * 10)), kind=MULTIPART)
        else:
            client.send(f"{API}/upload", garbled(sound, rng), kind=MULTIPART)

    harmless(site, act, share(0.05, 30))


def test_questions_of_the_inspector(site: Site, run_id: str) -> None:
    component = site.app.handlers.component
    assert component is not None
    asks = {
        "open_run": {"run": run_id, "names": ["a", "b"]},
        "tokens_since": {"run": run_id, "variant": "baseline", "from": 0},
        "token_maps": {
            "run": run_id,
            "variant": "baseline",
            "start": 0,
            "stop": 2,
            "whole": False,
            "layers": [0, 2],
            "heads": [0, 2],
            "combine": "mean",
            "prompt": False,
        },
        "trace_file": {"run": run_id, "variant": "baseline"},
        "page_file": {"run": f"{run_id}.baseline~{run_id}.var", "names": ["", ""]},
    }

    def act(client: Client, rng: random.Random) -> None:
        name = rng.choice(list(asks))
        ask = changed(asks[name], rng) if rng.random() < 0.9 else value(rng)
        about = {"component_id": component._id, "fn_name": name, "data": ask, "session_hash": "s"}
        if rng.random() < 0.15:
            about = changed(about, rng)
        client.send(f"{API}/component_server/", encoded(about))

    harmless(site, act, share(0.15, 60))


def test_arguments_of_the_api(site: Site, run_id: str) -> None:
    named = endpoints(site)
    photo = file_of(upload(site, _png()))
    first = {"generate": photo, "compare": photo}

    def act(client: Client, rng: random.Random) -> None:
        name = rng.choice([one for one in named if one not in ("load", "stop")])
        data = list(named[name])
        if data:
            data[0] = first.get(name, run_id)
            for _ in range(rng.randint(1, 2)):
                data[rng.randrange(len(data))] = value(rng)
        if rng.random() < 0.1:
            data = data[:-1] if rng.random() < 0.5 else [*data, value(rng)]
        status, text = client.send(f"{API}/call/{name}", encoded({"data": data}))
        if status == 200:
            event = json.loads(text)["event_id"]
            begun = time.monotonic()
            said = send(client.site, f"{API}/call/{name}/{event}", method="GET", kind=None)[1]
            shown = f"{name} {json.dumps(data)[:400]}: {said[:400]}"
            client.look(said, shown)
            assert UNFORESEEN not in json.loads(json.dumps(said)), shown
            assert time.monotonic() - begun < WAITED_SECONDS, shown

    harmless(site, act, share(0.15, 40))


def _png() -> bytes:
    from tests.hostile.readers import png

    return png()
