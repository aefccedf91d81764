"""The text of the Experiments tab before a run: whether the experiment works with the loaded model,
and where its sink dimensions come from."""

from __future__ import annotations

from sinkscope.experiments import catalogue
from sinkscope.models.loading import ModelHandle
from sinkscope.web.experiments.request import MINE
from sinkscope.web.explore.forecast import Notice, notice
from sinkscope.web.runs.loaded_model import LoadState, why_no_model


def estimate_text(state: LoadState, name: str, source: str) -> Notice:
    """The line below Run.

    Args:
        state: state of the model.
        name: name of the chosen experiment.
        source: source of its samples.
    """
    handle = state.working
    if handle is None:
        return notice(why_no_model(state), "warn")
    layers = f"{handle.info.id}: layers 0 to {handle.info.layers - 1}."
    if handle.family.sees_images:
        return notice(f"{layers} {_known(handle)}")
    needs = any(row.name == name and row.needs_images for row in catalogue.EXPERIMENTS)
    if needs:
        text_experiments = ", ".join(
            row.name for row in catalogue.EXPERIMENTS if not row.needs_images
        )
        words = (
            f"{handle.info.id} is a text model and sees no images; {name} needs one that does. "
            f"Allowed: {text_experiments}."
        )
        return notice(words, "warn")
    samples = (
        "Upload a .txt file with one prompt per line"
        if source == MINE
        else "Bundled samples are our own prompts"
    )
    return notice(
        f"{layers} A text model: the first token counts as the sink and is compared with an "
        f"ordinary token near it. {samples}."
    )


def _known(handle: ModelHandle) -> str:
    profile = handle.profile
    if profile is None:
        return (
            "It has no sink profile, so sinks are the vision tokens with the most attention. "
            "The Sinks tab can find a profile."
        )
    dims = ", ".join(map(str, profile.dims))
    word = "dimension" if len(profile.dims) == 1 else "dimensions"
    return f"Sinks by its profile: {word} {dims}, tau {profile.tau:.3g}."
