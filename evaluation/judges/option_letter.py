"""Multiple choice: which option an answer means.

Rules, in this order; the first that matches decides, and the record names it (`rule`):

    alone      the whole answer is a letter: "B", "(b)", "B."
    text       the whole answer is the text of one option
    leading    it begins with a letter and a sign: "B. a cat", "(C) blue", "A) ..."
    stated     "the answer is B", "Answer: (C)", "答案是B"; several different ones do not count
    last line  the last line of the answer is a letter
    named      "option B", "choice B"
    single     only one option's letter is among the words; an article "A" is not, and
               "not B" is not B
    contains   it contains, or begins with, the text of only one option

Two letters of which none is stated ("A or B"), a refusal, an empty answer, or a letter that no
option has: extraction None, score 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sinkscope.evaluation.base import Judgement, Question
from sinkscope.evaluation.judges.text import plain, starts, words

Options = Sequence[tuple[str, str]]
ANY_LETTER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_ANSWER = r"(?i:answer|answers|choose|pick|select|selected|go with|答案|选择|选项|选)"
_NAMED = r"(?i:option|choice|letter)"
_LINKS = (
    r"(?:(?i:\s|:|=|,|is|are|was|be|would|should|must|will|most|likely|the|option|choice|letter|correct"
    r"|therefore|clearly|definitely|probably|是|为|应|该))*"
)
_NEGATED = re.compile(
    r"(?i:\bnot|n't|\bneither|\bnor|\bthan|\binstead of|\bexcept|\bwithout|不是|并非|不选)"
    r"\s*(?i:option|choice|answer|the)?\s*$"
)
_AFTER_ARTICLE = re.compile(r"\s+(?!(?:is|was|are|and|or|because|since|as|seems|appears)\b)[a-z]")
_AFTER_PRONOUN = re.compile(r"\s+[a-z]|'")


@dataclass(frozen=True)
class OptionLetter:
    """Judges multiple choice; `truth` is a letter, also in brackets, or an option's text."""

    name: str = "option_letter"

    def judge(self, answer: str, question: Question) -> Judgement:
        """1 if the option meant is the right one, else 0.

        Raises:
            ValueError: the truth is not a letter of the question's options.
        """
        truth = true_letter(question)
        letter, rule = option_meant(answer, question.options)
        return Judgement(float(letter == truth), letter, {"rule": rule})


def true_letter(question: Question) -> str:
    """The right letter, in upper case.

    Raises:
        ValueError: the truth is neither a letter of the options nor the text of one.
    """
    truth = str(question.truth).strip()
    letter = truth.strip("()[]. ").upper()
    allowed = [one.upper() for one, _ in question.options]
    if letter in allowed or (not allowed and len(letter) == 1 and letter in ANY_LETTER):
        return letter
    same = [one.upper() for one, text in question.options if words(text) == words(truth)]
    if len(same) == 1:
        return same[0]
    options = ", ".join(allowed) or "one letter"
    raise ValueError(f"Question {question.id}: its truth is {truth!r}; allowed: {options}.")


def option_meant(answer: str, options: Options) -> tuple[str | None, str]:
    """The letter that an answer means, and the rule that found it ("none" if none did)."""
    letters = "".join(letter.upper() for letter, _ in options) or ANY_LETTER
    text = plain(answer)
    if not text:
        return None, "empty"
    one = f"[{letters}{letters.lower()}]"
    if match := re.fullmatch(rf"[(\[<{{]?\s*({one})\s*[)\]>}}]?\s*[.:,;!。]?", text):
        return match[1].upper(), "alone"
    if (
        len(
            equal := [x.upper() for x, option in options if option and words(option) == words(text)]
        )
        == 1
    ):
        return equal[0], "text"
    if re.fullmatch(r"[(\[]?\s*[A-Za-z]\s*[)\]]?\s*[.:,;!。]?", text):
        return None, "unknown letter"
    for rule, find in (
        ("leading", _leading),
        ("stated", lambda t, ls: _letters_after(_ANSWER, t, ls)),
        ("last line", _last_line),
        ("named", lambda t, ls: _letters_after(_NAMED, t, ls)),
        ("single", _standing),
    ):
        found_letters = find(text, letters)
        if len(found_letters) == 1:
            return found_letters.pop(), rule
        if len(found_letters) > 1 and rule != "stated":
            return None, "several letters"
    return _contained(text, options)


