"""The layers that decide who may come in and how much each user may request, in their order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.middleware import Middleware

from sinkscope.setting.serving import AppSettings
from sinkscope.web.server.access import Access
from sinkscope.web.server.login import LoginOnly, LoginThrottle, session_user
from sinkscope.web.server.quota import UploadQuota
from sinkscope.web.server.read_only import NoUploads
from sinkscope.web.server.streams import Streams


@dataclass(frozen=True)
class Guards:
    """The layers between a request and the page.

    Attributes:
        outer: layers before the body is read.
        inner: layers after it was read and checked (`web.server.bodies`).
        quota: limit of uploads.
    """

    outer: tuple[Middleware, ...] = ()
    inner: tuple[Middleware, ...] = ()
    quota: UploadQuota | None = None


def guards(settings: AppSettings, token: str | None, port: int, blocks: Any) -> Guards:
    """The layers of one start.

    Args:
        settings: settings of the app.
        token: the result of `access.token_for`.
        port: port of the server.
        blocks: Gradio's page, which knows who has logged in.
    """
    outer = [Middleware(Streams, most_of_address=settings.streams)]
    inner = []
    if token is not None:
        secure = settings.tls_cert is not None
        outer.append(Middleware(Access, token=token, port=port, secure=secure))
    if settings.login:

        def logged_in(cookies: Mapping[str, str]) -> str | None:
            return session_user(blocks.app, cookies)

        outer.append(Middleware(LoginOnly, logged_in=logged_in))
        inner.append(Middleware(LoginThrottle))
    if settings.read_only:
        outer.append(Middleware(NoUploads))
    return Guards(tuple(outer), tuple(inner), UploadQuota(settings))
