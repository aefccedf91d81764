"""The expected time and memory of a run or a load, as a line of the page before it is started.

A forecast does not wait for the model: it reads sizes and computes a few matrix products.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping
from typing import Any

from cachetools import LRUCache
from humanize import metric
from PIL import Image

from sinkscope.attention_extractor import Forecast, forecast
from sinkscope.capture.forecast import available_memory, check_memory
from sinkscope.capture.run_times import RunTimes
from sinkscope.config import GenerationSettings, ModelSettings, Settings
from sinkscope.models.family import PromptInputs
from sinkscope.models.footprint import Footprint, NotOnDiskError, device_and_dtype, footprint
from sinkscope.models.loading import ModelHandle
from sinkscope.models.source import may_ask_hub
from sinkscope.utils import number_of
from sinkscope.web.runs.image_process import limits_for
from sinkscope.web.runs.loaded_model import LoadedModel
from sinkscope.web.runs.request import Request
from sinkscope.web.server.uploads import upload_size

KNOWN_PROMPTS = 32
AT_ONCE, PATIENCE = (
    2,
    2.0,
)  # forecasts bypass the queue, so a burst of them must not fill the memory

Notice = dict[str, Any]


def notice(text: str = "", kind: str = "quiet", fraction: float | None = None) -> Notice:
    """A line of the page: `quiet`, `busy` (with a fraction, 0 to 1) or `warn`; hidden if empty."""
    return {"kind": kind, "text": text, "fraction": fraction}


def estimate_run(
    handle: ModelHandle,
    inputs: PromptInputs,
    settings: GenerationSettings,
    *,
    answers: int,
    same_text: bool,
    run_times: RunTimes,
) -> Forecast:
    """The forecast of `answers` computed together; its bytes are those of one.

    Raises:
        ValueError: they do not fit into memory; the text names what helps.
    """
    if not handle.lock.locked():  # else a run holds memory that it releases before this one starts
        check_memory(handle, inputs, settings, answers)
    return forecast(
        handle, inputs, settings, answers=answers, same_text=same_text, run_times=run_times
    )


class Forecaster:
    """Forecasts of runs and loads. Keeps the layouts of the last prompts.

    Args:
        settings: of this start.
        loaded: the model.
        estimate: `estimate_run`; tests pass their own.
        run_times: the durations of finished runs.
    """

    def __init__(
        self,
        settings: Settings,
        loaded: LoadedModel,
        estimate: Callable[..., Forecast] = estimate_run,
        run_times: RunTimes | None = None,
    ) -> None:
        self._settings = settings
        self._loaded = loaded
        self._estimate = estimate
        self._run_times = run_times or RunTimes()
        self._layouts: LRUCache[tuple[tuple[str, ...], str], PromptInputs] = LRUCache(KNOWN_PROMPTS)
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(AT_ONCE)
        loaded.on_change(self._forget)

    def of_run(self, request: Request) -> Notice:
        """The line under Generate: empty without an image or a model."""
        handle = self._loaded.handle
        if handle is None or not request.images or not (request.prompt or "").strip():
            return notice()
        if not self._places.acquire(timeout=PATIENCE):
            return notice()
        try:
            settings = request.settings(self._settings)
            inputs = self._inputs(handle, request.images, request.prompt)
            answers = 2 if request.compare else 1
            forecast = self._estimate(
                handle,
                inputs,
                settings,
                answers=answers,
                same_text=bool(request.compare and request.same_text),
                run_times=self._run_times,
            )
            return notice(run_words(forecast, answers))
        except ValueError as error:
            return notice(str(error), "warn")
        finally:
            self._places.release()

    def _inputs(self, handle: ModelHandle, images: tuple[str, ...], prompt: str) -> PromptInputs:
        """The prompt without its pixels: a forecast needs only the layout."""
        with self._lock:
            known = self._layouts.get((images, prompt))
        if known is not None:
            return known
        # The layout follows from the sizes: no image is decoded before its turn in the queue.
        limits = limits_for(self._settings.images, handle)
        blank = [Image.new("RGB", upload_size(path, limits)) for path in images]
        inputs = handle.prepare(blank, prompt)
        inputs = dataclasses.replace(inputs, tensors={}, images=())
        with self._lock:
            if handle is self._loaded.handle:
                self._layouts[images, prompt] = inputs
        return inputs

    def _forget(self) -> None:
        with self._lock:
            self._layouts.clear()


def run_words(forecast: Forecast, answers: int) -> str:
    """`49 vision tokens · up to 1.2 MB of attention · up to about 0.3 s (by earlier runs)`."""
    tokens = number_of(forecast.vision_tokens, "vision token")
    size = size_words(answers * forecast.payload_bytes)
    how = "by earlier runs" if forecast.measured else "estimate"
    seconds = seconds_words(forecast.seconds)
    return f"{tokens} · up to {size} of attention · up to about {seconds} ({how})"


def of_load(settings: ModelSettings, parameters: Mapping[str, int]) -> Notice:
    """The line above Load.

    Args:
        settings: of the load.
        parameters: of the models that the page offers, for those that are not on this machine.
    """
    try:
        return _fitting(footprint(settings), "")
    except NotOnDiskError as error:
        if not may_ask_hub(settings):
            return notice(
                f"{error} The hub may not be asked (local_files_only or HF_HUB_OFFLINE is set); "
                "give the folder of a downloaded copy.",
                "warn",
            )
        count = parameters.get(settings.model)
        if count is None:
            return notice("Not on this machine yet: Load fetches it from the hub first.")
        place, dtype = device_and_dtype(settings)
        kind = str(dtype).removeprefix("torch.")
        fetched = f"Not on this machine yet: Load fetches {size_words(2 * count)} from the hub. "
        return _fitting(Footprint(count, count * dtype.itemsize, kind, place), fetched)
    except ValueError as error:
        return notice(str(error), "warn")


def _fitting(footprint: Footprint, before: str) -> Notice:
    free = available_memory(footprint.device)
    place = (
        "the computer's memory"
        if footprint.device.type == "cpu"
        else f"the memory of {footprint.device}"
    )
    words = (
        f"{before}{count_words(footprint.parameters)} parameters in {footprint.dtype}: "
        f"{size_words(footprint.nbytes)} of {place}"
    )
    if free is None:
        return notice(f"{words}.")
    words += f", where {size_words(free)} are free."
    if footprint.nbytes <= free:
        return notice(words)
    if footprint.device.type == "cuda":
        spread = "It is spread over all GPUs and the CPU, which is slower"
        return notice(f"{words} {spread}; bfloat16 or a smaller model helps.", "warn")
    smaller = "bfloat16, " if footprint.dtype in ("float32", "float64") else ""
    return notice(
        f"{words} It does not fit: {smaller}a smaller model or another device helps.", "warn"
    )


def size_words(count: float) -> str:
    """Bytes to two figures: `1.2 MB`, `15 GB`."""
    return metric(count, "B", 2)


def count_words(count: float) -> str:
    """A number of parameters: `3.8 billion`, `5.6 million`."""
    if count >= 999.5e6:
        return f"{_two(count / 1e9)} billion"
    return f"{_two(count / 1e6)} million" if count >= 999.5e3 else f"{count:,.0f}"


def seconds_words(seconds: float) -> str:
    """`0.3 s`, `12 s`, `4 min`."""
    if seconds < 99.5:
        return f"{max(seconds, 0.1):.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 99.5 else f"{minutes / 60:.0f} h"


def _two(value: float) -> str:
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"
