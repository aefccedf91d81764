"""The page's `gr.Blocks`, whose functions cannot end the server."""

from __future__ import annotations

import logging
from typing import Any

import gradio as gr

from sinkscope.web.server.errors import FAULT

log = logging.getLogger(__name__)


class GuardedBlocks(gr.Blocks):
    """`gr.Blocks` that turns `SystemExit` and `KeyboardInterrupt` of functions into errors.

    Gradio runs a function in a thread and awaits it in a task of the server's event loop. asyncio
    ends the loop when a task raises one of these two: the process would stay but answer nothing.
    """

    async def call_function(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        """Like Gradio's; see the class."""
        try:
            result: dict[str, Any] = await super().call_function(*arguments, **named)
            return result
        except (SystemExit, KeyboardInterrupt) as error:
            log.exception("a function of the page wanted to end the process")
            raise gr.Error(FAULT, print_exception=False) from error
