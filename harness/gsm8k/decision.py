"""The verdict of a wave and of a full run, with its reason in words. docs/gsm8k.md explains the rules.

Every threshold is a test with a stated error: `docs/gsm8k-error-rates.md` is computed from these functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.gsm8k.classify import AnswerClass
from harness.gsm8k.counts import METRICS, ClassRate, Counts, class_rates, count
from harness.gsm8k.drift import Drift, find_drift
from harness.gsm8k.judgement import (
    CONFIDENCE,
    DEAD_ALPHA,
    EXPECT,
    LIMIT_ALPHA,
    MAX_UNANSWERED,
    SMOKE_ALPHA,
    WAVE_LIMIT_ALPHA,
)
from harness.gsm8k.limits import in_reasoning, over_limit
from harness.gsm8k.paired import paired_decision
from harness.gsm8k.patterns import WRONG_NUMBERS, cut_at_limit, pattern
from harness.gsm8k.sample import Sample, in_order
from harness.gsm8k.signs import warnings
from harness.gsm8k.statistics import at_most, questions_to_decide, refuted_at, wilson
from harness.records.parts.gsm8k import NOT_DEAD, Decision

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MOST_IN_A_WAVE = 100_000

__all__ = ["Decision", "full_decision", "paired_decision", "smallest_wave", "smoke_decision", "wave_misses"]


def smallest_wave(expect: float, at_least: int = 32) -> int:
    """Return the smallest wave, of at least this many questions, in which no right answer refutes the expectation."""
    n = at_least
    if (1 - expect) ** MOST_IN_A_WAVE >= DEAD_ALPHA:
        return MOST_IN_A_WAVE
    while refuted_at(n, expect, DEAD_ALPHA) < 0:
        n += 1
    return n


def expected_of(expect: float, baseline: Counts | None) -> float:
    """Return the accuracy whose refutation means dead.

    Against a baseline, half of what that had is enough: whether a weak model is worse than it was is for the paired
    comparison to say.
    """
    if baseline is None or not baseline.answered:
        return expect
    return min(expect, 0.5 * baseline.any_right / baseline.answered)


def smoke_decision(
    samples: Sequence[Sample] | Counts,
    *,
    expect: float = EXPECT,
    max_unanswered: float = MAX_UNANSWERED,
    limits: Mapping[str, float] | None = None,
    metric: str = "strict",
    answers_fit: bool = False,
    baseline: Counts | None = None,
    stop: Sequence[str] = (),
) -> Decision:
    """Judge the smoke wave. It can fail a run, never pass it: NOT DEAD says that nothing was refuted.

    Dead: as few right answers as this, by any extractor and with every unanswered question counted as right, would
    come once in a million waves from a model of the expected accuracy. A class above its limit at the same error
    fails the wave as well; one that its limit explains at less than `SMOKE_ALPHA` makes it UNKNOWN. With `answers_fit`
    every right answer is shorter than the limit: a dead model is then never called truncated. `baseline` are the
    counts of a run that this one is compared with, `stop` the stop strings that were sent.
    """
    evidence, counts = _evidence(samples, stop)
    expect = expected_of(expect, baseline)

    def rates_at(alpha: float) -> list[ClassRate]:
        return class_rates(counts, metric, limits, alpha, CONFIDENCE, baseline)

    rates = rates_at(WAVE_LIMIT_ALPHA)
    details = _details(counts, rates, metric, expect=expect, max_unanswered=max_unanswered)
    right_at_most = refuted_at(counts.questions, expect, DEAD_ALPHA)
    details["dead_if_right_at_most"] = right_at_most
    details["misses"] = wave_misses(counts.questions, expect)
    if counts.answered and counts.any_right + counts.unanswered <= right_at_most:
        compared = baseline is not None
        return _dead(evidence, counts, expect, details, answers_fit=answers_fit, compared=compared)
    if (infra := _infra(counts, max_unanswered, details)) is not None:
        return infra
    for alpha, shown in ((WAVE_LIMIT_ALPHA, True), (SMOKE_ALPHA, False)):
        if (over := over_limit(evidence, counts, rates_at(alpha), metric, details, shown=shown)) is not None:
            return over
    details["warnings"] = warnings(evidence, counts, None)
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
    compared: bool = False,
    baseline: Counts | None = None,
    answers_fit: bool = False,
    stop: Sequence[str] = (),
) -> Decision:
    """Judge a full run: infrastructure, then drift and dead, then the classes' limits, then the accuracy on its interval.

    Args:
        samples: every sample of the run, the wave's included, or their counts.
        expect: the accuracy whose refutation means dead.
        min_accuracy: PASS if all of the interval is at or above it, FAIL if all is below, else UNKNOWN (undecided).
        max_unanswered: share of unanswered questions above which nothing is judged.
        limits: limits of classes, by name, in place of `DEFAULT_LIMITS`.
        metric: the extractor whose accuracy counts: strict, flexible or numeric.
        confidence: of the intervals.
        compared: a paired comparison judges the accuracy too; without it and without `min_accuracy` nothing does, and
            the decision is UNKNOWN (not judged).
        baseline: the counts of the run that it is compared with: what that had is not held against this one.
        answers_fit: every right answer is shorter than the limit, so that a dead model is never called truncated.
        stop: the stop strings that were sent.
    """
    evidence, counts = _evidence(samples, stop)
    expect = expected_of(expect, baseline)
    rates = class_rates(counts, metric, limits, LIMIT_ALPHA, confidence, baseline)
    details = _details(
        counts, rates, metric, expect=expect, max_unanswered=max_unanswered, confidence=confidence
    )
    details["min_accuracy"] = min_accuracy
    if (infra := _infra(counts, max_unanswered, details)) is not None:
        return infra
    drift = find_drift(in_order(evidence), metric)
    details["drift"] = None if drift is None else {**vars(drift), "thirds": list(drift.thirds)}
    over = over_limit(evidence, counts, rates, metric, details)
    # Rounded up, unlike everywhere else: with repeats, calling a model dead has to be the harder side.
    right = -(-counts.any_right // counts.repeats)
    dead = right <= refuted_at(counts.independent, expect, DEAD_ALPHA)
    if drift is not None and drift.certain and not (dead and _dead_throughout(drift, expect)):
        return Decision("FAIL", "degenerate", _with(str(drift), over.reason if over else ""), details)
    if dead:
        return _dead(evidence, counts, expect, details, answers_fit=answers_fit, compared=compared)
    if over is not None:
        return over
    details["warnings"] = warnings(evidence, counts, drift)
    if min_accuracy is None:
        return _not_judged(counts, details, compared=compared)
    return _judged_accuracy(evidence, counts, min_accuracy, details)


def _not_judged(counts: Counts, details: dict[str, Any], *, compared: bool) -> Decision:
    """Say that a run is alive, and that this is all that was judged, unless a comparison judges it too."""
    alive = f"neither dead nor degenerate; {_found(counts, details)}"
    if compared:
        return Decision("PASS", "", f"{alive} is judged by the comparison", details)
    ask = "give --min-accuracy, --baseline, --preset or --against URL"
    return Decision("UNKNOWN", "not judged", f"{alive} was not judged: {ask}", details)


def _found(counts: Counts, details: dict[str, Any]) -> str:
    """Return the accuracy in words."""
    metric = details["metric"]
    return f"accuracy ({metric}) {_share(details['accuracy'][metric])} on {counts.independent:,} questions"


def _dead_throughout(drift: Drift, expect: float) -> bool:
    """Return whether a model is dead on both sides of a change point: then the change is not what is wrong with it."""
    return all(right <= refuted_at(n, expect, DEAD_ALPHA) for right, n in drift.parts)


def _judged_accuracy(
    evidence: Sequence[Sample], counts: Counts, min_accuracy: float, details: dict[str, Any]
) -> Decision:
    """Judge the accuracy's interval against the least accuracy."""
    found = _found(counts, details)
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


