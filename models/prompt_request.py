"""The checks of `ModelHandle.prepare`, before a family sees the prompt."""

from __future__ import annotations

import dataclasses

from PIL import Image

from sinkscope.models.family import Family, PromptRequest
from sinkscope.models.images import as_rgb

MAX_PROMPT_CHARACTERS = 20_000


def checked(family: Family, model: str, request: PromptRequest) -> PromptRequest:
    """The request as a family gets it: images upright RGB, `chat` decided.

    Args:
        family: the model's.
        model: its id, for sentences.
        request: the caller's request; `chat` may be None.

    Raises:
        ValueError: as `ModelHandle.prepare` says.
    """
    if isinstance(request.images, Image.Image):
        raise ValueError("images is one image; allowed: a list of images.")
    images, prompt, system, history = (
        request.images,
        request.prompt,
        request.system,
        request.history,
    )
    sees = family.sees_images
    if sees and not images:
        raise ValueError("There is no image; give at least one.")
    if images and not sees:
        given = "is an image" if len(images) == 1 else f"are {len(images)} images"
        raise ValueError(
            f"There {given}, but {model} is a text model ({family.name}); allowed: none."
        )
    chat = sees if request.chat is None else request.chat
    if sees and not chat:
        raise ValueError(
            f"chat is False, but {family.name} shows images through its chat template; "
            "allowed: None, True."
        )
    if not chat and (system is not None or history):
        raise ValueError(
            f"{'system' if system is not None else 'history'} is given without a chat "
            "template; a text model takes only the prompt, or chat=True."
        )
    check_pixel_bounds(family, request.min_pixels, request.max_pixels)
    for what, text in (("prompt", prompt), ("system", "" if system is None else system)):
        check_text(what, text)
    for text in (text for turn in history for text in turn):
        check_text("history", text)
    if not prompt.strip():
        raise ValueError(
            f"The prompt is empty; {'ask something about the image' if sees else 'give a text'}."
        )
    if any(not text.strip() for turn in history for text in turn):
        raise ValueError(
            "history has an empty text; each turn is (what the user said, the answer)."
        )
    characters = len(prompt) + sum(len(text) for turn in history for text in turn)
    if characters > MAX_PROMPT_CHARACTERS:
        what = "conversation" if history else "prompt"
        raise ValueError(
            f"The {what} has {characters} characters; at most {MAX_PROMPT_CHARACTERS} are allowed."
        )
    return dataclasses.replace(
        request,
        images=tuple(as_rgb(image) for image in images),
        history=tuple((question, answered) for question, answered in history),
        chat=chat,
    )


def check_pixel_bounds(family: Family, min_pixels: int | None, max_pixels: int | None) -> None:
    """Refuse bounds for a family that takes none.

    Raises:
        ValueError: naming the bound.
    """
    for what, given in (("min_pixels", min_pixels), ("max_pixels", max_pixels)):
        if given is not None and not family.pixel_bounds:
            raise ValueError(
                f"{what} is {given}, but models of the family {family.name} take no pixel bounds; "
                "allowed: None."
            )


def check_text(what: str, text: object) -> None:
    """Refuse what cannot be encoded: not a string, or half of a surrogate pair."""
    if not isinstance(text, str):
        raise ValueError(f"{what} is a {type(text).__name__}; allowed: a text.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} has characters that are not valid Unicode text.") from error
