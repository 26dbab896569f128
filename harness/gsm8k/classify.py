"""What kind of answer a text is. Accuracy says that a model is wrong; the class says how, and so what to look for.

The order of the tests is the definition: a right answer is right whatever follows it, and what broke an answer (a flood,
a loop) comes before what it looks like then (cut at the limit, no number).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.gsm8k.scoring import Scores

INVALID = "[invalid]"


class AnswerClass(StrEnum):
    """The classes, each counted with a rate, an interval and a limit of its own."""

    RIGHT = "right"
    WRONG_NUMBER = "wrong number"
    NO_FINAL_ANSWER = "no final answer"
    EXTRACTORS_DISAGREE = "extractors disagree"
    EMPTY = "empty"
    NULL_OR_REASONING = "null or reasoning only"
    CUT = "cut at the token limit"
    REPETITION = "repetition loop"
    FLOOD = "one-token flood"
    NOT_TEXT = "not text"


DEGENERATE = (
    AnswerClass.EMPTY,
    AnswerClass.NULL_OR_REASONING,
    AnswerClass.REPETITION,
    AnswerClass.FLOOD,
    AnswerClass.NOT_TEXT,
)
"""Classes that no working model gives to more than a few questions."""


def classify(  # noqa: PLR0911 - one return a class
    text: str | None, finish_reason: str | None, reasoning: str | None, scores: Scores | None
) -> AnswerClass:
    """Return the class of one answer.

    Args:
        text: the answer; None if the server sent null.
        finish_reason: the server's; "length" means that the token limit ended the answer.
        reasoning: text that the server sent beside the answer (`reasoning_content`).
        scores: the scores of the text; may be None where the text is null or empty.
    """
    if text is None or (not text.strip() and reasoning and reasoning.strip()):
        return AnswerClass.NULL_OR_REASONING
    if not text.strip():
        return AnswerClass.FLOOD if len(text) >= FLOOD_REPEATS else AnswerClass.EMPTY
    if scores is None:
        raise ValueError("classify: scores must be given for an answer that has text, got None")
    if scores.strict and scores.flexible and scores.numeric:
        return AnswerClass.RIGHT
    if not scores.strict and (broken := _broken(text, finish_reason)) is not None:
        return broken
    if scores.strict or scores.flexible or scores.numeric:
        return AnswerClass.EXTRACTORS_DISAGREE
    if scores.extracted_strict == INVALID and scores.extracted_numeric is None:
        return AnswerClass.NO_FINAL_ANSWER
    return AnswerClass.WRONG_NUMBER


def _broken(text: str, finish_reason: str | None) -> AnswerClass | None:
    if flood_unit(text):
        return AnswerClass.FLOOD
    if is_not_text(text):
        return AnswerClass.NOT_TEXT
    if is_loop(text):
        return AnswerClass.REPETITION
    return AnswerClass.CUT if finish_reason == "length" else None


FLOOD_REPEATS = 16
FLOOD_SHARE = 0.5
_FLOOD = re.compile(r"(\s{0,4}\S{1,16}?\s{0,4}|\s)\1{15,}")  # bounded, so that no answer takes long


def flood_unit(text: str) -> str:
    """Return the piece that floods a text, or "".

    A flood is one piece without inner spaces (about one token) at least 16 times in a row, over half of the text or more.
    """
    for match in _FLOOD.finditer(text):
        unit = match[1].strip() or match[1]
        if len(match[0]) >= FLOOD_SHARE * len(text) and len(unit) <= 16:
            # "!!!!" as a unit is "!" four times.
            return unit[0] if len(set(unit)) == 1 else unit
    return ""


LOOP_WORDS = 5
LOOP_MIN_WORDS = 60
LOOP_DISTINCT = 0.35
LOOP_TAIL_REPEATS = 4
LOOP_TAIL_CHARACTERS = 160
_TAIL = 1_500


def is_loop(text: str) -> bool:
    """Return whether a text repeats itself: its end has a period, or few of its five-word sequences are distinct.

    Long enough that arithmetic (`$10 + $10 + ...` over twelve months) is none.
    """
    words = text.split()
    if len(words) >= LOOP_MIN_WORDS:
        sequences = [tuple(words[i : i + LOOP_WORDS]) for i in range(len(words) - LOOP_WORDS + 1)]
        if len(set(sequences)) < LOOP_DISTINCT * len(sequences):
            return True
    period, length = _periodic_tail(text[-_TAIL:])
    return period > 0 and length >= max(LOOP_TAIL_CHARACTERS, LOOP_TAIL_REPEATS * period)


def _periodic_tail(text: str) -> tuple[int, int]:
    """Return period and length of the longest end of the text that repeats itself four times or more, or (0, 0)."""
    reverse = text[::-1]
    borders = [0] * len(reverse)  # the prefix function of Knuth, Morris and Pratt
    best = (0, 0)
    for i in range(1, len(reverse)):
        border = borders[i - 1]
        while border and reverse[i] != reverse[border]:
            border = borders[border - 1]
        if reverse[i] == reverse[border]:
            border += 1
        borders[i] = border
        period = i + 1 - border
        if i + 1 >= LOOP_TAIL_REPEATS * period:
            best = (period, i + 1)
    return best


UNPRINTABLE_SHARE = 0.05
READABLE_SHARE = 0.35
SCRIPTS = 4
_MIN_CHARACTERS = 20
_EDGE = 300


def is_not_text(text: str) -> bool:
    """Return whether a text is no language: undecodable, mostly punctuation, or many writing systems in one answer."""
    length = len(text)
    bad = sum(n for c, n in Counter(text).items() if c == "\ufffd" or _is_control(c))
    if bad >= max(2, UNPRINTABLE_SHARE * length):
        return True
    if length < _MIN_CHARACTERS:
        return False
    if sum(c.isalnum() or c.isspace() for c in text) < READABLE_SHARE * length:
        return True
    return not text.isascii() and _scripts(text[:_EDGE] + text[-_EDGE:]) >= SCRIPTS


def _is_control(character: str) -> bool:
    """Return whether a character is a control, unassigned, private or half of a pair; line ends and tabs are text."""
    return character not in "\n\t\r" and unicodedata.category(character) in {"Cc", "Co", "Cn", "Cs"}


def _scripts(text: str) -> int:
    """Count the writing systems that hold at least 2 % of the letters; Chinese and Japanese characters count as one."""
    letters = [c for c in text if c.isalpha()]
    found: Counter[str] = Counter()
    for letter in letters:
        script = "LATIN" if letter.isascii() else unicodedata.name(letter, "UNKNOWN").split(" ", 1)[0]
        found[
            "CJK"
            if script in {"HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "IDEOGRAPHIC", "FULLWIDTH"}
            else script
        ] += 1
    return sum(count >= max(2, 0.02 * len(letters)) for count in found.values())
