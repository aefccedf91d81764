"""Coroutines in tests, run in a thread of their own: a browser's loop may run in the tests'
thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Made = TypeVar("Made")


def elsewhere(call: Callable[..., Made], *arguments: Any) -> Made:
    """The result of a call, or its exception, from a thread of its own."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call, *arguments).result()


def finished(coroutine: Coroutine[Any, Any, Made]) -> Made:
    """The result of a coroutine, or its exception."""
    return elsewhere(asyncio.run, coroutine)
