"""What a run will need, computed before it starts.

Memory follows from the sizes; time is estimated by `capture.run_times`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from humanize import naturalsize

from sinkscope.capture.engine.cache import capacity_for
from sinkscope.capture.engine.choice import choose_engine
from sinkscope.capture.engine.history import Shape
from sinkscope.capture.engine.store import kept_bytes
from sinkscope.capture.recorder import STAGED_BYTES
from sinkscope.capture.run import captured_indices, smaller_image
from sinkscope.capture.run_times import RunTimes, Work, expected_seconds
from sinkscope.config import GenerationSettings
from sinkscope.models.family import PromptInputs, PromptLayout
from sinkscope.models.loading import ModelHandle

STAGED_COPIES = 4  # staged rows, their concatenation, its logarithm, and what is being copied
CONTAINER = Path("/sys/fs/cgroup")


class DoesNotFitError(ValueError):
    """A run or a result that does not fit into memory, refused before it is computed."""


@dataclass(frozen=True)
class Forecast:
    """What a run needs if it uses all of its `max_new_tokens`.

    Attributes:
        prompt_tokens, vision_tokens, new_tokens: the sizes it follows from.
        payload_bytes: the trace's tensors, in the host's memory.
        working_bytes: attention rows being processed, on the device, in addition to plain
            generation; with steps (`capture.engine`) also those that wait there to be copied to the
            host.
        cache_bytes: keys and values, on the device; plain generation needs them too.
        seconds: of the whole run, with both answers of a comparison.
        host_available, device_available: free bytes now; None if this system does not report them.
        measured: whether `seconds` is based on finished runs; otherwise it is an estimate.
    """

    prompt_tokens: int
    vision_tokens: int
    new_tokens: int
    payload_bytes: int
    working_bytes: int
    cache_bytes: int
    seconds: float
    host_available: int | None
    device_available: int | None
    measured: bool = False

    def extra_bytes(self, device: str) -> int:
        """What capture adds on the device to plain generation's peak."""
        on_cpu = device.startswith("cpu")
        return self.working_bytes + (self.payload_bytes if on_cpu else 0)


def forecast(
    handle: ModelHandle,
    inputs: PromptInputs,
    settings: GenerationSettings | None = None,
    *,
    answers: int = 1,
    same_text: bool = False,
    run_times: RunTimes | None = None,
) -> Forecast:
    """What `attention_extractor.generate` or `compare` will need with these arguments.

    Costs a few matrix products and needs no lock. An estimate is larger while something else runs.

    Args:
        handle, inputs, settings: the run.
        answers: 2 for a comparison. The sizes in bytes are those of one.
        same_text: of a comparison.
        run_times: the model's finished runs, which are more accurate than an estimate.

    Raises:
        ValueError: a layer or head that this model does not have.
    """
    settings = settings or GenerationSettings()
    device = handle.device
    work = Work(inputs.layout, settings.max_new_tokens, answers, same_text)
    seconds, measured = expected_seconds(handle, work, run_times)
    return Forecast(
        prompt_tokens=inputs.layout.length,
        vision_tokens=inputs.layout.vision_tokens,
        new_tokens=settings.max_new_tokens,
        payload_bytes=payload_bytes(handle, inputs, settings),
        working_bytes=_working_bytes(handle, inputs, settings),
        cache_bytes=_cache_bytes(handle, inputs, settings),
        seconds=seconds,
        host_available=available_memory(torch.device("cpu")),
        device_available=available_memory(device),
        measured=measured,
    )


def check_memory(
    handle: ModelHandle, inputs: PromptInputs, settings: GenerationSettings, rows: int = 1
) -> None:
    """Refuse a run that cannot fit.

    Args:
        handle, inputs, settings: the run.
        rows: answers generated side by side.

    Raises:
        DoesNotFitError: the trace does not fit into the host's memory, or the cache into the
            device's; the text says what would fit.
    """
    host = rows * payload_bytes(handle, inputs, settings)
    cache = rows * _cache_bytes(handle, inputs, settings)
    _check(handle, inputs, settings, host, cache, "layers, heads, reduce_heads")


def check_stash_memory(
    handle: ModelHandle, inputs: PromptInputs, settings: GenerationSettings
) -> None:
    """Refuse a run that keeps queries (`capture.stash`) and cannot fit.

    Queries and keys stay on the device; the trace is made later, and is checked then.

    Raises:
        DoesNotFitError: as `check_memory`.
    """
    host = settings.reference * row_bytes(handle, inputs, settings)
    held = _cache_bytes(handle, inputs, settings) + query_bytes(handle, inputs, settings)
    _check(handle, inputs, settings, host, held, "layers")


def query_bytes(handle: ModelHandle, inputs: PromptInputs, settings: GenerationSettings) -> int:
    """Bytes of the queries that `capture.stash` keeps: all heads, of the captured layers."""
    layers, _ = captured_indices(handle, settings)
    kept = settings.max_new_tokens + max(0, len(kept_positions(inputs.layout, settings)) - 1)
    size = handle.embeddings.element_size()
    return kept * len(layers) * handle.stack.heads * _head_size(handle) * size


