"""From samples to the counts that a verdict depends on, and to each class's rate with its interval and limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.gsm8k.classify import DEGENERATE, AnswerClass
from harness.gsm8k.statistics import exceeded_at, wilson
from harness.verdict import UsageError

Sample = Mapping[str, Any]
METRICS = ("strict", "flexible", "numeric")

ALL_DEGENERATE = "degenerate"
"""The name under which all degenerate classes together have a limit."""

DEFAULT_LIMITS: dict[str, float] = {
    AnswerClass.FLOOD: 0.01,
    AnswerClass.NOT_TEXT: 0.01,
    # Runs that people call healthy had 1.5 % of empty answers (flashinfer #4340); loops are common in small models.
    AnswerClass.EMPTY: 0.05,
    AnswerClass.NULL_OR_REASONING: 0.05,
    AnswerClass.REPETITION: 0.05,
    ALL_DEGENERATE: 0.10,
    AnswerClass.CUT: 0.10,
    AnswerClass.NO_FINAL_ANSWER: 0.25,
    AnswerClass.EXTRACTORS_DISAGREE: 0.25,
}
"""Share of the answers above which a class fails a run. Right and wrong numbers have none: accuracy judges them."""


@dataclass(frozen=True)
class Counts:
    """What a verdict depends on. Counts of answers; with `repeats` above 1 every question is in them that many times.

    `any_right` counts answers that at least one extractor found right: a model is not dead because its format is wrong.
    """

    questions: int
    answered: int
    strict: int
    flexible: int
    numeric: int
    any_right: int
    classes: Mapping[str, int] = field(default_factory=dict)
    repeats: int = 1

    @property
    def unanswered(self) -> int:
        """Questions that no server answered, after all retries: neither right nor wrong."""
        return self.questions - self.answered

    @property
    def independent(self) -> int:
        """Answers that may be treated as independent: repeats of a question are not, so a question counts once."""
        return self.answered // self.repeats

    def per_question(self, answers: int) -> int:
        """Return a count of answers as a count of questions, rounded down."""
        return answers // self.repeats

    def right(self, metric: str) -> int:
        """Return how many answers this extractor found right."""
        if metric not in METRICS:
            raise UsageError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
        return int(getattr(self, metric))

    def of_class(self, name: str) -> int:
        """Return how many answers are of a class, or of all degenerate classes together."""
        if name == ALL_DEGENERATE:
            return sum(self.classes.get(kind, 0) for kind in DEGENERATE)
        return self.classes.get(name, 0)


def count(samples: Sequence[Sample]) -> Counts:
    """Count samples as the run records them (`error` is null exactly where a question was answered)."""
    answered = [s for s in samples if s.get("error") is None]
    # The repeats that the record holds, so that a run cut short counts no question as fewer than it was asked.
    repeats = len({s.get("repeat", 0) for s in samples}) or 1
    return Counts(
        questions=len(samples),
        answered=len(answered),
        strict=sum(bool(s["strict"]) for s in answered),
        flexible=sum(bool(s["flexible"]) for s in answered),
        numeric=sum(bool(s["numeric"]) for s in answered),
        any_right=sum(bool(s["strict"] or s["flexible"] or s["numeric"]) for s in answered),
        classes=dict(Counter(str(s["class"]) for s in answered)),
        repeats=repeats,
    )


@dataclass(frozen=True)
class ClassRate:
    """One class: its count, its share of the answers with Wilson's interval, its limit, and whether that is exceeded.

    `judged` is the count that the limit is applied to. It differs from `count` for one class: extractors that disagree
    break a format only where the one that counts is wrong.
    """

    name: str
    count: int
    judged: int
    share: float
    low: float
    high: float
    limit: float | None
    exceeded: bool


def class_rates(
    counts: Counts, metric: str, limits: Mapping[str, float] | None, alpha: float, confidence: float
) -> list[ClassRate]:
    """Return every class with its rate; `exceeded` where the exact binomial test shows a share above the limit."""
    chosen = checked_limits(limits)
    n = counts.independent
    rates = []
    for name in (*AnswerClass, ALL_DEGENERATE):
        found = counts.of_class(name)
        judged = counts.any_right - counts.right(metric) if name == AnswerClass.EXTRACTORS_DISAGREE else found
        limit = chosen.get(name)
        exceeded = limit is not None and n > 0 and counts.per_question(judged) >= exceeded_at(n, limit, alpha)
        interval = wilson(min(found / counts.repeats, n), n, confidence)
        share = found / counts.answered if counts.answered else 0.0
        rates.append(ClassRate(str(name), found, judged, share, interval.low, interval.high, limit, exceeded))
    return rates


def checked_limits(limits: Mapping[str, float] | None) -> dict[str, float]:
    """Return the default limits with the given ones in their place.

    Raises:
        UsageError: a name that is no class, or a limit that is no share.
    """
    chosen = {str(name): limit for name, limit in DEFAULT_LIMITS.items()}
    for name, limit in (limits or {}).items():
        if name not in chosen:
            raise UsageError(f"no limit is known for the class {name!r}; known: {', '.join(chosen)}")
        if not 0 <= limit <= 1:
            raise UsageError(f"the limit of {name!r} must be a share between 0 and 1, got {limit}")
        chosen[str(name)] = limit
    return chosen
