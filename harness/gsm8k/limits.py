"""The class of answers that is over its limit, as a verdict with its reason in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.gsm8k.classify import DEGENERATE, AnswerClass
from harness.gsm8k.counts import ALL_DEGENERATE, METRICS, NEVER_STOPS, PAST_STOP, ClassRate, Counts
from harness.gsm8k.judgement import CONFIDENCE
from harness.gsm8k.patterns import answer_limit_of, cut_at_limit, describe_degenerate, pattern
from harness.gsm8k.statistics import at_least, wilson
from harness.records.parts.gsm8k import Decision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.gsm8k.sample import Sample

_QUALIFIERS = {
    PAST_STOP: "degenerate",
    **dict.fromkeys([*map(str, DEGENERATE), ALL_DEGENERATE], "degenerate"),
    NEVER_STOPS: "degenerate",
    str(AnswerClass.CUT): "truncated",
    str(AnswerClass.NO_FINAL_ANSWER): "format",
    str(AnswerClass.EXTRACTORS_DISAGREE): "format",
}
_SAY_MORE = (ALL_DEGENERATE, AnswerClass.NO_FINAL_ANSWER)
_CAUSES = ("degenerate", "truncated", "format")


def over_limit(
    evidence: Sequence[Sample],
    counts: Counts,
    rates: Sequence[ClassRate],
    metric: str,
    details: dict[str, Any],
    *,
    shown: bool = True,
) -> Decision | None:
    """Return FAIL for the worst class over its limit, None where none is. Causes come before consequences.

    Args:
        evidence: the samples, where there are some, for the words.
        counts: their counts.
        rates: every class with its limit.
        metric: the extractor that counts.
        details: of the decision.
        shown: the limits are shown to be broken; else the classes are only more frequent than their limits explain, in
            too few answers, and the decision is UNKNOWN.
    """
    over = [rate for rate in rates if rate.exceeded]
    if not over:
        return None
    worst = min(
        over,
        key=lambda rate: (_CAUSES.index(_qualifier(rate.name, counts)), rate.name != PAST_STOP, -rate.judged),
    )
    qualifier, found = _qualifier(worst.name, counts), _sentence(worst, evidence, counts, metric)
    limit = f"limit {100 * (worst.limit or 0):.3g} %{', the most that the baseline allows' if worst.raised else ''}"
    if shown:
        hint = _hint(worst, counts, metric)
        more = pattern(evidence, counts) if worst.name in _SAY_MORE else ""
        reason = f"{found} ({limit}{hint}){'; ' if more else ''}{more}"
        return Decision("FAIL", qualifier, reason, details)
    chance = at_least(worst.judged, worst.of, worst.limit or 0.0)
    few = f"{limit}; chance {chance:.1g} at the limit: too few answers to call it, a full run decides"
    return Decision("UNKNOWN", qualifier, f"{found} ({few})", details)


def _qualifier(name: str, counts: Counts) -> str:
    if name == AnswerClass.NULL_OR_REASONING and stands_in_reasoning(counts):
        return "format"
    if name == NEVER_STOPS and counts.of_class(AnswerClass.CUT) > counts.never_stops:
        return "truncated"
    return _QUALIFIERS[name]


def stands_in_reasoning(counts: Counts) -> bool:
    """Return whether most answers without text have their text in `reasoning_content`, whole."""
    return 2 * counts.reasoned.get("answers", 0) > counts.of_class(AnswerClass.NULL_OR_REASONING)


def in_reasoning(counts: Counts, metric: str) -> str:
    """Return what stands in `reasoning_content` in place of the text: "strict reads 0.955 (0.917 to 0.976) there"."""
    held, right = counts.reasoned["answers"], counts.reasoned[metric]
    n = max(1, held // counts.repeats)
    interval = wilson(min(right / counts.repeats, n), n, CONFIDENCE)
    return (
        f"{held} of {counts.answered} answers stand in reasoning_content, without content: {metric} reads "
        f"{right / held:.3f} ({interval.low:.3f} to {interval.high:.3f}) there"
    )


def _sentence(  # noqa: PLR0911 - one return a sentence
    rate: ClassRate, evidence: Sequence[Sample], counts: Counts, metric: str
) -> str:
    name, found = rate.name, f"{rate.judged} of {rate.of} answers"
    if name == AnswerClass.EXTRACTORS_DISAGREE:
        return _lost_by_format(rate, counts, metric)
    if name == AnswerClass.NULL_OR_REASONING and stands_in_reasoning(counts):
        return f"{in_reasoning(counts, metric)}: the server's reasoning parser, not the model"
    if name == AnswerClass.CUT:
        return cut_at_limit(evidence, counts)
    if name == NEVER_STOPS:
        ended = rate.judged + counts.of_class(AnswerClass.CUT)
        return (
            f"{ended} of {rate.of} answers end by length, at {answer_limit_of(evidence)}, {rate.judged} of them behind a "
            "right answer: the model does not stop, or its stop strings are ignored"
        )
    if name == PAST_STOP:
        return f"{found} go on behind a stop string that was sent: the server ignores stop strings"
    if name in counts.classes and name in DEGENERATE:
        return describe_degenerate(name, counts, evidence)
    return f"{found}: {name}"


def _lost_by_format(rate: ClassRate, counts: Counts, metric: str) -> str:
    """Say how many right answers the metric does not see, among those that any extractor finds right."""
    low, high = 1 - rate.high, 1 - rate.low
    by_any, right = rate.of, counts.right(metric)
    seen = f"{metric} finds {right} of the {by_any} right answers ({right / by_any:.2f}; {low:.2f} to {high:.2f})"
    if counts.reasoned.get("answers"):
        return f"{in_reasoning(counts, metric)}; {seen}: the format, not the model"
    best = _best(counts)
    shares = f"{metric} {right / counts.answered:.2f} but {best} {counts.right(best) / counts.answered:.2f}"
    return f"{shares}: the format, not the model; {seen}"


def _best(counts: Counts) -> str:
    return max(METRICS, key=counts.right)


def _hint(rate: ClassRate, counts: Counts, metric: str) -> str:
    best = _best(counts)
    if rate.name != AnswerClass.EXTRACTORS_DISAGREE or best == metric:
        return ""
    return f"; --metric {best} judges the number alone"
