"""The functions behind the model picker and the line about the model.

Like those of `web.explore.events`, their names, arguments and docstrings are part of the API.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

from sinkscope.capture.run import checkpoint_decoding
from sinkscope.config import ModelSettings, Settings, VARSettings
from sinkscope.models.loading import ModelHandle
from sinkscope.setting import shown, whole
from sinkscope.web.explore.forecast import Forecaster, Notice, notice, of_load
from sinkscope.web.runs.loaded_model import LoadedModel, LoadState
from sinkscope.web.runs.request import MORE, Request, parse_indices
from sinkscope.web.server.security import LOOPBACK

LONGEST_REVISION = 200
DEMO_LIMITS = (
    "The bundled model knows only drawn scenes like the examples. "
    "For photos load Qwen2.5-VL 3B or 7B (Model, below)."
)
SHOWN = 2  # reasons why a checkpoint's own settings cannot be followed


def status_value(state: LoadState) -> dict[str, Any]:
    """The line about the model at the top of the page."""
    handle = state.working
    name, message = state.name, state.message
    if state.phase == "ready" and handle is not None:
        info = handle.info
        message = f"{info.device}, {info.dtype}, {info.layers} layers × {info.heads} heads"
        message += f". {info.note}" if info.note else ""
    elif state.phase == "failed" and handle is not None:
        name = handle.info.id
        message = f"still in use. {state.message}"
    return {"phase": state.phase, "name": name, "message": message, "fraction": state.fraction}


def forecasting(forecaster: Forecaster) -> Callable[..., Any]:
    def ahead(
        *, image: str | None, prompt: str, compare: bool, same_text: bool, **setting_values: Any
    ) -> Any:
        """The expected time and memory of a click on Generate."""
        more = tuple(setting_values.pop(name, None) for name in MORE)
        run_request = Request(image, prompt, compare, same_text, values=setting_values, more=more)
        return forecaster.of_run(run_request)

    return ahead


def load_forecasting(
    loaded: LoadedModel, settings: Settings, offered: Sequence[str], parameters: Mapping[str, int]
) -> Callable[..., Any]:
    def ahead(**setting_values: Any) -> Any:
        """The expected time and memory of a click on Load."""
        if loaded.state.phase == "loading":
            return gr.skip()  # that line shows the progress
        try:
            return of_load(model_wanted(settings, offered, setting_values), parameters)
        except ValueError as error:
            return notice(str(error), "warn")

    return ahead


def following(loaded: LoadedModel) -> Callable[..., Any]:
    def model_state() -> Iterator[tuple[Any, ...]]:
        """The loaded model, its progress while it loads."""
        seen, state = loaded.wait(-1, 0)
        while state.phase == "loading":
            yield (
                status_value(state),
                *([gr.skip()] * 3 if state.working else _var_controls(state)),
                notice(f"{state.message} ({state.name})", "busy", state.fraction),
            )
            seen, state = loaded.wait(seen, 30)
        yield (status_value(state), *_var_controls(state), _outcome(state))

    return model_state


def _outcome(state: LoadState) -> Any:
    """The outcome of a load, for the line next to its button."""
    if state.phase == "failed":
        return notice(state.message, "warn")
    handle = state.working
    return notice(
        "" if handle is None else f"{handle.info.id} is loaded. {handle.info.note}".strip()
    )


def model_wanted(
    settings: Settings, offered: Sequence[str], values: Mapping[str, Any]
) -> ModelSettings:
    """The model that Load requests (`values`, by the names of ModelSettings); other settings are
    those of the start.

    `local_files_only` always stays. Sink profile and adapter stay if it is the start's model, and
    so does the revision, unless one is given (an empty one is the newest).

    Raises:
        ValueError: naming the setting, its value and what is allowed.
    """
    for setting in ("model", "revision", "device", "dtype"):
        if not isinstance(values.get(setting), str | None):
            raise ValueError(f"{setting} is {shown(values[setting])}; allowed: a text.")
    start, name = settings.model, str(values.get("model") or "").strip()
    if settings.app.host not in LOOPBACK and name not in (*offered, start.model):
        # Any folder and any hub id would be a way into this machine for everyone with the password.
        raise ValueError(
            f"model is {name!r}; on a server that other machines can reach, allowed: "
            f"{', '.join(dict.fromkeys((*offered, start.model)))}."
        )
    pixels: dict[str, int | None] = {}
    for setting in ("min_pixels", "max_pixels"):
        value = values.get(setting)
        pixels[setting] = whole(setting, value) or None if value is not None else None
        most = max(int(settings.images.max_megapixels * 1e6), getattr(start, setting) or 0)
        if (pixels[setting] or 0) > most:
            raise ValueError(
                f"{setting} is {shown(pixels[setting])}; allowed: a whole number up to {most}, or "
                "0, which leaves it to the model."
            )
    return dataclasses.replace(
        start,
        model=name,
        revision=_revision(settings, values.get("revision"), name),
        profile=start.profile if name == start.model else None,
        adapter=start.adapter if name == start.model else None,
        device=values.get("device") or start.device,
        dtype=values.get("dtype") or start.dtype,
        min_pixels=pixels["min_pixels"],
        max_pixels=pixels["max_pixels"],
    )


def _revision(settings: Settings, given: str | None, name: str) -> str | None:
    start = settings.model
    start_revision = start.revision if name == start.model else None
    if given is None or (given := given.strip()) == (start_revision or ""):
        return start_revision
    # The hub's library makes a path of it.
    usable = re.fullmatch(r"[\w./-]*", given) and ".." not in given
    if not usable or len(given) > LONGEST_REVISION:
        raise ValueError(
            f"revision is {given[:80]!r}; allowed: nothing (the newest), a commit, tag or branch."
        )
    if given and settings.app.host not in LOOPBACK:
        # A proposal to a repository is a revision too, and anybody can make one.
        raise ValueError(
            f"revision is {given!r}; on a server that other machines can reach, allowed: nothing, "
            "or that of the start."
        )
    return given or None


def loading(loaded: LoadedModel, settings: Settings, offered: Sequence[str]) -> Callable[..., Any]:
    def load_model(**setting_values: Any) -> Iterator[tuple[Any, ...]]:
        """Load a model: `demo`, a hub id or a folder. The one before stays if this fails."""
        try:
            wanted = model_wanted(settings, offered, setting_values)
            if not loaded.load(wanted):
                raise ValueError("Another model is being loaded; wait until it is there.")
        except ValueError as error:
            yield (*([gr.skip()] * 4), notice(str(error), "warn"))
            raise _api_error(str(error), "Not possible") from error
        yield from following(loaded)()
        if loaded.state.phase == "failed":
            raise _api_error(loaded.state.message, "Not loaded")

    return load_model


def choosing_decoding(loaded: LoadedModel) -> Callable[..., Any]:
    def decoding(chosen: str) -> tuple[Any, ...]:
        """What the checkpoint says, and whether the controls that it replaces are in use."""
        ours = gr.update(interactive=chosen != "checkpoint")
        return checkpoint_notice(loaded.handle, chosen), ours, ours, ours, ours

    return decoding


def checkpoint_notice(handle: ModelHandle | None, chosen: str) -> Notice:
    """The line about the loaded checkpoint's own generation_config.json."""
    if handle is None:
        return notice()
    checkpoint = checkpoint_decoding(handle)
    words = f"This checkpoint's own generation_config.json: {checkpoint.words}."
    if checkpoint.refusals:
        more = len(checkpoint.refusals) - SHOWN
        words += f" It cannot be followed: {' '.join(checkpoint.refusals[:SHOWN])}"
        words += f" And {more} more." if more > 0 else ""
    words = " ".join([words, *checkpoint.notes])
    return notice(words, "warn" if checkpoint.refusals and chosen == "checkpoint" else "quiet")


