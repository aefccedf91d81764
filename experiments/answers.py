"""A prompt and an answer to it, for experiments that let the model read the answer again."""

from __future__ import annotations

from dataclasses import dataclass

from sinkscope.capture.saved_prompt import prepare_saved_prompt, var_settings_of
from sinkscope.capture.trace import GenerationTrace
from sinkscope.config import VARSettings
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle
from sinkscope.models.token_texts import TextPieces


@dataclass(frozen=True)
class PromptAndAnswer:
    """A prompt and an answer to it.

    Attributes:
        inputs: from `handle.prepare`.
        answer: the answer's token ids.
        texts: theirs, which join to the answer.
        var: VAR settings of the run; None: the plain model.
    """

    inputs: PromptInputs
    answer: tuple[int, ...]
    texts: tuple[str, ...]
    var: VARSettings | None = None

    def __post_init__(self) -> None:
        if not self.answer:
            raise ValueError("The answer has no token; there is nothing whose probability changes.")


def prompt_and_answer(handle: ModelHandle, trace: GenerationTrace) -> PromptAndAnswer:
    """The prompt and answer of a run, to be read again by the model that made it.

    Raises:
        ValueError: another model is loaded, or the prompt differs from that of the run (which was
            prepared with a system message, earlier turns or other image sizes); or the run has no
            answer token.
    """
    inputs, var = prepare_saved_prompt(handle, trace), var_settings_of(trace)
    ids, texts = (tuple(getattr(token, what) for token in trace.tokens) for what in ("id", "text"))
    return PromptAndAnswer(inputs, ids, texts, var)


def prompt_and_text(
    handle: ModelHandle, inputs: PromptInputs, text: str, var: VARSettings | None = None
) -> PromptAndAnswer:
    """A prompt and any text as its answer; special tokens written in it stay plain text."""
    tokenizer = handle.tokenizer
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    pieces = TextPieces(tokenizer)
    for token in ids:
        pieces.add(token)
    return PromptAndAnswer(inputs, tuple(ids), tuple(pieces.texts()), var)
