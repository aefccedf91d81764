"""One run: how it is stopped, seeded, and cleaned up when memory runs out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StopStringCriteria

from sinkscope.capture.decoding import CheckpointDecoding, own_values, read_options
from sinkscope.capture.generation_options import GENERATION_OPTIONS
from sinkscope.capture.tokens import TokenProbe
from sinkscope.config import GenerationSettings
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle


class RunOutOfMemoryError(RuntimeError):
    """The run did not fit; everything it allocated was freed and the next run works. The text names
    what helps."""


class Ending(StoppingCriteria):
    """Tells the probes each new token, one probe a batch row, and ends answers.

    transformers itself ends a row at a token that ends an answer and at the limit of new tokens. It
    goes on padding that row until the last one ends; padding is not reported.

    Args:
        probes: of each row.
        end: tokens that end an answer.
        stop: set it to end the run after the current token.
        max_time: seconds from now after which the run ends.
        stop_strings: ends a row whose last token completes one of its strings; None ends none.
    """

    def __init__(
        self,
        probes: Sequence[TokenProbe],
        end: frozenset[int],
        *,
        stop: threading.Event | None = None,
        max_time: float | None = None,
        stop_strings: StopStringCriteria | None = None,
    ) -> None:
        self._probes = tuple(probes)
        self._end = end
        self._stop = stop
        self._stop_strings = stop_strings
        self._deadline = None if max_time is None else time.monotonic() + max_time
        self._finish_reasons = [""] * len(self._probes)

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        over = self.report(input_ids[:, -1].tolist(), input_ids)
        if all(over) or not any(over):  # on a GPU this waits for nothing
            return torch.full((len(over),), over[0], dtype=torch.bool, device=input_ids.device)
        return torch.tensor(over, device=input_ids.device)

    @property
    def needs_ids(self) -> bool:
        """Whether `report` needs more than the newest tokens."""
        return self._stop_strings is not None

    def report(self, tokens: Sequence[int], input_ids: torch.Tensor | None) -> list[bool]:
        """Report the newest token of each row.

        Args:
            tokens: one per row.
            input_ids: int64 (B, n), all tokens so far with these; None where not `needs_ids`.

        Returns:
            Of each row, whether its answer is over.
        """
        stop_string_found = [False] * len(self._probes)
        if self._stop_strings is not None:
            stop_string_found = self._stop_strings(input_ids, None).tolist()
        going = [row for row, reason in enumerate(self._finish_reasons) if not reason]
        for row in going:
            self._probes[row].choose(tokens[row])
        # After all are reported: the callback of the last one may set the event.
        at_once = self._for_all()
        for row in going:
            ended = (
                "end"
                if tokens[row] in self._end
                else "stop_string"
                if stop_string_found[row]
                else at_once
            )
            self._finish_reasons[row] = ended
        return [bool(reason) for reason in self._finish_reasons]

    def ends_with(self, tokens: Sequence[int]) -> bool:
        """Whether it is known in advance that all rows end with these tokens."""
        rows = zip(self._finish_reasons, tokens, strict=True)
        return bool(self._for_all()) or all(
            bool(over) or token in self._end for over, token in rows
        )

    def _for_all(self) -> str:
        """Why the whole run ends with this token; empty if it continues."""
        if self._stop is not None and self._stop.is_set():
            return "stopped"
        late = self._deadline is not None and time.monotonic() > self._deadline
        return "time" if late else ""

    def finish_reason(self, row: int = 0) -> str:
        """Why the answer of a row ended (`GenerationTrace.finish_reason`)."""
        return self._finish_reasons[row] or "length"


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds sampling inside the `with`, and restores the generators afterwards."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield


@contextmanager
def out_of_memory_named(
    words: Callable[[], str], also: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Turns a full memory, of a device or of a CPU, into `RunOutOfMemoryError`.

    Args:
        words: returns its text, which names what helps; called when the memory is free again.
        also: further errors to convert, such as the `RunOutOfMemoryError` of an inner run, which
            would name other settings.
    """
    errors: tuple[type[BaseException], ...] = (torch.OutOfMemoryError, MemoryError, *also)
    full = False
    try:
        yield
    except errors:
        full = True  # raised below, when the traceback no longer holds the run's tensors
    except RuntimeError as error:  # torch raises this if a CPU's memory is full
        full = "can't allocate memory" in str(error)
        if not full:
            raise
    if full:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise RunOutOfMemoryError(words())


def memory_errors_named(
    inputs: PromptInputs, settings: GenerationSettings
) -> AbstractContextManager[None]:
    """`out_of_memory_named` of a run, naming the settings that help and their present values."""
    return out_of_memory_named(
        lambda: (
            f"Memory is full. What helps: {smaller_image(inputs)}fewer new tokens (max_new_tokens; "
            f"now {settings.max_new_tokens}), or less of the attention (layers, heads, "
            "reduce_heads)."
        )
    )


def smaller_image(inputs: PromptInputs) -> str:
    """One way to save memory, as an item of a list; "" without an image."""
    tokens = inputs.layout.vision_tokens
    setting = "max_pixels; " if inputs.pixel_bounds else ""
    return f"a smaller image ({setting}now {tokens} vision tokens), " if tokens else ""


