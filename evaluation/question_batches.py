"""Asking a model questions by several methods, which share the passes over the images.

VAR changes nothing before the end of the last image, so keys and values up to there are the same
for every method and are computed once (`capture.prefix`); questions about the same images share
them too. The rest is one batch, one row per question and method (`evaluation.answering`), as many
questions as fit a budget of tokens. A row of the plain model is unchanged to the last bit.

Methods with different sink dimensions run one group after the other from the same keys, because a
prefix has the scores of one set of dimensions.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from PIL import Image

from sinkscope.capture.prefix import Prefix, forward_prefixes
from sinkscope.capture.run import checkpoint_decoding, memory_errors_named
from sinkscope.config import GenerationSettings
from sinkscope.evaluation.answering import Answer, Row, answer_rows, count_sinks
from sinkscope.evaluation.checking import Drafts, can_check, check_rows, draft_answers
from sinkscope.evaluation.lower_layers import first_acting
from sinkscope.evaluation.methods import Method
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle
from sinkscope.utils import sha256

MOST_ROWS = 8  # methods in one batch; more of them run in several batches

Dims = tuple[int, ...]
RowKey = tuple[int, int]  # question, method


@dataclass(frozen=True)
class ModelQuestion:
    """One question to a model, the same for every method.

    Attributes:
        images: RGB, shown before the text.
        prompt: the user's text.
        settings: length of the answer, how tokens are chosen, seed.
        system: the system prompt; None leaves the model's own.
        min_pixels, max_pixels: bounds on a resized image's area; None leaves the processor's own.
    """

    images: tuple[Image.Image, ...]
    prompt: str
    settings: GenerationSettings
    system: str | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None

    def image_part(self) -> tuple[object, ...]:
        """Sizes, digests of the pixels, and bounds: the inputs of the vision tower."""
        digests = tuple(f"{i.mode} {i.size} {sha256(i.tobytes())}" for i in self.images)
        return (*digests, self.min_pixels, self.max_pixels)

    def fingerprint(self) -> str:
        """SHA-256 of all of it, including the images' sizes and pixels."""
        parts = [self.image_part(), self.prompt, self.system, asdict(self.settings)]
        return sha256(json.dumps(parts, ensure_ascii=False).encode("utf-8", "surrogatepass"))

    def inputs(self, handle: ModelHandle) -> PromptInputs:
        """The model's inputs.

        Raises:
            ValueError: images or prompt that the model cannot take.
        """
        return handle.prepare(
            self.images,
            self.prompt,
            self.system,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
        )


@dataclass(frozen=True)
class PreparedQuestion:
    """A question with the model's inputs."""

    question: ModelQuestion
    inputs: PromptInputs


def answer_questions(
    handle: ModelHandle,
    ready: Sequence[PreparedQuestion],
    methods: Sequence[Method],
    batch_tokens: int = 0,
) -> list[tuple[Answer, ...]]:
    """Answer questions by each method.

    Args:
        handle: a loaded model; its lock is taken, a batch at a time.
        ready: questions, all with the same settings of generation.
        methods: resolved ones, at least one.
        batch_tokens: maximum number of tokens of a batch: rows, times the longest prompt with its
            new tokens. A single question may have more. 0: one question at a time.

    Returns:
        For each question one answer per method, in order.

    Raises:
        RunOutOfMemoryError: the device is full.
    """
    answered: list[tuple[Answer, ...]] = []
    shared: _SharedPass | None = None
    followed = bool(ready) and ready[0].question.settings.decoding == "checkpoint"
    if followed and "max_length" in checkpoint_decoding(handle).values:
        batch_tokens = 0  # penalties count each prompt's own tokens
    for batch in _batches(ready, len(methods), batch_tokens):
        began = time.perf_counter()
        with handle.lock, memory_errors_named(batch[0].inputs, batch[0].question.settings):
            groups = _groups(handle, methods)
            passed: list[Mapping[Dims, Prefix]] = []
            for one in batch:
                if shared is None or not shared.fits(one):
                    shared = _SharedPass.of(handle, one, [dims for dims, _ in groups])
                passed.append(shared.of_prompt(one.inputs))
            answers = _of_batch(handle, batch, methods, groups, passed)
        seconds = (time.perf_counter() - began) / (len(batch) * len(methods))
        answered += [
            tuple(replace(one, seconds=seconds) for one in row_answers) for row_answers in answers
        ]
    return answered


