"""Loading a model: `demo`, a hub id or a folder, through one code path, into a read-only
`ModelHandle`.

Only safetensors weights are read and no code of a repository is ever run. Every failure becomes one
`ModelError` that says what is wrong and what to do.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sinkscope.config import DType, ModelSettings
from sinkscope.models import attention
from sinkscope.models.adapters import adapter_fingerprint, check_adapter, merged
from sinkscope.models.family import Family, Processor, PromptInputs, PromptRequest
from sinkscope.models.generation_file import GenerationFile, read_generation_file
from sinkscope.models.gpt2 import gpt2
from sinkscope.models.gpt_neox import gpt_neox
from sinkscope.models.info import ModelInfo
from sinkscope.models.llama_like import llama_like
from sinkscope.models.profiles import SinkProfile, check_fits, find_profile, read_profile
from sinkscope.models.prompt_request import check_pixel_bounds, checked
from sinkscope.models.quantised import check_quantisation
from sinkscope.models.qwen2_5_vl import Qwen25VL
from sinkscope.models.reading import load_weights
from sinkscope.models.source import ModelError, Progress, fingerprint, first_line, locate
from sinkscope.models.stack import TextStack
from sinkscope.models.text_family import TextFamily
from sinkscope.models.weights import (
    ADAPTER,
    INDEX,
    SINGLE,
    WeightFiles,
    adapter_words,
    inner_models,
    weight_files,
)
from sinkscope.untrusted import INFINITE, read_json

FAMILIES: tuple[Family, ...] = (
    Qwen25VL(),
    TextFamily("qwen2", llama_like),  # and Qwen2.5
    TextFamily("qwen3", llama_like),
    TextFamily("llama", llama_like),
    TextFamily("mistral", llama_like),
    TextFamily("gpt2", gpt2, learned_positions=True),
    TextFamily("gpt_neox", gpt_neox),  # and Pythia
)


@dataclass(frozen=True)
class ModelHandle:
    """A loaded model, shared by everyone and never changed; runs take `lock`.

    Attributes:
        info: id, revision, sizes, dtype, device: what a trace records.
        model: the transformers model, in eval mode, without gradients.
        processor: the family's tokenizer, and what else it needs to prepare a prompt.
        family: the adapter.
        stack: the parts that capture hooks into.
        profile: the model's sink dimensions, or None if unknown.
        generation_file: notes about the checkpoint's generation_config.json.
        lock: one run at a time; transformers keeps state on the model during a run.
        kept: objects that runs reuse, such as recorded steps; released with the handle.
    """

    info: ModelInfo
    model: PreTrainedModel
    processor: Processor
    family: Family
    stack: TextStack
    profile: SinkProfile | None
    generation_file: GenerationFile = field(default_factory=GenerationFile)
    lock: threading.Lock = field(default_factory=threading.Lock, compare=False)
    kept: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def embeddings(self) -> torch.Tensor:
        """The weight of the input embeddings, (vocabulary, hidden size)."""
        weight: torch.Tensor = cast(Any, self.model.get_input_embeddings()).weight
        return weight

    @property
    def generate(self) -> Callable[..., Any]:
        """The model's own `generate`, which transformers mixes in without types."""
        generate: Callable[..., Any] = cast(Any, self.model).generate
        return generate

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        device: torch.device = self.embeddings.device
        return device

    @property
    def most_pixels(self) -> int | None:
        """The largest area that it resizes an image to; None where it has no such bound."""
        return self.family.most_pixels(self.processor)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of the checkpoint."""
        return self.processor.tokenizer

    def prepare(
        self,
        images: Sequence[Image.Image],
        prompt: str,
        system: str | None = None,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        history: Sequence[tuple[str, str]] = (),
        chat: bool | None = None,
    ) -> PromptInputs:
        """Turn images and a prompt into the model's inputs. The result records its arguments.

        Args:
            images: Pillow images, shown before the text; made upright RGB (`models.images.as_rgb`).
                At least one for a family that sees images, none for a text model.
            prompt: the user's text; special tokens typed in it stay plain text.
            system: replaces the chat template's own system message.
            min_pixels, max_pixels: area bounds of the resized image for this prompt only.
            history: earlier turns of the conversation, (what the user said, what was answered),
                oldest first; the images are shown in the first.
            chat: put the conversation into the chat template. None: as the family does it, which
                is with the template where it sees images, and the bare text for a text model.

        Raises:
            ValueError: no image or an unusable one, or images for a text model, an empty prompt or
                turn, a value that is not text, a conversation that is too long, or pixel bounds
                outside their range or for a family that takes none.
        """
        request = checked(
            self.family,
            self.info.id,
            PromptRequest(images, prompt, system, history, min_pixels, max_pixels, chat),
        )
        inputs = self.family.prepare(self.processor, self.model.config, request)
        return dataclasses.replace(
            inputs,
            system=request.system,
            min_pixels=request.min_pixels,
            max_pixels=request.max_pixels,
            history=tuple(request.history),
            chat=bool(request.chat),
            pixel_bounds=self.family.pixel_bounds,
        )


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
    adapter = None if settings.adapter is None else Path(settings.adapter)
    if adapter is not None:
        check_adapter(adapter)
    source, commit = locate(settings, report)
    report("Reading its configuration", 0.15)
    config, family = read_configuration(settings, source)
    device_name = choose_device(settings.device)
    weights_dtype = choose_dtype(settings.dtype, config, device_name)
    report("Reading tokenizer and image processor", 0.2)
    files = checked_files(settings, source, config, family)
    check_quantisation(settings.model, config, device_name, files.tensors)
    processor = _processor(settings, source, config, family)
    report("Loading the weights", 0.3)
    loaded, unused = load_weights(
        settings, source, config, family, files, device_name, weights_dtype
    )
    loaded.generation_config, generation_file = read_generation_file(source, config)
    name, revision = settings.model, commit or fingerprint(source, files.files)
    if adapter is not None:
        report("Merging the adapter", 0.9)
        loaded = merged(loaded, adapter)
        name = f"{name} + {adapter.resolve().name}"
        revision = f"{revision}+adapter:{adapter_fingerprint(adapter)}"
    report("Preparing attention capture", 0.95)
    attention.install(loaded)
    stack = family.text_stack(loaded)
    info = ModelInfo(
        id=name,
        revision=revision,
        family=family.name,
        dtype=str(loaded.get_input_embeddings().weight.dtype).removeprefix("torch."),
        device=str(loaded.get_input_embeddings().weight.device),
        layers=len(stack.layers),
        heads=stack.heads,
        hidden_size=stack.hidden_size,
        note=" ".join(note for note in (processor.note, files.note, unused) if note),
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
    file = source / "config.json"
    if not file.is_file():
        raise ModelError(f"{settings.model} {_why_no_config(source)}")
    try:
        read_json(file, "The file", INFINITE)  # before transformers does, which sets no bounds
    except ValueError as error:
        raise ModelError(f"The config.json of {settings.model} cannot be used: {error}") from error
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        # The checks of a config raise various types, some of them not a ValueError.
        if _has_own_code(file):
            raise ModelError(
                f"{settings.model} needs code of its own (auto_map in config.json), which is never "
                f"run; SinkScope works with {', '.join(f.name for f in FAMILIES)}."
            ) from error
        raise ModelError(
            f"The config.json of {settings.model} cannot be used: "
            f"{' '.join(str(error).replace(str(source), settings.model).split())[:400]}"
        ) from error
    named = getattr(config, "transformers_weights", None)
    if named not in (None, SINGLE, INDEX):
        raise ModelError(
            f"The config.json of {settings.model} names {named!r} as its weights "
            f"(transformers_weights); allowed: {SINGLE} or {INDEX}."
        )
    for family in FAMILIES:
        if family.recognises(config):
            if problem := family.config_problem(config):
                raise ModelError(f"The config.json of {settings.model} {problem}")
            _check_generation_values(settings, config)
            return _for_capture(config), family
    raise ModelError(
        f"{settings.model} is a {getattr(config, 'model_type', 'model of unknown type')!r} model; "
        f"SinkScope works with {', '.join(f.name for f in FAMILIES)}."
    )


def _check_generation_values(settings: ModelSettings, config: Any) -> None:
    """Check the generation settings of old config files, which transformers reads while it builds
    the model."""
    try:
        GenerationConfig.from_model_config(config)
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(
            f"The config.json of {settings.model} has settings of generation that transformers "
            f"cannot use ({first_line(error)}); correct them, or remove them."
        ) from error


def _for_capture(config: Any) -> Any:
    """Reset the checkpoint's settings for outputs of calls; captured runs set them themselves."""
    for part in (config, config.get_text_config()):
        part.return_dict = True
        part.output_attentions = part.output_hidden_states = False
    return config


