"""Log-probabilities of the answer with parts of the image removed, many questions per pass.

Two ways. `edges`: every query after the last image loses its attention edges to some vision
tokens, in all layers and heads, before the softmax (`interventions.edges`). Keys and values up to
the last image are read once and shared. It tests what is READ there; information that those patches
passed to others inside the vision tower and the image's own rows stays. `pixels`: the pixels of
some cells become grey (127), and the whole prompt is read again. It tests what is SEEN there, and
costs one pass of the vision tower each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from sinkscope.capture.run import on_device
from sinkscope.interventions.edges import CutEdges
from sinkscope.methods.base import Target
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle

if TYPE_CHECKING:
    from sinkscope.methods.passes import Passes

How = Literal["edges", "pixels"]
GREY = (127, 127, 127)
BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Positions of all rows of a pass together; larger passes do not fit into a CPU's cache."""
LOGIT_BYTES = 1 << 28  # maximum float32 logits of a pass

Cells = tuple[int, ...]  # of all images' maps, one after the other (`PromptLayout.cells`)


@dataclass(frozen=True)
class Masking:
    """The common settings of all passes of one method.

    Attributes:
        passes: of the run.
        how: cutting edges, or greying pixels.
        tokens: number of answer tokens that are read, from the first one on; later ones change
            nothing.
        rows: of a pass, the same in all that are compared.
    """

    passes: Passes
    how: How
    tokens: int
    rows: int

    @property
    def answer(self) -> tuple[int, ...]:
        return self.passes.answer[: self.tokens]

    def log_probabilities(self, hidden: Sequence[Cells]) -> Tensor:
        """float32 or wider (questions, tokens) on the CPU: one pass. In half precision the last
        digits depend on the batch's shape, so the batch is filled up with rows that hide nothing.

        Args:
            hidden: of each question, the removed cells; at most `rows` questions.
        """
        padded = [*hidden, *[()] * (full_rows(self.passes.handle, self.rows) - len(hidden))]
        logits = (_cut if self.how == "edges" else _greyed)(self, padded)
        ids = torch.tensor(self.answer, device=logits.device)[:, None]
        wide = torch.promote_types(logits.dtype, torch.float32)
        log_probabilities = [
            row.to(wide).log_softmax(-1).gather(1, ids)[:, 0] for row in logits[: len(hidden)]
        ]
        return torch.stack(log_probabilities).cpu()


def full_rows(handle: ModelHandle, rows: int) -> int:
    """Minimum number of rows of a pass: all in half precision, else none."""
    return rows if torch.finfo(handle.model.dtype).bits < 32 else 0


def masking(passes: Passes, target: Target, how: How, questions: int) -> Masking:
    """The passes for a target, with as many questions at once as fit."""
    tokens = max(target.tokens) + 1
    return Masking(passes, how, tokens, _rows(passes, how, questions, tokens))


def _rows(passes: Passes, how: How, questions: int, count: int) -> int:
    device = passes.handle.device.type
    vocabulary: int = passes.handle.model.config.get_text_config().vocab_size
    layout = passes.inputs.layout
    length = layout.length + count - 1 - (layout.after_images if how == "edges" else 0)
    if how == "pixels":  # the vision tower also passes the patches
        length += sum(grid.patches for grid in layout.grids)
    most = BATCH_TOKENS.get(device, BATCH_TOKENS["cpu"]) // max(1, length)
    return max(1, min(questions, most, LOGIT_BYTES // (4 * count * vocabulary)))


def positions_of(passes: Passes, cells: Sequence[int]) -> tuple[int, ...]:
    """Prompt positions of the vision tokens that see most of some cells."""
    result: list[int] = []
    before = 0
    for grid in passes.inputs.layout.grids:
        size = grid.rows * grid.columns
        image_cells = [cell - before for cell in cells if before <= cell < before + size]
        positions = grid.positions
        result += [positions[token] for token in grid.tokens_of(image_cells)]
        before += size
    return tuple(sorted(result))


def _cut(masking: Masking, hidden: Sequence[Cells]) -> Tensor:
    passes, rows = masking.passes, len(hidden)
    prefix = passes.prefix()
    keys = tuple(positions_of(passes, cells) for cells in hidden)
    ids = torch.tensor([[*passes.inputs.token_ids, *masking.answer[:-1]][prefix.length :]])
    with passes.attached((), [CutEdges(keys)], rows=rows, prefix=prefix):
        logits: Tensor = passes.handle.model(
            input_ids=ids.expand(rows, -1).to(passes.handle.device),
            past_key_values=prefix.fork(passes.handle, rows),
            use_cache=True,
            logits_to_keep=masking.tokens,
        ).logits
    return logits


def _greyed(masking: Masking, hidden: Sequence[Cells]) -> Tensor:
    passes = masking.passes
    prompts = [without_pixels(passes, cells) for cells in hidden]
    prompt_tensors = [passes.tensors(prompt, masking.tokens) for prompt in prompts]
    together = {
        name: torch.cat([one[name] for one in prompt_tensors]) for name in prompt_tensors[0]
    }
    with passes.attached((), (), rows=len(hidden), prompts=prompts):
        logits: Tensor = passes.handle.model(
            **on_device(together, passes.handle.device),
            use_cache=False,
            logits_to_keep=masking.tokens,
        ).logits
    return logits


def without_pixels(passes: Passes, cells: Sequence[int]) -> PromptInputs:
    """The prompt with the cells' pixels in grey."""
    inputs = passes.inputs
    if not cells:
        return inputs
    images: list[Image.Image] = list(inputs.images)
    before = 0
    for index, grid in enumerate(inputs.layout.grids):
        boxes = grid.boxes()
        image_cells = [cell - before for cell in cells if before <= cell < before + len(boxes)]
        before += len(boxes)
        if image_cells:
            grey = images[index].convert("RGB")
            draw = ImageDraw.Draw(grey)
            for cell in image_cells:
                x0, y0, x1, y1 = (round(edge) for edge in boxes[cell].tolist())
                if x1 > x0 and y1 > y0:
                    draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=GREY)
            images[index] = grey
    return passes.handle.prepare(
        images,
        inputs.prompt,
        inputs.system,
        min_pixels=inputs.min_pixels,
        max_pixels=inputs.max_pixels,
        history=inputs.history,
        chat=inputs.chat,
    )
