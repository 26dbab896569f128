"""Naming what is wrong with the answers: the sentence that a verdict adds to its numbers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from harness.gsm8k.classify import DEGENERATE, AnswerClass, flood_unit
from harness.gsm8k.counts import DEFAULT_LIMITS
from harness.gsm8k.judgement import CHANCE_RIGHT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.gsm8k.counts import Counts
    from harness.gsm8k.sample import Sample

WRONG_NUMBERS = "text with a wrong number"
"""What a weak model's answers are, and a broken one's too."""
SAME_TEXT_SHARE = 0.25
"""From here on one text for different questions is a pattern; one or two words ("#### 5") do not count as one."""


def pattern(samples: Sequence[Sample], counts: Counts, *, answers_fit: bool = False) -> str:  # noqa: PLR0911 - one return a sentence
    """Return one sentence on the most frequent way in which answers are not right, or "" if there is none.

    Degenerate classes go first: they are a cause, and a wrong number may be a model's own.
    """
    failing = {name: n for name, n in counts.classes.items() if name != AnswerClass.RIGHT and n > 0}
    if not failing:
        return ""
    answered = counts.answered
    degenerate = {name: n for name, n in failing.items() if name in DEGENERATE}
    if counts.of_class("degenerate") * 4 >= sum(failing.values()):
        name = max(degenerate, key=lambda key: degenerate[key])
        return describe_degenerate(name, counts, samples)
    if same := _same_text(samples, answered):
        return same
    if lost := _format(counts):
        return lost
    name = max(failing, key=lambda key: failing[key])
    if name == AnswerClass.CUT:
        return cut_at_limit(samples, counts, answers_fit=answers_fit)
    if name == AnswerClass.NO_FINAL_ANSWER:
        return f"{failing[name]} of {answered} answers state no number at all"
    if name == AnswerClass.EXTRACTORS_DISAGREE:
        return f"{failing[name]} of {answered} answers are right by one extractor and wrong by another"
    return f"{failing[name]} of {answered} answers are {WRONG_NUMBERS}"


def describe_degenerate(  # noqa: PLR0911 - one return a sentence
    name: str, counts: Counts, samples: Sequence[Sample]
) -> str:
    """Return one sentence on a degenerate class: how many answers, and what usually causes it."""
    found, answered = counts.classes[name], counts.answered
    some = f"{found} of {answered} answers"
    if name == AnswerClass.FLOOD:
        units = Counter(flood_unit(s.get("answer") or "") or " " for s in _of_class(samples, name))
        if not units:
            return f"{some} are floods of one token: broken logits are likely"
        unit, often = units.most_common(1)[0]
        # Token 0 of many vocabularies is "!", and the largest of several NaN is the first.
        cause = "NaN logits are likely" if unit == "!" else "broken logits are likely"
        others = "" if often == found else f" (and {found - often} of others)"
        return f"{some if often == found else f'{often} of {answered} answers'} are floods of {unit!r}{others}: {cause}"
    if name == AnswerClass.EMPTY:
        return f"{some} are empty: the end of text is sampled at once, or a stop string comes first"
    if name == AnswerClass.NULL_OR_REASONING:
        limited = sum(s.get("finish_reason") == "length" for s in _of_class(samples, name))
        if limited * 2 > found:
            return f"{some} are null or reasoning only, {limited} of them cut at the token limit: --max-tokens is too small"
        return f"{some} are null or reasoning only: look at the server's reasoning parser and chat template"
    if name == AnswerClass.REPETITION:
        return f"{some} repeat themselves: attention or its cache is likely, or the stop strings are ignored"
    return f"{some} are not text: broken weights, scales or layout are likely"


def cut_at_limit(samples: Sequence[Sample], counts: Counts, *, answers_fit: bool = False) -> str:
    """Return "31 % cut at 256 tokens", with the limit that the server's own usage shows, and why that may be."""
    found = counts.classes.get(AnswerClass.CUT, 0)
    limit = answer_limit_of(_of_class(samples, AnswerClass.CUT))
    share = (
        f"{100 * found / counts.answered:.0f} %"
        if counts.answered >= 100
        else f"{found} of {counts.answered} answers"
    )
    cause = "" if answers_fit else "raise --max-tokens, or "
    return f"{share} cut at {limit}: {cause}the model does not end its answers"


def answer_limit_of(samples: Sequence[Sample]) -> str:
    """Return "256 tokens", the length at which the server's own usage shows that answers were cut."""
    lengths = Counter(
        length
        for s in samples
        if s.get("finish_reason") == "length" and (length := (s.get("usage") or {}).get("completion_tokens"))
    )
    return f"{lengths.most_common(1)[0][0]} tokens" if lengths else "the token limit"


def _format(counts: Counts) -> str:
    best = max(("flexible", "numeric"), key=counts.right)
    right, lost = counts.right(best), counts.right(best) - counts.strict
    if lost <= max(DEFAULT_LIMITS[AnswerClass.EXTRACTORS_DISAGREE] * right, CHANCE_RIGHT * counts.answered):
        return ""
    strict, other = counts.strict / counts.answered, counts.right(best) / counts.answered
    return f"strict {strict:.2f} but {best} {other:.2f}: the format, not the model"


def _same_text(samples: Sequence[Sample], answered: int) -> str:
    texts: dict[str, set[object]] = {}
    for sample in samples:
        text = (sample.get("answer") or "").strip()
        if sample.get("error") is None and not sample["strict"] and len(text.split()) > 2:
            texts.setdefault(text, set()).add(sample["index"])
    if not texts:
        return ""
    text = max(texts, key=lambda key: len(texts[key]))
    if len(texts[text]) < max(2, SAME_TEXT_SHARE * answered):
        return ""
    shown = text if len(text) <= 40 else text[:40] + "..."
    return f"{len(texts[text])} different questions got the same answer {shown!r}: the prompt does not reach the output"


def _of_class(samples: Sequence[Sample], name: str) -> list[Sample]:
    return [s for s in samples if s.get("class") == name]
