"""The app's protocol for `benchmarks load`: what a browser or `gradio_client` sends and reads.

A `Page` has the layout of the page (read once); a `Browser` is a session with its own connections.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

API = "/gradio_api"
STOPPED = "Stopped while it was waiting"
BUSY = ("runs are waiting already", "Queue is full")  # how the app's and Gradio's queues refuse
_RUN = re.compile(r'"run": ?"([A-Za-z0-9_-]{16,64})"')
# A kept connection was closed as the request went out; browsers, too, send it again.
IDLE = "disconnected without sending"
ASK_SECONDS = 60.0  # for one plain request
KEEP_SECONDS = 3.0  # an unused connection; the server closes its own after 5
JOB_SECONDS = 300.0  # without a message about a job: heartbeats come every 15


class RefusedError(Exception):
    """The queue is full."""


class StoppedError(Exception):
    """The job was stopped before it began."""


class FailedError(Exception):
    """Any other unexpected answer."""


class Page:
    """The page's functions by name, and the values of their controls."""

    def __init__(self, config: dict[str, Any], info: dict[str, Any]) -> None:
        parts = {part["id"]: part["props"] for part in config["components"]}
        self._functions = {one["api_name"]: one for one in config["dependencies"]}
        self.inspector = next(k for k, v in parts.items() if v.get("elem_id") == "inspector")
        self.example = str(parts[self.inspector]["value"]["run"])
        answer = self._functions["answer"]["inputs"]
        self._controls = [(str(parts[k].get("elem_id")), parts[k].get("value")) for k in answer]
        self._parameters = info["named_endpoints"]["/generate"]["parameters"]

    def index(self, name: str) -> int:
        return int(self._functions[name]["id"])

    def answer(self, image: Any, prompt: str, compare: bool, tokens: int) -> list[Any]:
        """What Generate on the page sends."""
        values = {
            "image": image,
            "prompt": prompt,
            "compare": compare,
            "set-max-new-tokens": tokens,
        }
        missing = values.keys() - {name for name, _ in self._controls}
        if missing:
            raise FailedError(f"the page has no control {', '.join(sorted(missing))}")
        return [values.get(name, value) for name, value in self._controls]

    def generate(self, image: Any, prompt: str, tokens: int) -> list[Any]:
        """What a client of the API sends."""
        values = {"image": image, "prompt": prompt, "max_new_tokens": tokens}
        return [
            values.get(one["parameter_name"], one.get("parameter_default"))
            for one in self._parameters
        ]


class Browser:
    """One session: requests over connections of its own."""

    def __init__(self, url: str, page: Page | None = None) -> None:
        import httpx

        self._client = httpx.AsyncClient(
            base_url=url.rstrip("/"),
            timeout=httpx.Timeout(ASK_SECONDS),
            limits=httpx.Limits(keepalive_expiry=KEEP_SECONDS),
            trust_env=False,
            verify=False,  # no TLS here, and reading certificates takes long
        )
        self.session = uuid.uuid4().hex[:12]
        self._page = page

    @property
    def page(self) -> Page:
        assert self._page is not None, "read_page comes first"
        return self._page

    async def read_page(self) -> Page:
        config, info = (await self.get("/config"), await self.get(f"{API}/info"))
        self._page = Page(json.loads(config), json.loads(info))
        return self._page

    async def get(self, path: str) -> bytes:
        """The body of an answer.

        Raises:
            FailedError: a status other than 200, or no answer.
        """
        return (await self._send("GET", path)).content

    async def upload(self, image: Path) -> dict[str, Any]:
        """An image as the value of an image control."""
        files = {"files": (image.name, image.read_bytes(), "image/png")}
        (path,) = (await self._send("POST", f"{API}/upload", files=files)).json()
        return {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": image.name}

    async def ask(self, function: str, question: dict[str, Any]) -> dict[str, Any]:
        """A question of the inspector, which does not queue."""
        content = {
            "component_id": self.page.inspector,
            "fn_name": function,
            "data": question,
            "session_hash": self.session,
        }
        answer = (await self._send("POST", f"{API}/component_server/", json=content)).json()
        if not isinstance(answer, dict) or "error" in answer:
            raise FailedError(f"{function}: {str(answer)[:200]}")
        return answer

    async def stop(self, name: str) -> None:
        content = {"data": [], "session_hash": self.session, "fn_index": self.page.index(name)}
        await self._send("POST", f"{API}/run/{name}", json=content)

    async def job(self, name: str, data: list[Any]) -> AsyncIterator[str]:
        """Join the queue and follow the job to its end.

        Yields:
            "joined" once it is accepted, the run's id for each message that names it, and "" for
            each other message.

        Raises:
            RefusedError: the queue is full.
            StoppedError: the job was stopped while it waited.
            FailedError: the job failed, or its stream ended before it did.
        """
        content = {"data": data, "session_hash": self.session, "fn_index": self.page.index(name)}
        await self._send("POST", f"{API}/queue/join", json=content)
        yield "joined"
        path = f"{API}/queue/data?session_hash={self.session}"
        async with self._client.stream("GET", path, timeout=JOB_SECONDS) as stream:
            if stream.status_code != 200:
                raise FailedError(f"queue/data: {stream.status_code}")
            async for line in stream.aiter_lines():
                if not line.startswith("data:"):
                    continue
                named = _RUN.search(line)
                yield named[1] if named else ""
                if '"process_completed"' in line[:80] or '"unexpected_error"' in line[:80]:
                    _look(json.loads(line[5:]))
                    return
        raise FailedError("the stream of a job ended before the job")

    async def close(self) -> None:
        """Close all connections, even if requests are running."""
        await self._client.aclose()

    async def _send(self, method: str, path: str, **more: Any) -> httpx.Response:
        import httpx

        try:
            try:
                answer = await self._client.request(method, path, **more)
            except httpx.RemoteProtocolError as error:
                if IDLE not in str(error):
                    raise
                answer = await self._client.request(method, path, **more)
        except httpx.HTTPError as error:
            words = f"{_plain(path)}: {type(error).__name__} {error}"
            raise FailedError(words.strip()) from error
        if answer.status_code != 200:
            if any(words in answer.text for words in BUSY):
                raise RefusedError
            raise FailedError(f"{_plain(path)}: {answer.status_code} {answer.text[:200]}")
        return answer


def _look(message: dict[str, Any]) -> None:
    """Raises the error of a job's last message, if it has one."""
    if message.get("success"):
        return
    error = str((message.get("output") or {}).get("error") or message.get("message"))
    if any(words in error for words in BUSY):
        raise RefusedError
    if error.startswith(STOPPED):
        raise StoppedError
    raise FailedError(f"a job: {error[:200]}")


def _plain(path: str) -> str:
    """A path without the parts that differ between requests."""
    return re.sub("file=.*", "file", path.split("?")[0].removeprefix(API))
