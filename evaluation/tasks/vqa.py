"""What the two VQA tasks with ten annotators share: judged by VQA accuracy, as lmms-eval does."""

from __future__ import annotations

from collections.abc import Callable

from sinkscope.evaluation.base import Protocol, Question
from sinkscope.evaluation.judges.lmms_eval import LMMS_VQA
from sinkscope.evaluation.judges.vqa_accuracy import VqaAccuracy
from sinkscope.evaluation.metrics.accuracy import Accuracy
from sinkscope.evaluation.tasks.base import lmms_protocol

VQA_SCORE = Accuracy("mean_score", graded=True)


def vqa_protocols(prompt: Callable[[Question], str]) -> tuple[Protocol, Protocol]:
    """`fixed` and lmms-eval's."""
    return (
        Protocol("fixed", prompt, VqaAccuracy(), VQA_SCORE, max_new_tokens=64),
        lmms_protocol(
            prompt, LMMS_VQA, VQA_SCORE, 1024, "lmms-eval sets no token limit here; it is 1,024."
        ),
    )
