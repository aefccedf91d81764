"""Text models: a decoder under `AutoModelForCausalLM`, a tokenizer, no image.

One row of `models.loading.FAMILIES` for each architecture; what differs is where a decoder layer
has its parts (`llama_like`, `gpt2`, `gpt_neox`). A prompt is only the text, with what the tokenizer
itself puts before it (BOS), or on request a conversation in the checkpoint's own chat template.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sinkscope.models.family import PromptInputs, PromptLayout, PromptRequest, Segment
from sinkscope.models.quantised import quantisation
from sinkscope.models.stack import TextStack
from sinkscope.models.text_prompt import Spans, chat_ids, plain_ids
from sinkscope.models.token_texts import token_texts
from sinkscope.models.weights import ADAPTED, FLOATS, StoredTensor, is_pointer

VISION = ("visual.", "vision_tower.", "vision_model.")


@dataclass(frozen=True)
class TextProcessor:
    """A text model has nothing but a tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    note: str = ""


@dataclass(frozen=True)
class TextFamily:
    """Adapter of one architecture (`models.family.Family`).

    Attributes:
        name: `model_type` of its configs.
        decoder: finds the parts of the decoder: (decoder, output head, config) -> stack.
        learned_positions: positions are learned embeddings, so their number limits the prompt.
    """

    name: str
    decoder: Callable[[Any, Any, Any], TextStack]
    learned_positions: bool = False

    loader = AutoModelForCausalLM
    sees_images = False
    pixel_bounds = False

    def recognises(self, config: Any) -> bool:
        return getattr(config, "model_type", None) == self.name

    def config_problem(self, config: Any) -> str | None:
        """See `Family`."""
        if getattr(config, "add_cross_attention", False):
            return "asks for cross-attention (add_cross_attention); allowed: only a decoder."
        kinds = set(getattr(config, "layer_types", None) or ())
        if others := sorted(kinds - {"full_attention", "sliding_attention"}):
            return (
                f"has layers of the type {others[0]!r}; allowed: full_attention, sliding_attention."
            )
        return None

    def weights_problem(self, config: Any, tensors: Mapping[str, StoredTensor]) -> str | None:
        """See `Family`."""
        names = sorted(tensors)
        if adapted := next((name for name in names if ADAPTED.search(name)), None):
            return (
                f"has the weights of an adapter that is not merged ({adapted}): merge the adapter "
                "(merge_and_unload, or the trainer's export) and save the model."
            )
        if seeing := next((n for n in names if any(part in n for part in VISION)), None):
            return (
                f"has a vision tower in its weight files ({seeing}), but its config.json is "
                f"from a text model ({self.name}); use the config.json of the checkpoint."
            )
        if quantisation(config) is None:
            for name in names:
                if tensors[name].dtype not in FLOATS and len(tensors[name].shape) == 2:
                    return (
                        f"has its weights as {tensors[name].dtype} ({name}), but config.json has "
                        "no quantization_config that says how to read them; use the "
                        "checkpoint's own."
                    )
        return None

    def missing_words(self, missing: Sequence[str]) -> str:
        """See `Family`."""
        return f"{len(missing)} tensors are missing, {missing[0]} among them; download it again"

    def text_stack(self, model: PreTrainedModel) -> TextStack:
        """See `Family`."""
        return self.decoder(model.base_model, model.get_output_embeddings(), model.config)

    def load_processor(self, source: str, options: Mapping[str, Any]) -> TextProcessor:
        """See `Family`; there are no options for a text model.

        Raises:
            OSError: the tokenizer is missing or damaged.
            ValueError: it cannot say where in the text its tokens are.
        """
        for name in ("tokenizer.json", "vocab.json", "merges.txt"):
            if (file := Path(source) / name).is_file() and is_pointer(file):
                raise OSError(f"{name} is a pointer of Git LFS; fetch the file with: git lfs pull")
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                source, trust_remote_code=False, local_files_only=True
            )
            empty = not tokenizer("word", add_special_tokens=False)["input_ids"]
        except Exception as error:
            # The parser of tokenizer.json raises bare exceptions on files that are damaged.
            raise OSError(f"its tokenizer is damaged or incomplete: {error}") from error
        if empty:
            raise OSError("it has no usable vocabulary (tokenizer.json)")
        if not tokenizer.is_fast:
            raise ValueError(
                "The tokenizer has no tokenizer.json, so it cannot say where in a text its tokens "
                "are; save it as a fast one."
            )
        return TextProcessor(tokenizer)

    def most_pixels(self, processor: TextProcessor) -> None:
        return None

    def check(self, processor: TextProcessor, config: Any) -> None:
        """See `Family`: there is nothing to compare."""

    def prepare(
        self, processor: TextProcessor, config: Any, request: PromptRequest
    ) -> PromptInputs:
        """See `Family`."""
        tokenizer = processor.tokenizer
        ids, spans = (chat_ids if request.chat else plain_ids)(tokenizer, request)
        if max(ids) >= config.vocab_size:
            beyond = tokenizer.convert_ids_to_tokens(max(ids))
            raise ValueError(
                f"The prompt has the token {beyond!r}, number {max(ids)}, but the model knows "
                f"{config.vocab_size} tokens: it was added to the tokenizer and not to the model."
            )
        if self.learned_positions and len(ids) > config.max_position_embeddings:
            raise ValueError(
                f"The prompt has {len(ids)} tokens; this model has learned "
                f"{config.max_position_embeddings} positions."
            )
        input_ids = torch.tensor([ids], dtype=torch.long)
        return PromptInputs(
            tensors={"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)},
            layout=PromptLayout(len(ids), _segments(len(ids), spans), ()),
            images=(),
            prompt=request.prompt,
            token_ids=tuple(ids),
            token_texts=token_texts(tokenizer, ids),
        )

    def forward_prefix(
        self, model: PreTrainedModel, tensors: Mapping[str, torch.Tensor], stop: int
    ) -> tuple[DynamicCache, torch.Tensor]:
        """See `Family`; `resume` needs nothing."""
        cache = DynamicCache()
        with torch.no_grad():
            model.base_model(
                **{name: tensors[name][:, :stop] for name in ("input_ids", "attention_mask")},
                past_key_values=cache,
                use_cache=True,
            )
        return cache, torch.zeros(0)

    def resume(self, model: PreTrainedModel, positions: torch.Tensor) -> None:
        """See `Family`: positions follow from the cache."""


def _segments(length: int, spans: Spans) -> tuple[Segment, ...]:
    """Segments that tile the prompt: the spoken texts, and the template around them."""
    segments: list[Segment] = []
    for start, stop, kind in spans:
        at = segments[-1].stop if segments else 0
        if start > at:
            segments.append(Segment("template", at, start))
        segments.append(Segment(kind, start, stop))
    at = segments[-1].stop if segments else 0
    if at < length:
        segments.append(Segment("template", at, length))
    return tuple(segments)