def _has_own_code(file: Path) -> bool:
    try:
        return "auto_map" in read_json(file, "The file", INFINITE)
    except (ValueError, TypeError):
        return False


def _why_no_config(source: Path) -> str:
    """Why a folder is not a model, from its content."""
    if (source / ADAPTER).is_file():
        return adapter_words(source / ADAPTER)
    snapshots = sorted((source / "snapshots").glob("*/config.json"))
    if snapshots:
        return (
            "is a model's folder in the hub's cache; give the hub id, or the folder "
            f"snapshots/{snapshots[-1].parent.name} in it."
        )
    if inner := inner_models(source):
        return f"has no config.json, but a model in its folder {inner[-1]}; use that one."
    return "has no config.json, so it is not a model, or only part of one was downloaded."


def checked_files(
    settings: ModelSettings, source: Path, config: Any, family: Family
) -> WeightFiles:
    """The model's weight files, as far as their headers tell whether they are its own.

    Raises:
        ModelError: they are missing, damaged, or not those of the config.
    """
    files = weight_files(settings.model, source)
    if problem := family.weights_problem(config, files.tensors):
        raise ModelError(f"{settings.model} {problem}")
    return files


def _processor(settings: ModelSettings, source: Path, config: Any, family: Family) -> Any:
    options = {"min_pixels": settings.min_pixels, "max_pixels": settings.max_pixels}
    try:
        check_pixel_bounds(family, settings.min_pixels, settings.max_pixels)
        processor = family.load_processor(str(source), options)
        family.check(processor, config)
    except (OSError, ImportError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ModelError(
            f"The tokenizer or image processor of {settings.model} cannot be loaded (half "
            f"downloaded?): {first_line(error)}"
        ) from error
    except ValueError as error:
        raise ModelError(f"{settings.model}: {' '.join(str(error).split())[:800]}") from error
    return processor


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
    device_type, _, index = choice.partition(":")
    if device_type == "cuda":
        count = torch.cuda.device_count()
        if not torch.cuda.is_available() or int(index or 0) >= count:
            raise ModelError(
                f"device is {choice!r}, but this machine has {count} CUDA devices that "
                "torch can use."
            )
        return f"cuda:{index or 0}"
    if device_type == "mps" and not torch.backends.mps.is_available():
        raise ModelError("device is 'mps', but torch has no MPS on this machine.")
    return device_type


def choose_dtype(choice: DType, config: Any, device: str) -> torch.dtype:
    """The dtype of the weights: `auto` is float32 on a CPU, else the checkpoint's."""
    if choice != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[
            choice
        ]
    if device == "cpu":
        return torch.float32
    stored = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    # A quantised checkpoint may name its packed type, which nothing can be computed in.
    return stored if stored in (torch.float32, torch.bfloat16, torch.float16) else torch.bfloat16
