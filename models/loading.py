"""Loading a model: `demo`, a hub id or a folder, through one code path, into a read-only
`ModelHandle`.

Only safetensors weights are read and no code of a repository is ever run. Whatever goes wrong
becomes one `ModelError` that says what is wrong and what to do.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedModel,
)

from sinkscope.config import DType, ModelSettings
from sinkscope.models import attention
from sinkscope.models.family import Family, PromptInputs, TextStack
from sinkscope.models.generation_file import GenerationFile, read_generation_file
from sinkscope.models.images import as_rgb
from sinkscope.models.info import ModelInfo
from sinkscope.models.profiles import SinkProfile, check_fits, find_profile, read_profile
from sinkscope.models.qwen2_5_vl import Qwen25VL
from sinkscope.models.source import ModelError, Progress, check_files, fingerprint, locate

FAMILIES: tuple[Family, ...] = (Qwen25VL(),)
MAX_PROMPT_CHARACTERS = 20_000


@dataclass(frozen=True)
class ModelHandle:
    """A loaded model, shared by everyone and never changed; runs take `lock`.

    Attributes:
        info: id, revision, sizes, dtype, device: what a trace records.
        model: the transformers model, in eval mode, without gradients.
        processor: the family's tokenizer, image processor and chat template.
        family: the adapter.
        stack: the parts that capture hooks into.
        profile: the model's sink dimensions, or None where none are known.
        generation_file: what there is to say about the checkpoint's generation_config.json.
        lock: one run at a time; transformers keeps state on the model during a run.
    """

    info: ModelInfo
    model: PreTrainedModel
    processor: Any
    family: Family
    stack: TextStack
    profile: SinkProfile | None
    generation_file: GenerationFile = field(default_factory=GenerationFile)
    lock: threading.Lock = field(default_factory=threading.Lock, compare=False)

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    def prepare(
        self,
        images: Sequence[Image.Image],
        prompt: str,
        system: str | None = None,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        history: Sequence[tuple[str, str]] = (),
    ) -> PromptInputs:
        """Turn images and a prompt into what the model takes. The result says what it was made of.

        Args:
            images: Pillow images, shown before the text; made upright RGB (`models.images.as_rgb`).
            prompt: the user's text; special tokens typed in it stay plain text.
            system: replaces the chat template's own system message.
            min_pixels, max_pixels: area bounds of the resized image for this prompt alone.
            history: earlier turns of the conversation, (what the user said, what was answered),
                oldest first; the images are shown in the first.

        Raises:
            ValueError: no image or an unusable one, an empty prompt or turn, a text that is none, a
                conversation too long, or pixel bounds outside their range.
        """
        if isinstance(images, Image.Image):
            raise ValueError("images is one image; allowed: a list of images.")
        if not images:
            raise ValueError("There is no image; give at least one.")
        for what, text in (("prompt", prompt), ("system", "" if system is None else system)):
            check_text(what, text)
        for text in (text for turn in history for text in turn):
            check_text("history", text)
        if not prompt.strip():
            raise ValueError("The prompt is empty; ask something about the image.")
        if any(not text.strip() for turn in history for text in turn):
            raise ValueError(
                "history has an empty text; each turn is (what the user said, the answer)."
            )
        characters = len(prompt) + sum(len(text) for turn in history for text in turn)
        if characters > MAX_PROMPT_CHARACTERS:
            what = "conversation" if history else "prompt"
            raise ValueError(
                f"The {what} has {characters} characters; at most {MAX_PROMPT_CHARACTERS} "
                "are allowed."
            )
        rgb = [as_rgb(image) for image in images]
        made = self.family.prepare(
            self.processor,
            self.model.config,
            rgb,
            prompt,
            system,
            min_pixels,
            max_pixels,
            history,
        )
        return dataclasses.replace(
            made,
            system=system,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            history=tuple((asked, answered) for asked, answered in history),
        )


def check_text(what: str, text: object) -> None:
    """Refuse what cannot be encoded: no string, or half of a surrogate pair."""
    if not isinstance(text, str):
        raise ValueError(f"{what} is a {type(text).__name__}; allowed: a text.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} has characters that are no valid Unicode text.") from error


def load_model(
    model: str | ModelSettings = "demo",
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: DType = "auto",
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    on_progress: Progress | None = None,
) -> ModelHandle:
    """Load a model.

    Args:
        model: `demo`, a hub id, a folder, or complete `ModelSettings` (then the other arguments are
            not used).
        revision, device, dtype, min_pixels, max_pixels: as in `ModelSettings`.
        on_progress: called with what is being done and a fraction from 0 to 1.

    Raises:
        ModelError: with one sentence that says what is wrong.
        ValueError: a setting outside its range.
    """
    settings = (
        model
        if isinstance(model, ModelSettings)
        else ModelSettings(model, revision, device, dtype, min_pixels, max_pixels)
    )
    report: Progress = on_progress or (lambda text, fraction: None)
    report("Looking for the model", 0.02)
    source, commit = locate(settings, report)
    report("Reading its configuration", 0.15)
    config, family = read_configuration(settings, source)
    place = choose_device(settings.device)
    kind = choose_dtype(settings.dtype, config, place)
    report("Reading tokenizer and image processor", 0.2)
    processor = _processor(settings, source, family)
    report("Loading the weights", 0.3)
    loaded = _weights(settings, source, config, place, kind)
    loaded.generation_config, generation_file = read_generation_file(source, config)
    report("Preparing attention capture", 0.95)
    attention.install(loaded)
    stack = family.text_stack(loaded)
    info = ModelInfo(
        id=settings.model,
        revision=commit or fingerprint(source),
        family=family.name,
        dtype=str(kind).removeprefix("torch."),
        device=str(loaded.get_input_embeddings().weight.device),
        layers=len(stack.layers),
        heads=stack.heads,
        hidden_size=stack.hidden_size,
    )
    try:
        sizes = (family.name, stack.hidden_size, len(stack.layers))
        if settings.profile is None:
            profile = find_profile(settings.model, source, *sizes)
        else:
            profile = read_profile(Path(settings.profile))
            check_fits(profile, settings.model, *sizes)
    except ValueError as error:
        raise ModelError(str(error)) from error
    report("Ready", 1.0)
    return ModelHandle(info, loaded, processor, family, stack, profile, generation_file)


def read_configuration(settings: ModelSettings, source: Path) -> tuple[Any, Family]:
    """The model's config and the adapter of its family.

    Raises:
        ModelError: there is none, it is damaged, or no adapter knows its family.
    """
    if not (source / "config.json").is_file():
        raise ModelError(
            f"{settings.model} has no config.json, so it is no model, or only part of one "
            "was downloaded."
        )
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"The config.json of {settings.model} cannot be used: {_first_line(error)}"
        ) from error
    for family in FAMILIES:
        if family.recognises(config):
            _check_generation_values(settings, config)
            return config, family
    raise ModelError(
        f"{settings.model} is a {getattr(config, 'model_type', 'model of unknown type')!r} model; "
        f"SinkScope works with {', '.join(f.name for f in FAMILIES)}."
    )


def _check_generation_values(settings: ModelSettings, config: Any) -> None:
    """What transformers does with old files' settings of generation while it builds the model."""
    try:
        GenerationConfig.from_model_config(config)
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(
            f"The config.json of {settings.model} has settings of generation that transformers "
            f"cannot use ({_first_line(error)}); correct them, or remove them."
        ) from error


