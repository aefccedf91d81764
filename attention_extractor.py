"""Generating an answer while keeping the attention behind every token of it; and comparing.

`generate` runs transformers' own `generate`, unmodified, in a session (`capture.session`) with
probes for attention rows, logits and sink scores, and with VAR if requested. It returns a
frozen `GenerationTrace`. `compare` gives two of them, without and with VAR, from one pass over the
image.

Which row explains which token is stated in `capture.trace` and tested in
`tests/test_row_convention.py`.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sinkscope.capture.answer import answer, score_answer
from sinkscope.capture.forecast import DoesNotFitError, Forecast, check_memory, forecast
from sinkscope.capture.prefix import Prefix, forward_prefix
from sinkscope.capture.prompt import NoReferenceError, PromptTrace, read_prompt, reference_row
from sinkscope.capture.run import RunOutOfMemoryError, captured_indices, memory_errors_named
from sinkscope.capture.stash import QueryStash, stash_run
from sinkscope.capture.trace import GeneratedToken, GenerationTrace, first_difference, short
from sinkscope.config import GenerationSettings, VARSettings
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle
from sinkscope.var_patch import validate_var

__all__ = [
    "Comparison",
    "Forecast",
    "GenerationTrace",
    "PromptTrace",
    "QueryStash",
    "RunOutOfMemoryError",
    "compare",
    "forecast",
    "generate",
    "generate_stash",
    "prompt_rows",
]

OnToken = Callable[[int, GeneratedToken], None]
OnNamedToken = Callable[[str, int, GeneratedToken], None]
OnStage = Callable[[str], None]
NAMES = ("baseline", "var")


def generate(
    handle: ModelHandle,
    inputs: PromptInputs,
    settings: GenerationSettings | None = None,
    var: VARSettings | None = None,
    *,
    on_token: OnToken | None = None,
    on_stage: OnStage | None = None,
    stop: threading.Event | None = None,
) -> GenerationTrace:
    """Generate an answer with its attention.

    Args:
        handle: a loaded model; its lock is taken for the length of the run.
        inputs: from `handle.prepare`.
        settings: length, sampling, what to capture.
        var: apply VAR with these settings; None is the plain model.
        on_token: called from this thread with index and token as each is chosen.
        on_stage: called with a description of the stage if the next token will take long.
        stop: set it from another thread to end the run after the current token; the partial trace
            is returned.

    Returns:
        The trace. `trace.attention[t]` is the query row of the forward pass that predicted token t
        (method.md).

    Raises:
        ValueError: a setting that this model does not have (a layer, a head, a VAR dimension), or a
            run that cannot fit into memory (see `forecast`).
        RunOutOfMemoryError: the device is full.
    """
    settings = settings or GenerationSettings()
    captured_indices(handle, settings)  # an error need not wait for another run to end
    report_token = None if on_token is None else lambda row, index, token: on_token(index, token)
    with handle.lock:
        check_memory(handle, inputs, settings)  # here the previous run has released its memory
        with memory_errors_named(inputs, settings):
            prefix = None
            if settings.reference and inputs.layout.grids:  # both prompts continue from the image
                dims = var.dims if var else handle.profile.dims if handle.profile else ()
                prefix = forward_prefix(handle, inputs, dims)
            trace = answer(
                handle,
                inputs,
                settings,
                [var],
                prefix=prefix,
                on_token=report_token,
                on_stage=on_stage,
                stop=stop,
            )[0]
        return _with_reference(handle, inputs, settings, (trace,), prefix, stop)[0]


def _with_reference(
    handle: ModelHandle,
    inputs: PromptInputs,
    settings: GenerationSettings,
    traces: tuple[GenerationTrace, ...],
    prefix: Prefix | None,
    stop: threading.Event | None,
) -> tuple[GenerationTrace, ...]:
    """The traces with the generic prompt's row if requested, or with the reason why there is
    none."""
    row, why = _reference(handle, inputs, settings, prefix, stop)
    extra = {"no_reference": why} if why else {}
    return tuple(
        dataclasses.replace(trace, reference=row, extra={**trace.extra, **extra})
        for trace in traces
    )


def _reference(
    handle: ModelHandle,
    inputs: PromptInputs,
    settings: GenerationSettings,
    prefix: Prefix | None = None,
    stop: threading.Event | None = None,
) -> tuple[PromptTrace | None, str]:
    """The generic prompt's row if requested, or the reason why there is none: an answer is never
    lost because of it. Only the reasons here are accepted; any other error is raised."""
    if not settings.reference:
        return None, ""
    if not inputs.layout.grids:
        return None, "the prompt has no image"
    if stop is not None and stop.is_set():
        return None, "the run was stopped before the generic prompt was passed through the model"
    try:
        with memory_errors_named(inputs, settings):
            return reference_row(handle, inputs, settings, prefix), ""
    except (RunOutOfMemoryError, DoesNotFitError):
        return None, "there was no memory left to pass the generic prompt through the model"
    except NoReferenceError as error:
        return None, str(error)


def prompt_rows(
    handle: ModelHandle,
    inputs: PromptInputs,
    positions: Sequence[int] | None = None,
    settings: GenerationSettings | None = None,
) -> PromptTrace:
    """The attention of the prompt's own tokens: one pass over the prompt, nothing is generated.

    Args:
        handle: a loaded model; its lock is taken.
        inputs: from `handle.prepare`.
        positions: prompt positions; None is everything after the last image. Earlier ones cannot
            see the whole image.
        settings: `layers` and `heads` choose what is kept; the rest is not used.

    Returns:
        Rows AT these positions (see `capture.prompt`). `patch_map(rows, token=r)` maps the r-th.

    Raises:
        ValueError: a position, layer or head that is not there, or rows that do not fit into
            memory.
        RunOutOfMemoryError: the device is full.
    """
    settings = settings or GenerationSettings()
    with handle.lock, memory_errors_named(inputs, settings):
        return read_prompt(handle, inputs, positions, settings)


def generate_stash(
    handle: ModelHandle, inputs: PromptInputs, settings: GenerationSettings | None = None
) -> QueryStash:
    """Generate with plain SDPA, bit for bit, and keep the data to compute the attention from.

    Args:
        handle: a loaded model; its lock is taken for the length of the run.
        inputs: from `handle.prepare`.
        settings: as for `generate`, including `prompt_rows` and `reference`.

    Returns:
        The run. `.rows(token, layer)` is one whole row of every head, `.trace()` what `generate`
        would have returned.

    Raises:
        ValueError: a layer or head that this model does not have, or a run that cannot fit into
            memory.
        RunOutOfMemoryError: the device is full.
    """
    settings = settings or GenerationSettings()
    with handle.lock:
        with memory_errors_named(inputs, settings):
            stash = stash_run(handle, inputs, settings)
        # No prefix is shared: the answer's pass must be plain SDPA's own.
        row, why = _reference(handle, inputs, settings)
    extra = {"no_reference": why} if why else {}
    return dataclasses.replace(stash, reference=row, extra={**stash.extra, **extra})


@dataclass(frozen=True, repr=False)
class Comparison:
    """The same prompt without and with VAR.

    Attributes:
        baseline: the plain model's run.
        var: the run with VAR.
        same_text: whether `var` passes over the baseline's text instead of answering freely.
        prefix: shared by both; pass it to the next `compare` on the same inputs.
    """

    baseline: GenerationTrace
    var: GenerationTrace
    same_text: bool
    prefix: Prefix

    def __repr__(self) -> str:
        plain, changed = (short(t.text.strip(), 32) for t in (self.baseline, self.var))
        summary = "same text" if self.same_text else f"first_difference {self.first_difference}"
        return f"Comparison(baseline {plain}, VAR {changed}, {summary}, {self.baseline.model.id})"

    def _repr_html_(self) -> str:
        """In a notebook: the inspector (`show`)."""
        html: str = self.show()._repr_html_()
        return html

    def show(self, token: int | str | None = None, **look: Any) -> Any:
        """The page's inspector of both for the output of a notebook's cell
        (`web.runs.inline.inspector`).

        Args:
            token: which token is chosen at first: its index, or a word of the baseline's answer.
            look: `height` in pixels, `most_megabytes`.
        """
        import sinkscope  # the public API, because the page is above this part

        return sinkscope.inspector(self, token, **look)

    @property
    def first_difference(self) -> int | None:
        """Index of the first token in which the answers differ; None if they are the same."""
        return first_difference(self.baseline, self.var)

    @property
    def log_probability_change(self) -> tuple[float, ...]:
        """Nats that VAR adds to each token of the common text, up to the first difference."""
        count = (
            len(self.baseline.tokens) if self.first_difference is None else self.first_difference
        )
        smallest = 1e-45
        return tuple(
            math.log(max(changed.probability, smallest))
            - math.log(max(plain.probability, smallest))
            for plain, changed in zip(
                self.baseline.tokens[:count], self.var.tokens[:count], strict=True
            )
        )


def compare(
    handle: ModelHandle,
    inputs: PromptInputs,
    settings: GenerationSettings | None,
    var: VARSettings,
    same_text: bool = False,
    *,
    on_token: OnNamedToken | None = None,
    on_stage: OnStage | None = None,
    stop: threading.Event | None = None,
    prefix: Prefix | None = None,
) -> Comparison:
    """Answer a prompt without and with VAR.

    VAR changes only what comes after the last image, so the prompt up to there is passed through
    the model once. Free-running, both answers are then generated in one batch. With `same_text` the
    plain model answers, and one pass over its text gives each token's log-probability under VAR: an
    exact comparison token by token.

    Args:
        handle: a loaded model; its lock is taken for the length of the run.
        inputs: from `handle.prepare`.
        settings: length, sampling, what to capture. Sampled answers share one random stream, so
            they can also differ by chance; greedy ones (temperature 0) differ only because of VAR.
        var: VAR's settings.
        same_text: as above.
        on_token: called with "baseline" or "var", index and token as each is chosen.
        on_stage: as in `generate`.
        stop: set it to end the run after the current token; partial traces are returned.
        prefix: of an earlier comparison on the same inputs; ignored if it does not fit.

    Raises:
        ValueError: a setting that cannot work with this model or prompt.
        RunOutOfMemoryError: the device is full.
    """
    settings = settings or GenerationSettings()
    info = handle.info
    validate_var(var, info.hidden_size, info.layers, inputs.layout.vision_tokens, info.heads)
    captured_indices(handle, settings)
    report_token = (
        None if on_token is None else lambda row, index, token: on_token(NAMES[row], index, token)
    )
    with handle.lock:
        check_memory(handle, inputs, settings, rows=2)
        with memory_errors_named(inputs, settings):
            if prefix is None or not prefix.fits(handle, inputs, var.dims):
                prefix = forward_prefix(handle, inputs, var.dims)
            if same_text:
                (plain,) = answer(
                    handle,
                    inputs,
                    settings,
                    [None],
                    prefix=prefix,
                    mark=var,
                    on_token=report_token,
                    on_stage=on_stage,
                    stop=stop,
                )
                changed = score_answer(handle, inputs, settings, var, plain, prefix)
                if on_token is not None:
                    for index, token in enumerate(changed.tokens):
                        on_token(NAMES[1], index, token)
            else:
                plain, changed = answer(
                    handle,
                    inputs,
                    settings,
                    [None, var],
                    prefix=prefix,
                    on_token=report_token,
                    on_stage=on_stage,
                    stop=stop,
                )
        traces = (plain, changed)
        plain, changed = _with_reference(handle, inputs, settings, traces, prefix, stop)
        return Comparison(plain, changed, same_text, prefix)
