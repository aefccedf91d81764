"""From images to the patches that Qwen2.5-VL's vision tower takes.

With torchvision the image is resized by `qwen_vl_utils`, as the authors do it; without it by the
PIL image processor. Both use the same formula for the size, so grid and tokens agree.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)

from sinkscope.config import MOST_PIXELS

# The names of an area bound: today's, and that of configurations of 2024.
BOUNDS = (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels"))
_SIZE_ALLOWED = "allowed: shortest_edge and longest_edge, areas in pixels as whole numbers from 1"


def load_image_processor(source: str, min_pixels: int | None, max_pixels: int | None) -> Any:
    """The checkpoint's image processor, with both area bounds set.

    Args:
        source: the checkpoint's folder.
        min_pixels, max_pixels: replace the checkpoint's bounds.

    Raises:
        OSError: its file is missing or damaged.
        ValueError: it gives no valid bound, and none is given here.
    """
    values, _ = Qwen2VLImageProcessorPil.get_image_processor_dict(source, local_files_only=True)
    size = values.pop("size", None)
    if size is not None and not isinstance(size, Mapping):
        raise ValueError(f"size in preprocessor_config.json is {size!r}; {_SIZE_ALLOWED}.")
    bounds = dict(Qwen2VLImageProcessorPil.size) if size is None else {}
    for (name, old), given in zip(BOUNDS, (min_pixels, max_pixels), strict=True):
        outside = values.pop(old, None)  # next to size: it takes precedence over the value inside
        inside = next((size[key] for key in (name, old) if size.get(key)), None) if size else None
        value = next((v for v in (given, outside, inside) if v is not None), bounds.get(name))
        if value is None:
            raise ValueError(
                f"size in preprocessor_config.json is {dict(size or {})}, without {name}; "
                f"{_SIZE_ALLOWED}; or give {old}."
            )
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or value < 1 or value != int(value):
            raise ValueError(f"{name} in preprocessor_config.json is {value!r}; {_SIZE_ALLOWED}.")
        bounds[name] = int(value)
    processor = Qwen2VLImageProcessorPil.from_dict({**values, "size": bounds})
    pixel_bounds(processor, None, None)
    return processor


def pixel_bounds(
    image_processor: Any, min_pixels: int | None, max_pixels: int | None
) -> tuple[int, int]:
    """Area bounds of the resized image: the given ones, else the processor's own.

    Raises:
        ValueError: a bound outside its range, or bounds that exclude each other.
    """
    cell = (image_processor.patch_size * image_processor.merge_size) ** 2
    given = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    for setting, value in given.items():
        if value is not None and not 1 <= value <= MOST_PIXELS:
            raise ValueError(f"{setting} is {value}; allowed: 1 to {MOST_PIXELS}.")
    shortest = image_processor.size["shortest_edge"] if min_pixels is None else min_pixels
    longest = image_processor.size["longest_edge"] if max_pixels is None else max_pixels
    if shortest > longest:
        raise ValueError(
            f"min_pixels is {shortest}, above max_pixels, which is {longest}; set both, the "
            "smaller one first."
        )
    if longest < cell:
        raise ValueError(
            f"max_pixels is {longest}; at least {cell} are needed for one vision token."
        )
    return shortest, longest


def vision_tensors(
    image_processor: Any, images: Sequence[Image.Image], shortest: int, longest: int
) -> dict[str, torch.Tensor]:
    """The inputs of the vision tower.

    Args:
        image_processor: the checkpoint's.
        images: RGB.
        shortest, longest: area bounds of the resized image, in pixels (`pixel_bounds`).

    Returns:
        `pixel_values` float32 (patches, channels x temporal patch x patch x patch) and
        `image_grid_thw` int64 (images, 3).
    """
    factor = image_processor.patch_size * image_processor.merge_size
    size = {"shortest_edge": shortest, "longest_edge": longest}
    resized = [
        smart_resize(i.height, i.width, factor=factor, min_pixels=shortest, max_pixels=longest)
        for i in images
    ]
    if has_qwen_vl_utils():
        images = [
            _resize_with_qwen_vl_utils(i, target, image_processor.patch_size)
            for i, target in zip(images, resized, strict=True)
        ]
    batch = image_processor(
        images=list(images), size=size, do_resize=not has_qwen_vl_utils(), return_tensors="pt"
    )
    return {"pixel_values": batch["pixel_values"], "image_grid_thw": batch["image_grid_thw"]}


def has_qwen_vl_utils() -> bool:
    """Whether `qwen_vl_utils` can be imported: it imports torchvision at its top."""
    return all(
        importlib.util.find_spec(name) is not None for name in ("torchvision", "qwen_vl_utils")
    )


def _resize_with_qwen_vl_utils(
    image: Image.Image, target: tuple[int, int], patch_size: int
) -> Image.Image:
    from qwen_vl_utils import process_vision_info

    height, width = target
    entry = {"type": "image", "image": image, "resized_height": height, "resized_width": width}
    resized: Image.Image
    (resized,), _ = process_vision_info(
        [{"role": "user", "content": [entry]}], image_patch_size=patch_size
    )
    if resized.size == (width, height):
        return resized
    # It has its own bounds (at least 3136 px) and keeps to them; below them, its very call with
    # our size.
    return image.resize((width, height))
