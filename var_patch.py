"""Visual Attention Redistribution (VAR, arXiv 2503.03321): the method and its patch for a run.

The mathematics is in `interventions/var/`, pure and batched; this module has its public names.
`select_rows` and `redistribute` are the dense reference, under the names that notebooks use. `VAR`
is the intervention to attach to a run (`capture.session.attached`), and `patch` makes the
`VARIntervention` of a run without a session. No state stays on the model, in a class or in a
module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from sinkscope.config import VARSettings
from sinkscope.interventions.var.checks import acting_layers, validate_var
from sinkscope.interventions.var.intervention import VARIntervention
from sinkscope.interventions.var.redistribute import redistribute
from sinkscope.interventions.var.report import LayerReport, VARReport
from sinkscope.interventions.var.selection import select_rows
from sinkscope.interventions.var.var import VAR
from sinkscope.models.family import PromptLayout
from sinkscope.models.info import ModelInfo
from sinkscope.models.run_info import RunInfo
from sinkscope.setting import heads_text, settings_of

__all__ = [
    "VAR",
    "LayerReport",
    "VARIntervention",
    "VARReport",
    "acting_layers",
    "describe",
    "patch",
    "redistribute",
    "select_rows",
    "validate_var",
]


def patch(
    settings: Sequence[VARSettings | None],
    layout: PromptLayout,
    model: ModelInfo,
    new_tokens: int,
    known: Mapping[int, torch.Tensor] | None = None,
) -> VARIntervention:
    """VAR for one run.

    Args:
        settings: one per batch row; None leaves that row plain.
        layout: of the prompt, the same in every row.
        model: sizes to check against.
        new_tokens: maximum number of generated tokens.
        known: sink scores of a shared prefix, layer -> float32 (prefix length,), by the dimensions
            of `settings`.

    Raises:
        ValueError: a setting that cannot work with this model or prompt (`validate_var`).
    """
    layouts, given = (layout,) * len(settings), known or {}
    run = RunInfo(
        model, layouts, layout.length, new_tokens, torch.device(model.device), known=given
    )
    return VAR(tuple(settings)).begin(run)


def describe(settings: VARSettings) -> str:
    """One line that names an intervention in a trace."""
    control = f", control: {settings.control} tokens" if settings.control != "none" else ""
    numbers = [
        f"{one.field.replace('_', ' ')} {getattr(settings, one.field):g}"
        for one in settings_of(type(settings))
        if one.kind == "number" and getattr(settings, one.field) is not None
    ]
    dims = f"dims {', '.join(map(str, settings.dims))}"
    heads = "" if settings.heads is None else f", heads {heads_text(settings.heads)}"
    return f"VAR ({settings.dialect}): {', '.join([dims, *numbers])}{heads}{control}"
