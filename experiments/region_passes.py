"""The forward passes of a region test: an answer read without boxes of the image, many at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageStat
from torch import Tensor

from sinkscope.capture.log_probabilities import answer_log_probabilities
from sinkscope.capture.prefix import Prefix
from sinkscope.capture.run import on_device
from sinkscope.capture.session import attached
from sinkscope.experiments.answers import PromptAndAnswer
from sinkscope.experiments.boxes import Box, Region, grid_of
from sinkscope.interventions.base import Intervention
from sinkscope.interventions.edges import CutEdges
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle
from sinkscope.var_patch import VAR


def cut(
    handle: ModelHandle,
    answered_prompt: PromptAndAnswer,
    boxes: Sequence[Region | None],
    rows: int,
    prefix: Prefix,
) -> Tensor:
    """float32 (boxes, T) on the CPU: one pass, filled up with rows that cut nothing, because in
    half precision the last digits depend on the batch's shape."""
    layout, count = answered_prompt.inputs.layout, len(answered_prompt.answer)
    keys = [() if box is None else box.positions(layout) for box in boxes]
    keys += [()] * (rows - len(keys))
    ids = torch.tensor([[*answered_prompt.inputs.token_ids, *answered_prompt.answer[:-1]]])[
        :, prefix.length :
    ]
    interventions: list[Intervention] = [CutEdges(tuple(keys))]
    if answered_prompt.var is not None:
        interventions.append(VAR((answered_prompt.var,) * rows))
    with attached(
        handle,
        answered_prompt.inputs,
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
    return answer_log_probabilities(logits, answered_prompt.answer)


def without_pixels(
    handle: ModelHandle, answered_prompt: PromptAndAnswer, boxes: Sequence[Box | None]
) -> Tensor:
    """float32 (boxes, T) on the CPU: the whole prompt read again, one picture per box."""
    read = [
        answered_prompt.inputs if box is None else _without(handle, answered_prompt.inputs, box)
        for box in boxes
    ]
    answer_ids = torch.tensor([answered_prompt.answer[:-1]])
    tensors = []
    for inputs in read:
        masked_tensors = dict(inputs.tensors)
        ids = masked_tensors["input_ids"]
        for name, tensor in inputs.tensors.items():
            if tensor.shape == ids.shape:  # one value per position; 0 means text
                fill = torch.full_like(answer_ids, name == "attention_mask")
                behind = answer_ids if name == "input_ids" else fill
                masked_tensors[name] = torch.cat([tensor, behind.to(tensor.dtype)], dim=1)
        tensors.append(masked_tensors)
    together = {name: torch.cat([one[name] for one in tensors]) for name in tensors[0]}
    count = len(answered_prompt.answer)
    interventions = (
        [] if answered_prompt.var is None else [VAR((answered_prompt.var,) * len(boxes))]
    )
    with attached(handle, read, interventions=interventions, new_tokens=count - 1):
        logits = handle.model(
            **on_device(together, handle.device), use_cache=False, logits_to_keep=count
        ).logits
    return answer_log_probabilities(logits, answered_prompt.answer)


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
    grey = image.convert("RGB")
    mean = tuple(round(value) for value in ImageStat.Stat(grey).mean)
    x0, y0, x1, y1 = pixels
    if x1 > x0 and y1 > y0:
        ImageDraw.Draw(grey).rectangle((x0, y0, x1 - 1, y1 - 1), fill=mean)
    return grey
