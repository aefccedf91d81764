"""One question put to a model by several methods, which share the pass over its images.

VAR changes nothing before the end of the last image, so keys and values up to there are the same
for every method and are made once (`capture.prefix`); questions about the same images share them
too. What follows is one batch, a row a method; a row of the plain model is left alone to the last
bit.

Methods whose sink dimensions differ run one group after the other behind the same keys, for a
prefix knows the scores by one set of dimensions.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from PIL import Image
from transformers import StoppingCriteriaList

from sinkscope.capture.answer import begin_with
from sinkscope.capture.prefix import Prefix, forward_prefixes
from sinkscope.capture.probes.answer_tokens import AnswerTokens
from sinkscope.capture.run import (
    decide,
    distribution_errors_named,
    memory_errors_named,
    seeded,
)
from sinkscope.capture.session import attached
from sinkscope.config import GenerationSettings
from sinkscope.evaluation.methods import Method
from sinkscope.interventions.var.checks import acting_layers
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle
from sinkscope.models.sink_score import FIRST_LAYER, above_threshold
from sinkscope.utils import sha256
from sinkscope.var_patch import VAR

MOST_ROWS = 8  # methods in one batch; more of them run one batch after the other
_SMALLEST = 1e-45  # a probability that float32 has rounded to 0


@dataclass(frozen=True)
class Ask:
    """What is put to a model: the same for every method.

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
        """Sizes, digests of the pixels, and bounds: what the vision tower's part depends on."""
        digests = tuple(f"{i.mode} {i.size} {sha256(i.tobytes())}" for i in self.images)
        return (*digests, self.min_pixels, self.max_pixels)

    def fingerprint(self) -> str:
        """SHA-256 of all of it, of the images' sizes and pixels among it."""
        said = [self.image_part(), self.prompt, self.system, asdict(self.settings)]
        return sha256(json.dumps(said, ensure_ascii=False).encode("utf-8", "surrogatepass"))


@dataclass(frozen=True)
class Answer:
    """What a method answered; the keys of the same names in `evaluation.run_folder`."""

    text: str
    finish: str
    log_probabilities: tuple[float, ...]
    sinks: int | None
    rows_changed: float
    mass_moved: float
    seconds: float


@dataclass(frozen=True)
class Shared:
    """The pass over the images of one question, for the next one about the same images.

    Attributes:
        tokens: ids of the positions that it covers.
        images: their digests, and the bounds on their areas.
        prefixes: by sink dimensions; all have the same keys and values.
    """

    tokens: tuple[int, ...]
    images: tuple[object, ...]
    prefixes: Mapping[tuple[int, ...], Prefix]

    def fits(self, inputs: PromptInputs, asked: Ask) -> bool:
        """Whether a prompt begins with the very same tokens and images."""
        begins = inputs.token_ids[: len(self.tokens)] == self.tokens
        return begins and self.images == asked.image_part()


def ask(
    handle: ModelHandle, asked: Ask, methods: Sequence[Method], before: Shared | None = None
) -> tuple[tuple[Answer, ...], Shared]:
    """Answer by each method.

    Args:
        handle: a loaded model; its lock is taken.
        asked: images and prompt.
        methods: resolved ones, at least one; the same as those of `before`.
        before: what the question before gave; used where it fits.

    Returns:
        One answer a method, in their order; and what the next question may use.

    Raises:
        ValueError: images or prompt that the model cannot take.
        RunOutOfMemoryError: the device is full.
    """
    began = time.perf_counter()
    inputs = handle.prepare(
        asked.images,
        asked.prompt,
        asked.system,
        min_pixels=asked.min_pixels,
        max_pixels=asked.max_pixels,
    )
    groups = _groups(handle, methods)
    made: dict[int, Answer] = {}
    with handle.lock, memory_errors_named(inputs, asked.settings):
        if before is not None and before.fits(inputs, asked):
            shared = before
        else:
            prefixes = _prefixes(handle, inputs, [dims for dims, _ in groups])
            length = next(iter(prefixes.values())).length
            shared = Shared(inputs.token_ids[:length], asked.image_part(), prefixes)
        spent = (time.perf_counter() - began) / len(methods)
        for dims, rows in groups:
            own = [methods[row] for row in rows]
            answers = _answers(handle, inputs, asked.settings, own, shared.prefixes[dims])
            counts = _sinks(handle, inputs, own, shared.prefixes)
            answers = [
                replace(answer, sinks=count, seconds=answer.seconds + spent)
                for answer, count in zip(answers, counts, strict=True)
            ]
            made.update(zip(rows, answers, strict=True))
    return tuple(made[row] for row in range(len(methods))), shared


