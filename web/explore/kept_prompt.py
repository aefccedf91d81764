"""Keeps the last compared prompt, so that a comparison with another VAR setting only computes the
answers.

The keys and values of a prompt up to the end of its image do not depend on VAR's settings
(`capture.prefix`). One prompt is kept for the whole app, because settings are usually changed for
the last question.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any

from PIL import Image

from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle
from sinkscope.utils import sha256


class LastPrompt:
    """Remembers one prompt and its prefix. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handle: weakref.ref[ModelHandle] | None = None  # must not keep a model in memory
        self._key: tuple[str, ...] = ()
        self._inputs: PromptInputs | None = None
        self._prefix: Any = None

    def prepare(
        self, handle: ModelHandle, images: Sequence[Image.Image], prompt: str
    ) -> tuple[PromptInputs, Any]:
        """The prompt's inputs, and the prefix that fits them or None.

        Raises:
            ValueError: as `ModelHandle.prepare`.
        """
        key = (prompt, *(f"{one.size} {sha256(one.tobytes())}" for one in images))
        with self._lock:
            known = self._handle is not None and self._handle() is handle and self._key == key
            if known and self._inputs is not None:
                return self._inputs, self._prefix
            self._forget()  # before the new one takes memory
            inputs = handle.prepare(images, prompt)
            self._handle, self._key = weakref.ref(handle), key
            self._inputs, self._prefix = inputs, None
            return inputs, None

    def drop(self) -> None:
        """Forget the prompt and free its keys and values."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        self._handle, self._key, self._inputs, self._prefix = None, (), None, None

    def keep(self, inputs: PromptInputs, prefix: Any) -> None:
        """Remember the prefix, unless another prompt has come in the meantime."""
        with self._lock:
            if self._inputs is inputs:
                self._prefix = prefix
