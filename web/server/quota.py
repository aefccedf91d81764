"""How much one user may upload in an hour: bytes and files.

A client chooses its session's id itself, so uploads are counted by user where users log in, and
otherwise by address. All clients behind a tunnel or proxy share one address.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from cachetools import LRUCache
from starlette.types import Scope

from sinkscope.setting.serving import AppSettings
from sinkscope.web.server.current_request import USER
from sinkscope.web.server.throttle import of_address

HOUR = 3600.0
SLICE = 60.0  # seconds; uploads within one slice are counted together
MOST_ACCOUNTS = 10_000


@dataclass
class Account:
    """Uploads of the last hour, in slices of a minute: [begin, bytes, files]."""

    quota: UploadQuota
    slices: deque[list[float]] = field(default_factory=deque)

    def refusal(self, more_bytes: int = 0, more_files: int = 0) -> str:
        """Why this much more cannot be accepted; "" if it can."""
        self._forget()
        sent = sum(s[1] for s in self.slices) + more_bytes
        files = sum(s[2] for s in self.slices) + more_files
        if sent > self.quota.most_bytes:
            most = f"{self.quota.most_bytes / 1e6:g} megabytes"
        elif files > self.quota.most_files:
            most = f"{self.quota.most_files} files"
        else:
            return ""
        return f"The uploads of this hour exceed the maximum allowed size: {most}. Try again later."

    def add(self, more_bytes: int = 0, more_files: int = 0) -> str:
        """Count an upload that has arrived, accepted or not. Returns the refusal, or ""."""
        refusal = self.refusal(more_bytes, more_files)
        now = self.quota.clock()
        if not self.slices or now - self.slices[-1][0] >= SLICE:
            self.slices.append([now, 0.0, 0.0])
        self.slices[-1][1] += more_bytes
        self.slices[-1][2] += more_files
        return refusal

    def _forget(self) -> None:
        while self.slices and self.quota.clock() - self.slices[0][0] > HOUR:
            self.slices.popleft()


class UploadQuota:
    """The accounts of an app. Safe within one event loop.

    Args:
        settings: `upload_megabytes` and `upload_files`.
        clock: time in seconds; tests pass their own.
    """

    def __init__(self, settings: AppSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.most_bytes = settings.upload_megabytes * 1_000_000
        self.most_files = settings.upload_files
        self.clock = clock
        self._accounts: LRUCache[str, Account] = LRUCache(MOST_ACCOUNTS)

    def account(self, scope: Scope) -> Account:
        """The account to which the uploads of a request are counted."""
        user = scope.get(USER)
        name = f"user {user}" if user else f"address {of_address(scope)}"
        return self._accounts.setdefault(name, Account(self))
