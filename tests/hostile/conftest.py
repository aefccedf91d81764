"""The page in Chromium, as the page's own tests open it."""

from tests.web.conftest import browser, open_page

__all__ = ["browser", "open_page"]
