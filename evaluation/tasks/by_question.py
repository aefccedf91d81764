"""A judge for files with different kinds of questions: each answer is judged by its question's."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sinkscope.evaluation.base import Judge, Judgement, Question
from sinkscope.evaluation.judges.exact_match import ExactMatch
from sinkscope.evaluation.judges.option_letter import OptionLetter
from sinkscope.evaluation.judges.vqa_accuracy import FEWEST, VqaAccuracy
from sinkscope.evaluation.judges.yes_no import YesNo


@dataclass(frozen=True)
class ByQuestion:
    """`option_letter` if there are options, `yes_no` if the truth is yes or no, `vqa_accuracy` if
    there are enough annotators, else `exact_match`; `details["judge"]` names it."""

    name: str = "by_question"

    def judge(self, answer: str, question: Question) -> Judgement:
        """The judgement of that judge."""
        chosen = judge_for(question)
        judgement = chosen.judge(answer, question)
        return replace(judgement, details={**judgement.details, "judge": chosen.name})


def judge_for(question: Question) -> Judge:
    """The judge of a question."""
    if question.options:
        return OptionLetter()
    truth = question.truth
    if isinstance(truth, str) and truth.strip().rstrip(".").lower() in ("yes", "no"):
        return YesNo()
    if isinstance(truth, list | tuple) and len(truth) >= FEWEST:
        return VqaAccuracy()
    return ExactMatch()
