"""A checkpoint as transformers itself loads it: its own processor and model, without our code.

`Qwen2_5_VLProcessor` cannot be created without torchvision, which its video part needs. Here it is
created without that part; everything else is transformers' own code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin


class ImagesAndText(Qwen2_5_VLProcessor):
    """transformers' processor without videos."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kept: Any) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, **kept)


def processor(folder: Path) -> ImagesAndText:
    """transformers' processor of a folder, with the chat template that it finds there."""
    about, _ = Qwen2_5_VLProcessor.get_processor_dict(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return ImagesAndText(
        Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True),
        tokenizer,
        # Versions up to 4.51 filled it from the tokenizer; later ones leave that to the caller.
        chat_template=about.get("chat_template") or tokenizer.chat_template,
    )


def messages(
    images: Sequence[Image.Image],
    prompt: str,
    system: str | None = None,
    history: Sequence[tuple[str, str]] = (),
    parts_only: bool = False,
) -> list[dict[str, Any]]:
    """A conversation in the form that transformers documents."""

    def plain(text: str) -> Any:
        return [{"type": "text", "text": text}] if parts_only else text

    made: list[dict[str, Any]] = []
    if system is not None:
        made.append({"role": "system", "content": plain(system)})
    pictures: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    for asked, answered in history:
        made.append({"role": "user", "content": [*pictures, {"type": "text", "text": asked}]})
        made.append({"role": "assistant", "content": plain(answered)})
        pictures = []
    made.append({"role": "user", "content": [*pictures, {"type": "text", "text": prompt}]})
    return made


def prepared(
    made_by: ImagesAndText, conversation: list[dict[str, Any]], template: str | None = None
) -> dict[str, torch.Tensor]:
    """All inputs of the model."""
    made = made_by.apply_chat_template(
        conversation,
        chat_template=template,
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    return dict(made)


def model(folder: Path) -> Qwen2_5_VLForConditionalGeneration:
    """transformers' model of a folder, in float32 on the CPU."""
    loaded = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    return loaded.eval().requires_grad_(False)
