"""Wrong tries at a password or token: each one makes the wait before the next try longer."""

from __future__ import annotations

import hashlib
import ipaddress
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cachetools import TLRUCache
from starlette.responses import PlainTextResponse, Response
from starlette.types import Scope

FREE_TRIES = 5
FORGOTTEN_AFTER = 3600.0
MOST_KEYS = 10_000


@dataclass(frozen=True)
class Key:
    """A group of tries that are counted together.

    Attributes:
        name: for example an address or a user's name.
        longest: the longest wait in seconds. It is short for a user's name, because anybody can try
            that name.
        forgets: whether a right try clears the wrong ones before it. Not for an address, which
            several people may share.
    """

    name: str
    longest: float
    forgets: bool = False


def of_address(scope: Scope) -> str:
    """The source of a request: an IPv4 address, the /64 network of an IPv6 one, "" if unknown."""
    host = (scope.get("client") or ("", 0))[0]
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return ""
    if address.version == 6 and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(getattr(address, "ipv4_mapped", None) or address)


class Throttle:
    """Counts tries. Safe within one event loop. Holds at most `MOST_KEYS` keys and drops the least
    recently used.

    A try counts as wrong when it begins, and is taken back if it was right, so that many
    simultaneous tries are counted too.

    Args:
        clock: time in seconds; tests pass their own.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # For each key: the number of wrong tries, and when the next try is allowed.
        self._tries: TLRUCache[bytes, tuple[int, float]] = TLRUCache(
            MOST_KEYS, lambda key, value, now: value[1] + FORGOTTEN_AFTER, clock
        )

    def begin(self, keys: Sequence[Key]) -> float:
        """Count a try and return 0; or return how many seconds it is refused for, uncounted."""
        now = self._clock()
        wait = max(self._of(key)[1] - now for key in keys)
        if wait > 0:
            return wait
        for key in keys:
            tries = self._of(key)[0] + 1
            over = tries - FREE_TRIES
            pause = min(key.longest, 2.0 ** min(over, 30)) if over >= 0 else 0.0
            self._tries[_digest(key)] = tries, now + pause
        return 0.0

    def right(self, keys: Sequence[Key]) -> None:
        """Take back a try counted by `begin`, because it was right."""
        for key in keys:
            tries, _ = self._of(key)
            if key.forgets or tries <= 1:
                self._tries.pop(_digest(key), None)
            else:
                self._tries[_digest(key)] = tries - 1, self._clock()

    def _of(self, key: Key) -> tuple[int, float]:
        return self._tries.get(_digest(key), (0, 0.0))


def _digest(key: Key) -> bytes:
    """A hash of the key, because names may be long."""
    return hashlib.blake2b(key.name.encode("utf-8", "replace"), digest_size=16).digest()


def later(wait: float) -> Response:
    """The answer to a try that comes too early."""
    seconds = int(wait) + 1
    words = f"Too many wrong tries from this address; try again in {seconds} seconds."
    return PlainTextResponse(words, 429, {"retry-after": str(seconds)})
