"""From samples to the counts that a verdict depends on, and to each class's rate with its interval and limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.gsm8k.classify import DEGENERATE, AnswerClass
from harness.gsm8k.ends import runs_past
from harness.gsm8k.judgement import CHANCE_RIGHT
from harness.gsm8k.sample import Sample, answered, ends_by_length
from harness.gsm8k.statistics import exceeded_at, wilson
from harness.verdict import UsageError

METRICS = ("strict", "flexible", "numeric")

ALL_DEGENERATE = "degenerate"
"""The name under which all degenerate classes together have a limit."""
NEVER_STOPS = "never stops"
"""Answers that strict-match finds right and that the token limit ended all the same."""
PAST_STOP = "past a stop string"
"""Answers that go on behind a stop string that the server was told about."""

DEFAULT_LIMITS: dict[str, float] = {
    AnswerClass.FLOOD: 0.01,
    AnswerClass.NOT_TEXT: 0.01,
    # Runs that people call healthy had 1.5 % of empty answers (flashinfer #4340); loops are common in small models.
    AnswerClass.EMPTY: 0.05,
    AnswerClass.NULL_OR_REASONING: 0.05,
    AnswerClass.REPETITION: 0.05,
    ALL_DEGENERATE: 0.10,
    NEVER_STOPS: 0.25,
    PAST_STOP: 0.05,
    AnswerClass.CUT: 0.10,
    AnswerClass.NO_FINAL_ANSWER: 0.25,
    AnswerClass.EXTRACTORS_DISAGREE: 0.25,
}
"""Share of the answers above which a class fails a run. Right and wrong numbers have none: accuracy judges them.

That of "extractors disagree" is a share of the answers that any extractor finds right: a weak model has few of those, and
must not lose them either.
"""


_NEVER_A_MODELS_OWN = (AnswerClass.FLOOD, AnswerClass.NOT_TEXT, PAST_STOP)
"""What no model does by itself, however weak: a baseline that had it was broken as well."""


@dataclass(frozen=True)
class Counts:
    """What a verdict depends on. Counts of answers; with `repeats` above 1 every question is in them that many times.

    `any_right` counts answers that at least one extractor found right, in the text or in the reasoning beside a missing
    one: a model is not dead because its format is wrong. `reasoned` counts the latter: `answers` without text whose
    reasoning ended by itself, and those of them that each extractor finds right.
    """

    questions: int
    answered: int
    strict: int
    flexible: int
    numeric: int
    any_right: int
    classes: Mapping[str, int] = field(default_factory=dict)
    repeats: int = 1
    never_stops: int = 0
    past_stop: int = 0
    reasoned: Mapping[str, int] = field(default_factory=dict)

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
        """Return how many answers are of a class, or of what else has a limit."""
        if name == ALL_DEGENERATE:  # without those whose text stands elsewhere: that is a format
            return sum(self.classes.get(kind, 0) for kind in DEGENERATE) - self.reasoned.get("answers", 0)
        others = {NEVER_STOPS: self.never_stops, PAST_STOP: self.past_stop}
        return others.get(name, self.classes.get(name, 0))

    def judged(self, name: str, metric: str) -> tuple[int, int]:
        """Return the answers that a limit is applied to, and of how many it is a share."""
        if name == AnswerClass.EXTRACTORS_DISAGREE:
            return self.any_right - self.right(metric), self.any_right
        return self.of_class(name), self.answered


def count(samples: Sequence[Sample], stop: Sequence[str] = ()) -> Counts:
    """Count samples as the run records them (`error` is null exactly where a question was answered).

    Args:
        samples: of a run or a part of it.
        stop: the stop strings that the server was told about.
    """
    found = answered(samples)
    # Whole reasoning only: a half-thought that holds the right number is no answer.
    beside = [
        held
        for s in found
        if s["class"] == AnswerClass.NULL_OR_REASONING
        and (held := s.get("in_reasoning")) is not None
        and not ends_by_length(s)
    ]
    # The repeats that the record holds, so that a run cut short counts no question as fewer than it was asked.
    repeats = len({s.get("repeat", 0) for s in samples}) or 1
    return Counts(
        questions=len(samples),
        answered=len(found),
        strict=sum(bool(s["strict"]) for s in found),
        flexible=sum(bool(s["flexible"]) for s in found),
        numeric=sum(bool(s["numeric"]) for s in found),
        any_right=sum(bool(s["strict"] or s["flexible"] or s["numeric"]) for s in found)
        + sum(any(held[m] for m in METRICS) for held in beside),
        classes=dict(Counter(str(s["class"]) for s in found)),
        repeats=repeats,
        never_stops=sum(bool(s["strict"]) and ends_by_length(s) for s in found),
        past_stop=sum(runs_past(s.get("answer") or "", stop) for s in found) if stop else 0,
        reasoned={"answers": len(beside), **{m: sum(held[m] for held in beside) for m in METRICS}},
    )


@dataclass(frozen=True)
class ClassRate:
    """One class: its count, its share with Wilson's interval, its limit, and whether that is exceeded.

    `judged` of `of` answers is the share that the limit is applied to. Both differ from `count` and from all answers for
    one class: extractors that disagree break a format only where the one that counts is wrong, and are judged among the
    answers that any of them finds right. `raised`: the limit is what the baseline itself had.
    """

    name: str
    count: int
    judged: int
    share: float
    low: float
    high: float
    limit: float | None
    exceeded: bool
    of: int = 0
    raised: bool = False


def class_rates(
    counts: Counts,
    metric: str,
    limits: Mapping[str, float] | None,
    alpha: float,
    confidence: float,
    baseline: Counts | None = None,
) -> list[ClassRate]:
    """Return every class with its rate; `exceeded` where the exact binomial test shows a share above the limit.

    With a baseline no limit is below the upper end of what the baseline itself had: a weak model may be what it was. Those
    on what no model does stay.
    """
    chosen = checked_limits(limits)
    rates = []
    for name in (*AnswerClass, ALL_DEGENERATE, NEVER_STOPS, PAST_STOP):
        judged, of = counts.judged(name, metric)
        n, found = of // counts.repeats, counts.per_question(judged)
        limit, raised = chosen.get(name), False
        if (
            limit is not None
            and baseline is not None
            and baseline.answered
            and name not in _NEVER_A_MODELS_OWN
        ):
            own, own_of = baseline.judged(name, metric)
            had = wilson(
                min(own / baseline.repeats, own_of // baseline.repeats), own_of // baseline.repeats
            ).high
            raised = own > 0 and had > limit
            limit = had if raised else limit
        exceeded = limit is not None and n > 0 and found >= exceeded_at(n, limit, alpha)
        if name == AnswerClass.EXTRACTORS_DISAGREE and exceeded:
            wrong = counts.independent - counts.per_question(counts.right(metric))
            exceeded = found >= exceeded_at(wrong, CHANCE_RIGHT, alpha)
        interval = wilson(min(judged / counts.repeats, n), n, confidence)
        share = judged / of if of else 0.0
        rates.append(
            ClassRate(
                str(name),
                counts.of_class(name),
                judged,
                share,
                interval.low,
                interval.high,
                limit,
                exceeded,
                of,
                raised,
            )
        )
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
