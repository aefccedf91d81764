"""POPE (Li et al., EMNLP 2023): whether a model says that an object is there.

"yes" is the positive class. An answer that is neither yes nor no (unparsable) is wrong. By rule:

    rule         unparsable answers in                 yes ratio         undefined
    fixed        accuracy, and recall where the truth  of the answers    NaN
                 is yes (it was not found)
    lmms-eval    accuracy alone: they vanish from      of the TRUTH,     0
                 precision, recall and F1              which is a fault
    vlmevalkit   as "no"                               of the answers    0

Figures of each subset have its name in front: "adversarial.f1".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sinkscope.evaluation.base import Judged
from sinkscope.evaluation.metrics.tally import Array, Tally, TallyMetric, ratio, summed

RULES = ("fixed", "lmms-eval", "vlmevalkit")
_CELLS = ("yes yes", "yes no", "yes -", "no yes", "no no", "no -")  # truth, answer


@dataclass(frozen=True)
class Pope(TallyMetric):
    """Pooled and by subset; see the module.

    Attributes:
        rule: how unparsable answers count. Methods are compared by accuracy; for VLMEvalKit by F1,
            its "Overall".
    """

    name: str = "pope"
    rule: str = "fixed"

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"POPE's rule is {self.rule!r}; allowed: {', '.join(RULES)}.")

    def tally(self, judged: Sequence[Judged]) -> Tally:
        subsets = sorted({one.category for one in judged if one.category})
        entries = [(one.cluster, f"{one.category} {_cell(one)}", 1.0) for one in judged]

        def compute(of: Mapping[str, Array]) -> dict[str, Array]:
            zero = np.zeros_like(next(iter(of.values())))
            cells = {
                subset: [of.get(f"{subset} {cell}", zero) for cell in _CELLS]
                for subset in {*subsets, ""}
            }
            pooled = [sum((cells[s][k] for s in cells), start=zero) for k in range(len(_CELLS))]
            figures = _figures(pooled, self.rule)
            if len(subsets) > 1:
                for subset in subsets:
                    of_subset = _figures(cells[subset], self.rule)
                    figures |= {f"{subset}.{name}": value for name, value in of_subset.items()}
            return figures

        return summed(entries, compute)


def _cell(one: Judged) -> str:
    truth, extraction = str(one.truth).strip().lower(), one.judgement.extraction
    if truth not in ("yes", "no"):
        raise ValueError(f"Question {one.id}: its truth is {one.truth!r}; allowed: yes, no.")
    if extraction not in ("yes", "no", None):
        raise ValueError(
            f"Question {one.id}: its answer was taken to be {extraction!r}; the metric pope "
            "needs a "
            "judge that says yes, no or nothing, such as yes_no."
        )
    return f"{truth} {extraction or '-'}"


def _figures(cells: Sequence[Array], rule: str) -> dict[str, Array]:
    tp, fn, lost, fp, tn, other = cells
    total = tp + fn + lost + fp + tn + other
    undefined = np.nan if rule == "fixed" else 0.0
    missed = fn if rule == "lmms-eval" else fn + lost
    positives = tp + fn + lost if rule == "lmms-eval" else tp + fp
    accuracy = ratio(tp + tn, total)
    f1 = ratio(2 * tp, 2 * tp + fp + missed, undefined)
    rest = {
        "precision": ratio(tp, tp + fp, undefined),
        "recall": ratio(tp, tp + missed, undefined),
    }
    last = {"yes_ratio": ratio(positives, total), "unparsable": ratio(lost + other, total)}
    if rule == "vlmevalkit":
        return {"f1": f1, "accuracy": accuracy, **rest, **last}
    return {"accuracy": accuracy, "f1": f1, **rest, **last}