def _leading(text: str, letters: str) -> set[str]:
    one = f"[{letters}{letters.lower()}]"
    mark = rf"(?:[(\[]\s*({one})\s*[)\]]|({one})\s*[).:,;、\]\n]|([{letters}])\s*[-–—]\s)"
    match = re.match(mark, text)
    if not match:
        return set()
    return {_letter(match)} | _others(text, match.end(), letters)


def _others(text: str, end: int, letters: str) -> set[str]:
    """A second letter in a list: "A, B", "(A) or (B)", "A) and B)". "B. A cat" is not a list."""
    one = f"[{letters}{letters.lower()}]"
    match = re.match(
        rf"[ ,;/&]*(?i:or\s+|and\s+)?(?:[(\[]\s*({one})\s*[)\]]"
        rf"|([{letters}])(?=\s*(?:$|[,.;:)\]/&]|or\b|and\b)))",
        text[end:],
    )
    return {_letter(match)} if match else set()


def _letters_after(word: str, text: str, letters: str) -> set[str]:
    """Letters after a word such as "answer": upper case, in brackets, or lower case at the end."""
    small = letters.lower()
    mark = (
        rf"{word}{_LINKS}(?:[(\[]\s*([{letters}{small}])\s*[)\]]|([{letters}])(?![A-Za-z0-9'])"
        rf"|(?<![A-Za-z])([{small}])[).]?\s*$)"
    )
    matches = [m for m in re.finditer(mark, text) if not _article(text, m.start(m.lastindex or 0))]
    return {x for m in matches for x in (_letter(m), *_others(text, m.end(), letters))}


def _last_line(text: str, letters: str) -> set[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    match = re.fullmatch(rf"[(\[]?\s*([{letters}{letters.lower()}])\s*[)\]]?\s*\.?", lines[-1])
    return {match[1].upper()} if match and len(lines) > 1 else set()


def _standing(text: str, letters: str) -> set[str]:
    mark = (
        rf"[(\[]\s*([{letters}{letters.lower()}])\s*[)\]]"
        rf"|(?<![A-Za-z0-9'])([{letters}])(?![A-Za-z0-9'])"
    )
    letters_found = set()
    for m in re.finditer(mark, text):
        bare = m[2] is not None
        if not _NEGATED.search(text[: m.start()]) and not (bare and _article(text, m.start(2))):
            letters_found.add(_letter(m))
    return letters_found


def _article(text: str, at: int) -> bool:
    """Whether this upper-case letter is the article A, or the pronoun I."""
    if text[at] == "I":
        return bool(_AFTER_PRONOUN.match(text, at + 1))
    first = re.search(r"(?:^|[.!?:]\s*)$", text[:at]) is not None
    return text[at] == "A" and first and bool(_AFTER_ARTICLE.match(text, at + 1))


def _contained(text: str, options: Options) -> tuple[str | None, str]:
    answer = words(text)
    spans = [
        (at, at + len(words(option)), letter.upper())
        for letter, option in options
        for at in starts(words(option), answer)
        if at == 0 or answer[at - 1] not in {"not", "no", "isnt", "arent", "than", "neither", "nor"}
    ]
    whole = [
        (a, b, x)
        for a, b, x in spans
        if not any(y != x and c <= a and b <= d and d - c > b - a for c, d, y in spans)
    ]
    letters = {x for _, _, x in whole}
    if len(letters) == 1:
        return letters.pop(), "contains"
    # "Yes, there is no other": the part before a sign is the answer.
    front = words(re.split(r"[,.;:!\n]", text, maxsplit=1)[0])
    first = [letter.upper() for letter, option in options if option and words(option) == front]
    if len(first) == 1:
        return first[0], "contains"
    return None, "several options" if letters else "none"


def _letter(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group is not None).upper()
