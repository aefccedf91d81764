"""Coroutines in tests, in a thread of their own: a browser's loop may run in the tests' thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Made = TypeVar("Made")


def elsewhere(call: Callable[..., Made], *arguments: Any) -> Made:
    """What a call returns, or raises, in a thread of its own."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call, *arguments).result()


def finished(coroutine: Coroutine[Any, Any, Made]) -> Made:
    """What a coroutine returns, or raises."""
    return elsewhere(asyncio.run, coroutine)
