"""Input of the page's scripts from outside: addresses, and lists in the browser's storage."""

from __future__ import annotations

import base64
import gzip
import json
import random
import re
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest

from sinkscope.web.components.assets import STATIC
from sinkscope.web.runs.store import Run
from tests.hostile.corpus import PIECES, SCALARS, changed, garbled, value
from tests.hostile.limits import share
from tests.web.conftest import Site, settled, start_site
from tests.web.scripted import ScriptedEngine, fake_handle
from tests.web.synthetic import make_pair

pytestmark = pytest.mark.browser

COUNT = share(0.05, 200)
KEYS = (
    "v", "run", "t", "p", "l", "h", "combine", "method", "scale", "difference", "four", "box",
    "ask", "range", "colours", "overlay", "photo", "quantity", "opacity", "image", "sinks",
    "smooth", "same", "swapped", "heads", "__proto__", "constructor", "toString", "",
)  # fmt: skip
SOUND = (
    "v=2&run=abcdefghijklmnop&t=0-2&l=1-3&h=0-7&combine=max&scale=log&box=0-0-2-2&four=1-2-3-4.x"
)


def piece(name: str, *wanted: str) -> str:
    """Functions and constants of one of the page's scripts, by their names."""
    text = (STATIC / name).read_text(encoding="utf-8")
    found = []
    for one in wanted:
        match = re.search(
            rf"^(?:async )?function {one}\(.*?^}}$|^const {one}\b.*?;(?: //.*)?$", text, re.M | re.S
        )
        assert match, f"{name} has no {one}"
        found.append(match[0])
    return "\n".join(found)


def addresses(count: int) -> Iterator[str]:
    rng = random.Random(1)
    numbers = (
        "0-0",
        "0-999999",
        "-1-2",
        "9" * 400,
        "1-2-3-4",
        "localising~4.1-4.3",
        "toString~1.1",
        "1.5-2",
        "0-1e9",
        "٣-٤",
    )
    for _ in range(count):
        if rng.random() < 0.3:
            yield garbled(SOUND.encode(), rng).decode("latin-1")
            continue
        parts = []
        for _ in range(rng.randint(0, 6)):
            said = rng.choice((str(value(rng)), rng.choice(numbers), json.dumps(value(rng))))
            said = rng.choice((urllib.parse.quote(said[:500]), "%", "%E0%A4%A", said[:500]))
            parts.append(f"{rng.choice(KEYS)}={said}")
        yield "&".join(parts)


READ_ADDRESSES = """([source, cases]) => {
  const read = new Function("location", "view", source + "; return readAddress();"), made = [];
  for (const hash of cases) {
    const begun = performance.now(), out = read({ hash: "#" + hash }, { part: "answer" });
    made.push({ out, ms: performance.now() - begun });
  }
  const polluted = [{}.x, {}.v, Object.keys(Object.prototype).length];
  return { made: JSON.stringify(made), polluted };
}"""


def test_any_address_is_read_as_a_view_or_left_out(browser: Any) -> None:
    names = ("RUN_ID", "LINK", "LINKED", "AT_FIRST", "linkedValue", "readAddress")
    source = piece("inspector/80_controls.js", *names)
    source += "\n" + piece("inspector/78_heads.js", "HEAD_KINDS", "HEADS_NAMED", "readPicked")
    page = browser.new_page()
    answer = page.evaluate(READ_ADDRESSES, [source, list(addresses(COUNT))])
    page.close()
    assert answer["polluted"] == [None, None, 0]
    found = json.loads(answer["made"])
    assert len(found) == COUNT
    for one in found:
        made = one["out"]
        assert one["ms"] < 1000
        for name in ("t", "p", "l", "h", "box", "layers"):
            assert all(type(x) is int and 0 <= x < 10**6 for x in made.get(name, []))
        assert re.fullmatch(r"[\w.~-]{16,150}", made.get("run", "x" * 16))
        assert made.get("scale", "log") in ("percentile", "linear", "log", "rank")
        assert made.get("combine", "max") in ("max", "min")
        assert re.fullmatch(r"\w{1,40}", made.get("method", "x"))
        picked = made.get("picked") or {"kind": "", "pairs": []}
        assert (
            picked["kind"] in ("", "localising", "feeds_on_sinks") and len(picked["pairs"]) <= 1000
        )
        assert all(0 <= x < 10**4 for pair in picked["pairs"] for x in pair)
        assert made.get("ask") is None or isinstance(made["ask"], dict | list)


