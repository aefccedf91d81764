"""Allowed bodies of requests: small plain JSON, a login, or the files of an upload.

Every body except an upload is read here before Gradio sees it, whatever its content type, and every
file that it names must be an upload. Gradio then reads the same bytes. Content that two parsers
could read differently (a repeated key, another encoding) is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from gradio.route_utils import API_PREFIX
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sinkscope.web.server.quota import Account, UploadQuota
from sinkscope.web.server.uploads import NO_UPLOAD, UploadError, check_upload

UPLOAD = f"{API_PREFIX}/upload"
LOGIN = ("/login", "/login/")
JSON_BYTES, LOGIN_BYTES, DRAINED_BYTES = 2_000_000, 10_000, 10_000_000
MOST_VALUES = 50_000
DEEPEST = 32
_WITHOUT_BODY = ("GET", "HEAD", "OPTIONS")  # their bodies are never read


class Refused(Exception):  # noqa: N818 - an answer, not a fault
    """The request is answered with this status and sentence."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status, self.words = status, words


class GoneError(Exception):
    """The client disconnected before its body was complete."""


class Bodies:
    """Passes on requests whose body is of the kind that the route accepts.

    Args:
        app: the next layer.
        upload_bytes: size limit of one upload; Gradio limits each file in it.
        quota: limit of uploads in an hour; None: no limit.
    """

    def __init__(self, app: ASGIApp, upload_bytes: int, quota: UploadQuota | None = None) -> None:
        self.app, self._upload_bytes, self._quota = app, upload_bytes, quota

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in _WITHOUT_BODY:
            try:
                receive = await self._checked(scope, receive)
            except Refused as refusal:
                answer = PlainTextResponse(refusal.words, refusal.status)
                await answer(scope, receive, send)
                return
            except GoneError:
                return
        await self.app(scope, receive, send)

    async def _checked(self, scope: Scope, receive: Receive) -> Receive:
        headers = Headers(scope=scope)
        if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            raise Refused(415, "The body is compressed; allowed: one that is not.")
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path == UPLOAD:
            account = self._quota.account(scope) if self._quota else None
            declared = headers.get("content-length", "")
            size = int(declared[:20]) if declared.isdecimal() else 0
            if account and (refusal := account.refusal(size)):
                raise Refused(429, refusal)
            return _Upload(headers, receive, self._upload_bytes, account).receive
        if path in LOGIN:
            return _replay(await read_body(headers, receive, LOGIN_BYTES), receive)
        body = await read_body(headers, receive, JSON_BYTES)
        if body:
            check_files(parse(body))
        return _replay(body, receive)


async def read_body(headers: Headers, receive: Receive, most: int) -> bytes:
    """Read the whole body.

    Raises:
        Refused: it is too large.
    """
    declared = headers.get("content-length", "")
    size = int(declared[:20]) if declared.isdecimal() else 0
    chunks: list[bytes] = []
    read, more = 0, True
    # If the body is too large, a little more is read and dropped: many programs read the answer
    # only after they have sent their body.
    while more and read <= max(most, DRAINED_BYTES):
        message = await receive()
        if message["type"] != "http.request":
            raise GoneError
        read += len(message.get("body", b""))
        if max(read, size) <= most:
            chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
    if max(read, size) > most:
        raise Refused(413, f"The request is too large; allowed: {most} bytes.")
    return b"".join(chunks)


def replayed(message: Message, receive: Receive) -> Receive:
    """A `receive` that returns the message that was already read, and then the following ones."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return message

    return again


def _replay(body: bytes, receive: Receive) -> Receive:
    return replayed({"type": "http.request", "body": body, "more_body": False}, receive)


# --- JSON -----------------------------------------------------------------------------------------


def parse(body: bytes) -> Any:
    """JSON that every parser reads in the same way.

    Raises:
        Refused: it is not JSON in UTF-8, repeats a key, or contains a number that is not finite or
            beyond 64 bits, half of a surrogate pair, or too many values or levels.
    """
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > MOST_VALUES:  # before parsing
        raise Refused(413, f"The JSON is too large; allowed: {MOST_VALUES} values.")
    try:
        content = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_mapping,
            parse_constant=_number,
            parse_float=_number,
            parse_int=_whole,
        )
    except (ValueError, RecursionError) as error:
        raise Refused(400, "The body is not JSON in UTF-8.") from error
    for value, depth in _values(content):
        if depth > DEEPEST:
            raise Refused(400, f"The JSON is nested too deeply; allowed: {DEEPEST} levels.")
        if isinstance(value, str) and not _whole_characters(value):
            raise Refused(400, "The JSON has half a character (a lone surrogate).")
    return content


def _whole_characters(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise Refused(400, "The JSON has a key twice.")
    return mapping


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Refused(400, "The JSON has a number that is not finite.")
    return value


def _whole(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
        raise Refused(400, "The JSON has a whole number beyond 64 bit.")
    return int(text)


def _values(content: Any) -> Iterator[tuple[Any, int]]:
    """Every value and key with its nesting level."""
    waiting: list[tuple[Any, int]] = [(content, 0)]
    while waiting:
        value, depth = waiting.pop()
        yield value, depth
        if isinstance(value, dict):
            waiting.extend((key, depth + 1) for key in value)
            waiting.extend((item, depth + 1) for item in value.values())
        elif isinstance(value, list):
            waiting.extend((item, depth + 1) for item in value)


def check_files(content: Any) -> None:
    """Check that every file named anywhere in the content is an upload.

    Raises:
        Refused: a file is not an upload.
    """
    for value, _ in _values(content):
        if not isinstance(value, Mapping):
            continue
        meta = value.get("meta")
        # Gradio would fetch a URL that has no path beside it. A URL beside a path was given to
        # the browser by Gradio, and is not read.
        marked = isinstance(meta, Mapping) and "_type" in meta
        if marked or "path" in value or "url" in value:
            try:
                check_upload(value)
            except UploadError as error:
                raise Refused(403, NO_UPLOAD) from error


# --- uploads --------------------------------------------------------------------------------------


class _Upload:
    """Checks the body of an upload while it arrives: only files, and not too many bytes.

    Gradio would keep other fields in memory, whatever their size, and files of other fields for
    ever.
    """

    def __init__(
        self, headers: Headers, receive: Receive, most: int, account: Account | None = None
    ) -> None:
        self._account = account
        kind, options = parse_options_header(headers.get("content-type", ""))
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise Refused(400, "An upload has the content type multipart/form-data and a boundary.")
        self._receive, self._left = receive, most
        self._header = self._value = self._disposition = b""
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begins,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_ends,
                "on_headers_finished": self._headers_end,
            },
        )

    async def receive(self) -> Message:
        """The next message. Gradio answers the errors, and removes the files it has written."""
        message = await self._receive()
        if message["type"] == "http.request" and (chunk := message.get("body", b"")):
            self._left -= len(chunk)
            if self._left < 0:
                raise MultiPartException("The upload exceeds the maximum allowed size.")
            self._count(sent=len(chunk))
            try:
                self._parser.write(chunk)
            except MultipartParseError as error:
                raise MultiPartException("The upload is damaged.") from error
        return message

    def _count(self, sent: int = 0, files: int = 0) -> None:
        if self._account and (refusal := self._account.add(sent, files)):
            raise MultiPartException(refusal)

    def _part_begins(self) -> None:
        self._header = self._value = self._disposition = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        if options.get(b"name") != b"files" or b"filename" not in options:
            raise MultiPartException("An upload has only files, in fields called files.")
        self._count(files=1)
