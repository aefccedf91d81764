"""The experiments, one row each. Nothing heavy is imported until one of them runs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sinkscope.experiments.settings import (
    AblateMLPSettings,
    CutEdgesSettings,
    DecomposeMLPInSettings,
    DecomposeOutputSettings,
    LowerAttentionSettings,
    MLPSubspaceSettings,
    ScanSettings,
    SinkTokensSettings,
    StudySettings,
    VisionOrTextSettings,
)

if TYPE_CHECKING:
    from sinkscope.models.loading import ModelHandle


@dataclass(frozen=True)
class Experiment:
    """One experiment: a question about a model.

    Attributes:
        name: on the command line.
        question: what it answers, in a sentence.
        settings: its dataclass.
        module: of `sinkscope.experiments`; its `run(study, settings)` gives the `Findings`.
        answers: whether it looks at an answer's log-probability.
        least: samples that it needs.
        needs_images: whether it is only for models with image input.
        ordinary: whether it needs ordinary tokens in addition to the groups: random controls are
            drawn from them ("controls"), or the sinks must stand out from all of them ("all").
    """

    name: str
    question: str
    settings: type[Any]
    module: str
    answers: bool = False
    least: int = 1
    needs_images: bool = False
    ordinary: Literal["", "all", "controls"] = ""

    @property
    def check(self) -> Callable[[ModelHandle, Any, StudySettings], None] | None:
        """Refuses settings that do not fit the model, before any pass: (handle, settings, those of
        the study); None without such a check."""
        module = importlib.import_module(f"sinkscope.experiments.{self.module}")
        check: Callable[[ModelHandle, Any, StudySettings], None] | None = getattr(
            module, "check", None
        )
        return check

    @property
    def run(self) -> Callable[[Any, Any], Any]:
        """The experiment itself: (study, settings) -> `experiments.result.Findings`."""
        module = importlib.import_module(f"sinkscope.experiments.{self.module}")
        run: Callable[[Any, Any], Any] = module.run
        return run


EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment(
        "scan",
        "Where do the sinks arise, and what sets them apart, layer by layer?",
        ScanSettings,
        "scan",
        least=2,
    ),
    Experiment(
        "decompose-output",
        "Which part of a layer's output makes the sink: residual, attention or MLP?",
        DecomposeOutputSettings,
        "decompose_output",
        least=2,
    ),
    Experiment(
        "mlp-subspace",
        "Do a few neurons of the MLP hold the sink's energy, and which?",
        MLPSubspaceSettings,
        "mlp_subspace",
        ordinary="all",
    ),
    Experiment(
        "ablate-mlp",
        "Do the sinks vanish when the MLP no longer writes what these neurons write?",
        AblateMLPSettings,
        "ablate_mlp",
        answers=True,
        ordinary="controls",
    ),
    Experiment(
        "decompose-mlp-in",
        "Which direction of the MLP's input activates these neurons, and is it the cause?",
        DecomposeMLPInSettings,
        "decompose_mlp_in",
        answers=True,
        least=2,
        ordinary="controls",
    ),
    Experiment(
        "lower-attention",
        "Does the model need the attention that its sinks get?",
        LowerAttentionSettings,
        "lower_attention",
        answers=True,
        ordinary="controls",
    ),
    Experiment(
        "cut-edges",
        "Which of the tokens that the answer attends to does it need?",
        CutEdgesSettings,
        "cut_edges",
        answers=True,
        ordinary="controls",
    ),
    Experiment(
        "vision-or-text",
        "Do the sinks come from the vision tower or arise in the language model?",
        VisionOrTextSettings,
        "vision_or_text",
        answers=True,
        needs_images=True,
        ordinary="controls",
    ),
    Experiment(
        "sink-tokens",
        "Which words do the sinks decode to, and do these words identify them?",
        SinkTokensSettings,
        "sink_tokens",
        least=2,
        ordinary="all",
    ),
)


def experiment_named(name: str) -> Experiment:
    """The row of a name.

    Raises:
        ValueError: there is none; the text lists them.
    """
    for experiment in EXPERIMENTS:
        if experiment.name == name:
            return experiment
    names = ", ".join(experiment.name for experiment in EXPERIMENTS)
    raise ValueError(f"There is no experiment {name!r}; allowed: {names}.")
