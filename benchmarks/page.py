"""`python -m sinkscope.benchmarks page`: how fast the page is in Chromium.

Times are by the browser's own clock. The processor time of the page's main thread is given as well,
because other programs on the machine hardly change it. Without a graphics card both are longer.
Nothing here is a test; the table gives the targets.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, cast

import typer

from sinkscope.benchmarks.options import AsJson
from sinkscope.benchmarks.output import check_folder, write_result

INSPECTOR = "document.querySelector('[data-testid=inspector]')"
API = f"{INSPECTOR}.parentElement.inspector"
READY = f"{INSPECTOR}?.dataset.ready"
# Runs before the page's own scripts: records the first map and long tasks.
PROBE = """
  window.probe = { ready: null, long: [], requests: 0 };
  new MutationObserver(() => {
    const shown = document.querySelector('[data-testid=inspector]');
    if (shown?.dataset.ready && probe.ready === null) probe.ready = performance.now();
  }).observe(document, { subtree: true, childList: true, attributeFilter: ['data-ready'] });
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) probe.long.push(Math.round(entry.duration));
  }).observe({ entryTypes: ['longtask'] });
"""
# Time from the event to the end of the frame that shows it, and the script's part of it.
REPAINT = """async ([selector, kind, values]) => {
  const inspector = document.querySelector('[data-testid=inspector]').parentElement.inspector;
  const times = [], scripts = [];
  for (const value of values) {
    const target = document.querySelector(selector.replace('*', value));
    await new Promise(requestAnimationFrame);
    const begun = performance.now();
    if (kind === 'click') target.click();
    else {
      target.value = value;
      target.dispatchEvent(new Event('input', { bubbles: true }));
    }
    scripts.push(performance.now() - begun);
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    times.push(performance.now() - begun);
  }
  return [times, scripts];
}"""

LONGEST = "({ tasks: probe.long.length, longest: Math.max(0, ...probe.long) })"
REPAINTS = 60
SLIDERS = ("layer-to", "layer-from", "head-to", "opacity")


@dataclass(frozen=True)
class Sizes:
    """Sizes of the made-up run, those of a large model."""

    layers: int = 36
    heads: int = 16
    tokens: int = 128
    side: int = 32
    streamed: int = 1000
    opened: int = 5


def page(
    as_json: AsJson = False,
    output: Annotated[Path | None, typer.Option(help="Folder for page.json and page.txt.")] = None,
) -> None:
    """The page: time to the first map, repaints, streaming, a large run, weight."""
    from sinkscope.cli.common import clear_errors

    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1")
    with clear_errors():
        check_folder(output)
        result = measure(Sizes())
        write_result(result, table(result), "page", as_json, output)


def measure(sizes: Sizes) -> dict[str, Any]:
    """All measurements, as plain values.

    Raises:
        ValueError: there is no Chromium.
    """
    from playwright.sync_api import sync_playwright

    from sinkscope.cli.screenshots import CHROMIUM, FLAGS

    chromium = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if chromium is None:
        raise ValueError(f"There is no Chromium on this machine ({', '.join(CHROMIUM)}).")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        try:
            with _site(None, None) as url:
                result = {
                    "chromium": browser.version,
                    "processors": os.cpu_count(),
                    "load": os.getloadavg()[0],
                    "weight": weight(),
                    "opening": _opening(browser, url, sizes.opened),
                    "repaint": _repaint(browser, url),
                }
            pausing = _PausingEngine(sizes.streamed)
            with _site(None, pausing) as url:
                result["streaming"] = _streaming(browser, url, pausing)
            with _site(_large(sizes), None) as url:
                result["large"] = _dragging(browser, url)
        finally:
            browser.close()
    return result


def weight() -> dict[str, int]:
    """Bytes of our own scripts, styles and templates in the page, and gzipped; scripts of the other
    tabs are loaded when these are opened (`web.components.parts`)."""
    from sinkscope.web.components.assets import STATIC, page_style, read_static
    from sinkscope.web.components.parts import script_of

    drawn = [file.stem for file in sorted(STATIC.glob("*.html")) if file.stem != "standalone"]
    texts = [
        *(page_style(), read_static("stream.js")),
        *(read_static(f"{name}.html") for name in drawn),
        *map(script_of, drawn),
    ]
    ours = "".join(texts).encode()
    return {"bytes": len(ours), "sent": len(gzip.compress(ours, 6))}


@contextmanager
def _site(example: Any, pausing: _PausingEngine | None) -> Iterator[str]:
    """The app on a free port, with the bundled example or a made-up run, and a made-up engine."""
    from sinkscope.config import AppSettings, Settings
    from sinkscope.web.explore.handlers import RunFunctions
    from sinkscope.web.launch import launch
    from sinkscope.web.page import build_app

    engine = RunFunctions(pausing.generate) if pausing else None
    with tempfile.TemporaryDirectory() as cache:
        settings = Settings(app=AppSettings(port=0, cache_dir=cache))
        app = build_app(
            settings, cast(Any, _Handle()), engine=engine, estimate=_no_estimate, example=example
        )
        try:
            yield launch(app, wait=False)
        finally:
            app.blocks.close(verbose=False)


class _Handle:
    """What the page needs of a model, without a model."""

    profile = None
    most_pixels = None
    info = SimpleNamespace(
        id="made up", device="cpu", dtype="float32", layers=2, heads=2, note="", hidden_size=64
    )

    def __init__(self) -> None:
        from sinkscope.models.generation_file import GenerationFile

        text = SimpleNamespace(vocab_size=100)
        config = SimpleNamespace(get_text_config=lambda: text)
        self.model = SimpleNamespace(config=config, generation_config=SimpleNamespace())
        self.generation_file = GenerationFile()

    def prepare(self, images: Any, prompt: str, **_: Any) -> Any:
        from sinkscope.models.family import PromptInputs, PromptLayout

        return PromptInputs({}, PromptLayout(1, (), ()), tuple(images), prompt, (), ())


def _no_estimate(*_: Any, **__: Any) -> Any:
    raise ValueError("not measured here")


class _PausingEngine:
    """An engine that writes tokens a quarter at a time, on request."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.quarter = threading.Semaphore(0)

    def generate(self, handle: Any, inputs: Any, settings: Any, **hooks: Any) -> Any:
        from sinkscope.benchmarks.reading import random_trace

        trace = random_trace(self.tokens, layers=2, heads=2, side=4)
        for i, token in enumerate(trace.tokens):
            if i % (self.tokens // 4) == 0:
                self.quarter.acquire()
            hooks["on_token"](i, token)
            if hooks["stop"].wait(0.002):  # 500 a second, faster than any model
                break
        return trace


def _large(sizes: Sizes) -> Any:
    from sinkscope.benchmarks.reading import random_trace
    from sinkscope.web.runs.store import Run

    trace = random_trace(sizes.tokens, sizes.layers, sizes.heads, sizes.side)
    return Run({"baseline": trace}, kind="example")


def _open(browser: Any, url: str) -> Any:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.add_init_script(PROBE)
    page.set_default_timeout(120_000)
    page.goto(url)
    page.wait_for_function(READY)
    return page


def _opening(browser: Any, url: str, times: int) -> dict[str, Any]:
    """Milliseconds from requesting the page to the first usable map, without a cache."""
    opened = []
    for _ in range(times):
        page = _open(browser, url)
        page.wait_for_function("probe.ready !== null")
        opened.append(page.evaluate("probe.ready"))
        page.context.close()
    return {"first": opened[0], "median": statistics.median(opened), "worst": max(opened)}


def _computing(page: Any) -> Callable[[], float]:
    """A clock of the main thread's processor time, in milliseconds."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def read() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return 1000 * float(next(m["value"] for m in metrics if m["name"] == "TaskDuration"))

    return read


def _repaint(browser: Any, url: str) -> dict[str, Any]:
    """On the bundled example: clicks on its words, and its layer slider."""
    page = _open(browser, url)
    page.wait_for_timeout(1500)  # work left from opening does not count
    computed = _computing(page)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    tokens, layers = page.evaluate(f"[{API}.run.variants[0].T, {API}.run.L]")
    measured: dict[str, Any] = {}
    for name, selector, kind, count in (
        ("click", "[data-testid=token-baseline-*]", "click", tokens),
        ("slider", "[data-testid=layer-to]", "input", layers),
    ):
        values = [str(i % count) for i in range(REPAINTS)]
        before = computed()
        times, scripts = page.evaluate(REPAINT, [selector, kind, values])
        bytes_each = (computed() - before) / REPAINTS
        measured[name] = {**_spread(times), "script": _spread(scripts), "computed": bytes_each}
    page.context.close()
    return {**measured, "requests": len(asked)}


def _streaming(browser: Any, url: str, pausing: _PausingEngine) -> dict[str, Any]:
    """Processor time of the main thread for each quarter of a long answer, in milliseconds."""
    page = _open(browser, url)
    computed = _computing(page)
    page.click("[data-testid=example-0]")
    page.wait_for_selector("#image img")
    page.click("#generate")
    page.wait_for_selector("[data-phase=streaming]")
    page.evaluate("probe.long.length = 0")
    quarters = []
    for part in range(1, 5):
        before = computed()
        pausing.quarter.release()
        last = part * (pausing.tokens // 4) - 1
        last_shown = f"document.querySelector('[data-testid=token-baseline-{last}]')"
        page.wait_for_function(last_shown, polling=100)
        quarters.append(computed() - before)
    longest = page.evaluate(LONGEST)["longest"]
    page.wait_for_function(READY)
    page.context.close()
    return {"tokens": pausing.tokens, "quarters": quarters, "longest_task": longest}


def _dragging(browser: Any, url: str) -> dict[str, Any]:
    """The longest task of the main thread while each slider of a large run is dragged."""
    page = _open(browser, url)
    page.wait_for_timeout(1500)
    result: dict[str, Any] = {"ready": page.evaluate("probe.ready")}
    page.click("[data-testid=appearance]")  # shows the opacity slider
    for name in SLIDERS:
        slider = page.locator(f"[data-testid={name}]")
        box = slider.bounding_box()
        left, width, y = box["x"] + 8, box["width"] - 16, box["y"] + box["height"] / 2
        at = slider.evaluate("e => (e.value - e.min) / (e.max - e.min)")
        page.mouse.move(left + at * width, y)
        with _tasks(browser, page, result, name):
            page.mouse.down()
            for step in range(REPAINTS):  # to one end and back
                page.mouse.move(left + width * abs(at - abs(1 - 2 * step / REPAINTS)), y)
            page.mouse.up()
        page.keyboard.press("0")
    page.locator("[data-testid^=token-baseline-]").first.click()
    with _tasks(browser, page, result, "tokens"):
        for _ in range(REPAINTS):
            page.keyboard.press("ArrowRight")
    page.context.close()
    return result


@contextmanager
def _tasks(browser: Any, page: Any, result: dict[str, Any], name: str) -> Iterator[None]:
    """Puts the longest task of a page's main thread into `result`: wall time and processor time."""
    page.evaluate("probe.long.length = 0")
    browser.start_tracing(page=page, categories=["toplevel", "__metadata"])
    yield
    page.wait_for_timeout(300)
    result[name] = page.evaluate(LONGEST)
    events = json.loads(browser.stop_tracing())["traceEvents"]
    threads = {
        (event["pid"], event["tid"])
        for event in events
        if event["name"] == "thread_name" and event["args"].get("name") == "CrRendererMain"
    }
    spent = [e["tdur"] for e in events if "tdur" in e and (e["pid"], e["tid"]) in threads]
    result[name]["longest_computed"] = max(spent, default=0) / 1000


def _spread(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {"median": statistics.median(ordered), "p95": ordered[int(0.95 * (len(ordered) - 1))]}


def table(result: dict[str, Any]) -> str:
    """The whole result for a terminal."""
    paint, stream, large = result["repaint"], result["streaming"], result["large"]
    first, ours = result["opening"], result["weight"]
    lines = [
        f"The page, Chromium {result['chromium']} without a graphics card, {result['processors']} "
        f"processors, load {result['load']:.1f} at the start",
        "",
        f"{'from request to first map (aim 2000 ms)':<46}{first['median']:>8.0f} ms   "
        f"cold {first['first']:.0f}, worst {first['worst']:.0f}",
    ]
    for name in ("click", "slider"):
        part = paint[name]
        lines.append(
            f"{f'{name} to shown (aim 20 ms)':<46}{part['median']:>8.1f} ms   95 % "
            f"{part['p95']:.1f}; script {part['script']['median']:.1f}; computed "
            f"{part['computed']:.1f}"
        )
    lines.append(f"{'requests while doing so (aim 0)':<46}{paint['requests']:>8}")
    quarters = ", ".join(f"{q:.0f}" for q in stream["quarters"])
    lines += [
        f"{stream['tokens']} tokens: computed for each quarter{'':<12}{quarters} ms   longest task "
        f"{stream['longest_task']} ms",
        f"{'large run: from request to first map':<46}{large['ready']:>8.0f} ms",
    ]
    for name in (*SLIDERS, "tokens"):
        part = large[name]
        what = "arrow keys over tokens" if name == "tokens" else f"dragging {name}"
        lines.append(
            f"{f'large run: {what} (aim 50 ms)':<46}{part['longest']:>8} ms   longest task, "
            f"{part['tasks']} over 50 ms; the longest computed {part['longest_computed']:.0f} ms"
        )
    lines.append(
        f"{'our scripts, styles, templates (aim 70 kB)':<46}{ours['sent'] / 1000:>8.0f} kB   "
        f"gzipped; {ours['bytes'] / 1000:.0f} kB unpacked"
    )
    return "\n".join(lines)