def choosing_dims(loaded: LoadedModel) -> Callable[..., Any]:
    def sink_dims(dims: str, dims_of: str) -> tuple[Any, ...]:
        """Compare with VAR, its sentence, tau and the way back, for this browser's dimensions."""
        if not (dims or "").strip():
            return *_var_controls(loaded.state), gr.update(visible=False)
        try:
            given_dims = parse_indices("Sink dimensions", dims)
        except ValueError as error:
            return gr.skip(), str(error), gr.skip(), gr.update(visible=True)
        words = f"Sink dimensions {', '.join(map(str, given_dims or ()))}, only in this browser"
        words += f": found on {dims_of}. " if dims_of else ". "
        # Gradio would leave out an `info` of None, and the old text would stay.
        ready = gr.update(interactive=loaded.handle is not None, info="")
        words += "Empty the box to go back to those of the model's profile."
        return ready, words, gr.skip(), gr.update(visible=True)

    return sink_dims


def telling_limits(loaded: LoadedModel) -> Callable[..., Any]:
    def limits() -> Notice:
        """Beside Generate: what the bundled model knows, and what to load for photos."""
        handle = loaded.handle
        return notice(DEMO_LIMITS if handle is not None and handle.info.id == "demo" else "")

    return limits


def _api_error(words: str, title: str) -> gr.Error:
    """For callers of the API; on the page the line next to Load shows it."""
    return gr.Error(words, title=title, visible=False, print_exception=False)


def tau_end(hidden_size: int) -> int:
    """The upper end of tau's slider: no sink score is above sqrt(hidden size) (docs/method.md)."""
    return math.ceil(math.sqrt(hidden_size))


def _var_controls(state: LoadState) -> tuple[Any, Any, Any]:
    """Updates of Compare with VAR, the sentence in its settings, and tau, for the loaded model."""
    handle = state.working
    if handle is None:
        return gr.update(interactive=False), "No model is loaded yet.", gr.skip()
    if handle.profile is None:
        words = (
            "The sink dimensions of this model are not known, so VAR cannot run. The Sinks tab can "
            "find them, or put them into sink_profile.toml in the model's folder (docs/method.md)."
        )
        tau = gr.update(maximum=max(tau_end(handle.info.hidden_size), VARSettings.tau))
        return gr.update(interactive=False, value=False, info=words), words, tau
    profile = handle.profile
    end = max(tau_end(handle.info.hidden_size), math.ceil(profile.tau))
    tau = gr.update(value=round(profile.tau, 2), maximum=end)
    words = (
        f"Sink dimensions {', '.join(map(str, profile.dims))}: {profile.source}; "
        f"confidence {profile.confidence}. {profile.note}".strip()
    )
    return gr.update(interactive=True, info=""), words, tau