def captured_indices(
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


class _CompleteConfig(GenerationConfig):
    """A configuration that sets every attribute, so `generate` adds none of the checkpoint's."""

    def update(  # type: ignore[override]  # the library passes both
        self, defaults_only: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        # transformers leaves it untyped.
        return {} if defaults_only else super().update(**kwargs)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Decoding:
    """How the tokens of one run are chosen.

    Attributes:
        config: for transformers' `generate`.
        max_time, stop_strings: what else ends an answer (see `Ending`); None and () if nothing.
        about: for the trace (`GenerationTrace.extra`), in plain values.
    """

    config: GenerationConfig
    max_time: float | None
    stop_strings: tuple[str, ...]
    about: Mapping[str, Any]

    def ending(
        self,
        handle: ModelHandle,
        probes: Sequence[TokenProbe],
        stop: threading.Event | None = None,
    ) -> Ending:
        """The `Ending` of the run that is about to begin."""
        strings = None
        if self.stop_strings:
            strings = StopStringCriteria(handle.tokenizer, list(self.stop_strings))
        end = end_tokens(handle)
        return Ending(probes, end, stop=stop, max_time=self.max_time, stop_strings=strings)


def checkpoint_decoding(handle: ModelHandle) -> CheckpointDecoding:
    """What the checkpoint's own generation_config.json would do."""
    vocabulary = handle.model.config.get_text_config().vocab_size
    return read_options(vars(handle.model.generation_config), vocabulary, handle.generation_file)


def decoding_for(handle: ModelHandle, settings: GenerationSettings, prompt_length: int) -> Decoding:
    """How a run chooses its tokens: as the settings say, or as the checkpoint says.

    Args:
        handle: a loaded model.
        settings: of the run.
        prompt_length: in tokens; a checkpoint may limit prompt and answer together.

    Raises:
        ValueError: the checkpoint decides, and requests what cannot be captured or has a value that
            transformers cannot use.
    """
    checkpoint = checkpoint_decoding(handle)
    followed = settings.decoding == "checkpoint"
    used = _limited(checkpoint, settings, prompt_length) if followed else own_values(settings)
    tokens = handle.model.generation_config
    values = {
        # Without sampling, 50 is transformers' word for "unset".
        **{
            name: knob.off
            for name, knob in GENERATION_OPTIONS.items()
            if knob.kind not in ("token", "record")
        },
        "top_k": 0 if used.get("do_sample") else 50,
        **used,
        "max_length": None,
        "max_time": None,
        "stop_strings": None,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": first_id(tokens.eos_token_id)
        if tokens.pad_token_id is None
        else tokens.pad_token_id,
        "bos_token_id": tokens.bos_token_id,
    }
    if "watermarking_config" in used:
        values["watermarking_config"] = tokens.watermarking_config
    try:
        # Transformers leaves it untyped.
        config = _CompleteConfig(**values)  # type: ignore[no-untyped-call]
    except (ValueError, TypeError) as error:
        raise _not_followed([f"{error}"]) from error
    strings = tuple(used.get("stop_strings", ()))
    return Decoding(config, used.get("max_time"), strings, {"used": used, **checkpoint.about()})


def _limited(
    checkpoint: CheckpointDecoding, settings: GenerationSettings, prompt_length: int
) -> dict[str, Any]:
    """The checkpoint's values with the lower of its and our limits on the answer's length."""
    if checkpoint.refusals:
        raise _not_followed(checkpoint.refusals)
    limit = checkpoint.values.get("max_new_tokens")
    if limit is None and "max_length" in checkpoint.values:
        limit = checkpoint.values["max_length"] - prompt_length
        if limit < 1:
            raise _not_followed(
                [
                    f"max_length is {checkpoint.values['max_length']}, but the prompt already has "
                    f"{prompt_length} tokens."
                ]
            )
    limit = settings.max_new_tokens if limit is None else min(limit, settings.max_new_tokens)
    return {**checkpoint.values, "max_new_tokens": limit}


def _not_followed(why: Sequence[str]) -> ValueError:
    return ValueError(
        f"The checkpoint's generation_config.json cannot be followed: {' '.join(why)} Choose "
        "your own settings (decoding 'ours'), or correct that file."
    )


@contextmanager
def distribution_errors_named(settings: GenerationSettings) -> Iterator[None]:
    """Turns the error of a checkpoint's settings that leave no token to choose into one
    sentence."""
    try:
        yield
    except (RuntimeError, OverflowError) as error:
        empty = isinstance(error, OverflowError) or "probability tensor" in str(error)
        if settings.decoding != "checkpoint" or not empty:
            raise
        raise _not_followed(["with its values no token is left to choose from."]) from error


def end_tokens(handle: ModelHandle) -> frozenset[int]:
    """Tokens that end an answer."""
    end = handle.model.generation_config.eos_token_id
    return frozenset(() if end is None else [end] if isinstance(end, int) else end)


def first_id(token: int | Sequence[int] | None) -> int | None:
    """One id of an id or a list of ids."""
    return token if token is None or isinstance(token, int) else token[0]
