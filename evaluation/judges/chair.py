"""CHAIR: objects that a caption names and the image does not have (Rohrbach et al., EMNLP 2018)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sinkscope.evaluation.base import Judgement, Question
from sinkscope.evaluation.judges.coco_objects import IRREGULAR, OBJECT_OF, OBJECTS, TWO_WORDS

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
# Words whose singular matters: those of objects, and the second of a pair.
_KNOWN = {part for word in (*OBJECT_OF, *TWO_WORDS) for part in word.split()}


@dataclass(frozen=True)
class Chair:
    """`truth`: the objects of the image, by COCO's names: those of its instance annotations and
    those that `objects_named` finds in its reference captions.

    The score is 1 for a caption without a hallucinated object, so that its mean is 1 - CHAIR_s. The
    details have `mentioned` (one object per mention, with repetitions), `hallucinated` (those of
    them that the image does not have) and `words` (as the caption has them).
    """

    name: str = "chair"

    def judge(self, answer: str, question: Question) -> Judgement:
        """Compares the objects that the caption names with the image's.

        Raises:
            ValueError: the truth is not a list of COCO's names.
        """
        truth = question.truth
        if not isinstance(truth, list | tuple | set | frozenset):
            raise ValueError(f"Question {question.id}: its truth is {truth!r}; allowed: a list.")
        if unknown := sorted(set(truth) - set(OBJECTS)):
            raise ValueError(
                f"Question {question.id}: {', '.join(map(str, unknown))} is not an object of COCO; "
                f"allowed: {', '.join(OBJECTS)}."
            )
        objects = objects_named(answer)
        mentioned = [thing for thing, _ in objects]
        hallucinated = [thing for thing in mentioned if thing not in truth]
        details = {
            "mentioned": mentioned,
            "hallucinated": hallucinated,
            "words": [word for _, word in objects],
        }
        extraction = ", ".join(dict.fromkeys(mentioned)) if answer.strip() else None
        return Judgement(float(not hallucinated), extraction, details)


def objects_named(caption: str) -> list[tuple[str, str]]:
    """(object, word) of each mention, in order.

    Words are put into the singular by rule and a short list, where the original uses the library
    `pattern`; then two-word names are joined, and the seat of a toilet does not count as a chair.
    """
    singular = [_singular(word) for word in _WORD.findall(caption.lower())]
    joined: list[str] = []
    at = 0
    while at < len(singular):
        pair = " ".join(singular[at : at + 2])
        joined.append(TWO_WORDS.get(pair, singular[at]))
        at += 2 if pair in TWO_WORDS else 1
    if "toilet" in joined:
        joined = [word for word in joined if word != "seat"]
    return [(OBJECT_OF[word], word) for word in joined if word in OBJECT_OF]


def _singular(word: str) -> str:
    word = word.removesuffix("'s")
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word in _KNOWN:
        return word
    for ending, instead in (("ies", "y"), ("es", ""), ("s", "")):
        if word.endswith(ending) and (one := word.removesuffix(ending) + instead) in _KNOWN:
            return one
    return word
