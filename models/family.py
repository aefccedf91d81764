"""What every model family provides, and a family-independent layout of a prompt.

A family adapter (one file, e.g. `qwen2_5_vl.py`) turns images and a prompt into `PromptInputs`.
Everything above this folder works on `PromptLayout` and `ImageGrid` and never sees a token id or a
module path.

The parts above also rely on the following (`tests/models/test_fake_family.py` and
`test_text_models.py` check it on families that differ in everything else):

Tensors of a prompt. `input_ids` and `attention_mask` are (1, N). Every other tensor of shape (1, N)
has one value per position and 0 for plain text (`mm_token_type_ids`): in a batch of prompts it is
padded with 0 on the left, and 0 is appended for an answer. All others belong to the images and
are joined along their first axis, in the order of the batch.

The model. It is called with these tensors, `past_key_values`, `use_cache` and `logits_to_keep`, by
`generate` too; after a prefix only with `input_ids` and the cache, after `Family.resume` has
restored the position state that the model keeps outside the cache.

Its text model (`TextStack.language_model`) is called once per forward pass: with `inputs_embeds` by
keyword if the family sees images, else with `input_ids` by keyword or first; with
`past_key_values`, `attention_mask` (B, keys) and `position_ids` ((axes,) B, N) by keyword where
they are given. It passes unknown keyword arguments on to attention, and returns the hidden states
after its final norm first; `output_head` turns them into logits. It is deterministic: the same
arguments with a fresh cache give the same result.

Decoder layers take the hidden states first, or as `hidden_states`, and return them, or a tuple that
begins with them.

Attention goes through transformers' interface of attention functions, chosen by the config that
its `get_text_config()` gives, with `module.layer_idx`, queries (B, H, N, Dh), keys and values
(B, Hkv, K, Dh) before they are repeated, and a mask that is None (causal), bool or added, (B, 1 or
H, N, K). Caches are `DynamicCache`s that keep every position.

The tokenizer has `decode`, added tokens that say which are special, and for words that hide tokens
a call with `split_special_tokens`. How it splits texts does not matter: pieces are what each token
adds (`models.token_texts`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from PIL import Image

from sinkscope.models.views import ImageGrid, stretches

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

    from sinkscope.models.stack import TextStack
    from sinkscope.models.weights import StoredTensor

SegmentKind = Literal["system", "image", "user", "template", "assistant"]


@dataclass(frozen=True)
class Segment:
    """A stretch [start, stop) of the prompt with one role. Segments tile the prompt in order."""

    kind: SegmentKind
    start: int
    stop: int
    image: int | None = None  # which image, for kind "image"

    @property
    def label(self) -> str:
        return self.kind if self.image is None else f"image {self.image}"


@dataclass(frozen=True)
class PromptLayout:
    """Roles of all prompt positions.

    Attributes:
        length: number of prompt tokens N.
        segments: tile [0, N) in order.
        grids: one per image, in prompt order; the vision tokens V are those of all their views, at
            rising positions.
    """

    length: int
    segments: tuple[Segment, ...]
    grids: tuple[ImageGrid, ...]

    @property
    def patches(self) -> tuple[tuple[object, ...], ...]:
        """How each image is cut: its views without their positions, and its original (height,
        width). Two prompts whose `patches` are equal have vision columns that mean the same
        places."""
        return tuple(
            (
                *(
                    (view.frames, view.rows, view.columns, view.kind, view.box)
                    for view in grid.views
                ),
                grid.original,
            )
            for grid in self.grids
        )

    @property
    def vision_tokens(self) -> int:
        return sum(grid.tokens for grid in self.grids)

    @property
    def after_images(self) -> int:
        """Position after the last image and its marks; 0 where there is no image."""
        return self.grids[-1].after if self.grids else 0

    def vision_positions(self) -> torch.Tensor:
        """int64 (V,): prompt positions of all vision tokens, image by image, rising."""
        import torch  # imported late: a saved run is drawn without it

        parts = [
            torch.arange(run.start, run.stop)
            for grid in self.grids
            for run in stretches(grid.positions)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)

    def vision_stretches(self) -> tuple[tuple[slice, slice], ...]:
        """The vision tokens as contiguous ranges: (which of the V columns, which prompt positions).
        Where positions are contiguous a slice reads them many times faster than an index does; each
        of Qwen's images is one range."""
        result, column = [], 0
        for grid in self.grids:
            for run in stretches(grid.positions):
                result.append((slice(column, column + len(run)), slice(run.start, run.stop)))
                column += len(run)
        return tuple(result)

    @property
    def cells(self) -> int:
        """Cells of all maps, C: one per vision token if each image is one view (Qwen)."""
        return sum(grid.rows * grid.columns for grid in self.grids)

    def on_cells(self, values: torch.Tensor, adds_up: bool = True) -> torch.Tensor:
        """Values of all vision tokens (..., V) on the maps of all images, row-major, one after the
        other: (..., C). See `ImageGrid.on_cells`. If cells are tokens, the values are returned
        unchanged."""
        if all(grid.plain and grid.views[0].frames == 1 for grid in self.grids):
            return values
        import torch

        parts = [
            grid.on_cells(values[..., self.columns(image)], adds_up).flatten(-2)
            for image, grid in enumerate(self.grids)
        ]
        return torch.cat(parts, dim=-1)

    def cells_at(self) -> dict[int, tuple[int, ...]]:
        """Prompt position of each vision token -> where it is among the C cells of all maps
        (`ImageGrid.cells_of`)."""
        cells, before = {}, 0
        for grid in self.grids:
            for token, position in enumerate(grid.positions):
                cells[position] = tuple(before + cell for cell in grid.cells_of((token,)))
            before += grid.rows * grid.columns
        return cells

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
        pixel_bounds: whether other `min_pixels` and `max_pixels` may be asked for: those of a
            family that takes them.
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
    pixel_bounds: bool = False


