"""Does a region of the image matter? Its effect on an answer, beside other regions of its size.

A map says where attention went; this says what the answer owes to a box. The model reads prompt and
answer again (teacher forcing), unchanged and without the box, and the change of each answer token's
log-probability is compared with that of boxes of the same size elsewhere on the image. Two ways:

- `cut`: every query behind the last image (question, template, answer so far) loses its attention
  edges to the box's vision tokens, in every layer and head, before the softmax
  (`interventions.edges`). Keys and values up to the last image stay as they are, so that they are
  computed once and all boxes continue from them, many a forward pass. What the box's patches have
  told other patches inside the vision tower and the image's own rows stays, so this asks what is
  READ there, not what is SEEN there.
- `grey`: the box's pixels become the image's mean colour (RGB, rounded), the processor resizes the
  picture and the whole prompt is read anew. That takes what was seen there from everybody, also
  from patches next to it; it costs a pass of the vision tower a box. Resizing blurs its edge over
  about a pixel.

The comparison is made of boxes (`other_boxes`), so that a box is not found to matter for its size
alone. It is one test a token: of twenty tokens that do not depend on the box one will stand out by
chance at 95 %.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageStat
from torch import Tensor

from sinkscope.capture.prefix import Prefix, forward_prefix
from sinkscope.capture.run import memory_errors_named, on_device
from sinkscope.capture.session import attached
from sinkscope.capture.trace import GenerationTrace
from sinkscope.config import GenerationSettings, VARSettings
from sinkscope.experiments.boxes import Box, OtherBoxes, grid_of, other_boxes
from sinkscope.experiments.region_effect import RegionEffect
from sinkscope.experiments.region_settings import RegionSettings
from sinkscope.interventions.base import Intervention
from sinkscope.interventions.edges import CutEdges
from sinkscope.jobs.job import Progress, Stopped
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle
from sinkscope.models.token_texts import TextPieces
from sinkscope.var_patch import VAR, describe

BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Positions of all rows of a pass together, shared ones too; on a CPU larger passes leave its
cache and are slower."""
LOGIT_BYTES = 1 << 28  # float32 logits of a pass at most


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


