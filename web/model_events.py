"""The functions behind the model picker and the line about the model.

Like those of `web.events`, their names, arguments and docstrings are part of the API.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr

from config import ModelSettings, Settings
from web.request import whole
from web.security import LOOPBACK
from web.slot import ModelSlot, SlotState


def status_value(state: SlotState) -> dict[str, Any]:
    """The line about the model at the top of the page."""
    handle = state.working
    name, message = state.name, state.message
    if state.phase == "ready" and handle is not None:
        info = handle.info
        message = f"{info.device}, {info.dtype}, {info.layers} layers × {info.heads} heads"
    elif state.phase == "failed" and handle is not None:
        name = handle.info.id
        message = f"still in use. {state.message}"
    return {"phase": state.phase, "name": name, "message": message, "fraction": state.fraction}


def following(slot: ModelSlot) -> Callable[..., Any]:
    def model_state() -> Iterator[tuple[Any, ...]]:
        """The loaded model, its progress while it loads."""
        seen, state = slot.wait(-1, 0)
        while state.phase == "loading":
            yield (
                status_value(state),
                *([gr.skip()] * 3 if state.working else _var_controls(state)),
            )
            seen, state = slot.wait(seen, 30)
        yield (status_value(state), *_var_controls(state))

    return model_state


def model_wanted(
    settings: Settings,
    offered: Sequence[str],
    model: str | None,
    device: str | None,
    dtype: str | None,
    min_pixels: float | None,
    max_pixels: float | None,
) -> ModelSettings:
    """What Load asks for, over the model settings of the start.

    `local_files_only` always stays; revision and sink profile where it is the start's model.

    Raises:
        ValueError: naming the setting, its value and what is allowed.
    """
    start, name = settings.model, str(model or "").strip()
    if settings.app.host not in LOOPBACK and name not in (*offered, start.model):
        # Any folder and any hub id would be a way into this machine for everyone with the password.
        raise ValueError(
            f"model is {name!r}; on a server that other machines can reach, allowed: "
            f"{', '.join(dict.fromkeys((*offered, start.model)))}."
        )
    pixels: dict[str, int | None] = {}
    for setting, value, given in (
        ("min_pixels", min_pixels, start.min_pixels),
        ("max_pixels", max_pixels, start.max_pixels),
    ):
        pixels[setting] = whole(setting, value) or None if value is not None else None
        most = max(int(settings.images.max_megapixels * 1e6), given or 0)
        if (pixels[setting] or 0) > most:
            raise ValueError(
                f"{setting} is {pixels[setting]}; allowed: a whole number up to {most}, or 0, "
                "which leaves it to the model."
            )
    return dataclasses.replace(
        start,
        model=name,
        revision=start.revision if name == start.model else None,
        profile=start.profile if name == start.model else None,
        device=device or start.device,
        dtype=dtype or start.dtype,  # type: ignore[arg-type]
        **pixels,
    )


def loading(slot: ModelSlot, settings: Settings, offered: Sequence[str]) -> Callable[..., Any]:
    def load_model(
        model: str,
        device: str | None = None,
        dtype: str | None = None,
        min_pixels: float | None = None,
        max_pixels: float | None = None,
    ) -> Iterator[tuple[Any, ...]]:
        """Load a model: `demo`, a hub id or a folder. The one before stays if this fails."""
        try:
            wanted = model_wanted(settings, offered, model, device, dtype, min_pixels, max_pixels)
        except ValueError as error:
            raise gr.Error(str(error), title="Not possible", print_exception=False) from error
        if not slot.load(wanted):
            raise gr.Error(
                "Another model is being loaded; wait until it is there.", print_exception=False
            )
        yield from following(slot)()
        if slot.state.phase == "failed":
            raise gr.Error(slot.state.message, title="Not loaded", print_exception=False)

    return load_model


def _var_controls(state: SlotState) -> tuple[Any, Any, Any]:
    """Compare with VAR, the sentence in its settings, and tau, as the loaded model allows."""
    handle = state.working
    if handle is None:
        return gr.update(interactive=False, value=False), "No model is loaded yet.", gr.skip()
    if handle.profile is None:
        words = (
            "The sink dimensions of this model are not known, so VAR cannot run. They can be given "
            "in a file sink_profile.toml in the model's folder (docs/method.md)."
        )
        return gr.update(interactive=False, value=False, info=words), words, gr.skip()
    profile = handle.profile
    tau = gr.update(value=round(profile.tau, 2), maximum=max(60, math.ceil(profile.tau)))
    words = (
        f"Sink dimensions {', '.join(map(str, profile.dims))}: {profile.source}; "
        f"confidence {profile.confidence}. {profile.note}".strip()
    )
    return gr.update(interactive=True, info=None), words, tau
