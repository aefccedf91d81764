"""The page in Chromium, as the page's own tests open it."""

from tests.web.conftest import open_page

__all__ = ["open_page"]
