"""Qwen2.5-VL: how images and a prompt become the model's tensors, and which role each position has.

Everything specific to this family is in this file (module paths, processor), in `qwen_prompt`
(token names, chat format), `qwen_images` (sizes, pixels) and `qwen_weights` (names of tensors).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sinkscope.models.chat_template import ChatTemplate, candidates, choose
from sinkscope.models.family import PromptInputs, PromptLayout, PromptRequest
from sinkscope.models.llama_like import llama_like
from sinkscope.models.qwen_images import load_image_processor, pixel_bounds, vision_tensors
from sinkscope.models.qwen_prompt import IMAGE_TOKEN, OWN_TEMPLATE, conversation, encode, segments
from sinkscope.models.qwen_weights import config_problem, missing_words, weights_problem
from sinkscope.models.stack import TextStack
from sinkscope.models.token_texts import token_texts
from sinkscope.models.views import one_view
from sinkscope.models.weights import StoredTensor, is_pointer


@dataclass(frozen=True)
class QwenProcessor:
    """Tokenizer, image processor and chat template of a checkpoint.

    transformers' own `Qwen2_5_VLProcessor`, and in some versions `AutoImageProcessor`, cannot be
    made without torchvision. Images do not need it, so the parts are loaded one by one, including
    the PIL image processor. If `qwen_vl_utils` is installed, it resizes and the processor only cuts
    into patches; otherwise the processor also resizes.
    """

    tokenizer: PreTrainedTokenizerBase
    image_processor: Any
    template: ChatTemplate
    note: str = ""  # what a user should know about the choice of template
    lock: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)

    @property
    def chat_template(self) -> str:
        """Jinja source of the template."""
        return self.template.text


class Qwen25VL:
    """Family adapter (`models.family.Family`)."""

    name = "qwen2_5_vl"
    loader = AutoModelForImageTextToText
    sees_images = True
    pixel_bounds = True

    def recognises(self, config: Any) -> bool:
        return getattr(config, "model_type", None) == "qwen2_5_vl"

    def config_problem(self, config: Any) -> str | None:
        """See `models.qwen_weights`."""
        return config_problem(config)

    def weights_problem(self, config: Any, tensors: Mapping[str, StoredTensor]) -> str | None:
        """See `models.qwen_weights`."""
        return weights_problem(config, tensors)

    def missing_words(self, missing: Sequence[str]) -> str:
        """See `models.qwen_weights`."""
        return missing_words(missing)

    def text_stack(self, model: PreTrainedModel) -> TextStack:
        return llama_like(model.model.language_model, model.lm_head, model.config.text_config)

    def load_processor(self, source: str, options: Mapping[str, Any]) -> QwenProcessor:
        """Load tokenizer, image processor and chat template.

        Args:
            source: the checkpoint's folder.
            options: `min_pixels`, `max_pixels`, to replace the checkpoint's bounds.

        Raises:
            OSError: a file is missing.
            ValueError: a file is invalid, or the pixel bounds exclude each other.
        """
        tokenizer = _tokenizer(source)
        image_processor = load_image_processor(
            source, options.get("min_pixels"), options.get("max_pixels")
        )
        template, note = choose(
            candidates(Path(source), tokenizer), tokenizer, IMAGE_TOKEN, OWN_TEMPLATE
        )
        return QwenProcessor(tokenizer, image_processor, template, note)

    def most_pixels(self, processor: QwenProcessor) -> int:
        return pixel_bounds(processor.image_processor, None, None)[1]

    def check(self, processor: QwenProcessor, config: Any) -> None:
        """Refuse a processor that was made for another model.

        Raises:
            ValueError: the image token or the patches are not those of the config.
        """
        token = processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        if token != config.image_token_id:
            raise ValueError(
                f"The tokenizer has {IMAGE_TOKEN} as token {token}, config.json as token "
                f"{config.image_token_id} (image_token_id); the tokenizer is from another model."
            )
        images, vision = processor.image_processor, config.vision_config
        for ours, theirs in (
            ("patch_size", "patch_size"),
            ("temporal_patch_size", "temporal_patch_size"),
            ("merge_size", "spatial_merge_size"),
        ):
            if getattr(images, ours) != getattr(vision, theirs):
                raise ValueError(
                    f"The image processor's {ours} is {getattr(images, ours)}, but the vision "
                    f"tower's {theirs} is {getattr(vision, theirs)} (config.json); "
                    "preprocessor_config.json is from another model."
                )

    def prepare(
        self, processor: QwenProcessor, config: Any, request: PromptRequest
    ) -> PromptInputs:
        """See `Family`."""
        images, prompt = tuple(request.images), request.prompt
        shortest, longest = pixel_bounds(
            processor.image_processor, request.min_pixels, request.max_pixels
        )
        vision = (
            vision_tensors(processor.image_processor, images, shortest, longest) if images else {}
        )
        grids = vision["image_grid_thw"].tolist() if images else []
        merge = config.vision_config.spatial_merge_size
        patch = config.vision_config.patch_size
        counts = [t * h * w // merge**2 for t, h, w in grids]
        turns = conversation(prompt, request.system, request.history)
        with processor.lock:
            pieces = encode(processor.tokenizer, processor.template, turns, counts)

        ids = [token for piece in pieces for token in piece.ids]
        rows = config.text_config.vocab_size
        if max(ids) >= rows:
            beyond = processor.tokenizer.convert_ids_to_tokens(max(ids))
            raise ValueError(
                f"The prompt has the token {beyond!r}, number {max(ids)}, but the model knows "
                f"{rows} tokens: it was added to the tokenizer and not to the model."
            )
        parts = segments(pieces)
        image_segments = [part for part in parts if part.kind == "image"]
        layout = PromptLayout(
            length=len(ids),
            segments=parts,
            grids=tuple(
                one_view(
                    segment.start,
                    t,
                    h,
                    w,
                    merge,
                    resized=(h * patch, w * patch),
                    original=(image.height, image.width),
                )
                for segment, (t, h, w), image in zip(image_segments, grids, images, strict=True)
            ),
        )
        input_ids = torch.tensor([ids], dtype=torch.long)
        tensors = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            # without these the model silently numbers positions as if there were no image
            "mm_token_type_ids": (input_ids == config.image_token_id).to(torch.int32),
            **vision,
        }
        texts = token_texts(processor.tokenizer, ids)
        return PromptInputs(tensors, layout, images, prompt, tuple(ids), texts)

    def forward_prefix(
        self, model: PreTrainedModel, tensors: Mapping[str, torch.Tensor], stop: int
    ) -> tuple[DynamicCache, torch.Tensor]:
        """Pass prompt positions [0, stop), which hold every image, through the model once.

        Args:
            model: the loaded model.
            tensors: of the whole prompt (batch 1), on the model's device.
            stop: after the last vision token.

        Returns:
            The key/value cache of these positions, and what `resume` needs.
        """
        cache = DynamicCache()  # keeps all keys, also if layers have a sliding window
        per_position = ("input_ids", "attention_mask", "mm_token_type_ids")
        with torch.no_grad():
            model.model(
                **{name: tensors[name][:, :stop] for name in per_position},
                **{name: tensors[name] for name in tensors if name not in per_position},
                past_key_values=cache,
                use_cache=True,
            )
        return cache, model.model.rope_deltas.clone()

    def resume(self, model: PreTrainedModel, positions: torch.Tensor) -> None:
        """Continue after a prefix: images make positions run ahead or behind by a fixed offset.

        transformers keeps that offset on the model between forward passes; it must be restored
        before continuing from a cache, inside the handle's lock.
        """
        model.model.rope_deltas = positions.clone()


def _tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer.

    Raises:
        OSError: it is missing or damaged.
        ValueError: it has no image token.
    """
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        if (file := Path(source) / name).is_file() and is_pointer(file):
            raise OSError(f"{name} is a pointer of Git LFS; fetch the file with: git lfs pull")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, trust_remote_code=False, local_files_only=True
        )
        # without its vocabulary file transformers silently makes an empty tokenizer
        usable = (
            tokenizer.decode(tokenizer("image", add_special_tokens=False)["input_ids"]) == "image"
        )
    except Exception as error:
        # The parser of tokenizer.json raises bare exceptions on files that are damaged.
        raise OSError(f"its tokenizer is damaged or incomplete: {error}") from error
    if not usable:
        raise OSError("it has no usable vocabulary (tokenizer.json)")
    if IMAGE_TOKEN not in tokenizer.get_added_vocab():
        raise ValueError(
            f"The tokenizer has no token {IMAGE_TOKEN}: it is from a text model. Use the "
            "tokenizer's files of the base model."
        )
    return tokenizer
