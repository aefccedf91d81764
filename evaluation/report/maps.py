"""Maps of changed questions: both answers generated again, with their attention and sinks.

A run keeps no attention, which would be a thousand times the size of its records. So the run's
model answers these few questions again. If the answer differs from the record (other hardware,
other batch), the caption says so.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image

from sinkscope.attention_extractor import generate
from sinkscope.attention_processor import PatchMap, patch_map
from sinkscope.capture.trace import GenerationTrace
from sinkscope.config import GenerationSettings
from sinkscope.drawing.overlay import OverlayStyle, overlay, scale_of
from sinkscope.drawing.view import View, sinks_of
from sinkscope.evaluation.base import Question
from sinkscope.evaluation.methods import resolve
from sinkscope.evaluation.record import AnswerRecord
from sinkscope.evaluation.report.gather import Flip, Section
from sinkscope.evaluation.report.questions import QuestionLookup, small_image
from sinkscope.models.loading import ModelHandle

Maps = dict[tuple[str, str, str], tuple[str, str]]
"""(section's title, question, method) -> a picture as a data URL, and its description."""


def draw_maps(section: Section, lookup: QuestionLookup, count: int, handle: ModelHandle) -> Maps:
    """Maps of the first `count` changed questions.

    Raises:
        ValueError: the model is not the run's.
    """
    wanted = section.run.config.run.model_revision
    if wanted not in (None, handle.info.revision):
        raise ValueError(
            f"The model {handle.info.id} is not the one of the run {section.title}: its revision "
            f"is {handle.info.revision}, and {wanted} is wanted."
        )
    methods = {
        one.name: one for one in resolve(section.run.config.methods, handle.profile, handle.info)
    }
    maps: Maps = {}
    for flip in section.flips[:count]:
        question = lookup.questions.get(flip.after.question)
        if question is None or not question.pictures:
            continue
        var = {name: methods[name].var for name in (flip.before.method, flip.after.method)}
        maps |= _of_flip(section, flip, question, handle, var)
    return maps


def _of_flip(
    section: Section,
    flip: Flip,
    question: Question,
    handle: ModelHandle,
    var: Mapping[str, object],
) -> Maps:
    protocol, run = section.protocol, section.run.config.run
    images = [picture() for picture in question.pictures]
    system = protocol.system if question.system is None else question.system
    inputs = handle.prepare(
        images,
        protocol.prompt(question),
        system,
        min_pixels=protocol.min_pixels,
        max_pixels=protocol.max_pixels,
    )
    settings = GenerationSettings(
        max_new_tokens=protocol.max_new_tokens,
        seed=run.seed,
        decoding=protocol.decoding,  # type: ignore[arg-type]  # checked by the class
        reduce_heads=True,
    )
    records = {record.method: record for record in (flip.before, flip.after)}
    traces = {
        # None stands for no VAR.
        name: generate(handle, inputs, settings, var[name])  # type: ignore[arg-type]
        for name in records
    }
    shown = {name: _best(trace) for name, trace in traces.items()}
    scale = scale_of(list(shown.values()), OverlayStyle())
    maps: Maps = {}
    for name, heat in shown.items():
        trace, image = traces[name], images[heat.image]
        cells = sinks_of(trace, View(image=heat.image))
        pixels = overlay(image, heat, OverlayStyle(sinks=cells), scale)
        address = small_image(Image.fromarray(pixels))
        maps[section.title, question.id, name] = (
            address,
            _caption(trace, heat, cells, records[name]),
        )
    return maps


def _best(trace: GenerationTrace) -> PatchMap:
    """The answer's map on the image that it attended to most."""
    tokens = range(max(1, len(trace.tokens) - (trace.finish_reason == "end")))
    maps = [patch_map(trace, tokens, image=i) for i in range(len(trace.layout.grids))]
    return max(maps, key=lambda one: float(np.nansum(one.values)))


def _caption(
    trace: GenerationTrace, heat: PatchMap, cells: tuple[int, ...], record: AnswerRecord
) -> str:
    tokens = trace.tokens[:-1] if trace.finish_reason == "end" else trace.tokens
    answer = "".join(token.text for token in tokens)
    where = f" of image {heat.image}" if len(trace.layout.grids) > 1 else ""
    again = "" if answer == record.answer else f" Asked again, it answered {answer!r}."
    return (
        f"Attention{where}, mean over the answer's tokens, layers and heads, one scale for both "
        f"answers; crosses: {len(cells)} sinks.{again}"
    )
