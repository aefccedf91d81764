"""From a text, or a conversation of a text model, to token ids with roles."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from sinkscope.models.chat_template import (
    ChatTemplate,
    TemplateError,
    Turn,
    render,
    template_tokens,
)
from sinkscope.models.family import PromptRequest, SegmentKind

Spans = list[tuple[int, int, SegmentKind]]  # (first token, after the last, role), in order


def plain_ids(
    tokenizer: PreTrainedTokenizerBase, request: PromptRequest
) -> tuple[list[int], Spans]:
    """The text's ids, with the special tokens that the tokenizer itself puts around a text.

    Control tokens in the text are read as the text that they are.

    Raises:
        ValueError: the tokenizer makes a control token of what was typed.
    """
    coded = tokenizer(request.prompt, split_special_tokens=True, return_special_tokens_mask=True)
    ids, put = coded["input_ids"], coded["special_tokens_mask"]
    text_indices = [index for index, special in enumerate(put) if not special]
    controls, text = template_tokens(tokenizer), {ids[index] for index in text_indices}
    # Any text may give the unknown token.
    typed = [name for token, name in controls.items() if token in text and name in request.prompt]
    if typed:
        raise ValueError(
            f"The prompt has {typed[0]!r}, which the tokenizer reads as a control token."
        )
    if not text_indices:
        raise ValueError("The prompt has no tokens.")
    return ids, [(text_indices[0], text_indices[-1] + 1, "user")]


def chat_ids(tokenizer: PreTrainedTokenizerBase, request: PromptRequest) -> tuple[list[int], Spans]:
    """The conversation's ids in the checkpoint's own chat template: those of transformers'
    `apply_chat_template`.

    Raises:
        ValueError: there is no template, it cannot show the conversation, or a control token was
            typed, which would be read as one.
    """
    template = tokenizer.chat_template
    if not isinstance(template, str):
        raise ValueError("chat is True, but the checkpoint has no chat template; allowed: False.")
    turns: list[Turn] = [] if request.system is None else [("system", request.system)]
    for asked, answered in request.history:
        turns += [("user", asked), ("assistant", answered)]
    turns.append(("user", request.prompt))
    controls = tuple(template_tokens(tokenizer).values())
    for kind, text in turns:
        if typed := next((token for token in controls if token in text), None):
            raise ValueError(
                f"A {kind} message has {typed!r}, which is a control token in a conversation; "
                "leave it out, or give only the text (chat=False)."
            )
    rendered = render(tokenizer, ChatTemplate(template, plain=True), turns, 0, "", controls)
    coded = tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = coded["input_ids"], coded["offset_mapping"]
    if not ids:
        raise TemplateError("The model's chat template gives no text.")
    spans: Spans = []
    for low, high, kind in rendered.spoken or ():
        inside = [k for k, (start, stop) in enumerate(offsets) if stop > low and start < high]
        first = max(inside[0], spans[-1][1] if spans else 0) if inside else 0
        if inside and first <= inside[-1]:
            spans.append((first, inside[-1] + 1, kind))
    return ids, spans
