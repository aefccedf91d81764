"""Qwen2.5-VL: how images and a prompt become the model's tensors, and which role each position has.

Everything that belongs to this family alone (token names, chat roles, module paths) is in this
file.

Text typed by a user is never parsed for special tokens: the chat template is rendered around a
placeholder, the result is cut at the special tokens, and the piece that holds the user's text is
encoded as plain text. For text without special tokens this gives exactly the ids of encoding the
rendered template at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoTokenizer, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from sinkscope.models.family import (
    ImageGrid,
    PromptInputs,
    PromptLayout,
    Segment,
    SegmentKind,
    TextStack,
)
from sinkscope.models.qwen_images import pixel_bounds, vision_tensors
from sinkscope.models.sites import HookPoint
from sinkscope.models.token_texts import token_texts

IMAGE_TOKEN = "<|image_pad|>"
ROLE_START = "<|im_start|>"
ROLE_END = "<|im_end|>"
SPEECH = "\ue000{}\ue001"  # stands for what somebody says; private-use characters: in no template


@dataclass(frozen=True)
class QwenProcessor:
    """Tokenizer, image processor and chat template of a checkpoint.

    transformers' own `Qwen2_5_VLProcessor`, and in some versions `AutoImageProcessor`, cannot be
    made without torchvision. Images do not need it, so the parts are loaded one by one, the PIL
    image processor among them; it only cuts into patches what `qwen_vl_utils` has resized where
    that is installed, and resizes itself elsewhere.
    """

    tokenizer: PreTrainedTokenizerBase
    image_processor: Any
    chat_template: str


class Qwen25VL:
    """Family adapter (`models.family.Family`)."""

    name = "qwen2_5_vl"

    def recognises(self, config: Any) -> bool:
        return getattr(config, "model_type", None) == "qwen2_5_vl"

    def text_stack(self, model: PreTrainedModel) -> TextStack:
        text = model.model.language_model
        config = model.config.text_config
        return TextStack(
            language_model=text,
            layers=tuple(text.layers),
            output_head=model.lm_head,
            hidden_size=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            points=_points(config.num_attention_heads, config.num_key_value_heads),
        )

    def load_processor(self, source: str, options: Mapping[str, Any]) -> QwenProcessor:
        """Load tokenizer, image processor and chat template from a folder or hub id.

        Args:
            source: folder or hub id.
            options: `revision`, `local_files_only`; and `min_pixels`, `max_pixels` to replace the
                checkpoint's bounds.

        Raises:
            OSError: a file is missing.
            ValueError: a file is there but makes no sense, or the pixel bounds exclude each other.
        """
        hub = {k: v for k, v in options.items() if k in ("revision", "local_files_only")}
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **hub)
        if tokenizer.decode(tokenizer("image", add_special_tokens=False)["input_ids"]) != "image":
            # without its vocabulary file transformers makes an empty tokenizer and says nothing
            raise OSError(f"{source} has no usable vocabulary (tokenizer.json)")
        image_processor = Qwen2VLImageProcessorPil.from_pretrained(source, **hub)
        shortest, longest = pixel_bounds(
            image_processor, options.get("min_pixels"), options.get("max_pixels")
        )
        image_processor.size = {"shortest_edge": shortest, "longest_edge": longest}
        template = tokenizer.chat_template or _template_beside(source)
        if not isinstance(template, str) or "image" not in template:
            raise ValueError(
                f"{source} has no chat template that knows images (chat_template.jinja or "
                "chat_template.json)."
            )
        return QwenProcessor(tokenizer, image_processor, template)

    def prepare(
        self,
        processor: QwenProcessor,
        config: Any,
        images: Sequence[Image.Image],
        prompt: str,
        system: str | None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        history: Sequence[tuple[str, str]] = (),
    ) -> PromptInputs:
        """Turn images (RGB, shown before the text) and a prompt into tensors and their layout.

        Args:
            processor: from `load_processor`.
            config: the loaded model's config.
            images: any number, in the order shown.
            prompt: the user's text, taken literally.
            system: replaces the template's own system message.
            min_pixels, max_pixels: area bounds of the resized image for this prompt alone.
            history: earlier turns, (what the user said, what was answered), oldest first; the
                images belong to the first turn.
        """
        shortest, longest = pixel_bounds(processor.image_processor, min_pixels, max_pixels)
        vision = (
            vision_tensors(processor.image_processor, images, shortest, longest) if images else {}
        )
        grids = vision["image_grid_thw"].tolist() if images else []
        merge = config.vision_config.spatial_merge_size
        patch = config.vision_config.patch_size
        counts = [t * h * w // merge**2 for t, h, w in grids]
        pieces = self._pieces(processor, prompt, system, counts, history)

        ids = [token for piece in pieces for token in piece.ids]
        segments = _segments(pieces)
        image_segments = [s for s in segments if s.kind == "image"]
        layout = PromptLayout(
            length=len(ids),
            segments=segments,
            grids=tuple(
                ImageGrid(
                    start=segment.start,
                    t=t,
                    h=h,
                    w=w,
                    merge=merge,
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
        return PromptInputs(tensors, layout, tuple(images), prompt, tuple(ids), texts)

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
        cache = DynamicCache(config=model.config.text_config)
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
        """Continue behind a prefix: images make positions run ahead or behind by a fixed offset.

        transformers keeps that offset on the model between forward passes; whoever continues from a
        cache must put it back first, inside the handle's lock.
        """
        model.model.rope_deltas = positions.clone()

    def _pieces(
        self,
        processor: QwenProcessor,
        prompt: str,
        system: str | None,
        counts: Sequence[int],
        history: Sequence[tuple[str, str]],
    ) -> list[_Piece]:
        """Render the chat template and encode it piece by piece, each piece with its role."""
        messages, spoken = _conversation(len(counts), prompt, system, history)
        tokenizer = processor.tokenizer
        rendered = tokenizer.apply_chat_template(
            messages,
            chat_template=processor.chat_template,
            tokenize=False,
            add_generation_prompt=True,
        )
        if rendered.count(IMAGE_TOKEN) != len(counts) or any(
            rendered.count(placeholder) != 1 for placeholder in spoken
        ):
            raise ValueError(
                "The model's chat template does not show the prompt and its images once each."
            )
        specials = sorted(tokenizer.all_special_tokens, key=len, reverse=True)
        pieces: list[_Piece] = []
        role, image = "", 0
        for text in re.split("(" + "|".join(map(re.escape, specials)) + ")", rendered):
            if text in specials:
                token = tokenizer.convert_tokens_to_ids(text)
                if text == IMAGE_TOKEN:
                    pieces.append(_Piece((token,) * counts[image], "image", image))
                    image += 1
                else:
                    role = "" if text in (ROLE_START, ROLE_END) else role
                    pieces.append(_Piece((token,), "template"))
            elif text:
                if not role:  # right after a role start: "user\n...", "system\n...", "assistant\n"
                    role = text.split("\n", 1)[0]
                pieces.extend(_plain(tokenizer, text, role, spoken))
        return pieces


def _points(heads: int, kv_heads: int) -> dict[str, Callable[[Any], HookPoint]]:
    """Where each site is in a decoder layer (`models.sites`)."""
    return {
        "block_in": lambda layer: HookPoint(layer, "input"),
        "q": lambda layer: HookPoint(layer.self_attn.q_proj, "output", heads),
        "k": lambda layer: HookPoint(layer.self_attn.k_proj, "output", kv_heads),
        "v": lambda layer: HookPoint(layer.self_attn.v_proj, "output", kv_heads),
        "attn_out": lambda layer: HookPoint(layer.self_attn, "output"),
        "mlp_norm_in": lambda layer: HookPoint(layer.post_attention_layernorm, "input"),
        "mlp_in": lambda layer: HookPoint(layer.mlp, "input"),
        "gate": lambda layer: HookPoint(layer.mlp.gate_proj, "output"),
        "up": lambda layer: HookPoint(layer.mlp.up_proj, "output"),
        "z": lambda layer: HookPoint(layer.mlp.down_proj, "input"),
        "mlp_out": lambda layer: HookPoint(layer.mlp, "output"),
        "block_out": lambda layer: HookPoint(layer, "output"),
    }


@dataclass(frozen=True)
class _Piece:
    """Token ids of one stretch of the prompt, and its role."""

    ids: tuple[int, ...]
    kind: SegmentKind
    image: int | None = None


def _conversation(
    images: int, prompt: str, system: str | None, history: Sequence[tuple[str, str]]
) -> tuple[list[dict[str, Any]], dict[str, tuple[SegmentKind, str]]]:
    """Messages for the chat template, with placeholders for all that is said; and for each of these
    its role and text."""
    turns: list[tuple[SegmentKind, str]] = [] if system is None else [("system", system)]
    for asked, answered in history:
        turns += [("user", asked), ("assistant", answered)]
    turns.append(("user", prompt))
    messages: list[dict[str, Any]] = []
    spoken: dict[str, tuple[SegmentKind, str]] = {}
    pictures: list[dict[str, str]] = [{"type": "image"}] * images
    for index, turn in enumerate(turns):
        placeholder = SPEECH.format(index)
        spoken[placeholder] = turn
        content: Any = placeholder
        if turn[0] == "user":
            content = [*pictures, {"type": "text", "text": placeholder}]
            pictures = []
        messages.append({"role": turn[0], "content": content})
    return messages, spoken


def _plain(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    role: str,
    spoken: Mapping[str, tuple[SegmentKind, str]],
) -> list[_Piece]:
    """Encode a piece between special tokens as plain text; what somebody says becomes its own
    piece."""
    kind: SegmentKind
    for placeholder, (speaker, replacement) in spoken.items():
        if placeholder in text:
            kind, start = speaker, text.index(placeholder)
            text = text.replace(placeholder, replacement)
            stop = start + len(replacement)
            break
    else:
        header = f"{role}\n"
        if role == "system" and text.startswith(header) and len(text) > len(header):
            kind, start, stop = "system", len(header), len(text)
        else:
            kind, start, stop = "template", 0, len(text)
    coded = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )
    ids, offsets = coded["input_ids"], coded["offset_mapping"]
    first = next((i for i, (_, end) in enumerate(offsets) if end > start), len(ids))
    last = next((i for i, (begin, _) in enumerate(offsets) if begin >= stop), len(ids))
    parts = (
        _Piece(tuple(ids[:first]), "template"),
        _Piece(tuple(ids[first:last]), kind),
        _Piece(tuple(ids[last:]), "template"),
    )
    return [part for part in parts if part.ids]


def _segments(pieces: Sequence[_Piece]) -> tuple[Segment, ...]:
    """Join neighbours of one role; images stay apart from one another."""
    segments: list[Segment] = []
    position = 0
    for piece in pieces:
        stop = position + len(piece.ids)
        if segments and segments[-1].kind == piece.kind and segments[-1].image == piece.image:
            segments[-1] = Segment(piece.kind, segments[-1].start, stop, piece.image)
        else:
            segments.append(Segment(piece.kind, position, stop, piece.image))
        position = stop
    return tuple(segments)


def _template_beside(source: str) -> str | None:
    """The chat template of older checkpoints, kept in `chat_template.json` beside the tokenizer."""
    path = Path(source) / "chat_template.json"
    if not path.is_file():
        return None
    template = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
    return template if isinstance(template, str) else None
