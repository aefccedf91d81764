"""Users with passwords: what needs a login, how often one may try, and who owns a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import pytest
from gradio.context import LocalContext
from PIL import Image

from sinkscope.config import AppSettings
from sinkscope.web.runs.owners import OWNER, OwnedRuns
from sinkscope.web.runs.store import Run
from sinkscope.web.server.current_request import USER
from sinkscope.web.server.login import Users, users_of
from sinkscope.web.server.throttle import FREE_TRIES, MOST_KEYS, Key, Throttle
from tests.web.conftest import Site, start_site
from tests.web.scripted import ScriptedEngine, fake_handle
from tests.web.synthetic import make_pair, make_trace
from tests.web.test_access import CLOSED, ask

FORM = "application/x-www-form-urlencoded"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two users, ada and bob."""
    folder = tmp_path_factory.mktemp("cache")
    file = folder / "users.txt"
    file.write_text("# of the tests\nada:first:word\n\nbob:second\n")
    file.chmod(0o600)
    site = start_site(
        folder,
        ScriptedEngine(),
        handle=fake_handle(),
        example=Run(make_pair(), kind="example"),
        page={"auth_file": str(file)},
    )
    yield site
    site.app.blocks.close(verbose=False)


def log_in(site: Site, user: str, password: str) -> tuple[int, str]:
    body = urlencode({"username": user, "password": password})
    status, headers, _ = ask(site, "/login", "POST", body, content_type=FORM)
    return status, headers.get("set-cookie", "").partition(";")[0]


# --- what is behind it ----------------------------------------------------------------------------

SHOWN = {
    "/",
    "/?deep_link=x",
    "/theme.css",
    "/assets/x",
    "/static/x",
    "/login",
    "/gradio_api/app_id",
}


@pytest.mark.parametrize("path", [path for path in CLOSED if path not in SHOWN])
def test_nothing_without_a_login(home: Site, path: str) -> None:
    assert ask(home, path)[0] == 401


@pytest.mark.parametrize("path", ["/", "/?deep_link=x"])
def test_the_bare_page_holds_nothing_of_the_app(home: Site, path: str) -> None:
    status, _, text = ask(home, path)
    component = home.app.handlers.component
    assert component is not None
    assert status in (200, 401) and component.value["run"] not in text
    assert "auth_required" in text
    for name in ("evaluate-run", "sinks-run", "prompt_rows", "Qwen2.5-VL-3B"):
        assert name not in text.partition("window.gradio_config")[2].partition("</script>")[0]


def test_the_page_opens_for_both_users(home: Site) -> None:
    for user, password in (("ada", "first:word"), ("bob", "second")):
        status, cookie = log_in(home, user, password)
        assert status == 200
        assert ask(home, "/config", cookie=cookie)[0] == 200
        assert ask(home, "/openapi.json", cookie=cookie)[0] == 200
    assert log_in(home, "ada", "second")[0] == 400


# --- throttling -----------------------------------------------------------------------------------


def test_passwords_cannot_be_tried_at_will(tmp_path: Path) -> None:
    site = start_site(tmp_path, ScriptedEngine(), handle=fake_handle(), auth="me:secret")
    try:
        tried = [log_in(site, "me", f"wrong{n}")[0] for n in range(FREE_TRIES)]
        assert tried == [400] * FREE_TRIES
        assert log_in(site, "me", "secret")[0] == 429  # the right password waits too
        assert log_in(site, "someone", "x")[0] == 429  # by address
    finally:
        site.app.blocks.close(verbose=False)


def test_waits_grow_are_bounded_and_are_forgotten() -> None:
    now = [0.0]
    throttle = Throttle(lambda: now[0])
    keys = [Key("address 192.0.2.1", 900.0), Key("user me", 60.0, forgets=True)]
    waits = []
    for _ in range(FREE_TRIES + 12):
        assert throttle.begin(keys) == 0
        waits.append(throttle.begin(keys))
        now[0] += waits[-1]
    assert waits[: FREE_TRIES - 1] == [0] * (FREE_TRIES - 1) or max(waits[:2]) == 0
    assert waits == sorted(waits) and waits[-1] == 900
    assert throttle.begin([keys[1]]) == 0
    assert throttle.begin([keys[1]]) == 60  # anybody can try a name, so its wait is short
    now[0] += 5000
    assert throttle.begin(keys) == throttle.begin(keys) == 0


def test_a_right_try_forgets_a_users_wrong_ones_but_not_an_addresss() -> None:
    now = [0.0]
    throttle = Throttle(lambda: now[0])
    address, user = Key("address a", 900.0), Key("user me", 60.0, forgets=True)
    for _ in range(FREE_TRIES - 1):
        throttle.begin([address, user])
    throttle.begin([address, user])
    now[0] += 10
    assert throttle.begin([address, user]) == 0
    throttle.right([address, user])
    for _ in range(FREE_TRIES - 1):
        assert throttle.begin([user]) == 0
    throttle.begin([address])
    assert throttle.begin([address]) > 0


