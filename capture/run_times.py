"""How long a run will take: estimated from how fast this device multiplies this model's own
matrices, and, once runs have finished, from their times.

An estimate counts the multiplications of a run's two parts, passing the prompt through the model
and making new tokens. The ratio of a finished run's time to its estimate corrects the estimates of
other runs of similar size. A small run says little about a large one, because most of its time is
not spent on multiplications.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

from sinkscope.models.family import PromptLayout
from sinkscope.models.loading import ModelHandle
from sinkscope.models.vision_cost import vision_attention

PROBE_ROWS = 256  # rows of the matrix product that measures the prefill's speed
PROBE_LAYERS = 4  # one row, with this many layers: decoding never finds one in cache
LAYER_SECONDS = 1e-3  # the least time of a layer and token, however small: about forty operations
ATTENTION_COST = 2  # a multiplication in attention takes as long as this many in a matrix product
REMEMBERED, NEAREST = 16, 3
ABOUT = 4.0  # runs are of similar size if their estimates differ by less than this factor
MULTIPLIED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Work:
    """A run, as far as its time depends on it.

    Attributes:
        layout: of the prompt.
        new_tokens: number of generated tokens, or its limit.
        answers: at once; with `same_text` the second one is one pass over the first one's text.
        same_text: as above.
    """

    layout: PromptLayout
    new_tokens: int
    answers: int = 1
    same_text: bool = False


@dataclass(frozen=True)
class _Finished:
    work: Work
    prompt_seconds: float
    token_seconds: float | None


class RunTimes:
    """The times of the last finished runs of one model. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handle: weakref.ref[ModelHandle] | None = None  # does not keep the model alive
        self._finished: deque[_Finished] = deque(maxlen=REMEMBERED)
        self._probes: dict[int, float] = {}

    def note(
        self, handle: ModelHandle, work: Work, seconds: float, token_times: Sequence[float]
    ) -> None:
        """Remember a finished run.

        Args:
            handle: the model. One at a time is remembered.
            work: the run, with the new tokens that it made.
            seconds: of the whole run.
            token_times: when each token of the first answer came, in seconds of any clock.
        """
        if not token_times:
            return
        steps = len(token_times) - 1
        making = token_times[-1] - token_times[0]
        finished = _Finished(work, max(seconds - making, 0.0), making / steps if steps else None)
        with self._lock:
            self._of(handle)
            self._finished.append(finished)

    def finished(self, handle: ModelHandle, work: Work) -> list[_Finished]:
        """The finished runs of the model, newest first: those of the same kind, if there are any,
        else all."""
        with self._lock:
            self._of(handle)
            known = list(self._finished)[::-1]
        kind = (work.answers, work.same_text)
        same = [one for one in known if (one.work.answers, one.work.same_text) == kind]
        return same or known

    def fastest(self, handle: ModelHandle, rows: int, seconds: float) -> float:
        """The least time that a product of this many rows took: other load only slows it down."""
        with self._lock:
            self._of(handle)
            self._probes[rows] = min(seconds, self._probes.get(rows, math.inf))
            return self._probes[rows]

    def _of(self, handle: ModelHandle) -> None:
        """Forget the times of another model."""
        if self._handle is None or self._handle() is not handle:
            self._handle = weakref.ref(handle)
            self._finished.clear()
            self._probes.clear()


