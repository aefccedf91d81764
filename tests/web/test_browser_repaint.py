"""A repaint draws only what changed, with the same result as drawing everything."""

from __future__ import annotations

from typing import Any

import pytest

from sinkscope.web.runs.store import Run
from tests.web.conftest import INSPECTOR, Site, reload
from tests.web.synthetic import make_pair
from tests.web.test_browser_view import HASH

pytestmark = pytest.mark.browser

# Everything that a view consists of: texts, choices, and the pixels of each visible canvas.
LOOK = """() => {
  const work = document.querySelector(".work"), seen = (one) => one.offsetParent;
  const hash = HASH;
  document.querySelector(".live").textContent = "";  // it comes a moment later
  return {
    words: work.innerText.split("\\n"),
    marks: [...work.querySelectorAll("[aria-selected=true], [aria-pressed=true]")].filter(seen)
      .map((one) => one.dataset.testid || one.textContent),
    named: [...work.querySelectorAll("[aria-label], [aria-valuetext]")].filter(seen)
      .map((one) => [one.ariaLabel, one.ariaValueText]),
    values: [...work.querySelectorAll("select, input")].filter(seen)
      .map((one) => one.type === "checkbox" ? one.checked : one.value),
    pixels: [...work.querySelectorAll("canvas")].filter(seen)
      .map((one) => [one.width, one.height, hash(one)]),
    frames: [...work.querySelectorAll(".frame")].filter(seen).map((one) => one.style.cssText),
    ticks: [...work.querySelectorAll(".ticks span, .axis span")].filter(seen)
      .map((one) => [one.textContent, one.style.cssText]),
  };
}""".replace("HASH", HASH)
LAST: dict[str, Any] = {
    "l0": 1,
    "h1": 5,
    "t1": 26,
    "colours": "magma",
    "scale": "linear",
    "same": False,
    "box": {"r0": 0, "c0": 2, "r1": 2, "c1": 4},
    "quantity": "entropy",
    "sinks": False,
}
STEPS: list[dict[str, Any]] = [
    {"t0": 3, "t1": 3},
    {"l0": 2, "l1": 4, "scale": "log"},
    {"four": "var", "t0": 7, "t1": 9},
    {"box": {"r0": 1, "c0": 2, "r1": 2, "c1": 4}, "quantity": "box"},
    {"four": "", "part": "prompt", "t0": 0, "t1": 1, "scale": "rank"},
    {"part": "answer", "difference": False, "h0": 3, "h1": 3, "quantity": "sink"},
    {"t0": 24, "t1": 25, "difference": True, "combine": "max", "colours": "cividis"},
    # One change at a time: parts that do not follow it would still be old at the end.
    *({name: value} for name, value in LAST.items()),
]


def test_what_is_drawn_step_by_step_is_what_is_drawn_at_once(site: Site, open_page: Any) -> None:
    """A step draws only its changes; nothing of earlier steps may remain."""
    run = Run(make_pair())
    site.app.handlers.store.put(run, keep_on_disk=False)
    page = open_page(site.url, path=f"#run={run.id}")
    page.wait_for_selector(f"[data-ready='{run.id}']", state="attached")
    looks = []
    for step in STEPS:
        page.evaluate(f"step => {INSPECTOR}.set(step)", step)
        looks.append(page.evaluate(LOOK))
    assert len({str(look) for look in looks}) == len(STEPS)
    page.wait_for_function("location.hash.includes('sinks=0')")
    reload(page)
    page.wait_for_selector(f"[data-ready='{run.id}']", state="attached")
    assert page.evaluate(LOOK) == looks[-1]


def test_a_click_writes_only_what_it_changes(example_page: Any) -> None:
    """An unchanged control, axis, key or list is not written again, because that costs a layout."""
    page = example_page
    page.evaluate(f"{INSPECTOR}.set({{ t0: 3, t1: 3 }})")
    written = page.evaluate(
        """async () => {
          const parts = document.querySelectorAll(".bar, .axis, .quantity, .lookup, .moved");
          const watch = new MutationObserver(() => {});
          const deep = { subtree: true, childList: true, characterData: true, attributes: true };
          for (const part of parts) watch.observe(part, deep);
          document.querySelector("[data-testid=token-baseline-4]").click();
          return watch.takeRecords().map((one) => `${one.type} in ${one.target.className}`);
        }"""
    )
    assert page.evaluate(f"{INSPECTOR}.view.t0") == 4
    assert written == []