def test_many_names_take_no_memory_without_end() -> None:
    throttle = Throttle()
    for n in range(MOST_KEYS + 500):
        throttle.begin([Key(f"user {n}", 60.0)])
    assert len(throttle._tries) == MOST_KEYS


# --- users ----------------------------------------------------------------------------------------


def test_every_password_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    compared: list[Any] = []
    real = hmac.compare_digest
    monkeypatch.setattr(
        "sinkscope.web.server.login.hmac.compare_digest",
        lambda a, b: compared.append(a) or real(a, b),
    )
    users = Users({"ada": "x", "bob": "ü"})
    assert users("bob", "ü") and not users("ada", "ü") and not users("eve", "x")
    # Each given password with that of every user, whoever it is for.
    assert compared.count(b"x") == 2 and compared.count("ü".encode()) == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has 0 users"),
        ("ada\n", "something else in line 1"),
        ("ada:x\nada:y\n", "something else in line 2"),
        (":x\n", "something else in line 1"),
        ("\xff", "not text in UTF-8"),
    ],
)
def test_a_damaged_file_of_users(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=words):
        users_of(AppSettings(auth_file=str(file)))
    with pytest.raises(ValueError, match="cannot be read"):
        users_of(AppSettings(auth_file=str(tmp_path / "missing")))


def test_a_file_that_others_can_read_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "users"
    file.write_text("ada:secret\n")
    file.chmod(0o644)
    assert users_of(AppSettings(auth_file=str(file))) is not None
    assert "can be read by every user" in caplog.text and "secret" not in caplog.text


# --- whose a run is -------------------------------------------------------------------------------


@pytest.fixture
def photo(tmp_path: Path) -> str:
    Image.new("RGB", (60, 40), "teal").save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def test_an_id_alone_does_not_open_another_users_run(home: Site, photo: str) -> None:
    from gradio_client import Client, handle_file

    ada = Client(home.url, auth=("ada", "first:word"), verbose=False)
    bob = Client(home.url, auth=("bob", "second"), verbose=False)
    made = ada.predict(image=handle_file(photo), prompt="Hello", api_name="/generate")
    mine, _ = ada.predict(run=made["run"], tokens="1", api_name="/map")
    assert mine["rows"] > 0
    pair = f"{made['run']}.baseline~{made['run']}.baseline"
    for run in (made["run"], pair):
        with pytest.raises(Exception, match="no longer on the server"):
            bob.predict(run=run, tokens="1", api_name="/map")
    for endpoint in ("/export", "/region"):
        asked = {"rows": "0-1", "columns": "0-1"} if endpoint == "/region" else {"kind": "csv"}
        with pytest.raises(Exception, match="no longer on the server"):
            bob.predict(run=made["run"], **asked, api_name=endpoint)
    # The example is everybody's.
    example = home.app.handlers.component
    assert example is not None
    assert bob.predict(run=example.value["run"], tokens="1", api_name="/map")[0]["rows"] == 8
    # The page's own questions, which know the user only from the request.
    asked_page = {"open_run": {"run": made["run"]}, "tokens_since": {"run": made["run"]}}
    for name, question in asked_page.items():
        assert "data" in question_of(home, "ada", name, question) or name == "tokens_since"
        assert "no longer on the server" in question_of(home, "bob", name, question)
    question_of(home, "bob", "forget_run", {"run": made["run"]})
    assert ada.predict(run=made["run"], tokens="1", api_name="/map")[0]["rows"] > 0
    ada.close()
    bob.close()


def question_of(site: Site, user: str, name: str, question: dict[str, Any]) -> str:
    import json

    password = {"ada": "first:word", "bob": "second"}[user]
    cookie = log_in(site, user, password)[1]
    component = site.app.handlers.component
    assert component is not None
    body = {"component_id": component._id, "fn_name": name, "data": question, "session_hash": "s"}
    path = "/gradio_api/component_server/"
    kind = "application/json"
    return ask(site, path, "POST", json.dumps(body), cookie=cookie, content_type=kind)[2]


def as_user(monkeypatch: pytest.MonkeyPatch, user: str | None) -> None:
    given = SimpleNamespace(scope={USER: user})
    LocalContext.request.set(given)  # type: ignore[arg-type]


def test_owners_outlive_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        as_user(monkeypatch, "ada")
        store = OwnedRuns(tmp_path, 10**8)
        run = Run({"baseline": make_trace()})
        assert store.put(run) is None
        again = OwnedRuns(tmp_path, 10**8)
        for user, sees in (("ada", True), ("bob", False), (None, False), ("", False)):
            as_user(monkeypatch, user)
            assert (again.get(run.id) is not None) == sees, user
        as_user(monkeypatch, "bob")
        again.delete(run.id)
        assert (tmp_path / run.id).is_dir()
        (tmp_path / run.id / OWNER).unlink()  # from a time without logins: no owner
        as_user(monkeypatch, "ada")
        assert OwnedRuns(tmp_path, 10**8).get(run.id) is None
        as_user(monkeypatch, None)
        orphan = Run({"baseline": make_trace()})
        store.put(orphan)
        assert store.get(orphan.id) is None
    finally:
        LocalContext.request.set(None)
