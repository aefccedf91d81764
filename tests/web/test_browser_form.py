"""The form keeps the user's last input, however late the answers to earlier events come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sinkscope.web.runs.example import read_examples
from tests.web.conftest import Site, reload
from tests.web.test_browser_view import ready

pytestmark = pytest.mark.browser

CLICKS = """which => {
  for (const i of which) document.querySelector(`[data-testid=example-${i}]`).click();
}"""
PROMPT = "text => document.querySelector('#prompt textarea').value === text"


def test_of_examples_pressed_at_once_the_last_one_is_taken(
    shop: Site, open_page: Callable[..., Any]
) -> None:
    page = open_page(shop.url)
    ready(page)
    examples = read_examples()
    for pressed in ([1, 2, 3], [2, 1]):
        page.evaluate(CLICKS, pressed)
        page.wait_for_function(PROMPT, arg=examples[pressed[-1]].prompt)
        page.wait_for_function(
            "name => document.querySelector('#image img').src.endsWith(name)",
            arg=examples[pressed[-1]].image.name,
        )
    assert page.locator("[data-testid^=example-]").count() == len(examples)


def test_what_is_typed_while_the_page_opens_stays(
    shop: Site, open_page: Callable[..., Any]
) -> None:
    """The form is filled when the page opens, so no answer to an event can overwrite it."""
    page = open_page(shop.url)
    held: list[Any] = []
    page.route("**/run/predict", lambda route: held.append(route))
    reload(page)
    ready(page)
    page.wait_for_function("document.querySelector('#image img').naturalWidth > 0")  # it is seen
    page.fill("#prompt textarea", "Typed at once")
    page.wait_for_timeout(300)
    late = list(held)  # the events of opening; none was answered yet
    assert late
    with page.expect_response("**/run/predict"):
        for route in late:
            route.continue_()
    page.wait_for_timeout(500)
    assert page.input_value("#prompt textarea") == "Typed at once"
