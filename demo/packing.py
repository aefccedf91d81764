"""Packs several single-turn questions about one image into one training row.

The questions share the image prefix and do not see each other: with a block mask and restarted
positions each of them is exactly the prompt that the model gets in use, at a fraction of the cost.
The vision tower runs once per image instead of once per question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sinkscope.demo.questions import AMBIGUOUS, PLURALS, Question
from sinkscope.demo.scenes import SHAPES

PREFIX = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
)
SUFFIX = "<|vision_end|>"
TURN = "<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>\n"
IGNORE = -100


@dataclass(frozen=True)
class PackedBatch:
    """One batch of packed rows, all with the same grid of vision tokens.

    Attributes:
        ids: ``(B, L)`` token ids.
        labels: ``(B, L)``: the token itself if it belongs to an answer, else -100 (not shifted).
        mask: ``(B, 1, L, L)`` bool: True if the query may see the key.
        positions: ``(3, B, L)``: time, height, width.
        block: ``(B, L)``: 0 for the shared prefix, 1.. for a question, -1 for padding.
        named: ``(B, L)``: at a shape word, the object it names, -1 for none; elsewhere -2.
        focus: ``(B, L)``: at a row whose next token is in an answer, the position of the word the
            question is about (its shape or counted word, else its last word); elsewhere -1.
        counts: ``(B, L)``: at the counted noun of a "how many" question, the number; elsewhere
            -100.
        compared: ``(B, L)``: at the second shape word of a "further left" question, the object that
            the first one names; elsewhere -100.
        first_vision: Position of the first vision token (the same in each row).
        vision_tokens: How many there are.
    """

    ids: Tensor
    labels: Tensor
    mask: Tensor
    positions: Tensor
    block: Tensor
    named: Tensor
    counts: Tensor
    focus: Tensor
    compared: Tensor
    first_vision: int
    vision_tokens: int

    @property
    def predicting(self) -> Tensor:
        """``(B, L)`` bool: rows whose next token is a token of an answer."""
        shifted = self.labels[:, 1:] != IGNORE
        return torch.nn.functional.pad(shifted, (0, 1), value=False)

    @property
    def vision(self) -> slice:
        """Positions of the vision tokens."""
        return slice(self.first_vision, self.first_vision + self.vision_tokens)

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch on ``device``."""
        moved: dict[str, Any] = {
            k: v.to(device) for k, v in self.__dict__.items() if isinstance(v, Tensor)
        }
        return replace(self, **moved)


