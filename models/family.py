"""What every model family provides, and the layout of a prompt in terms that no family owns.

A family adapter (one file, e.g. `qwen2_5_vl.py`) turns images and a prompt into `PromptInputs`.
Everything above this folder works on `PromptLayout` and `ImageGrid` and never sees a token id or a
module path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image

from sinkscope.models.stack import TextStack

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

    from sinkscope.models.weights import StoredTensor

SegmentKind = Literal["system", "image", "user", "template", "assistant"]


@dataclass(frozen=True)
class ImageGrid:
    """Where one image's vision tokens are in the prompt, and where on the image each of them looks.

    Vision token k of the image (row-major) sits at prompt position `start + k` and covers one cell
    of a `rows` x `columns` grid over the whole image.

    Attributes:
        start: prompt position of the image's first vision token.
        t, h, w: the processor's grid, in patches (`image_grid_thw`).
        merge: patches that make one vision token, per side (spatial merge).
        resized: (height, width) in pixels that the model saw.
        original: (height, width) in pixels of the image as given, after its EXIF rotation.
    """

    start: int
    t: int
    h: int
    w: int
    merge: int
    resized: tuple[int, int]
    original: tuple[int, int]

    @property
    def rows(self) -> int:
        return self.h // self.merge

    @property
    def columns(self) -> int:
        return self.w // self.merge

    @property
    def tokens(self) -> int:
        """Number of vision tokens."""
        return self.t * self.rows * self.columns

    @property
    def stop(self) -> int:
        """Prompt position after the image's last vision token."""
        return self.start + self.tokens

    def boxes(self) -> np.ndarray:
        """Box of each vision token on the ORIGINAL image: float64 (rows * columns, 4) as x0, y0,
        x1, y1 in pixels.

        The boxes tile the image without gap or overlap; neighbours share the very same float edge.
        """
        height, width = self.original
        y = np.arange(self.rows + 1, dtype=np.float64) * height / self.rows
        x = np.arange(self.columns + 1, dtype=np.float64) * width / self.columns
        y0, x0 = np.meshgrid(y[:-1], x[:-1], indexing="ij")
        y1, x1 = np.meshgrid(y[1:], x[1:], indexing="ij")
        return np.stack([x0, y0, x1, y1], axis=-1).reshape(-1, 4)


@dataclass(frozen=True)
class Segment:
    """A stretch [start, stop) of the prompt with one role. Segments tile the prompt in order."""

    kind: SegmentKind
    start: int
    stop: int
    image: int | None = None  # which image, for kind "image"

    @property
    def label(self) -> str:
        return self.kind if self.image is None else f"image {self.image + 1}"


@dataclass(frozen=True)
class PromptLayout:
    """Roles of all prompt positions.

    Attributes:
        length: number of prompt tokens N.
        segments: tile [0, N) in order.
        grids: one an image, in prompt order; the vision tokens V are the union of their spans.
    """

    length: int
    segments: tuple[Segment, ...]
    grids: tuple[ImageGrid, ...]

    @property
    def patches(self) -> tuple[tuple[int, int, int, tuple[int, int]], ...]:
        """How each image is cut: frames, rows, columns, and its original (height, width). Two
        prompts whose `patches` are equal have vision columns that mean the same places."""
        return tuple((grid.t, grid.rows, grid.columns, grid.original) for grid in self.grids)

    @property
    def vision_tokens(self) -> int:
        return sum(grid.tokens for grid in self.grids)

    def vision_positions(self) -> torch.Tensor:
        """int64 (V,): prompt positions of all vision tokens, image by image."""
        if not self.grids:
            return torch.zeros(0, dtype=torch.long)
        return torch.cat([torch.arange(grid.start, grid.stop) for grid in self.grids])

    def columns(self, image: int) -> slice:
        """Which of the V vision columns belong to one image."""
        before = sum(grid.tokens for grid in self.grids[:image])
        return slice(before, before + self.grids[image].tokens)


