"""API arguments made from settings (`sinkscope.setting`).

An endpoint is a function with `**setting_values`. The settings define what it accepts: each
setting becomes an argument with the setting's name, default and description.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import gradio as gr
from gradio.components import Component

from sinkscope.setting import LISTS, Setting
from sinkscope.web.components.controls import LONGEST_TEXT


def default_of(setting: Setting) -> Any:
    """The value of an argument that is left out: "" for a text or a list, None for a number."""
    written = setting.default
    if setting.kind in LISTS and isinstance(written, tuple):
        written = ", ".join(map(str, written))
    if not setting.left_out and isinstance(written, bool | int | float | str):
        return written
    return None if setting.kind in ("whole", "number") else ""


def asking(function: Callable[..., Any], settings: Iterable[Setting]) -> Callable[..., Any]:
    """The function with one keyword argument for each setting instead of `**setting_values`."""

    @functools.wraps(function)
    def call(*parameters: Any, **setting_values: Any) -> Any:
        return function(*parameters, **setting_values)

    kind = inspect.Parameter
    signature = inspect.signature(function)
    parameters = [one for one in signature.parameters.values() if one.kind is not kind.VAR_KEYWORD]
    more = [kind(one.name, kind.KEYWORD_ONLY, default=default_of(one)) for one in settings]
    # Gradio reads it.
    call.__signature__ = signature.replace(parameters=[*parameters, *more])  # type: ignore[attr-defined]
    return call


def inputs_of(settings: Iterable[Setting]) -> dict[str, Component]:
    """Components that are not shown on the page, by the names of their arguments."""
    return {one.name: argument(one.name, default_of(one), one.words) for one in settings}


def argument(name: str, default: Any, words: str = "") -> Component:
    """The component of one argument; "Use via API" shows `words` beside it."""
    component: Component
    if isinstance(default, bool):
        component = gr.Checkbox(default, label=name)
    elif isinstance(default, str):
        component = gr.Textbox(default, label=name, max_length=LONGEST_TEXT)
    else:
        component = gr.Number(default, label=name)
    about = {**component.api_info(), "additional_description": words}
    component.api_info = lambda: about  # type: ignore[method-assign]  # on this component alone
    return component
