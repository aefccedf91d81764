"""The page in Chromium, opened as in the page's own tests."""

from tests.web.conftest import open_page

__all__ = ["open_page"]
