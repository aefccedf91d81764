"""Does a region of the image matter? Its effect on an answer, compared with other regions of its
size.

A map shows where attention went; this test shows how much the answer depends on a box. The model
reads prompt and answer again (teacher forcing), unchanged and without the box, and the change of
each answer token's
log-probability is compared with that of boxes of the same size elsewhere on the image. Two ways:

- `cut`: every query after the last image (question, template, answer so far) loses its attention
  edges to the box's vision tokens, in every layer and head, before the softmax
  (`interventions.edges`). Keys and values up to the last image do not change, so they are computed
  once and all boxes continue from them, many per forward pass. Information that the box's patches
  passed to other patches inside the vision tower and the image's own rows stays, so this tests what
  is READ there, not what is SEEN there.
- `grey`: the box's pixels become the image's mean colour (RGB, rounded), the processor resizes the
  picture and the whole prompt is read again. That removes the content for all tokens, including
  neighbouring patches; it costs one pass of the vision tower per box. Resizing blurs the box's edge
  by about one pixel.

The comparison is with boxes of the same size (`other_boxes`), so that size alone does not make a
box matter. There is one test per token: of twenty tokens that do not depend on the box, one will
stand out by chance at 95 %.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator

import numpy as np

from sinkscope.capture.prefix import Prefix, forward_prefix
from sinkscope.capture.run import memory_errors_named
from sinkscope.config import GenerationSettings
from sinkscope.experiments.answers import PromptAndAnswer
from sinkscope.experiments.boxes import Box, OtherBoxes, other_boxes
from sinkscope.experiments.region_effect import RegionEffect
from sinkscope.experiments.region_passes import cut, without_pixels
from sinkscope.experiments.region_settings import RegionSettings
from sinkscope.jobs.job import Progress, Stopped
from sinkscope.models.loading import ModelHandle
from sinkscope.var_patch import describe

BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Positions of all rows of a pass together, including shared ones; larger passes do not fit into a
CPU's cache and are slower."""
LOGIT_BYTES = 1 << 28  # maximum float32 logits of a pass


def region_test(
    handle: ModelHandle,
    answered_prompt: PromptAndAnswer,
    box: Box,
    settings: RegionSettings | None = None,
    *,
    prefix: Prefix | None = None,
    on_progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> RegionEffect:
    """How much an answer depends on a box of the image, compared with other boxes of its size.

    Args:
        handle: a loaded model; its lock is taken for each forward pass.
        answered_prompt: prompt and answer (`prompt_and_answer`, `prompt_and_text`).
        box: the cells.
        settings: see `RegionSettings`.
        prefix: of `answered_prompt` (`prefix_of`), if it exists already; `grey` needs none.
        on_progress: called with boxes done, boxes in all, words.
        stop: set it to end the test after the current pass.

    Raises:
        ValueError: no such box, no other position for it, or output that is not a number.
        jobs.job.Stopped: it was stopped.
        RunOutOfMemoryError: the device is full.
    """
    *_, effect = region_steps(
        handle, answered_prompt, box, settings, prefix=prefix, on_progress=on_progress, stop=stop
    )
    return effect


def region_steps(
    handle: ModelHandle,
    answered_prompt: PromptAndAnswer,
    box: Box,
    settings: RegionSettings | None = None,
    *,
    prefix: Prefix | None = None,
    on_progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Iterator[RegionEffect]:
    """The same, with the result after each forward pass: the box's own changes come with the first
    one, and the number of other boxes grows. Arguments and errors as `region_test`."""
    settings = settings or RegionSettings()
    layout = answered_prompt.inputs.layout
    others = other_boxes(layout, box, settings.random_boxes, settings.seed)
    todo: list[Box | None] = [None, box, *others.boxes]  # None: the unchanged model
    rows = _rows(handle, answered_prompt, settings, len(todo))
    total, parts = len(others.boxes), []
    levers = GenerationSettings(max_new_tokens=len(answered_prompt.answer))
    report: Progress = on_progress or (lambda done, total, text: None)
    report(0, total, "Reading the image")
    for low in range(0, len(todo), rows):
        if stop is not None and stop.is_set():
            raise Stopped(max(0, low - 2), total, "boxes")
        batch = todo[low : low + rows]
        if settings.how == "cut" and prefix is None:
            prefix = prefix_of(handle, answered_prompt)
        with handle.lock, memory_errors_named(answered_prompt.inputs, levers):
            if settings.how == "cut":
                assert prefix is not None
                log_probabilities = cut(handle, answered_prompt, batch, rows, prefix)
            else:
                log_probabilities = without_pixels(handle, answered_prompt, batch)
        parts.append(log_probabilities.numpy())
        done = np.concatenate(parts)
        yield _effect(answered_prompt, box, settings, others, done)
        report(len(done) - 2, total, "Comparing with other boxes")  # the caller has the result


def prefix_of(handle: ModelHandle, answered_prompt: PromptAndAnswer) -> Prefix:
    """Keys and values up to the last image, which all boxes (and all answers) can share."""
    dims = () if answered_prompt.var is None else answered_prompt.var.dims
    with handle.lock:
        return forward_prefix(handle, answered_prompt.inputs, dims)


def _rows(
    handle: ModelHandle, answered_prompt: PromptAndAnswer, settings: RegionSettings, sets: int
) -> int:
    """How many boxes pass at once: by the budget of positions, at least two (the first pass holds
    the unchanged model and the box), and evenly, because all passes have the same shape."""
    length = answered_prompt.inputs.layout.length + len(answered_prompt.answer) - 1
    budget = settings.batch_tokens or BATCH_TOKENS.get(handle.device.type, BATCH_TOKENS["cuda"])
    vocabulary: int = handle.model.config.get_text_config().vocab_size
    most = min(budget // length, LOGIT_BYTES // (4 * vocabulary * len(answered_prompt.answer)))
    return math.ceil(sets / math.ceil(sets / max(2, most)))


def _effect(
    answered_prompt: PromptAndAnswer,
    box: Box,
    settings: RegionSettings,
    others: OtherBoxes,
    log_probabilities: np.ndarray,
) -> RegionEffect:
    plain, region, random = log_probabilities[0], log_probabilities[1], log_probabilities[2:]
    return RegionEffect(
        box=box,
        how=settings.how,
        texts=answered_prompt.texts,
        plain=plain,
        changes=region - plain,
        others=others.boxes[: len(random)],
        random=random - plain,
        planned=len(others.boxes),
        places=others.places,
        overlapping=others.overlapping,
        seed=settings.seed,
        var="" if answered_prompt.var is None else describe(answered_prompt.var),
    )
