"""A sink profile (`sink_profile.toml`) uploaded by a user, for VAR in this browser only."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.data_classes import FileData

from sinkscope.models.profiles import SinkProfile, read_profile
from sinkscope.web.explore.model_events import tau_end
from sinkscope.web.runs.loaded_model import LoadedModel
from sinkscope.web.server.uploads import NO_UPLOAD, upload_path

LARGEST = 100_000  # bytes; a profile has some hundred


def uploaded_profile(given: FileData) -> SinkProfile:
    """The profile in an uploaded file.

    Raises:
        ValueError: it is not an upload, or not a profile; the text has the file's original name.
    """
    path, name = upload_path(given.path), (given.orig_name or "profile.toml")[:80]
    if not path.is_file():
        raise ValueError(NO_UPLOAD)
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{name} is larger than a sink profile; allowed: {LARGEST:,} bytes.")
    try:
        return read_profile(path)
    except ValueError as error:  # which names a folder of this machine
        raise ValueError(str(error).replace(path.name, name)) from error


def taking_profile(loaded: LoadedModel) -> Callable[..., Any]:
    def take(given: FileData | None) -> tuple[Any, Any, Any]:
        """Dimensions, their model and tau, of an uploaded profile."""
        if given is None:
            return gr.skip(), gr.skip(), gr.skip()
        try:
            profile = uploaded_profile(given)
            model = _check_model(profile, loaded)
        except ValueError as error:
            raise gr.Error(str(error), title="Not a profile for this model") from error
        end = max(tau_end(profile.hidden_size), math.ceil(profile.tau))
        tau = gr.update(value=round(profile.tau, 2), maximum=end)
        return ", ".join(map(str, profile.dims)), model, tau

    return take


def _check_model(profile: SinkProfile, loaded: LoadedModel) -> str:
    """Check that the dimensions fit the loaded model."""
    handle = loaded.handle
    if handle is None:
        return profile.model
    info, given = handle.info, (profile.hidden_size, profile.layers)
    if given != (info.hidden_size, info.layers):
        raise ValueError(
            f"The profile is for hidden_size {given[0]} and {given[1]} layers; {info.id} has "
            f"{info.hidden_size} and {info.layers}."
        )
    return info.id