def _batches(
    ready: Sequence[PreparedQuestion], methods: int, batch_tokens: int
) -> Iterator[list[PreparedQuestion]]:
    """Batches of questions in order, as many together as fit."""
    batch: list[PreparedQuestion] = []
    for one in ready:
        longest = max(member.inputs.layout.length for member in (*batch, one))
        tokens = longest + one.question.settings.max_new_tokens
        if batch and (len(batch) + 1) * methods * tokens > batch_tokens:
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _of_batch(
    handle: ModelHandle,
    batch: Sequence[PreparedQuestion],
    methods: Sequence[Method],
    groups: Sequence[tuple[Dims, list[int]]],
    passed: Sequence[Mapping[Dims, Prefix]],
) -> list[list[Answer]]:
    settings = batch[0].question.settings
    by_row: dict[RowKey, Answer] = {}
    plain = next((row for row, method in enumerate(methods) if method.var is None), None)
    drafts: Drafts | None = None
    if plain is not None and len(methods) > 1 and can_check(handle, settings):
        first = [Row(one[groups[0][0]], methods[plain]) for one in passed]
        drafts = draft_answers(handle, settings, first, first_acting(handle.info, methods))
        by_row = {(index, plain): answer for index, answer in enumerate(drafts.answers)}
    for dims, members in groups:
        places = [(index, member) for index in range(len(batch)) for member in members]
        rows = {
            (index, member): Row(passed[index][dims], methods[member])
            for index, member in places
            if (index, member) not in by_row
        }
        if drafts is not None and rows:
            questions = [index for index, _ in rows]
            checked = check_rows(handle, settings, list(rows.values()), questions, drafts)
            by_row |= {key: one for key, one in zip(rows, checked, strict=True) if one is not None}
            rows = {key: row for key, row in rows.items() if key not in by_row}
        if rows:
            answers, _ = answer_rows(handle, settings, list(rows.values()))
            by_row |= dict(zip(rows, answers, strict=True))
        for index, member in places:
            count = count_sinks(handle, methods[member], passed[index])
            by_row[index, member] = replace(by_row[index, member], sinks=count)
    return [
        [by_row[index, member] for member in range(len(methods))] for index in range(len(batch))
    ]


def _groups(handle: ModelHandle, methods: Sequence[Method]) -> list[tuple[Dims, list[int]]]:
    """Sink dimensions, and the methods that use them, in batches of at most `MOST_ROWS`.

    The plain model is in the first group: it needs no dimensions, but its sinks are counted by the
    profile's.
    """
    profile = () if handle.profile is None else handle.profile.dims
    first = next((m.var.dims for m in methods if m.var is not None), profile)
    by_dims: dict[Dims, list[int]] = {}
    for row, method in enumerate(methods):
        by_dims.setdefault(first if method.var is None else method.var.dims, []).append(row)
    return [
        (dims, rows[start : start + MOST_ROWS])
        for dims, rows in by_dims.items()
        for start in range(0, len(rows), MOST_ROWS)
    ]


@dataclass(frozen=True)
class _SharedPass:
    """The pass over the images of one question, reused by later questions about the same images.

    Attributes:
        tokens: token ids of the prefix.
        images: their digests, and the bounds on their areas.
        prefixes: by sink dimensions; all have the same keys and values.
    """

    tokens: tuple[int, ...]
    images: tuple[object, ...]
    prefixes: Mapping[Dims, Prefix]

    @staticmethod
    def of(handle: ModelHandle, one: PreparedQuestion, wanted: Sequence[Dims]) -> _SharedPass:
        """Pass the prompt up to its last vision token through the model, scored by every set of
        dimensions; and by the profile's, for the plain model."""
        sets = list(dict.fromkeys(wanted))
        if handle.profile is not None and handle.profile.dims not in sets:
            sets.append(handle.profile.dims)
        prefixes = forward_prefixes(handle, one.inputs, sets)
        length = next(iter(prefixes.values())).length
        return _SharedPass(one.inputs.token_ids[:length], one.question.image_part(), prefixes)

    def fits(self, one: PreparedQuestion) -> bool:
        """Whether a prompt begins with exactly the same tokens and images."""
        begins = one.inputs.token_ids[: len(self.tokens)] == self.tokens
        return begins and self.images == one.question.image_part()

    def of_prompt(self, inputs: PromptInputs) -> Mapping[Dims, Prefix]:
        """The same keys and values as the beginning of another prompt."""
        return {dims: replace(one, inputs=inputs) for dims, one in self.prefixes.items()}
