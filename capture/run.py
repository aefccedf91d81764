"""The mechanics of one run: how it is stopped, seeded, and cleaned up when memory runs out."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria

from capture.tokens import TokenProbe
from config import GenerationSettings
from models.family import PromptInputs
from models.loading import ModelHandle

# Settings of a checkpoint's generation_config that turn `generate` into something else.
NOT_CAPTURED = {
    "prompt_lookup_num_tokens": "assisted decoding (prompt look-up)",
    "assistant_early_exit": "assisted decoding",
    "use_mtp": "assisted decoding (multi-token prediction)",
    "dola_layers": "DoLa decoding",
    "penalty_alpha": "contrastive search",
    "constraints": "constrained beam search",
    "force_words_ids": "constrained beam search",
}


class RunOutOfMemoryError(RuntimeError):
    """The run did not fit; everything it took was freed and the next run works. The text names the
    levers."""


class Chosen(StoppingCriteria):
    """Tells the probes each new token; one probe a batch row. Never stops anything.

    A row whose answer has ended goes on being padded until the last row ends; that is not told.
    """

    def __init__(self, probes: Sequence[TokenProbe], end: frozenset[int]) -> None:
        self._probes = tuple(probes)
        self._end = end

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        for probe, token in zip(self._probes, input_ids[:, -1].tolist(), strict=True):
            if not (probe.tokens and probe.tokens[-1].id in self._end):
                probe.choose(token)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class StopAtOnce(StoppingCriteria):
    """Ends the run after the current token once an event is set."""

    def __init__(self, event: threading.Event | None) -> None:
        self._event = event
        self.stopped = False

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        self.stopped = self._event is not None and self._event.is_set()
        return torch.full(
            (input_ids.shape[0],), self.stopped, dtype=torch.bool, device=input_ids.device
        )


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds sampling inside the `with`, and gives the generators back as they were."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield


@contextmanager
def memory_errors_named(inputs: PromptInputs, settings: GenerationSettings) -> Iterator[None]:
    """Turns a full device into `RunOutOfMemoryError`, with the levers and their present values."""
    full = False
    try:
        yield
    except torch.OutOfMemoryError:
        full = True  # raised below, when the traceback no longer holds the run's tensors
    except MemoryError:
        full = True
    except RuntimeError as error:  # what torch raises where a CPU's memory is full
        full = "can't allocate memory" in str(error)
        if not full:
            raise
    if full:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise RunOutOfMemoryError(
            "Memory is full. What helps: a smaller image (max_pixels; now "
            f"{inputs.layout.vision_tokens} vision tokens), "
            f"fewer new tokens (max_new_tokens; now {settings.max_new_tokens}), or less of the "
            "attention (layers, heads, reduce_heads)."
        )


def captured(
    handle: ModelHandle, settings: GenerationSettings
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Indices of the layers and heads to keep.

    Raises:
        ValueError: the model has no such layer or head.
    """
    out = []
    for what, wanted, count in (
        ("layers", settings.layers, handle.info.layers),
        ("heads", settings.heads, handle.info.heads),
    ):
        wrong = [index for index in wanted or () if index >= count]
        if wrong:
            raise ValueError(f"{what} has {wrong}; {handle.info.id} has {what} 0 to {count - 1}.")
        out.append(tuple(range(count)) if wanted is None else tuple(sorted(wanted)))
    return out[0], out[1]


def on_device(tensors: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """A copy of the mapping with every tensor on `device`."""
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def generation_config(handle: ModelHandle, settings: GenerationSettings) -> GenerationConfig:
    """Every knob named: what is left out would be filled from the checkpoint (Qwen2.5-VL's
    penalises repetition).

    Raises:
        ValueError: the checkpoint's own generation_config asks for a way of generating whose
            attention rows explain no single token.
    """
    own = handle.model.generation_config
    for name, way in NOT_CAPTURED.items():
        if getattr(own, name, None):
            raise ValueError(
                f"The model's generation_config sets {name} to {getattr(own, name)!r}; {way} "
                "cannot be captured, for its forward passes are not one a token. Remove it from "
                "generation_config.json and use greedy decoding or sampling (temperature above 0)."
            )
    sampling = (
        {
            "do_sample": True,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
        }
        if settings.temperature > 0
        else {
            "do_sample": False,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 50,
        }  # transformers' word for "unset"
    )
    return GenerationConfig(
        **sampling,
        max_new_tokens=settings.max_new_tokens,
        repetition_penalty=settings.repetition_penalty,
        num_beams=1,
        num_return_sequences=1,
        use_cache=True,
        eos_token_id=own.eos_token_id,
        pad_token_id=own.pad_token_id if own.pad_token_id is not None else first(own.eos_token_id),
        bos_token_id=own.bos_token_id,
    )


def end_tokens(handle: ModelHandle) -> frozenset[int]:
    """Tokens that end an answer."""
    end = handle.model.generation_config.eos_token_id
    return frozenset(() if end is None else [end] if isinstance(end, int) else end)


def first(token: int | Sequence[int] | None) -> int | None:
    """One id of an id or a list of ids."""
    return token if token is None or isinstance(token, int) else token[0]


def finish_of(handle: ModelHandle, probe: TokenProbe, stopper: StopAtOnce) -> str:
    """Why the answer ended: `end`, `stopped` or `length`."""
    if probe.tokens and probe.tokens[-1].id in end_tokens(handle):
        return "end"
    return "stopped" if stopper.stopped else "length"
