"""Chat templates: where a checkpoint keeps them, which one shows images, and what one renders.

A checkpoint may bring several: one of the processor, one of the tokenizer of the text model it was
made from, named ones for tools. The order is that of transformers' processor; a template counts
only if it renders a message with an image.

A template may alter the texts (most often it trims them). So it is rendered twice: with
placeholders, which shows where each text belongs, and with the texts themselves, which gives the
model's input. For the second rendering, control tokens typed in a text are broken by a mark, so
that users cannot insert them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from sinkscope.models.family import SegmentKind
from sinkscope.untrusted import INFINITE, read_json

PLACEHOLDER = "\ue000{}\ue001"  # a placeholder for a text; private-use characters
MARKS = (range(0xE002, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))  # private use
PROBE = "What is shown?"

Turn = tuple[SegmentKind, str]


class TemplateError(ValueError):
    """A chat template that cannot be used; the text is one sentence for the user."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template that shows images.

    Attributes:
        text: Jinja source.
        parts_only: system messages and answers must be given as a list of parts, as messages with
            images are; as plain texts it does not show them.
        plain: a text model's: everything must be given as plain text.
    """

    text: str
    parts_only: bool = False
    plain: bool = False


@dataclass(frozen=True)
class Rendered:
    """A rendered conversation.

    Attributes:
        text: with marks inside typed control tokens.
        spoken: (start, stop, kind) of each text in it, in order; None where the template alters
            texts so that they cannot be found again.
        mark: the character that breaks typed control tokens.
    """

    text: str
    spoken: tuple[tuple[int, int, SegmentKind], ...] | None
    mark: str


def candidates(
    folder: Path, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[str, str, object]]:
    """(file, name, template) of each template, in the order that transformers' processor has.

    `processor_config.json` wins over `chat_template.json`, that over `chat_template.jinja` with
    `additional_chat_templates/`, and these over the tokenizer's own.

    Raises:
        TemplateError: a file that should hold one is damaged.
    """
    for name in ("processor_config.json", "chat_template.json"):
        given = _json(folder / name).get("chat_template")
        yield from _named(name, given)
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        try:
            yield jinja.name, "default", jinja.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise TemplateError(f"{jinja.name} is not UTF-8 text.") from error
    yield from _named("the tokenizer", tokenizer.chat_template)
    # Where there is a chat_template.jinja, the tokenizer has that one instead of this.
    name = "tokenizer_config.json"
    yield from _named(name, _json(folder / name).get("chat_template"))


def choose(
    templates: Iterator[tuple[str, str, object]],
    tokenizer: PreTrainedTokenizerBase,
    image_token: str,
    model_template: str,
) -> tuple[ChatTemplate, str]:
    """The first template that shows an image; the family's own if none does.

    Args:
        templates: from `candidates`.
        tokenizer: renders them.
        image_token: what stands for an image in a rendered message.
        model_template: the family's template.

    Returns:
        The template, and a sentence for the user where it is the family's own, else "".

    Raises:
        TemplateError: a template that cannot be rendered: it is damaged, and using another one
            instead would silently change the prompt.
    """
    passed: list[str] = []
    seen: list[object] = []
    for file, name, template in templates:
        if template in seen:  # the tokenizer has read the same file
            continue
        seen.append(template)
        if name != "default":
            passed.append(f"{file} has templates named {name}, but no default")
            continue
        if not isinstance(template, str):
            raise TemplateError(
                f"The chat template in {file} is of type {type(template).__name__}; allowed: a "
                "text."
            )
        chosen, why = _showing_images(tokenizer, template, image_token)
        if chosen is not None:
            return chosen, ""
        if why:
            raise TemplateError(
                f"The chat template in {file} cannot be used: {why}. Correct it, or remove it from "
                "the folder; then the next one, or the family's own, is used."
            )
        passed.append(f"the one in {file} shows none")
    what = "; ".join(passed[:3]) or "it has no template at all"
    note = f"The checkpoint has no chat template that shows images ({what}), so the family's own "
    return ChatTemplate(model_template), note + "is used."


def render(
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
    turns: Sequence[Turn],
    images: int,
    image_token: str,
    control_tokens: Sequence[str],
) -> Rendered:
    """Render a conversation whose first user turn shows all images.

    Args:
        tokenizer: of the checkpoint.
        template: from `choose`.
        turns: who says what, ending with the user.
        images: how many.
        image_token: stands for one image.
        control_tokens: tokens that users may not insert by typing.

    Raises:
        TemplateError: the template refuses the conversation, or does not show all of it.
    """
    places = [(kind, PLACEHOLDER.format(index)) for index, (kind, _) in enumerate(turns)]
    mark = _unused_character([text for _, text in turns])
    marked = [(kind, _marked(text, control_tokens, mark)) for kind, text in turns]
    try:
        outline = _apply(tokenizer, template, places, images)
        text = _apply(tokenizer, template, marked, images)
    except TemplateError as error:
        raise TemplateError(f"The model's chat template cannot be used here: {error}.") from error
    cuts = [outline.find(placeholder) for _, placeholder in places]
    other_images = not template.plain and outline.count(image_token) != images
    if other_images or any(outline.count(p) != 1 for _, p in places):
        shown = [kind for kind, place in places if outline.count(place) != 1]
        what = "the images" if not shown else f"a {shown[0]} message"
        raise TemplateError(
            f"The model's chat template does not show {what} once each; it cannot be used for "
            "this prompt."
        )
    if cuts != sorted(cuts):
        raise TemplateError("The model's chat template changes the order of the conversation.")
    if not template.plain and text.count(image_token) != images:
        raise TemplateError("The model's chat template shows this prompt with other images.")
    parts = re.split("|".join(re.escape(place) for _, place in places), outline)
    return Rendered(text, _found_again(text, parts, marked), mark)


def template_tokens(
    tokenizer: PreTrainedTokenizerBase, control_tokens: Sequence[str] = ()
) -> dict[int, str]:
    """Id and text of every token that only a template may write: all added tokens that are
    special, whatever list of the tokenizer's names them, and the family's `control_tokens`."""
    added = tokenizer.added_tokens_decoder
    return {
        token: about.content
        for token, about in added.items()
        if about.content and (about.special or about.content in control_tokens)
    }


def _named(file: str, given: object) -> Iterator[tuple[str, str, object]]:
    """(file, name, template): a single one has the name default."""
    if isinstance(given, list):  # tokenizer_config.json of older versions
        given = {
            entry.get("name"): entry.get("template") for entry in given if isinstance(entry, dict)
        }
    if isinstance(given, dict):
        if "default" in given:
            yield file, "default", given["default"]
        else:
            yield file, ", ".join(sorted(map(str, given))), given
    elif given is not None:
        yield file, "default", given


def _json(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        return {}
    try:
        held = read_json(file, "The file", INFINITE)
    except ValueError as error:
        raise TemplateError(f"{file.name} is damaged: it is not JSON.") from error
    if not isinstance(held, dict):
        raise TemplateError(f"{file.name} is damaged: it holds no JSON object.")
    return held


def _showing_images(
    tokenizer: PreTrainedTokenizerBase, template: str, image_token: str
) -> tuple[ChatTemplate | None, str]:
    """The template, if it shows images; else None, and why it cannot be rendered."""
    problem = ""
    system: Turn = ("system", PLACEHOLDER.format(0))
    rest: list[Turn] = [("user", PLACEHOLDER.format(1))]
    earlier: list[Turn] = [*rest, ("assistant", PLACEHOLDER.format(2)), ("user", PROBE)]
    rendered = None
    for turns in (rest, [system, *rest]):  # some demand a system message
        try:
            text = _apply(tokenizer, ChatTemplate(template), turns, 1)
        except TemplateError as error:
            problem = problem or str(error)
            continue
        if text.count(image_token) == 1 and all(
            text.count(text_of_turn) == 1 for _, text_of_turn in turns[-1:]
        ):
            rendered = ChatTemplate(template)
            break
    if rendered is None:
        return None, problem if problem and not _shows_text(tokenizer, template) else ""

    def shows(parts_only: bool) -> bool:
        for turns in ([system, *rest], earlier):
            try:
                text = _apply(tokenizer, ChatTemplate(template, parts_only), turns, 1)
            except TemplateError:
                return False
            if any(text_of_turn not in text for _, text_of_turn in turns):
                return False
        return True

    return ChatTemplate(template, not shows(False) and shows(True)), ""


def _shows_text(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Whether it is a template of a text model: its messages are plain texts."""
    messages = [{"role": "user", "content": PROBE}]
    try:
        return PROBE in _rendered(tokenizer, template, messages)
    except TemplateError:
        return False


