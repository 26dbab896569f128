"""The verdict of a wave and of a full run, with its reason in words. docs/gsm8k.md explains the rules.

Every threshold is a test with a stated error: `docs/gsm8k-error-rates.md` is computed from these functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.gsm8k.classify import DEGENERATE, AnswerClass
from harness.gsm8k.counts import ALL_DEGENERATE, METRICS, ClassRate, Counts, Sample, class_rates, count
from harness.gsm8k.judgement import (
    CONFIDENCE,
    DEAD_ALPHA,
    EXPECT,
    LIMIT_ALPHA,
    MAX_UNANSWERED,
    WAVE_LIMIT_ALPHA,
)
from harness.gsm8k.paired import paired_decision
from harness.gsm8k.patterns import cut_at_limit, describe_degenerate, pattern
from harness.gsm8k.statistics import at_most, questions_to_decide, refuted_at, wilson
from harness.records.parts.gsm8k import NOT_DEAD, Decision

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Decision", "full_decision", "paired_decision", "smallest_wave", "smoke_decision", "wave_misses"]


def smallest_wave(expect: float, at_least: int = 32) -> int:
    """Return the smallest wave, of at least this many questions, in which no right answer refutes the expectation."""
    n = at_least
    while refuted_at(n, expect, DEAD_ALPHA) < 0 and n < 100_000:
        n += 1
    return n


def smoke_decision(
    samples: Sequence[Sample] | Counts,
    *,
    expect: float = EXPECT,
    max_unanswered: float = MAX_UNANSWERED,
    limits: Mapping[str, float] | None = None,
    metric: str = "strict",
    answers_fit: bool = False,
) -> Decision:
    """Judge the smoke wave. It can fail a run, never pass it: NOT DEAD says that nothing was refuted.

    Dead: as few right answers as this, by any extractor and with every unanswered question counted as right, would
    come once in a million waves from a model of the expected accuracy. A class above its limit at the same error
    fails the wave as well. With `answers_fit` every right answer is shorter than the limit: a dead model is then never
    called truncated.
    """
    evidence, counts = _evidence(samples)
    rates = class_rates(counts, metric, limits, WAVE_LIMIT_ALPHA, CONFIDENCE)
    details = _details(counts, rates, metric, expect=expect, max_unanswered=max_unanswered)
    right_at_most = refuted_at(counts.questions, expect, DEAD_ALPHA)
    details["dead_if_right_at_most"] = right_at_most
    details["misses"] = wave_misses(counts.questions, expect)
    if counts.answered and counts.any_right + counts.unanswered <= right_at_most:
        return _dead(evidence, counts, expect, details, answers_fit=answers_fit)
    if (infra := _infra(counts, max_unanswered, details)) is not None:
        return infra
    if (over := _over_limit(evidence, counts, rates, metric, details)) is not None:
        return over
    found = f"{counts.any_right} of {counts.answered} right in the smoke wave: an accuracy of {expect:g} is not refuted"
    return Decision(NOT_DEAD, "", f"{found}; {details['misses']}", details)


def wave_misses(n: int, expect: float) -> str:
    """Return what a wave of this size does not see."""
    right_at_most = refuted_at(n, expect, DEAD_ALPHA)
    if right_at_most < 0:
        return f"a wave of {n} cannot refute an accuracy of {expect:g} at all; {smallest_wave(expect, n)} questions could"
    missed = [
        f"{100 * (1 - at_most(right_at_most, n, p)):.2g} % of waves at an accuracy of {p:g}"
        for p in (0.05, 0.13)
    ]
    return f"a wave of {n} is called dead at {right_at_most} right or fewer, and lets through {' and '.join(missed)}"


def full_decision(
    samples: Sequence[Sample] | Counts,
    *,
    expect: float = EXPECT,
    min_accuracy: float | None = None,
    max_unanswered: float = MAX_UNANSWERED,
    limits: Mapping[str, float] | None = None,
    metric: str = "strict",
    confidence: float = CONFIDENCE,
    has_baseline: bool = False,
    answers_fit: bool = False,
) -> Decision:
    """Judge a full run: infrastructure, then dead, then the classes' limits, then the accuracy on its interval.

    Args:
        samples: every sample of the run, the wave's included, or their counts.
        expect: the accuracy whose refutation means dead.
        min_accuracy: PASS if all of the interval is at or above it, FAIL if all is below, else UNKNOWN (undecided).
        max_unanswered: share of unanswered questions above which nothing is judged.
        limits: limits of classes, by name, in place of `DEFAULT_LIMITS`.
        metric: the extractor whose accuracy counts: strict, flexible or numeric.
        confidence: of the intervals.
        has_baseline: whether a comparison judges the accuracy too; only changes the wording of a PASS.
        answers_fit: every right answer is shorter than the limit, so that a dead model is never called truncated.
    """
    evidence, counts = _evidence(samples)
    rates = class_rates(counts, metric, limits, LIMIT_ALPHA, confidence)
    details = _details(
        counts, rates, metric, expect=expect, max_unanswered=max_unanswered, confidence=confidence
    )
    details["min_accuracy"] = min_accuracy
    if (infra := _infra(counts, max_unanswered, details)) is not None:
        return infra
    # Rounded up, unlike everywhere else: with repeats, calling a model dead has to be the harder side.
    right = -(-counts.any_right // counts.repeats)
    if right <= refuted_at(counts.independent, expect, DEAD_ALPHA):
        return _dead(evidence, counts, expect, details, answers_fit=answers_fit)
    if (over := _over_limit(evidence, counts, rates, metric, details)) is not None:
        return over
    stated = details["accuracy"][metric]
    found = f"accuracy ({metric}) {_share(stated)} on {counts.independent:,} questions"
    if min_accuracy is None:
        judged = (
            "is judged against the baseline"
            if has_baseline
            else "was not judged: no --min-accuracy, no --baseline"
        )
        return Decision("PASS", "", f"neither dead nor degenerate; {found} {judged}", details)
    return _judged_accuracy(evidence, counts, found, min_accuracy, details)


def _judged_accuracy(
    evidence: Sequence[Sample], counts: Counts, found: str, min_accuracy: float, details: dict[str, Any]
) -> Decision:
    """Judge the accuracy's interval against the least accuracy; `found` is the accuracy in words."""
    stated = details["accuracy"][details["metric"]]
    if stated["low"] >= min_accuracy:
        return Decision("PASS", "", f"{found}, at least {min_accuracy:g}", details)
    if stated["high"] < min_accuracy:
        better = [m for m in METRICS if details["accuracy"][m]["high"] >= min_accuracy]
        if better:
            other = max(better, key=counts.right)
            also = f"{other} {counts.right(other) / counts.answered:.3f}: the format, not the model"
            return Decision("FAIL", "format", f"{found}, below {min_accuracy:g}, but {also}", details)
        return Decision(
            "FAIL", "accuracy", _with(f"{found}, below {min_accuracy:g}", pattern(evidence, counts)), details
        )
    needed = questions_to_decide(stated["share"], min_accuracy, details["confidence"])
    details["questions_to_decide"] = needed
    more = (
        f"about {needed:,} questions with this accuracy would decide"
        if needed
        else "no number of questions would decide"
    )
    return Decision(
        "UNKNOWN", "undecided", f"{found}: {min_accuracy:g} is inside the interval; {more}", details
    )