def _groups(
    handle: ModelHandle, methods: Sequence[Method]
) -> list[tuple[tuple[int, ...], list[int]]]:
    """Sink dimensions, and the methods that use them, in batches of at most `MOST_ROWS`.

    The plain model goes with the first: it needs no dimensions, but its sinks are counted by the
    profile's.
    """
    profile = () if handle.profile is None else handle.profile.dims
    first = next((m.var.dims for m in methods if m.var is not None), profile)
    by_dims: dict[tuple[int, ...], list[int]] = {}
    for row, method in enumerate(methods):
        by_dims.setdefault(first if method.var is None else method.var.dims, []).append(row)
    return [
        (dims, rows[start : start + MOST_ROWS])
        for dims, rows in by_dims.items()
        for start in range(0, len(rows), MOST_ROWS)
    ]


def _prefixes(
    handle: ModelHandle, inputs: PromptInputs, wanted: Sequence[tuple[int, ...]]
) -> Mapping[tuple[int, ...], Prefix]:
    """The prompt up to its last vision token, passed through once and scored by every set of
    dimensions; and by the profile's, for the plain model."""
    sets = list(dict.fromkeys(wanted))
    if handle.profile is not None and handle.profile.dims not in sets:
        sets.append(handle.profile.dims)
    return forward_prefixes(handle, inputs, sets)


def _answers(
    handle: ModelHandle,
    inputs: PromptInputs,
    settings: GenerationSettings,
    methods: Sequence[Method],
    prefix: Prefix,
) -> list[Answer]:
    """One batch behind the prefix, a row a method; sinks are not counted yet."""
    began = time.perf_counter()
    rows = len(methods)
    var = [method.var for method in methods]
    decoding = decide(handle, settings, inputs.layout.length)
    answers = [AnswerTokens(handle.processor.tokenizer, row) for row in range(rows)]
    interventions = [VAR(tuple(var))] if any(own is not None for own in var) else []
    with (
        attached(
            handle,
            inputs,
            answers,
            interventions,
            batch=rows,
            new_tokens=settings.max_new_tokens,
            prefix=prefix,
        ) as session,
        seeded(settings.seed, handle.device),
        distribution_errors_named(settings),
    ):
        ending = decoding.ending(handle, [session[one] for one in answers])
        handle.model.generate(
            **begin_with(handle, inputs, rows, prefix),
            generation_config=decoding.config,
            stopping_criteria=StoppingCriteriaList([ending]),
        )
    said: list[tuple[str, str, tuple[float, ...], float, float]] = []
    for row, method in enumerate(methods):
        tokens = session[answers[row]].finished()
        finish = ending.finish(row)
        text = "".join(t.text for t in (tokens[:-1] if finish == "end" else tokens))
        changed, moved = 0.0, 0.0
        if method.var is not None:
            layers = session[interventions[0]].report(row, len(tokens)).layers
            changed = sum(layer.selected for layer in layers) / max(1, len(layers))
            moved = sum(layer.moved for layer in layers) / max(1, len(layers))
        logs = tuple(math.log(max(token.probability, _SMALLEST)) for token in tokens)
        said.append((text, finish, logs, changed, moved))
    seconds = (time.perf_counter() - began) / rows
    return [
        Answer(text, finish, logs, None, changed, moved, seconds)
        for text, finish, logs, changed, moved in said
    ]


def _sinks(
    handle: ModelHandle,
    inputs: PromptInputs,
    methods: Sequence[Method],
    prefixes: Mapping[tuple[int, ...], Prefix],
) -> list[int | None]:
    """Vision tokens that are sinks in at least one layer, by each method's dimensions and
    threshold (the plain model's: by the profile's). All of them lie in the prefix, so its scores
    tell; they are read from the device once a set of dimensions."""
    vision = inputs.layout.vision_positions()
    on_host: dict[tuple[int, ...], torch.Tensor] = {}  # (layers, vision tokens)
    counts: list[int | None] = []
    for method in methods:
        if method.var is not None:
            dims, tau, dialect = method.var.dims, method.var.tau, method.var.dialect
            acting = acting_layers(method.var, handle.info.layers)
        elif handle.profile is not None:
            dims, tau, dialect = handle.profile.dims, handle.profile.tau, "official"
            acting = tuple(range(FIRST_LAYER, handle.info.layers))
        else:
            counts.append(None)
            continue
        scores = prefixes[dims].scores
        if dims not in on_host:
            on_host[dims] = torch.stack(list(scores.values())).cpu()[:, vision]
        rows = [row for row, layer in enumerate(scores) if layer in acting]
        flagged = above_threshold(on_host[dims][rows], tau, dialect)
        counts.append(int(flagged.any(0).sum()))
    return counts
