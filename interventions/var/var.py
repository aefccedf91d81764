"""VAR as it is asked for, which becomes a `VARIntervention` in each run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.config import VARSettings
from sinkscope.interventions.base import Intervention
from sinkscope.interventions.var.checks import validate_var
from sinkscope.interventions.var.intervention import VARIntervention
from sinkscope.models.run_info import RunInfo


@dataclass(frozen=True)
class VAR(Intervention):
    """Visual Attention Redistribution.

    Attributes:
        settings: one per batch row; None leaves that row alone, to the last bit.
    """

    settings: tuple[VARSettings | None, ...]

    def begin(self, run: RunInfo) -> VARIntervention:
        """See `Intervention.begin`.

        Rows may have different prompts if the run continues from prefixes that end at one position
        (`RunInfo.columns`); rows then change from that position on.

        Raises:
            ValueError: another number of batch rows, different prompts in them that end their
                images at different positions, or a setting that cannot work with this model or
                prompt (`validate_var`).
        """
        if len(self.settings) != run.batch:
            raise ValueError(
                f"settings has {len(self.settings)} entries; allowed: one a batch row, {run.batch}."
            )
        if run.columns is None and any(other != run.layouts[0] for other in run.layouts):
            raise ValueError("The batch has different prompts; VAR acts on one prompt at a time.")
        known: dict[int, Tensor] = {}
        for row_settings, layout in zip(self.settings, run.layouts, strict=True):
            if row_settings is not None:
                model = run.model
                validate_var(
                    row_settings, model.hidden_size, model.layers, layout.vision_tokens, model.heads
                )
                known = dict(run.scores_before(row_settings.dims))
        vision = torch.zeros(run.batch, run.length, dtype=torch.bool)
        for row, layout in enumerate(run.layouts):
            positions = layout.vision_positions()
            vision[row, positions if run.columns is None else run.columns[row][positions]] = True
        active = VARIntervention(
            self.settings,
            vision,
            run.model.layers,
            run.capacity,
            known,
            run.step,
            run.columns,
            first_query=run.after_image,
            book=run.book,
            heads=run.model.heads,
        )
        double = run.model.dtype == "float64"
        active.prepare(run.device, torch.float64 if double else torch.float32)
        return active