def _evidence(samples: Sequence[Sample] | Counts) -> tuple[Sequence[Sample], Counts]:
    return ((), samples) if isinstance(samples, Counts) else (samples, count(samples))


def _infra(counts: Counts, max_unanswered: float, details: dict[str, Any]) -> Decision | None:
    if counts.questions and counts.answered and counts.unanswered <= max_unanswered * counts.questions:
        return None
    if counts.answered == 0:
        return Decision("UNKNOWN", "infra", f"none of {counts.questions} questions was answered", details)
    share = 100 * counts.unanswered / counts.questions
    found = f"{counts.unanswered} of {counts.questions} questions unanswered ({share:.2g} %, over {100 * max_unanswered:g} %)"
    return Decision("UNKNOWN", "infra", f"{found}: the accuracy of the rest says nothing", details)


def _dead(
    evidence: Sequence[Sample],
    counts: Counts,
    expect: float,
    details: dict[str, Any],
    *,
    answers_fit: bool,
) -> Decision:
    chance = at_most(-(-counts.any_right // counts.repeats), counts.independent, expect)
    chances = f"{chance:.1g}" if chance > 1e-99 else "under 1e-99"
    found = f"{counts.any_right} of {counts.answered} right, chance {chances} at an accuracy of {expect:g}"
    if counts.any_right > 0.2 * counts.answered:
        found += "; if this model is no better than that, lower --expect"
    wrong = counts.answered - counts.any_right
    if answers_fit:
        return Decision("FAIL", "dead", _with(pattern(evidence, counts, answers_fit=True), found), details)
    if counts.classes.get(AnswerClass.CUT, 0) * 2 > wrong or _reasoning_cut(evidence) * 2 > wrong:
        named = pattern(evidence, counts) if _reasoning_cut(evidence) else cut_at_limit(evidence, counts)
        return Decision("FAIL", "truncated", _with(named, found), details)
    return Decision("FAIL", "dead", _with(pattern(evidence, counts), found), details)


def _reasoning_cut(evidence: Sequence[Sample]) -> int:
    """Count answers whose tokens all went into reasoning: their cause is the limit as well."""
    kind = AnswerClass.NULL_OR_REASONING
    return sum(s.get("class") == kind and s.get("finish_reason") == "length" for s in evidence)


_QUALIFIERS = {
    **dict.fromkeys([*map(str, DEGENERATE), ALL_DEGENERATE], "degenerate"),
    str(AnswerClass.CUT): "truncated",
    str(AnswerClass.NO_FINAL_ANSWER): "format",
    str(AnswerClass.EXTRACTORS_DISAGREE): "format",
}


def _over_limit(
    evidence: Sequence[Sample], counts: Counts, rates: list[ClassRate], metric: str, details: dict[str, Any]
) -> Decision | None:
    over = [rate for rate in rates if rate.exceeded]
    if not over:
        return None
    # Causes before consequences: degenerate, truncated, format.
    order = list(dict.fromkeys(_QUALIFIERS.values()))
    worst = min(over, key=lambda rate: (order.index(_QUALIFIERS[rate.name]), -rate.judged))
    qualifier = _QUALIFIERS[worst.name]
    limit = f"limit {100 * (worst.limit or 0):g} %"
    if worst.name == AnswerClass.EXTRACTORS_DISAGREE:
        best = max(METRICS, key=counts.right)
        shares = f"{metric} {counts.right(metric) / counts.answered:.2f} but {best} {counts.right(best) / counts.answered:.2f}"
        return Decision(
            "FAIL", qualifier, f"{shares}: the format, not the model ({limit}{_hint(best)})", details
        )
    if worst.name == AnswerClass.CUT:
        return Decision("FAIL", qualifier, f"{cut_at_limit(evidence, counts)} ({limit})", details)
    if worst.name in counts.classes and qualifier == "degenerate":
        return Decision(
            "FAIL", qualifier, f"{describe_degenerate(worst.name, counts, evidence)} ({limit})", details
        )
    named = f"{worst.judged} of {counts.answered} answers: {worst.name} ({limit})"
    return Decision("FAIL", qualifier, _with(named, pattern(evidence, counts)), details)


def _hint(best: str) -> str:
    return f"; --metric {best} judges the number alone"


def _details(counts: Counts, rates: list[ClassRate], metric: str, **settings: Any) -> dict[str, Any]:
    confidence = settings.setdefault("confidence", CONFIDENCE)
    n = counts.independent
    accuracy = {}
    for name in METRICS:
        interval = wilson(min(counts.right(name) / counts.repeats, n), n, confidence)
        share = counts.right(name) / counts.answered if counts.answered else None
        accuracy[name] = {
            "right": counts.right(name),
            "share": share,
            "low": interval.low,
            "high": interval.high,
        }
    return {
        "questions": counts.questions,
        "answered": counts.answered,
        "unanswered": counts.unanswered,
        "repeats": counts.repeats,
        "any_right": counts.any_right,
        "metric": metric,
        "accuracy": accuracy,
        "classes": [dict(vars(rate)) for rate in rates],
        **settings,
    }


def _share(stated: dict[str, Any]) -> str:
    return f"{stated['share']:.4f} ({stated['low']:.4f} to {stated['high']:.4f})"


def _with(first: str, second: str) -> str:
    return "; ".join(part for part in (first, second) if part)