@dataclass(frozen=True)
class PromptRequest:
    """The arguments of a family's `prepare`.

    Attributes:
        images: RGB, in the order shown, before the text; none for a text model.
        prompt: the user's text, taken literally.
        system: replaces the template's own system message.
        history: earlier turns, (what the user said, what was answered), oldest first; the images
            belong to the first turn.
        min_pixels, max_pixels: area bounds of the resized image for this prompt only; always None
            if the family's `pixel_bounds` is false.
        chat: put the conversation into the chat template; else the prompt is the text alone. None:
            the family's default; a family gets true or false, and always true if it sees images.
    """

    images: Sequence[Image.Image]
    prompt: str
    system: str | None = None
    history: Sequence[tuple[str, str]] = ()
    min_pixels: int | None = None
    max_pixels: int | None = None
    chat: bool | None = None


class Processor(Protocol):
    """The public part of what a family's `load_processor` returns; the rest is private."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """transformers' tokenizer: texts of answers, stop strings, words that hide tokens."""
        ...

    @property
    def note(self) -> str:
        """What a user should know about the files; "" where there is nothing."""
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
        else None."""
        ...

    def weights_problem(self, config: Any, tensors: Mapping[str, StoredTensor]) -> str | None:
        """Why these tensors are not a model of this config, as the rest of a sentence about it;
        None if they may be."""
        ...

    def missing_words(self, missing: Sequence[str]) -> str:
        """What it means that these tensors are missing, and what to do."""
        ...

    def text_stack(self, model: PreTrainedModel) -> TextStack: ...

    def load_processor(self, source: str, options: Mapping[str, Any]) -> Any:
        """Tokenizer, image processor and chat template of a folder; its `note` is what a user
        should know about them."""
        ...

    def most_pixels(self, processor: Any) -> int | None:
        """The largest area that images are resized to; None without a bound."""
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
        """Prepare the model to continue after a prefix."""
        ...