LISTS = {
    "readRuns": ("inspector/84_runs.js", ("RUNS_KEY", "readRuns"), ("id", "name")),
    "earlier": ("evaluate/40_earlier.js", ("KEPT", "earlier"), ("id", "title")),
    "runs": ("experiments/50_sides.js", ("RUNS", "isRun", "runs"), ("run", "text")),
}
KEPT = [
    {"id": "a" * 22, "name": "One", "title": "One", "at": 1.0, "tokens": "1", "model": "m"},
    {"run": "b" * 22, "text": "1: x", "experiment": "scan", "number": 1},
]
READ_LISTS = """([source, name, cases]) => cases.map((kept) => {
  const storage = { getItem: () => kept }, code = source + `; return ${name}();`;
  return JSON.stringify(new Function("localStorage", "sessionStorage", code)(storage, storage));
})"""


def kept_lists(count: int) -> Iterator[str | None]:
    rng = random.Random(2)
    yield from (None, "", "null", "{}", "[null]", "1", '"x"', "[[]]", "[" * 100_000)
    for _ in range(count):
        if rng.random() < 0.3:
            yield garbled(json.dumps(KEPT).encode(), rng).decode("latin-1")
        else:
            yield json.dumps(changed(KEPT, rng))


@pytest.mark.parametrize("name", LISTS)
def test_any_storage_is_a_list_of_runs(name: str, browser: Any) -> None:
    file, wanted, texts = LISTS[name]
    page = browser.new_page()
    cases = list(kept_lists(COUNT))
    found = page.evaluate(READ_LISTS, [piece(file, *wanted), name, cases])
    page.close()
    assert len(found) == len(cases)
    for one in map(json.loads, found):
        assert isinstance(one, list)
        assert all(isinstance(item[text], str) for item in one for text in texts)


UNPACK = """([source, cases]) => cases.map((base64) => {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)), begun = performance.now();
  let said = "read";
  try {
    new Function("buffer", source + "; return unpack(buffer);")(bytes.buffer);
  } catch (error) {
    said = error instanceof Error ? error.name : "thrown";
  }
  return [said, performance.now() - begun];
})"""


def test_numbers_that_are_damaged_are_an_error_at_once(browser: Any) -> None:
    from sinkscope.web.runs.payload import build_payload

    sound = gzip.decompress(build_payload(Run(make_pair(("A", " ball"), ("A", " dog")))))
    rng = random.Random(3)
    cases = [
        sound,
        *(garbled(sound[:3000], rng) + sound[3000:] for _ in range(min(COUNT // 20, 100))),
    ]
    source = piece("inspector/20_data.js", "KINDS", "unpack")
    page = browser.new_page()
    encoded = [base64.b64encode(case).decode() for case in cases]
    found = page.evaluate(UNPACK, [source, encoded])
    page.close()
    assert found[0][0] == "read"
    assert all(said != "thrown" and ms < 1000 for said, ms in found)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    example = Run(make_pair(), kind="example")
    folder = tmp_path_factory.mktemp("cache")
    made = start_site(folder, ScriptedEngine(), handle=fake_handle(), example=example)
    yield made
    made.app.blocks.close(verbose=False)


def test_the_page_opens_with_any_address_and_storage(open_page: Any, site: Site) -> None:
    """No error on the console, and the example is shown."""
    page = open_page(site.url)
    lists = [one for one in kept_lists(4) if one is not None][-6:]
    for hash_, kept in zip(addresses(share(0.001, 3)), lists * 100, strict=False):
        page.evaluate(
            """(kept) => {
              localStorage.setItem("sinkscope.runs", kept);
              localStorage.setItem("sinkscope-evaluations", kept);
              sessionStorage.setItem("sinkscope-experiment-runs", kept);
            }""",
            kept,
        )
        settled(page)
        page.evaluate("(hash) => { location.hash = hash; location.reload(); }", hash_)
        page.wait_for_selector("[data-testid=inspector][data-ready]", state="attached")
        page.evaluate("document.querySelector('[data-do=runs]').click()")
        assert page.evaluate("window.__hit") is None


def test_the_corpus_reaches_what_is_looked_for() -> None:
    """The corpus still contains inputs that once did harm, so that nobody removes them
    unnoticed."""
    assert {"pair", None, 10**12, "/proc/kmsg"} <= set(SCALARS)
    assert b"NaN" in PIECES and b"[" * 200 in PIECES
