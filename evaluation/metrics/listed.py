"""All metrics, by name."""

from __future__ import annotations

from sinkscope.evaluation.metrics.accuracy import Accuracy, MacroByCategory
from sinkscope.evaluation.metrics.chair import Chair
from sinkscope.evaluation.metrics.pairs import Mme, PairAccuracy
from sinkscope.evaluation.metrics.pope import Pope
from sinkscope.evaluation.metrics.tally import TallyMetric

METRICS: tuple[TallyMetric, ...] = (
    Accuracy(),
    Accuracy("mean_score", graded=True),
    MacroByCategory(),
    Pope(),
    Pope("lmms-eval-pope", "lmms-eval"),
    Pope("vlmevalkit-pope", "vlmevalkit"),
    Mme(),
    PairAccuracy(),
    Chair(),
)


def metric_named(name: str) -> TallyMetric:
    """The metric of this name.

    Raises:
        ValueError: there is none.
    """
    for metric in METRICS:
        if metric.name == name:
            return metric
    raise ValueError(f"The metric is {name!r}; allowed: {', '.join(m.name for m in METRICS)}.")
