"""Reading an HTML document without a browser."""

from __future__ import annotations

from html.parser import HTMLParser


class Blocks(HTMLParser):
    """The elements of a document as a browser reads them, and the texts of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._inside: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = dict(attrs).get("id") if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts[self._inside] = self.texts.get(self._inside, "") + data

    def scripts_that_run(self) -> int:
        return sum(tag == "script" and "type" not in attrs for tag, attrs in self.elements)