def expected_seconds(
    handle: ModelHandle, work: Work, run_times: RunTimes | None = None
) -> tuple[float, bool]:
    """Seconds of a run that uses all of its new tokens, and whether finished runs say so."""
    rows = min(PROBE_ROWS, work.layout.length)
    many = _seconds_per_product(handle.stack.layers[:1], rows)
    one = _seconds_per_product(handle.stack.layers[:PROBE_LAYERS], 1)
    if run_times is not None:
        many, one = run_times.fastest(handle, rows, many), run_times.fastest(handle, 1, one)
    prompt, token = _estimate(handle, work, many, one)
    # The same speeds are in all estimates, so that it does not matter much how good they are.
    runs = [
        (run, *_estimate(handle, run.work, many, one))
        for run in (run_times.finished(handle, work) if run_times is not None else ())
    ]
    runs.sort(key=lambda run: abs(math.log(run[1] / prompt)))
    about = [run for run in runs if max(run[1] / prompt, prompt / run[1]) <= ABOUT]
    if about:
        prompt *= median(run.prompt_seconds / guess for run, guess, _ in about[:NEAREST])
    elif runs:  # at least as long as any smaller run, and at most as long as any larger one
        smaller = [run.prompt_seconds for run, guess, _ in runs if guess < prompt]
        larger = [run.prompt_seconds for run, guess, _ in runs if guess > prompt]
        prompt = min(max([prompt, *smaller]), *larger, math.inf)
    steps = [run.token_seconds / guess for run, _, guess in runs if run.token_seconds is not None]
    if steps:
        token *= median(steps[:NEAREST])
    return prompt + token * work.new_tokens, bool(about)


def _estimate(handle: ModelHandle, work: Work, many: float, one: float) -> tuple[float, float]:
    """Seconds to pass the prompt through the model, and of each new token (of all answers).

    Args:
        handle, work: the run.
        many, one: seconds of a multiplication, for many rows at once and for one.
    """
    stack, layout = handle.stack, work.layout
    layers = len(stack.layers)
    in_text = sum(_count(layer) for layer in stack.layers)
    in_head = _count(stack.output_head)
    embeddings = handle.embeddings
    in_vision = max(0, _count(handle.model) - in_text - embeddings.numel())
    if all(p is not embeddings for p in stack.output_head.parameters()):
        in_vision = max(0, in_vision - in_head)
    patches = sum(grid.patches for grid in layout.grids)
    blocks, in_sight = vision_attention(handle.model.config, layout.grids)
    square = layout.length**2  # two products over half of it
    attention = layers * stack.hidden_size * square + in_sight
    products = in_text * layout.length + in_vision * patches + ATTENTION_COST * attention
    prompt = LAYER_SECONDS * (layers + blocks) + many * products
    keys = layout.length + work.new_tokens / 2
    token = max(one * (in_text + in_head), LAYER_SECONDS * layers)
    token += one * ATTENTION_COST * 2 * layers * stack.hidden_size * keys
    return prompt, token * (1 if work.same_text else work.answers)


def _seconds_per_product(layers: Sequence[nn.Module], rows: int) -> float:
    """Seconds per multiplication in a layer's largest matrix, for this many rows at once."""
    matrices = [_largest_matrix(layer) for layer in layers]
    inputs = [torch.zeros(rows, m.shape[1], dtype=m.dtype, device=m.device) for m in matrices]
    best = float("inf")
    with torch.no_grad():
        for _ in range(3):
            began = time.perf_counter()
            for matrix, rows_in in zip(matrices, inputs, strict=True):
                nn.functional.linear(rows_in, matrix)
            if matrices[0].device.type == "cuda":
                torch.cuda.synchronize(matrices[0].device)
            best = min(best, time.perf_counter() - began)
    return best / (rows * sum(m.numel() for m in matrices))


def _largest_matrix(layer: nn.Module) -> torch.Tensor:
    """The weight of a layer's largest `nn.Linear`.

    A quantised layer has none that can be multiplied with as it is; it is replaced by a matrix of
    zeros with as many elements as the layer's largest parameter or buffer.
    """
    linear = [m.weight for m in layer.modules() if isinstance(m, nn.Linear)]
    plain = [w for w in linear if w.dtype in MULTIPLIED]
    if plain:
        return max(plain, key=torch.Tensor.numel)
    held = [*layer.parameters(), *layer.buffers()]
    largest = max(held, key=torch.Tensor.numel, default=torch.zeros(1, 1))
    dtype = torch.float16 if largest.device.type == "cuda" else torch.float32
    side = max(1, math.isqrt(largest.numel()))
    return torch.zeros(side, side, dtype=dtype, device=largest.device)


def _count(module: nn.Module) -> int:
    """Elements of parameters and buffers: quantised weights are buffers."""
    return sum(t.numel() for t in (*module.parameters(), *module.buffers()))
