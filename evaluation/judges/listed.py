"""All judges, by name."""

from __future__ import annotations

from sinkscope.evaluation.base import Judge
from sinkscope.evaluation.judges.anls import Anls
from sinkscope.evaluation.judges.chair import Chair
from sinkscope.evaluation.judges.exact_match import ExactMatch
from sinkscope.evaluation.judges.llm import LlmJudge
from sinkscope.evaluation.judges.lmms_eval import (
    LMMS_VQA,
    LmmsBlink,
    LmmsExactMatch,
    LmmsMme,
    LmmsMmvp,
    LmmsPope,
    LmmsSat,
)
from sinkscope.evaluation.judges.option_letter import OptionLetter
from sinkscope.evaluation.judges.substring_legacy import SubstringLegacy
from sinkscope.evaluation.judges.vlmevalkit import KIT_VQA, KitExactMatch, KitOption, KitYesNo
from sinkscope.evaluation.judges.vqa_accuracy import VqaAccuracy
from sinkscope.evaluation.judges.yes_no import YesNo

JUDGES: tuple[Judge, ...] = (
    OptionLetter(),
    YesNo(),
    VqaAccuracy(),
    ExactMatch(),
    Anls(),
    Chair(),
    SubstringLegacy(),
    LlmJudge(),  # without a model: llm.llm_judge makes one with a model
    LmmsBlink(),
    LmmsMmvp(),
    LmmsSat(),
    LmmsPope(),
    LmmsMme(),
    LmmsExactMatch(),
    LMMS_VQA,
    KitOption(),
    KitYesNo(),
    KitExactMatch(),
    KIT_VQA,
)


def judge_named(name: str) -> Judge:
    """The judge of this name.

    Raises:
        ValueError: there is none.
    """
    for judge in JUDGES:
        if judge.name == name:
            return judge
    raise ValueError(f"The judge is {name!r}; allowed: {', '.join(one.name for one in JUDGES)}.")
