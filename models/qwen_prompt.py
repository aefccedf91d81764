"""From a conversation to Qwen's token ids, each with its role: the chat format of the family.

Text typed by a user is never parsed for control tokens. A rendered conversation is encoded as a
whole, which gives the ids that transformers' processor gives; only a stretch with a typed control
token is encoded again, as plain text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from sinkscope.models.chat_template import (
    ChatTemplate,
    Rendered,
    TemplateError,
    Turn,
    render,
    template_tokens,
)
from sinkscope.models.family import Segment, SegmentKind

IMAGE_TOKEN = "<|image_pad|>"
ROLE_START = "<|im_start|>"
ROLE_END = "<|im_end|>"
CONTROL_TOKENS = (
    IMAGE_TOKEN,
    ROLE_START,
    ROLE_END,
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
)
# Qwen's chat format, for checkpoints whose own templates show no images.
OWN_TEMPLATE = """\
{%- for message in messages %}
{%- if loop.first and message.role != 'system' %}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{{- '<|im_start|>' ~ message.role ~ '\\n' }}
{%- if message.content is string %}
{{- message.content }}
{%- else %}
{%- for part in message.content %}
{%- if part.type == 'image' %}
{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part.type == 'text' %}
{{- part.text }}
{%- endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

Span = tuple[int, int, SegmentKind]


@dataclass(frozen=True)
class Piece:
    """Token ids of one stretch of the prompt, and its role."""

    ids: tuple[int, ...]
    kind: SegmentKind
    image: int | None = None


def conversation(prompt: str, system: str | None, history: Sequence[tuple[str, str]]) -> list[Turn]:
    """The turns and their roles, in order."""
    turns: list[Turn] = [] if system is None else [("system", system)]
    for asked, answered in history:
        turns += [("user", asked), ("assistant", answered)]
    return [*turns, ("user", prompt)]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
    turns: Sequence[Turn],
    counts: Sequence[int],
) -> list[Piece]:
    """The ids of a conversation, piece by piece, each piece with its role.

    Not thread-safe: a flag of the tokenizer is set and restored.

    Args:
        tokenizer: of the checkpoint.
        template: its chat template.
        turns: from `conversation`.
        counts: vision tokens of each image; the images are shown in the first user turn.

    Raises:
        TemplateError: the template cannot show this conversation.
    """
    controls = control_tokens(tokenizer)
    rendered = render(
        tokenizer, template, turns, len(counts), IMAGE_TOKEN, tuple(controls.values())
    )
    text, spoken = rendered.text, rendered.spoken
    begin = getattr(tokenizer, "bos_token", None)
    coded = tokenizer(
        text,
        # as transformers' processor does; Qwen's published tokenizers add none
        add_special_tokens=not (begin is not None and text.startswith(begin)),
        split_special_tokens=False,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    ids, offsets, put = coded["input_ids"], coded["offset_mapping"], coded["special_tokens_mask"]

    def typed(start: int, stop: int) -> bool:  # a normaliser turned a text into a control token
        return any(low <= start and stop <= high for low, high, _ in spoken or ())

    pieces: list[Piece] = []
    role, image, first, start = "", 0, 0, 0
    for index, token in enumerate([*ids, None]):
        if token is None:
            low = high = len(text)
        else:
            low, high = offsets[index]
            if put[index] and low == high:  # added by the tokenizer: not in the text
                low = high = offsets[index - 1][1] if index else 0
            elif token not in controls or typed(low, high):
                continue
        stretch = text[start:low]
        if stretch:
            if not role:  # right after a role start: "user\n...", "system\n...", "assistant\n"
                role = stretch.split("\n", 1)[0]
            places = [(a - start, b - start) for a, b in offsets[first:index]]
            pieces += _stretch(
                tokenizer, rendered, (start, low), role, (ids[first:index], places), controls
            )
        if token is not None:
            name = controls.get(token, "")
            if name == IMAGE_TOKEN:
                if image == len(counts):
                    raise TemplateError("The model's tokenizer makes an image of what was typed.")
                pieces.append(Piece((token,) * counts[image], "image", image))
                image += 1
            else:
                role = "" if name in (ROLE_START, ROLE_END) else role
                pieces.append(Piece((token,), "template"))
        first, start = index + 1, high
    return pieces


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Id and text of every token that only the template may write: all added tokens that are
    special, whatever list of the tokenizer's names them, and the family's own."""
    return template_tokens(tokenizer, CONTROL_TOKENS)


def segments(pieces: Sequence[Piece]) -> tuple[Segment, ...]:
    """Join adjacent pieces of one role; images stay separate."""
    joined: list[Segment] = []
    position = 0
    for piece in pieces:
        stop = position + len(piece.ids)
        if joined and joined[-1].kind == piece.kind and joined[-1].image == piece.image:
            joined[-1] = Segment(piece.kind, joined[-1].start, stop, piece.image)
        else:
            joined.append(Segment(piece.kind, position, stop, piece.image))
        position = stop
    return tuple(joined)


def _stretch(
    tokenizer: PreTrainedTokenizerBase,
    rendered: Rendered,
    place: tuple[int, int],
    role: str,
    coded: tuple[list[int], list[tuple[int, int]]],
    controls: dict[int, str],
) -> list[Piece]:
    """The text between two control tokens, as pieces with their roles."""
    start, stop = place
    text, mark = rendered.text[start:stop], rendered.mark
    spans = _spans(rendered, place, role)
    ids, offsets = coded
    if mark in text or any(token in controls for token in ids):
        spans = [
            (low - text.count(mark, 0, low), high - text.count(mark, 0, high), kind)
            for low, high, kind in spans
        ]
        ids, offsets = _plain(tokenizer, text.split(mark), controls)
    kinds: list[SegmentKind] = ["template"] * len(ids)
    for low, high, kind in spans:
        for index, (begin, end) in enumerate(offsets):
            if end > low and begin < high:
                kinds[index] = kind
    pieces: list[Piece] = []
    for token, kind in zip(ids, kinds, strict=True):
        if pieces and pieces[-1].kind == kind:
            pieces[-1] = Piece((*pieces[-1].ids, token), kind)
        else:
            pieces.append(Piece((token,), kind))
    return pieces


def _spans(rendered: Rendered, place: tuple[int, int], role: str) -> list[Span]:
    """The spoken parts of a stretch; the template's own system message counts as spoken."""
    start, stop = place
    spans: list[Span] = [
        (max(low, start) - start, min(high, stop) - start, kind)
        for low, high, kind in rendered.spoken or ()
        if low < stop and high > start
    ]
    if spans:
        return spans
    text, header = rendered.text[start:stop], f"{role}\n"
    begin = len(header) if text.startswith(header) else 0
    kind: SegmentKind
    if rendered.spoken is not None:
        if role == "system" and 0 < begin < len(text):
            return [(begin, len(text), "system")]
        return []
    for kind in ("system", "user", "assistant"):  # texts cannot be located: use their role
        if role == kind and begin < len(text):
            return [(begin, len(text), kind)]
    return []


def _plain(
    tokenizer: PreTrainedTokenizerBase, parts: Sequence[str], controls: dict[int, str]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and offsets of a text in which no control token may be found.

    Args:
        tokenizer: of the checkpoint.
        parts: the text, cut inside each control token that was typed in it.
        controls: tokens that must not result.
    """
    coded = tokenizer(
        "".join(parts),
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
    )
    ids, offsets = coded["input_ids"], coded["offset_mapping"]
    if not any(token in controls for token in ids):
        return ids, offsets
    # The flag does not cover tokens that the tokenizer does not call special; pieces contain none.
    ids, offsets, before = [], [], 0
    for part in parts:
        coded = tokenizer(
            part, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        ids += coded["input_ids"]
        offsets += [(low + before, high + before) for low, high in coded["offset_mapping"]]
        before += len(part)
    if any(token in controls for token in ids):
        raise TemplateError("The model's tokenizer makes a control token of what was typed.")
    return ids, offsets