def _apply(
    tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, turns: Sequence[Turn], images: int
) -> str:
    """The conversation as the template shows it; the images come before the first user's text."""
    messages: list[dict[str, Any]] = []
    # Some templates check the type, some the key; none shows its value.
    pictures: list[dict[str, str]] = [{"type": "image", "image": "image"}] * images
    for kind, text in turns:
        content: Any = text
        if kind == "user" and not template.plain:
            content = [*pictures, {"type": "text", "text": text}]
            pictures = []
        elif template.parts_only:
            content = [{"type": "text", "text": text}]
        messages.append({"role": kind, "content": content})
    return _rendered(tokenizer, template.text, messages)


def _rendered(
    tokenizer: PreTrainedTokenizerBase, template: str, messages: list[dict[str, Any]]
) -> str:
    try:
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(
            f"it has a syntax error in line {error.lineno} ({_line(error.message)})"
        ) from error
    except Exception as error:
        # A template is a program of the checkpoint's author, in a sandbox: it may raise anything.
        raise TemplateError(f"it refuses the conversation ({_line(str(error))})") from error
    return str(text)


def _line(words: str | None) -> str:
    first = (words or "no reason given").strip().split("\n", 1)[0].rstrip(".")
    return first if len(first) <= 200 else first[:197] + "..."


