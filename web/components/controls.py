"""Controls of the page made from settings (`sinkscope.setting`): one for each kind of value."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component

from sinkscope.setting import REQUIRED, Setting, allowed_words, list_text, read, refuse
from sinkscope.web.server.uploads import Plain

LONGEST_TEXT = 2000
DEFAULT = "default"  # choice of a switch that keeps the default


def change_of(component: Block) -> Any:
    """The change event of a component. Gradio adds events to components at run time, so its type
    annotations do not contain them."""
    return cast(Any, component).change


class OpenSlider(gr.Slider, metaclass=Plain):
    """A slider whose upper end changes with the model.

    An event may still carry a value from before the end changed, and Gradio would refuse it with
    its own message. The allowed range is checked where settings are read.
    """

    is_template = True

    def preprocess(self, payload: float) -> float:
        return payload


def control(setting: Setting, value: Any = None, **look: Any) -> Component:
    """The control of one setting. Call it while the page is being built.

    Args:
        setting: a choice becomes a row of buttons, a number with a usual range a slider.
        value: the first value; None: the setting's default.
        look: further arguments of the component; they replace those derived from the setting.
    """
    value = setting.default if value is None and setting.default is not REQUIRED else value
    look = {
        "label": setting.label or setting.name.replace("_", " "),
        "info": None if setting.choice_labels else setting.help,
        "elem_id": f"set-{setting.name.replace('_', '-')}",
        **look,
    }
    if setting.kind == "switch" and setting.optional:
        ways = [(setting.left_out or "default", DEFAULT), ("yes", "yes"), ("no", "no")]
        shown_value = DEFAULT if value is None else "yes" if value else "no"
        return gr.Radio(ways, value=shown_value, **look)
    if setting.kind == "switch":
        return gr.Checkbox(value, **look)
    if setting.kind == "names" and setting.choices:
        return gr.CheckboxGroup(list(setting.choices), value=list(value or ()), **look)
    if setting.kind == "choice":
        words = setting.choice_labels or setting.choices
        return gr.Radio(list(zip(words, setting.choices, strict=True)), value=value, **look)
    if setting.kind in ("whole", "number"):
        return _number(setting, value, look)
    text = value if isinstance(value, str) else list_text(value or ())
    return gr.Textbox(text, **{"placeholder": setting.left_out, "max_length": LONGEST_TEXT, **look})


def _number(setting: Setting, value: Any, look: dict[str, Any]) -> Component:
    is_whole = setting.kind == "whole"
    if setting.slider_range is None:
        low = {"minimum": setting.low} if setting.low is not None else {}
        empty = {"placeholder": setting.left_out} if setting.left_out else {}
        return gr.Number(
            value, **{**low, **({"precision": 0} if is_whole else {}), **empty, **look}
        )
    # Gradio refuses a value outside a slider's range with its own message, so the range always
    # contains the first value.
    low, high = min(setting.slider_range[0], value), max(setting.slider_range[1], value)
    kind = gr.Slider if setting.high is not None else OpenSlider
    return kind(low, high, value, step=1 if is_whole else setting.step, **look)


def box(setting: Setting, value: Any = None, **look: Any) -> Component:
    """A control for what `control_value` reads. Gradio refuses no value with its own messages, and
    a number that may be left out is a text field, because Gradio turns an empty number into 0."""
    if setting.kind not in ("whole", "number"):
        return control(setting, value, **look)
    if not setting.optional:
        return control(setting, value, **{"minimum": None, **look})
    plain = dataclasses.replace(setting, kind="text", default="")
    return control(plain, value, **{"max_lines": 1, **look})


def control_value(setting: Setting, value: Any) -> Any:
    """The value of a control, as the field takes it (`sinkscope.setting.read`).

    Raises:
        ValueError: naming the setting.
    """
    if setting.kind == "switch" and setting.optional and isinstance(value, str):
        value = {DEFAULT: None, "yes": True, "no": False}.get(value, value)
    if setting.kind in ("whole", "number") and setting.optional and isinstance(value, str):
        value = _read_number(setting, value)
    return read(setting, value)


def _read_number(setting: Setting, text: str) -> float | None:
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        raise refuse(setting.name, text, f"nothing, or {allowed_words(setting)}") from None