@dataclass(frozen=True)
class PromptInputs:
    """A prompt, ready for the model.

    Attributes:
        tensors: what the model's `generate` takes (`input_ids` (1, N), `pixel_values`,
            `image_grid_thw`, ...), on the CPU.
        layout: roles of the prompt's positions.
        images: the images as shown, RGB, EXIF-rotated, in prompt order.
        prompt: the user's text.
        token_ids: the N prompt token ids.
        token_texts: what to show for each of them; they join to the decoded prompt
            (`models.token_texts`).
        system, min_pixels, max_pixels, history, chat: what it was prepared with
            (`ModelHandle.prepare`), so that another prompt can be prepared on the same images in
            the same way.
    """

    tensors: Mapping[str, torch.Tensor]
    layout: PromptLayout
    images: tuple[Image.Image, ...]
    prompt: str
    token_ids: tuple[int, ...]
    token_texts: tuple[str, ...]
    system: str | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    history: tuple[tuple[str, str], ...] = ()
    chat: bool = True


@dataclass(frozen=True)
class PromptRequest:
    """What `ModelHandle.prepare` asks a family for.

    Attributes:
        images: RGB, in the order shown, before the text; none for a text model.
        prompt: the user's text, taken literally.
        system: replaces the template's own system message.
        history: earlier turns, (what the user said, what was answered), oldest first; the images
            belong to the first turn.
        min_pixels, max_pixels: area bounds of the resized image for this prompt alone; always None
            where the family's `pixel_bounds` is false.
        chat: put the conversation into the chat template; else the prompt is the text alone. None:
            as the family's kind has it; a family is told true or false, and always true where it
            sees images.
    """

    images: Sequence[Image.Image]
    prompt: str
    system: str | None = None
    history: Sequence[tuple[str, str]] = ()
    min_pixels: int | None = None
    max_pixels: int | None = None
    chat: bool | None = None


class Processor(Protocol):
    """What everybody may use of what a family's `load_processor` gives; the rest is its own."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """transformers' tokenizer: texts of answers, stop strings, words that hide tokens."""
        ...

    @property
    def note(self) -> str:
        """What a user should know of the files; "" where there is nothing."""
        ...


class Family(Protocol):
    """What a model family adapter provides.

    Attributes:
        name: as in `ModelInfo.family` and in sink profiles.
        loader: the class of transformers whose `from_pretrained` makes the model.
        sees_images: whether prompts have images; else it is a text model.
        pixel_bounds: whether it takes `min_pixels` and `max_pixels`.
    """

    @property
    def name(self) -> str: ...

    @property
    def loader(self) -> Any: ...

    @property
    def sees_images(self) -> bool: ...

    @property
    def pixel_bounds(self) -> bool: ...

    def recognises(self, config: Any) -> bool:
        """Whether a loaded `transformers` config belongs to this family."""
        ...

    def config_problem(self, config: Any) -> str | None:
        """What in a config would fail only when the model runs, as the rest of a sentence about it;
        None where there is nothing."""
        ...

    def weights_problem(self, config: Any, tensors: Mapping[str, StoredTensor]) -> str | None:
        """Why these tensors are not a model of this config, as the rest of a sentence about it;
        None where nothing speaks against them."""
        ...

    def missing_words(self, missing: Sequence[str]) -> str:
        """What it means that these tensors are missing, and what to do."""
        ...

    def text_stack(self, model: PreTrainedModel) -> TextStack: ...

    def load_processor(self, source: str, options: Mapping[str, Any]) -> Any:
        """Tokenizer, image processor and chat template of a folder; its `note` is what a user
        should know of them."""
        ...

    def check(self, processor: Any, config: Any) -> None:
        """Raise ValueError where a processor was made for another model than the config's."""
        ...

    def prepare(self, processor: Any, config: Any, request: PromptRequest) -> PromptInputs:
        """Turn images and a prompt into tensors and their layout.

        Raises:
            ValueError: they cannot be made into a prompt; the text says what is wrong.
        """
        ...

    def forward_prefix(
        self, model: PreTrainedModel, tensors: Mapping[str, torch.Tensor], stop: int
    ) -> tuple[DynamicCache, torch.Tensor]:
        """Pass prompt positions [0, stop) through the model; the cache, and what `resume` needs."""
        ...

    def resume(self, model: PreTrainedModel, positions: torch.Tensor) -> None:
        """Prepare the model to continue behind a prefix."""
        ...
