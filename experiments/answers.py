"""A prompt and an answer to it, for experiments that let the model read the answer again."""

from __future__ import annotations

from dataclasses import dataclass

from sinkscope.capture.trace import GenerationTrace
from sinkscope.config import VARSettings
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle
from sinkscope.models.token_texts import TextPieces


@dataclass(frozen=True)
class Answered:
    """A prompt and an answer to it.

    Attributes:
        inputs: from `handle.prepare`.
        answer: the answer's token ids.
        texts: theirs, which join to the answer.
        var: VAR settings that the model runs with; None: the plain model.
    """

    inputs: PromptInputs
    answer: tuple[int, ...]
    texts: tuple[str, ...]
    var: VARSettings | None = None

    def __post_init__(self) -> None:
        if not self.answer:
            raise ValueError("The answer has no token; there is nothing whose probability changes.")


def answered(handle: ModelHandle, trace: GenerationTrace) -> Answered:
    """The prompt and answer of a run, to be read again by the model that made it.

    Raises:
        ValueError: another model is loaded, or the prompt comes out otherwise than in the run (it
            was prepared with a system message, earlier turns or image sizes of its own); or the run
            has no answer token.
    """
    made_by = [(m.id, m.revision, m.family) for m in (trace.model, handle.info)]
    if made_by[0][1:] != made_by[1][1:]:
        raise ValueError(
            f"This run was made by {made_by[0][0]} ({made_by[0][1]}), but {made_by[1][0]} "
            f"({made_by[1][1]}) is loaded. Load the run's model to test it."
        )
    inputs = handle.prepare(list(trace.images), trace.prompt)
    if inputs.layout != trace.layout or inputs.token_texts != trace.prompt_tokens:
        raise ValueError(
            f"The prompt of this run has {trace.layout.length} tokens and comes out with "
            f"{inputs.layout.length} now, or with others: it was prepared in another way (system "
            "message, earlier turns, image sizes). Make the run again with what is loaded."
        )
    var = None
    if trace.var is not None:
        stored = dict(trace.var["settings"])
        lists = {name: tuple(v) for name, v in stored.items() if isinstance(v, list)}
        var = VARSettings(**{**stored, **lists})
    ids, texts = (tuple(getattr(token, what) for token in trace.tokens) for what in ("id", "text"))
    return Answered(inputs, ids, texts, var)


def answered_text(
    handle: ModelHandle, inputs: PromptInputs, text: str, var: VARSettings | None = None
) -> Answered:
    """A prompt and any text as its answer; special tokens written in it stay plain text."""
    tokenizer = handle.tokenizer
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    pieces = TextPieces(tokenizer)
    for token in ids:
        pieces.add(token)
    return Answered(inputs, tuple(ids), tuple(pieces.finish()), var)