def _unused_character(texts: Sequence[str]) -> str:
    used = {character for text in texts for character in text}
    free = (chr(code) for codes in MARKS for code in codes if chr(code) not in used)
    mark = next(free, None)
    if mark is None:
        raise ValueError("The prompt uses every private-use character of Unicode.")
    return mark


def _marked(text: str, control_tokens: Sequence[str], mark: str) -> str:
    """The text with a mark after the first character of each control token in it, overlapping ones
    too."""
    inside = [token for token in control_tokens if token in text]
    if not inside:
        return text
    longest_first = sorted(inside, key=len, reverse=True)
    return re.sub(
        f"(?=({'|'.join(map(re.escape, longest_first))}))(.)", rf"\2{mark}", text, flags=re.S
    )


def _found_again(
    text: str, parts: Sequence[str], turns: Sequence[Turn]
) -> tuple[tuple[int, int, SegmentKind], ...] | None:
    """The position of each text in a rendered template: between the parts around it, unchanged or
    trimmed, else whatever is there."""
    if not text.startswith(parts[0]):
        return None
    spans: list[tuple[int, int, SegmentKind]] = []
    start = len(parts[0])
    for index, (kind, given) in enumerate(turns):
        after, last = parts[index + 1], index == len(turns) - 1
        for form in (given, given.strip(), given.lstrip(), given.rstrip()):
            stop = start + len(form)
            if text.startswith(form, start) and (
                text[stop:] == after if last else text.startswith(after, stop)
            ):
                break
        else:
            stop = len(text) - len(after) if last else text.find(after, start) if after else -1
            if stop < start or not text.startswith(after, stop):
                return None
        spans.append((start, stop, kind))
        start = stop + len(after)
    return tuple(spans)
