"""Attention without the sinks: a patch that is a sink has no value in that layer."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import torch

from sinkscope.attention_processor import sink_columns
from sinkscope.capture.trace import GenerationTrace
from sinkscope.jobs.job import Progress
from sinkscope.methods.attention import Attention
from sinkscope.methods.base import MapStack, Method, Target, rows_of

if TYPE_CHECKING:
    from sinkscope.methods.base import Session


class WithoutSinks(Method):
    """The attention of the patches that are not sinks.

    A sink is missing, not 0. In a map over several layers, a patch that is a sink in one of them is
    missing: a mean over the remaining layers would not be comparable with that of other patches.
    """

    name = "without_sinks"
    description = "attention mass per patch, without the sinks of the layers shown"

    def availability(self, run: GenerationTrace) -> str | None:
        return None if run.sinks else "no sink dimensions are known for the run's model"

    def explain(
        self,
        run: GenerationTrace,
        target: Target,
        session: Session | None = None,
        progress: Progress | None = None,
    ) -> MapStack:
        stack = Attention().explain(run, target)
        rows = rows_of(run, target.source)
        values = torch.from_numpy(stack.values).view(
            len(target.tokens), len(rows.layers), len(rows.heads), -1
        )
        values.masked_fill_(sink_columns(rows)[None, :, None], np.nan)  # a copy of the run's rows
        return dataclasses.replace(stack, normalisation="sinks of the layers shown are missing")