def _processor(settings: ModelSettings, source: Path, family: Family) -> Any:
    options = {
        "min_pixels": settings.min_pixels,
        "max_pixels": settings.max_pixels,
        "local_files_only": True,
    }
    try:
        return family.load_processor(str(source), options)
    except (OSError, ImportError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ModelError(
            f"The tokenizer or image processor of {settings.model} cannot be loaded (half "
            f"downloaded?): {_first_line(error)}"
        ) from error
    except ValueError as error:
        raise ModelError(_first_line(error)) from error


def _weights(
    settings: ModelSettings, source: Path, config: Any, place: str, kind: torch.dtype
) -> PreTrainedModel:
    check_files(settings, source)
    _check_quantization(settings, config)
    try:
        model, notes = AutoModelForImageTextToText.from_pretrained(
            source,
            config=config,
            dtype=kind,
            device_map=_device_map(source, place),
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            # Else transformers would read the file, and a wrong value in it would end the load.
            generation_config=GenerationConfig(),
        )
    except (torch.OutOfMemoryError, MemoryError) as error:
        torch.cuda.empty_cache()
        raise ModelError(
            f"{settings.model} does not fit into the memory of {place}; choose a smaller "
            "model, bfloat16, or another device."
        ) from error
    except (OSError, SafetensorError, ValueError, RuntimeError, ImportError) as error:
        raise ModelError(
            f"The weights of {settings.model} cannot be loaded (half downloaded or "
            f"damaged?): {_first_line(error)}"
        ) from error
    lacking = sorted(notes["missing_keys"])
    if lacking:
        raise ModelError(
            f"The weights of {settings.model} are not complete: {len(lacking)} tensors are "
            f"missing, {lacking[0]} among them; "
            "download it again."
        )
    return model.eval().requires_grad_(False)


def _check_quantization(settings: ModelSettings, config: Any) -> None:
    """A quantised checkpoint needs its own library; say which before transformers fails in its
    words."""
    method = dict(getattr(config, "quantization_config", None) or {}).get("quant_method")
    needed = {
        "awq": ("gptqmodel", "awq"),
        "gptq": ("gptqmodel",),
        "bitsandbytes": ("bitsandbytes",),
    }.get(str(method), ())
    if needed and not any(importlib.util.find_spec(name) for name in needed):
        raise ModelError(
            f"{settings.model} is quantised with {method}; install {needed[0]} to load it."
        )


def choose_device(choice: str) -> str:
    """The device that `auto`, `cuda` and the rest mean on this machine.

    Raises:
        ModelError: this machine has no such device.
    """
    if choice == "auto":
        return (
            "cuda:0"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    kind, _, index = choice.partition(":")
    if kind == "cuda":
        count = torch.cuda.device_count()
        if not torch.cuda.is_available() or int(index or 0) >= count:
            raise ModelError(
                f"device is {choice!r}, but this machine has {count} CUDA devices that "
                "torch can use."
            )
        return f"cuda:{index or 0}"
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ModelError("device is 'mps', but torch has no MPS on this machine.")
    return kind


def choose_dtype(choice: DType, config: Any, place: str) -> torch.dtype:
    """The number type that the weights get: `auto` is float32 on a CPU, else the checkpoint's."""
    if choice != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[
            choice
        ]
    if place == "cpu":
        return torch.float32
    own = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    return own if isinstance(own, torch.dtype) else torch.bfloat16


def _device_map(source: Path, place: str) -> dict[str, str] | str:
    """Everything on one device; split over all GPUs (and the CPU) only where it does not fit on the
    one."""
    if place.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(place)
        weights = sum(file.stat().st_size for file in source.glob("*.safetensors"))
        if weights * 1.1 > free:
            return "auto"
    return {"": place}


def _first_line(error: BaseException) -> str:
    text = str(error).strip().split("\n", 1)[0]
    return text if len(text) <= 300 else text[:297] + "..."