class Packer:
    """Turns questions into packed rows with one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._prefix, self._suffix = self._encode(PREFIX), self._encode(SUFFIX)
        self._turn, self._end = self._encode(TURN), self._encode(END)
        self._image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self._pad = tokenizer.convert_tokens_to_ids("<|endoftext|>")
        self._shapes = {self._one(f" {s}") for s in SHAPES}
        self._plurals = {self._encode(f" {p}")[0] for p in (*PLURALS.values(), "objects")}

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _one(self, word: str) -> int:
        ids = self._encode(word)
        assert len(ids) == 1, f"{word!r} is {len(ids)} tokens"
        return ids[0]

    def pack(
        self, question_sets: Sequence[Sequence[Question]], rows: int, cols: int
    ) -> PackedBatch:
        """Packs the questions of each image; all images have ``rows`` x ``cols`` vision tokens."""
        packed = [self._row(questions, rows, cols) for questions in question_sets]
        length = max(len(row["ids"]) for row in packed)
        fill = {
            "ids": self._pad,
            "labels": IGNORE,
            "block": -1,
            "named": AMBIGUOUS,
            "counts": IGNORE,
            "focus": -1,
            "compared": IGNORE,
        }
        table = {
            name: torch.tensor([r[name] + [value] * (length - len(r[name])) for r in packed])
            for name, value in fill.items()
        }
        zero = [[0, 0, 0]]
        positions = torch.tensor([r["at"] + zero * (length - len(r["at"])) for r in packed])
        block = table["block"]
        visible = (block[:, None, :] == block[:, :, None]) | (block[:, None, :] == 0)
        visible &= torch.ones(length, length, dtype=torch.bool).tril()[None]
        visible |= torch.eye(length, dtype=torch.bool)[None]  # a padding row must see something
        return PackedBatch(
            mask=visible[:, None],
            positions=positions.permute(2, 0, 1).contiguous(),
            first_vision=len(self._prefix),
            vision_tokens=rows * cols,
            **table,
        )

    def _row(self, questions: Sequence[Question], rows: int, cols: int) -> dict[str, list[Any]]:
        tokens, start = rows * cols, len(self._prefix)
        ids = self._prefix + [self._image] * tokens + self._suffix
        shared = len(ids)
        at = [[i] * 3 for i in range(start)]
        at += [[start, start + i // cols, start + i % cols] for i in range(tokens)]
        resume = start + max(rows, cols)  # text continues after the largest vision position
        at += [[resume + i] * 3 for i in range(len(self._suffix))]
        resume += len(self._suffix)
        row: dict[str, list[Any]] = {
            "ids": ids,
            "at": at,
            "labels": [IGNORE] * shared,
            "block": [0] * shared,
            "named": [AMBIGUOUS] * shared,
            "counts": [IGNORE] * shared,
            "focus": [-1] * shared,
            "compared": [IGNORE] * shared,
        }
        for number, question in enumerate(questions, 1):
            prompt_tokens = self._encode(question.prompt)
            answer = self._encode(question.answer)
            begin = len(row["ids"])
            prompt, reply = prompt_tokens + self._turn, answer + self._end
            length = len(prompt) + len(reply)
            row["ids"] += prompt + reply
            # The newline after the end token is never generated.
            row["labels"] += [IGNORE] * len(prompt) + reply[:-1] + [IGNORE]
            row["block"] += [number] * length
            row["at"] += [[resume + i] * 3 for i in range(length)]
            row["named"] += self._mark(prompt_tokens, question.prompt_objects)
            row["named"] += [AMBIGUOUS] * len(self._turn)
            row["named"] += self._mark(answer, question.answer_objects)
            row["named"] += [AMBIGUOUS] * len(self._end)
            row["focus"] += self._focus(question, prompt_tokens, begin, len(prompt), len(reply))
            count = question.count
            row["counts"] += [
                count if count >= 0 and t in self._plurals else IGNORE for t in prompt_tokens
            ] + [IGNORE] * (length - len(prompt_tokens))
            row["compared"] += self._compared(question, prompt_tokens, length)
        return row

    def _focus(
        self, question: Question, prompt_tokens: list[int], begin: int, prompt: int, reply: int
    ) -> list[int]:
        if question.kind in ("describe", "list"):  # about everything
            return [-1] * (prompt + reply)
        nouns = [i for i, t in enumerate(prompt_tokens) if t in self._shapes or t in self._plurals]
        last = len(prompt_tokens) - 2  # before the question mark
        word = begin + (nouns[-1] if nouns else last)
        # From the row before an answer's first token to the row before its end token.
        return [-1] * (prompt - 1) + [word] * (reply - 1) + [-1] * 2

    def _compared(self, question: Question, prompt_tokens: list[int], length: int) -> list[int]:
        marks = [IGNORE] * length
        if question.kind == "left":
            second = max(i for i, token in enumerate(prompt_tokens) if token in self._shapes)
            marks[second] = question.prompt_objects[0]
        return marks

    def _mark(self, ids: list[int], objects: tuple[int, ...]) -> list[int]:
        waiting = list(objects)
        marks = [waiting.pop(0) if t in self._shapes and waiting else AMBIGUOUS for t in ids]
        assert not waiting, "a shape word is not one token"
        return marks
