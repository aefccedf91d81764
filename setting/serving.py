"""The settings of the web app: address, access, and limits per user."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sinkscope.setting.checks import check, refuse
from sinkscope.setting.field import explained, setting
from sinkscope.utils import run_folder

LOOPBACK = ("127.0.0.1", "localhost", "::1")
NO_TOKEN = "none"
_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,200}\Z")


@explained
@dataclass(frozen=True)
class AppSettings:
    """Where the web app listens and what it may use. `prompt_rows` and `reference` are what the
    page captures in addition to the answer's rows (see `GenerationSettings`)."""

    host: str = setting(
        "127.0.0.1",
        "Address to listen on; other than loopback it needs auth, a token or read-only.",
    )
    port: int = setting(7860, "Port; 0: any free one.", low=0, high=65535)
    token: str | None = setting(
        None,
        "Access token of page and API, if there is no login; none: no token is needed.",
        left_out="a new one at each start, in the printed link",
        allowed="none, or 16 to 200 letters, digits, - and _",
    )
    auth: str | None = setting(
        None,
        "user:password; or set SINKSCOPE_AUTH, which other users cannot see.",
        allowed="user:password, both not empty",
    )
    auth_file: str | None = setting(
        None,
        "File with a user:password in each line, for several users; each sees only their own runs.",
        metavar="FILE",
        allowed="the name of a file with a user:password in each line",
    )
    tls_cert: str | None = setting(
        None, "Certificate (PEM) to serve https with.", metavar="FILE", left_out="http"
    )
    tls_key: str | None = setting(None, "Key (PEM) of the certificate.", metavar="FILE")
    read_only: bool = setting(
        False,
        "A demo: stored runs and the example can be viewed; nothing is computed or changed.",
    )
    log: Literal["plain", "json"] = setting(
        "plain", "plain: warnings as text; json: a line of JSON for each request and message."
    )
    cache_dir: str | None = setting(
        None, "Folder that runs are written to.", metavar="FOLDER", left_out="cache"
    )
    store_megabytes: int = setting(
        1024,
        "Memory for runs; older ones are kept only in the cache folder.",
        low=1,
        high=10**8,
        unit="megabytes",
        user_facing=False,
    )
    queue_size: int = setting(
        16, "How many requests may wait.", low=1, high=10_000, user_facing=False
    )
    session_queue: int = setting(
        4,
        "How many requests of one session may wait; sessions take turns.",
        low=1,
        high=10_000,
        user_facing=False,
    )
    token_limit: int = setting(
        8192,
        "Largest max_new_tokens in a request of the page or the API.",
        low=1,
        high=8192,
        unit="tokens",
        user_facing=False,
    )
    retention_days: float = setting(
        0.0,
        "Older runs are removed, at the start and while the app runs. 0: never.",
        low=0.0,
        high=100_000.0,
        unit="days",
        user_facing=False,
    )
    exit_on_dead_worker: bool = setting(
        False,
        "End the process if one of its workers is dead (see /health), so that a service manager "
        "restarts it.",
        user_facing=False,
    )
    job_minutes: float = setting(
        0.0,
        "How long one job (an answer, finding sinks, a file) may compute before it is stopped; its "
        "partial result is kept. 0: no limit.",
        low=0.0,
        high=100_000.0,
        unit="minutes",
        user_facing=False,
    )
    upload_megabytes: int = setting(
        4000,
        "What one user (without logins: one address) may upload per hour.",
        low=1,
        high=10**8,
        unit="megabytes",
        user_facing=False,
    )
    upload_files: int = setting(
        2000,
        "How many files one user (without logins: one address) may upload per hour.",
        low=1,
        high=10**8,
        unit="files",
        user_facing=False,
    )
    streams: int = setting(
        256,
        "How many heartbeats and event streams one address may hold open; a tab has two.",
        low=2,
        high=100_000,
        user_facing=False,
    )
    prompt_rows: int = setting(
        128, "Also keep the rows of this many prompt tokens.", low=0, high=8192, user_facing=False
    )
    reference: bool = setting(
        True, "Also read a generic prompt, for relative maps.", user_facing=False
    )

    @property
    def cache(self) -> Path:
        """The folder that runs are written to: `cache_dir`, else `utils.run_folder("cache")`."""
        return run_folder("cache") if self.cache_dir is None else Path(self.cache_dir)

    @property
    def login(self) -> bool:
        """Whether users log in."""
        return self.auth is not None or self.auth_file is not None

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        return self.host in LOOPBACK

    def __post_init__(self) -> None:
        check(self)
        if self.auth is not None:
            user, _, password = self.auth.partition(":")
            if not user or not password:
                raise ValueError("auth is malformed; allowed: user:password, both not empty.")
            if self.auth_file is not None:
                raise ValueError("auth and auth_file are both given; allowed: one of them.")
        if self.token not in (None, NO_TOKEN):
            if not _TOKEN.match(self.token or ""):  # must not appear in the message
                raise ValueError(
                    "token is malformed; allowed: none, or 16 to 200 letters, digits, - and _."
                )
            if self.login:
                raise ValueError("token and a login are both given; allowed: one of them.")
        if (self.tls_cert is None) != (self.tls_key is None):
            name = "tls_key" if self.tls_key is None else "tls_cert"
            raise refuse(name, None, "a file, for tls_cert and tls_key belong together")
        guarded = self.login or self.read_only or self.token not in (None, NO_TOKEN)
        if not self.loopback and not guarded:
            raise ValueError(
                f"host is {self.host!r}, which other machines can reach; that needs auth "
                "(user:password), auth_file, a token of yours or read_only. "
                "Without it only 127.0.0.1, localhost and ::1 are allowed."
            )
