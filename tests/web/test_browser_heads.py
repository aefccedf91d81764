"""A large run's single heads: fetched on demand, and kept up to a number of bytes."""

from __future__ import annotations

from typing import Any

import pytest

from sinkscope.web.runs.payload import EAGER_BYTES
from sinkscope.web.runs.store import Run
from tests.web.conftest import INSPECTOR, Site
from tests.web.synthetic import make_trace
from tests.web.test_browser_view import ready

pytestmark = pytest.mark.browser

MAP_CACHE = f"const cache = {INSPECTOR}.tools.makeMapCache(100);"


def test_what_is_kept_is_counted_by_its_own_size(example_page: Any) -> None:
    """Small entries after a large one, and large after small: the sum is that of the kept ones."""
    cache_states = example_page.evaluate(f"""() => {{
      {MAP_CACHE}
      const seen = [];
      for (const [key, size] of [['a', 90], ['b', 5], ['c', 5], ['d', 5], ['e', 90], ['e', 7]]) {{
        cache.put(key, key, size);
        seen.push([cache.keys().join(''), cache.bytes]);
      }}
      return seen;
    }}""")
    assert cache_states == [
        ["a", 90],
        ["ab", 95],
        ["abc", 100],
        ["bcd", 15],
        ["cde", 100],
        ["cde", 17],
    ]


def test_the_last_used_and_the_needed_stay(example_page: Any) -> None:
    cache_states = example_page.evaluate(f"""() => {{
      {MAP_CACHE}
      cache.expect('asked');
      for (const key of 'abc') cache.put(key, key, 33);
      cache.get('a');
      cache.put('d', 'd', 33, ['c']);
      const used = cache.keys().join();
      cache.put('huge', 'h', 500, ['d']);
      const beyond = [cache.keys().join(), cache.bytes, cache.get('asked'), cache.get('gone')];
      cache.drop('huge');
      cache.drop('never');
      return [used, ...beyond, cache.bytes];
    }}""")
    assert cache_states == ["asked,c,a,d", "asked,d,huge", 533, None, None, 33]


def test_a_large_run_keeps_to_its_limit(site: Site, open_page: Any) -> None:
    trace = make_trace(rows=32, columns=32, layers=12, heads=12)
    assert trace.attention.numel() > EAGER_BYTES
    run = Run({"baseline": trace})
    site.app.handlers.store.put(run, keep_on_disk=False)
    page = open_page(site.url, path=f"#run={run.id}")
    page.wait_for_selector(f"[data-testid=inspector][data-ready='{run.id}']", state="attached")
    ready(page)
    cache = f"{INSPECTOR}.run.lazyMaps"

    def look(token: int) -> tuple[list[str], int]:
        page.evaluate(f"t => {INSPECTOR}.set({{ t0: t, t1: t, combine: 'max' }})", token)
        key = f"answer.baseline:{token}-{token}"
        page.wait_for_function(f"{cache}.get('{key}') && {INSPECTOR}.shown.maps.baseline")
        return page.evaluate(f"{cache}.keys()"), page.evaluate(f"{cache}.bytes")

    _, one = look(0)
    assert one > 32 * 32 * 12 * 12  # the size of the numbers, not of the compressed data
    page.evaluate(f"most => {{ {cache}.most = most; }}", 3 * one + 1000)
    for token in range(1, 7):
        keys, total = look(token)
        assert total <= 3 * one + 1000 and abs(total - len(keys) * one) < 1000
    assert keys == [f"answer.baseline:{t}-{t}" for t in (4, 5, 6)]
    page.evaluate(f"{cache}.most = 1")  # data on screen is kept
    assert look(9)[0] == ["answer.baseline:9-9"]