def region_test(
    handle: ModelHandle,
    asked: Answered,
    box: Box,
    settings: RegionSettings | None = None,
    *,
    prefix: Prefix | None = None,
    on_progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> RegionEffect:
    """How much an answer depends on a box of the image, beside other boxes of its size.

    Args:
        handle: a loaded model; its lock is taken for each forward pass.
        asked: prompt and answer (`answered`, `answered_text`).
        box: the cells.
        settings: see `RegionSettings`.
        prefix: of `asked` (`prefix_of`), where there is one already; `grey` needs none.
        on_progress: called with boxes done, boxes in all, words.
        stop: set it to end the test after the current pass.

    Raises:
        ValueError: no such box, no other place for it, or output that is not a number.
        jobs.job.Stopped: it was stopped.
        RunOutOfMemoryError: the device is full.
    """
    *_, effect = region_steps(
        handle, asked, box, settings, prefix=prefix, on_progress=on_progress, stop=stop
    )
    return effect


def region_steps(
    handle: ModelHandle,
    asked: Answered,
    box: Box,
    settings: RegionSettings | None = None,
    *,
    prefix: Prefix | None = None,
    on_progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Iterator[RegionEffect]:
    """The same, with the result after each forward pass: the box's own changes come with the first
    one, and the boxes to compare it with grow. Arguments and errors as `region_test`."""
    settings = settings or RegionSettings()
    layout = asked.inputs.layout
    others = other_boxes(layout, box, settings.random_boxes, settings.seed)
    todo: list[Box | None] = [None, box, *others.boxes]  # None: the unchanged model
    rows = _rows(handle, asked, settings, len(todo))
    total, parts = len(others.boxes), []
    levers = GenerationSettings(max_new_tokens=len(asked.answer))
    told: Progress = on_progress or (lambda done, total, text: None)
    told(0, total, "Reading the image")
    for low in range(0, len(todo), rows):
        if stop is not None and stop.is_set():
            raise Stopped(max(0, low - 2), total, "boxes")
        some = todo[low : low + rows]
        if settings.how == "cut" and prefix is None:
            prefix = prefix_of(handle, asked)
        with handle.lock, memory_errors_named(asked.inputs, levers):
            if settings.how == "cut":
                assert prefix is not None
                logs = _cut(handle, asked, some, rows, prefix)
            else:
                logs = _greyed(handle, asked, some)
        parts.append(logs.numpy())
        done = np.concatenate(parts)
        yield _effect(asked, box, settings, others, done)
        told(len(done) - 2, total, "Comparing with other boxes")  # who is told has the result


def prefix_of(handle: ModelHandle, asked: Answered) -> Prefix:
    """Keys and values up to the last image, which all boxes (and all answers) can share."""
    dims = () if asked.var is None else asked.var.dims
    with handle.lock:
        return forward_prefix(handle, asked.inputs, dims)


def _rows(handle: ModelHandle, asked: Answered, settings: RegionSettings, sets: int) -> int:
    """How many boxes pass at once: by the budget of positions, at least two (the first pass holds
    the unchanged model and the box), and evenly, for all passes have one shape."""
    length = asked.inputs.layout.length + len(asked.answer) - 1
    budget = settings.batch_tokens or BATCH_TOKENS.get(handle.device.type, BATCH_TOKENS["cuda"])
    vocabulary: int = handle.model.config.get_text_config().vocab_size
    most = min(budget // length, LOGIT_BYTES // (4 * vocabulary * len(asked.answer)))
    return math.ceil(sets / math.ceil(sets / max(2, most)))


def _cut(
    handle: ModelHandle, asked: Answered, boxes: Sequence[Box | None], rows: int, prefix: Prefix
) -> Tensor:
    """float32 (boxes, T) on the CPU: one pass, filled up with rows that cut nothing: in half
    precision a batch's shape alone moves the last digits."""
    layout, count = asked.inputs.layout, len(asked.answer)
    keys = [() if box is None else box.positions(layout) for box in boxes]
    keys += [()] * (rows - len(keys))
    ids = torch.tensor([[*asked.inputs.token_ids, *asked.answer[:-1]]])[:, prefix.length :]
    interventions: list[Intervention] = [CutEdges(tuple(keys))]
    if asked.var is not None:
        interventions.append(VAR((asked.var,) * rows))
    with attached(
        handle,
        asked.inputs,
        interventions=interventions,
        batch=rows,
        new_tokens=count - 1,
        prefix=prefix,
    ):
        logits = handle.model(
            input_ids=ids.expand(rows, -1).to(handle.device),
            past_key_values=prefix.fork(handle, rows),
            use_cache=True,
            logits_to_keep=count,
        ).logits[: len(boxes)]
    return _log_probabilities(logits, asked.answer)


def _greyed(handle: ModelHandle, asked: Answered, boxes: Sequence[Box | None]) -> Tensor:
    """float32 (boxes, T) on the CPU: the whole prompt read anew, a picture a box."""
    read = [asked.inputs if box is None else _without(handle, asked.inputs, box) for box in boxes]
    told = torch.tensor([asked.answer[:-1]])
    tensors = []
    for inputs in read:
        made = dict(inputs.tensors)
        ids = made["input_ids"]
        for name, tensor in inputs.tensors.items():
            if tensor.shape == ids.shape:  # one number a position; 0 is "text" in what marks images
                fill = torch.full_like(told, name == "attention_mask")
                behind = told if name == "input_ids" else fill
                made[name] = torch.cat([tensor, behind.to(tensor.dtype)], dim=1)
        tensors.append(made)
    together = {name: torch.cat([one[name] for one in tensors]) for name in tensors[0]}
    count = len(asked.answer)
    interventions = [] if asked.var is None else [VAR((asked.var,) * len(boxes))]
    with attached(handle, read, interventions=interventions, new_tokens=count - 1):
        logits = handle.model(
            **on_device(together, handle.device), use_cache=False, logits_to_keep=count
        ).logits
    return _log_probabilities(logits, asked.answer)


def _without(handle: ModelHandle, inputs: PromptInputs, box: Box) -> PromptInputs:
    """The prompt with the box's pixels in the image's mean colour."""
    images: list[Image.Image] = list(inputs.images)
    images[box.image] = greyed(images[box.image], box.pixels(grid_of(inputs.layout, box)))
    return handle.prepare(
        images,
        inputs.prompt,
        inputs.system,
        min_pixels=inputs.min_pixels,
        max_pixels=inputs.max_pixels,
        history=inputs.history,
        chat=inputs.chat,
    )


def greyed(image: Image.Image, pixels: tuple[int, int, int, int]) -> Image.Image:
    """A copy with a rectangle (x0, y0, x1, y1; x1 and y1 exclusive) in the image's mean colour."""
    made = image.convert("RGB")
    mean = tuple(round(value) for value in ImageStat.Stat(made).mean)
    x0, y0, x1, y1 = pixels
    if x1 > x0 and y1 > y0:
        ImageDraw.Draw(made).rectangle((x0, y0, x1 - 1, y1 - 1), fill=mean)
    return made


def _log_probabilities(logits: Tensor, answer: Sequence[int]) -> Tensor:
    """(B, T, vocabulary) -> float32 (B, T) on the CPU."""
    ids = torch.tensor(answer, device=logits.device)[:, None]
    rows = [torch.log_softmax(row.float(), dim=-1).gather(1, ids)[:, 0] for row in logits]
    found = torch.stack(rows).cpu()
    if not bool(torch.isfinite(found).all()):
        raise ValueError(
            "The model's output is not a number. In float16 large activations overflow; load the "
            "model in bfloat16 or float32. Otherwise its weights are damaged."
        )
    return found


def _effect(
    asked: Answered, box: Box, settings: RegionSettings, others: OtherBoxes, logs: np.ndarray
) -> RegionEffect:
    plain, own, random = logs[0], logs[1], logs[2:]
    return RegionEffect(
        box=box,
        how=settings.how,
        texts=asked.texts,
        plain=plain,
        changes=own - plain,
        others=others.boxes[: len(random)],
        random=random - plain,
        planned=len(others.boxes),
        places=others.places,
        overlapping=others.overlapping,
        seed=settings.seed,
        var="" if asked.var is None else describe(asked.var),
    )