def _evidence(samples: Sequence[Sample] | Counts, stop: Sequence[str]) -> tuple[Sequence[Sample], Counts]:
    return ((), samples) if isinstance(samples, Counts) else (samples, count(samples, stop))


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
    compared: bool = False,
) -> Decision:
    chance = at_most(-(-counts.any_right // counts.repeats), counts.independent, expect)
    chances = f"{chance:.1g}" if chance > 1e-99 else "under 1e-99"
    found = f"{counts.any_right} of {counts.answered} right, chance {chances} at an accuracy of {expect:g}"
    if counts.reasoned.get("answers"):
        found += f"; {in_reasoning(counts, details['metric'])}"
    wrong = counts.answered - counts.any_right
    if answers_fit:
        return Decision("FAIL", "dead", _with(pattern(evidence, counts, answers_fit=True), found), details)
    if counts.classes.get(AnswerClass.CUT, 0) * 2 > wrong or _reasoning_cut(evidence) * 2 > wrong:
        named = pattern(evidence, counts) if _reasoning_cut(evidence) else cut_at_limit(evidence, counts)
        return Decision("FAIL", "truncated", _with(named, found), details)
    named = pattern(evidence, counts)
    weak = _WEAK if not compared and named.endswith(WRONG_NUMBERS) else ""
    return Decision("FAIL", "dead", _with(named, found, weak), details)


_WEAK = (
    "a weak model looks like this too, and only what it was before tells it from a broken one: "
    "give --baseline with a record of it, or --expect below its accuracy"
)


def _reasoning_cut(evidence: Sequence[Sample]) -> int:
    """Count answers whose tokens all went into reasoning: their cause is the limit as well."""
    kind = AnswerClass.NULL_OR_REASONING
    return sum(s.get("class") == kind and s.get("finish_reason") == "length" for s in evidence)


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


def _with(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
