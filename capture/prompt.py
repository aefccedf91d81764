"""Attention of the PROMPT's own tokens: what each of them attended to.

Row convention: row r is the query row AT prompt position `positions[r]` (`capture.trace`).

`read_prompt` is one pass over the prompt with the fused kernel that also computes the requested
rows, a few at a time, so that memory is the result's own plus a fixed amount. A run that generates
can also keep them (`kept_positions`), and `reference_row` is the last row of a generic prompt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from sinkscope.capture.forecast import check_payload, kept_positions, row_bytes
from sinkscope.capture.prefix import Prefix
from sinkscope.capture.probes.sink_scores import SinkScores
from sinkscope.capture.probes.trace_rows import TraceRows
from sinkscope.capture.recorder import TraceRecorder
from sinkscope.capture.run import captured_indices, on_device, smaller_image
from sinkscope.capture.session import attached
from sinkscope.capture.trace import LayerSinks, PromptToken, PromptTrace
from sinkscope.config import GenerationSettings
from sinkscope.models.family import PromptInputs, PromptLayout
from sinkscope.models.info import ModelInfo
from sinkscope.models.loading import ModelHandle
from sinkscope.models.views import stretches

__all__ = ["PromptToken", "PromptTrace", "kept_positions", "read_prompt", "reference_row"]

# The denominator of arXiv 2502.17422: a prompt that asks for nothing in particular.
GENERIC_PROMPT = "Write a general description of the image."


class NoReferenceError(ValueError):
    """No row of the generic prompt fits this prompt; the text says why, as the end of a
    sentence."""


def read_prompt(
    handle: ModelHandle,
    inputs: PromptInputs,
    positions: Sequence[int] | None,
    settings: GenerationSettings,
    prefix: Prefix | None = None,
) -> PromptTrace:
    """See `attention_extractor.prompt_rows`. The handle's lock must be held.

    With a `prefix` of the same positions the pass begins after it; the requested positions must be
    after it too, and sinks are not searched for.
    """
    layers, heads = captured_indices(handle, settings)
    wanted = _positions(inputs.layout, positions)
    check_payload(
        len(wanted) * row_bytes(handle, inputs, settings),
        f"The attention of {len(wanted)} prompt tokens",
        f"fewer positions, {smaller_image(inputs)}or less of the attention (layers, heads, "
        "reduce_heads)",
    )
    rows = [
        TraceRows(layers, heads, len(run), run.start, reduce_heads=settings.reduce_heads)
        for run in stretches(wanted)
    ]
    profile = handle.profile
    looks = profile is not None and prefix is None
    marks = SinkScores(profile.dims, profile.tau) if looks and profile is not None else None
    start = 0 if prefix is None else prefix.length
    assert wanted[0] >= start, "the requested rows are in the prefix"
    probes = [*rows, *([marks] if marks else [])]
    with attached(handle, inputs, probes=probes, prefix=prefix) as session:
        if prefix is None:
            tensors = on_device(inputs.tensors, handle.device)
            handle.model(**tensors, use_cache=False, logits_to_keep=1)
        else:
            ids = inputs.tensors["input_ids"][:, start:].to(handle.device)
            cache = prefix.fork(handle, 1)
            handle.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return prompt_trace(
        handle.info,
        inputs,
        wanted,
        [session[probe] for probe in rows],
        session[marks].found() if marks else (),
    )


def prompt_trace(
    model: ModelInfo,
    inputs: PromptInputs,
    positions: Sequence[int],
    recorders: Sequence[TraceRecorder],
    sinks: tuple[LayerSinks, ...],
) -> PromptTrace:
    """The trace of the rows that these recorders kept, one recorder per range of positions."""
    parts = [recorder.recorded(recorder.tokens) for recorder in recorders]
    # A single range of positions, the usual case, is passed on without a copy.
    attention, shares, entropy = (
        parts[0] if len(parts) == 1 else tuple(torch.cat(p) for p in zip(*parts, strict=True))
    )
    return PromptTrace(
        positions=tuple(positions),
        tokens=tuple(PromptToken(inputs.token_ids[p], inputs.token_texts[p]) for p in positions),
        layout=inputs.layout,
        attention=attention,
        layers=recorders[0].layers,
        heads=recorders[0].heads,
        shares=shares,
        entropy=entropy,
        sinks=sinks,
        model=model,
        prompt=inputs.prompt,
    )


def reference_row(
    handle: ModelHandle, inputs: PromptInputs, settings: GenerationSettings, prefix: Prefix | None
) -> PromptTrace:
    """The last prompt row of `GENERIC_PROMPT` on the same images. The lock must be held.

    It is the row that would produce the first word of a general description (arXiv 2502.17422,
    which divides by the attention of one fixed instruction on the same image). The generic prompt
    has the system message and the pixel bounds of `inputs`: all up to the last image is the same,
    and the images are cut into the same patches. Earlier turns are left out. They come after the
    image and ask about it, so they belong to what the generic instruction replaces.

    The pass begins after the `prefix` of `inputs`, if there is one.

    Raises:
        NoReferenceError: the images were cut into other patches, because `inputs` were not prepared
            by `handle.prepare`.
        DoesNotFitError: the row does not fit into memory.
    """
    general = handle.prepare(
        inputs.images,
        GENERIC_PROMPT,
        inputs.system,
        min_pixels=inputs.min_pixels,
        max_pixels=inputs.max_pixels,
    )
    if general.layout.patches != inputs.layout.patches:
        raise NoReferenceError(
            "the generic prompt cuts the images into other patches than the prompt, which was not "
            "prepared by ModelHandle.prepare"
        )
    same = prefix is not None and (
        general.token_ids[: prefix.length] == inputs.token_ids[: prefix.length]
        and general.layout.grids == inputs.layout.grids
    )
    row = read_prompt(
        handle, general, [general.layout.length - 1], settings, prefix if same else None
    )
    return dataclasses.replace(row, sinks=())  # the run's own sinks are shown


def _positions(layout: PromptLayout, positions: Sequence[int] | None) -> tuple[int, ...]:
    if positions is None:
        return tuple(range(layout.after_images, layout.length))
    wanted = tuple(sorted(set(positions)))
    if not wanted or wanted[0] < 0 or wanted[-1] >= layout.length:
        raise ValueError(
            f"positions is {list(positions)!r}; allowed: at least one prompt position from 0 to "
            f"{layout.length - 1}."
        )
    return wanted
