"""Ask again: a stored run as values of the form that made it, and what was changed since.

The form values of a run (`form_values_of`) are part of its data and of its link; `control_values`
turns either into values of controls, and `changed_words` compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sinkscope.models.loading import ModelHandle
from sinkscope.setting import Setting, list_text
from sinkscope.web.components.controls import DEFAULT, LONGEST_TEXT
from sinkscope.web.runs.request import ANSWER, MORE, VAR
from sinkscope.web.runs.store import Run

LONGEST_PROMPT = 20_000
CALLED = {"image": "image", "prompt": "prompt", "compare": "Compare with VAR"}
CALLED |= {"same_text": "Same text", **dict.fromkeys(MORE, "further images")}
OF_VAR = (*(one.name for one in VAR), "same_text")


def form_values_of(run: Run) -> dict[str, Any]:
    """Prompt, Compare, Same text and the settings of a run that differ from the defaults, as values
    of the form's controls, by name. Tau and sink dimensions are always included."""
    report = next((t.var for t in run.traces.values() if t.var), None) or {}
    var = report.get("settings") or {}
    values: dict[str, Any] = {"prompt": run.first.prompt, "compare": len(run.traces) > 1}
    if run.same_text:
        values["same_text"] = True
    for settings, given in ((ANSWER, run.first.settings), (VAR, var)):
        for one in settings:
            value = given.get(one.field)
            always = one.field in ("tau", "dims")
            if value is not None and (always or value != _plain_default(one)):
                values[one.name] = _on_control(one, value)
    return values


def _plain_default(one: Setting) -> Any:
    return list(one.default) if isinstance(one.default, tuple) else one.default


def _on_control(one: Setting, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return list_text(value)
    if one.kind == "switch":
        if not one.optional:
            return bool(value)
        return DEFAULT if value is None else "yes" if value else "no"
    return "" if value is None else value


def control_values(
    values: Mapping[str, Any], handle: ModelHandle | None, of: str | None = None
) -> dict[str, Any]:
    """Values of the form's controls, by name: the given ones, otherwise the defaults.

    The given values come from a browser: those that no control accepts are ignored. Sink dimensions
    that are the model's own leave their box empty. Tau and sink dimensions are meaningless for
    another model: if `of`, the model that was asked, is not the loaded one, the loaded model's
    values stay.
    """
    if of is not None and (handle is None or handle.info.id != of):
        values = {name: value for name, value in values.items() if name not in ("dims", "tau")}
    filled_values: dict[str, Any] = {
        name: bool(values.get(name)) for name in ("compare", "same_text")
    }
    if isinstance(values.get("prompt"), str):
        filled_values["prompt"] = values["prompt"][:LONGEST_PROMPT]
    for one in (*ANSWER, *VAR):
        if one.name == "dims":
            continue
        value = values.get(one.name)
        if value is None:
            if one.name == "tau":  # the profile's tau stays
                continue
            value = _on_control(one, _plain_default(one))
        if one.name == "tau" and handle is not None and handle.profile is not None:
            most = max(handle.info.hidden_size**0.5, handle.profile.tau)  # upper end of its slider
            if isinstance(value, int | float) and value > most:
                continue
        if _fits(one, value):
            filled_values[one.name] = value
    profile = handle.profile if handle is not None else None
    known = ", ".join(map(str, profile.dims)) if profile is not None else ""
    dims = values.get("dims")
    filled_values["dims"] = (
        dims if isinstance(dims, str) and dims != known and len(dims) <= 200 else ""
    )
    if handle is not None and profile is None and not filled_values["dims"]:
        filled_values["compare"] = False
    return filled_values


def _fits(one: Setting, value: Any) -> bool:
    """Whether the setting's control can show this value."""
    if one.kind == "switch" and not one.optional:
        return isinstance(value, bool)
    if one.kind in ("whole", "number"):
        if value == "":
            return one.optional
        low, high = one.slider_range or (one.low, one.high)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and (low is None or low <= value) and (high is None or value <= high)
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        return False
    return one.kind != "choice" or value in one.choices


def changed_words(values_of_run: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Which controls have changed, in a sentence; "" if none."""
    if not values_of_run or not any(now.get(name) for name in ("image", *MORE)):
        return ""
    names = [
        name for name in now if name in values_of_run and not _same(values_of_run[name], now[name])
    ]
    if not (now.get("compare") and values_of_run.get("compare")):  # VAR's settings have no effect
        names = [name for name in names if name not in OF_VAR]
    if not names:
        return ""
    labels = {one.name: one.label or one.name.replace("_", " ") for one in (*ANSWER, *VAR)}
    changed = ", ".join(dict.fromkeys(CALLED.get(name) or labels[name] for name in names))
    same_image = "" if {"image", "prompt", *MORE} & {*names} else "; the image is not read again"
    return (
        f"Settings changed since the run on screen: {changed}. Generate runs it anew{same_image}."
    )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, int | float) and isinstance(b, int | float):
        return abs(a - b) < 1e-6
    return str(a or "").strip() == str(b or "").strip()