def _check(
    handle: ModelHandle,
    inputs: PromptInputs,
    settings: GenerationSettings,
    host: int,
    device_need: int,
    levers: str,
) -> None:
    """Refuse a need of this many bytes of the host's and of the device's memory."""
    on_cpu = handle.device.type == "cpu"
    needs = [("the computer's memory", host + (device_need if on_cpu else 0), torch.device("cpu"))]
    if not on_cpu:
        needs.append((f"the memory of {handle.device}", device_need, handle.device))
    for name, need, device in needs:
        free = available_memory(device)
        if free is not None and device == handle.device:
            free += kept_bytes(handle)  # kept steps can be dropped
        if free is not None and need > free:
            fitting = int(settings.max_new_tokens * free / need)
            tokens = f"; at most {fitting} would fit" if fitting else ""
            raise DoesNotFitError(
                f"The run needs {naturalsize(need)} of {name}, where {naturalsize(free)} are "
                "free. What helps: fewer new tokens (max_new_tokens is "
                f"{settings.max_new_tokens}{tokens}), {smaller_image(inputs)}or less of the "
                f"attention ({levers})."
            )


def check_payload(size: int, what: str, advice: str) -> None:
    """Refuse a result that does not fit into the computer's memory.

    Raises:
        DoesNotFitError: it does not.
    """
    free = available_memory(torch.device("cpu"))
    if free is not None and size > free:
        raise DoesNotFitError(
            f"{what} needs {naturalsize(size)} of the computer's memory, where "
            f"{naturalsize(free)} are free. What helps: {advice}."
        )


def payload_bytes(handle: ModelHandle, inputs: PromptInputs, settings: GenerationSettings) -> int:
    """Bytes of the trace's tensors."""
    rows = settings.max_new_tokens + len(kept_positions(inputs.layout, settings))
    return (rows + settings.reference) * row_bytes(handle, inputs, settings)


def kept_positions(layout: PromptLayout, settings: GenerationSettings) -> range:
    """The prompt positions whose rows a run keeps (`prompt_rows`): the last ones, of those after
    the last image."""
    return range(max(layout.after_images, layout.length - settings.prompt_rows), layout.length)


def row_bytes(handle: ModelHandle, inputs: PromptInputs, settings: GenerationSettings) -> int:
    """Bytes of one token's rows: float16 vision columns, float32 shares and entropy."""
    layers, heads = captured_indices(handle, settings)
    kept = 1 if settings.reduce_heads else len(heads)
    return bytes_of_a_row(inputs.layout, len(layers), kept)


def bytes_of_a_row(layout: PromptLayout, layers: int, heads: int) -> int:
    """As `row_bytes`, for given numbers of layers and heads."""
    return layers * heads * (2 * layout.vision_tokens + 4 * len(layout.segments) + 8)


def available_memory(device: torch.device) -> int | None:
    """Bytes that can be taken now without swapping; None if this system does not report it."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free) + int(idle)
    if device.type != "cpu":
        return None
    machine, container = psutil.virtual_memory().available, container_free(CONTAINER)
    return int(machine if container is None else min(machine, container))


def container_free(folder: Path) -> int | None:
    """Free bytes below a container's limit (cgroup version 2); None if there is no limit."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        taken = int((folder / "memory.current").read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return None
    if not limit.isdecimal():
        return None
    files = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    return max(0, int(limit) - taken + files)  # cached files can be dropped


def _working_bytes(handle: ModelHandle, inputs: PromptInputs, settings: GenerationSettings) -> int:
    keys = inputs.layout.length + settings.max_new_tokens
    row = handle.stack.heads * keys * 4
    if choose_engine(handle, settings).used == "graph":
        layers, heads = captured_indices(handle, settings)
        kept = 1 if settings.reduce_heads else len(heads)
        shape = Shape.of(inputs.layout, len(layers), 1, kept)
        fixed = shape.working_bytes(len(heads), capacity_for(keys), settings.max_new_tokens)
        return 3 * row + fixed
    staged = min(STAGED_BYTES + row, handle.info.layers * row)
    return 3 * row + STAGED_COPIES * staged  # a row's scores, softmax and product


def _cache_bytes(handle: ModelHandle, inputs: PromptInputs, settings: GenerationSettings) -> int:
    positions = inputs.layout.length + settings.max_new_tokens
    if choose_engine(handle, settings).used == "graph":
        positions = capacity_for(positions)
    size = handle.embeddings.element_size()
    return 2 * handle.info.layers * handle.stack.kv_heads * _head_size(handle) * positions * size


def _head_size(handle: ModelHandle) -> int:
    """The width of a head: from the config, because not every model divides the hidden size."""
    stack = handle.stack
    text = handle.model.config.get_text_config()
    candidates = [text, *(stack.layers[0].modules() if len(stack.layers) else ())]
    sizes = (getattr(one, "head_dim", None) for one in candidates)
    head_size = next((size for size in sizes if isinstance(size, int) and size > 0), None)
    return head_size or stack.hidden_size // stack.heads
