"""Two runs on the same questions: which were lost and gained, the interval of the difference, what could be seen."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from harness.gsm8k.ends import compare_ends
from harness.gsm8k.judgement import CONFIDENCE, MAX_DROP, MORE_CUT
from harness.gsm8k.statistics import (
    MOST_QUESTIONS,
    Interval,
    mcnemar_mid_p,
    mean_interval,
    paired_interval,
    smallest_visible_drop,
)
from harness.records.parts.gsm8k import Decision, Gsm8kSpread
from harness.verdict import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.gsm8k.sample import Sample


@dataclass(frozen=True)
class Pairing:
    """A paired comparison. `difference` is this run's accuracy minus the baseline's, on the shared questions.

    `lost` and `gained` count questions whose result differs, by the mean over repeats where there are some.
    `p` is one-sided: small where this run is worse. `flip_noise` is the share of questions whose result changes
    between two runs of one model: measured over repeats, else twice the smaller of `lost` and `gained`.
    """

    n: int
    lost: int
    gained: int
    difference: float
    interval: Interval
    p: float
    flip_noise: float
    noise_measured: bool
    smallest_drop: float | None
    lost_to: dict[str, int]


def pair_counts(lost: int, gained: int, n: int, confidence: float) -> Pairing:
    """Compare two single runs by their counts: McNemar's mid-p and Bonett and Price's interval."""
    noise = 2 * min(lost, gained) / n
    interval = paired_interval(lost, gained, n, confidence)
    drop = smallest_visible_drop(n, noise, confidence)
    p = mcnemar_mid_p(lost, gained)
    return Pairing(n, lost, gained, (gained - lost) / n, interval, p, noise, False, drop, {})


def pair(
    samples: Sequence[Sample], baseline: Sequence[Sample], *, metric: str, confidence: float
) -> Pairing | None:
    """Compare two runs on the questions that both answered; None if there is none.

    Raises:
        UsageError: a question of the same index has another text in the baseline: it was another task or data file.
    """
    now, then = _by_question(samples), _by_question(baseline)
    shared = sorted(now.keys() & then.keys())
    for index in shared:
        here, there = now[index][0].get("question"), then[index][0].get("question")
        if here != there:
            raise UsageError(
                f"the baseline has another question {index}: it was made with other data, and cannot be compared"
            )
    if not shared:
        return None
    lost_to: Counter[str] = Counter()
    differences = []
    for index in shared:
        differences.append(_mean(now[index], metric) - _mean(then[index], metric))
        if differences[-1] < 0:
            lost_to.update(str(s["class"]) for s in now[index] if not s[metric])
    lost, gained = sum(d < 0 for d in differences), sum(d > 0 for d in differences)
    noise = flip_noise([now, then], metric)
    n = len(shared)
    if noise is None:
        single = pair_counts(lost, gained, n, confidence)
        return Pairing(**{**vars(single), "lost_to": dict(lost_to)})
    mean = sum(differences) / n
    interval = mean_interval(differences, confidence)
    drop = smallest_visible_drop(n, noise, confidence)
    p = mcnemar_mid_p(lost, gained)
    return Pairing(n, lost, gained, mean, interval, p, noise, True, drop, dict(lost_to))


def _by_question(samples: Sequence[Sample]) -> dict[int, list[Sample]]:
    found: dict[int, list[Sample]] = {}
    for sample in samples:
        if sample.get("error") is None:
            found.setdefault(int(sample["index"]), []).append(sample)
    return found


def _mean(samples: list[Sample], metric: str) -> float:
    return sum(bool(s[metric]) for s in samples) / len(samples)


def flip_noise(runs: Sequence[dict[int, list[Sample]]], metric: str) -> float | None:
    """Return the share of questions that change between two repeats of one run, or None without repeats.

    Over every pair of repeats of a question: with r of k right, 2 r (k - r) / (k (k - 1)).
    """
    shares = []
    for run in runs:
        for samples in run.values():
            k = len(samples)
            if k > 1:
                right = sum(bool(s[metric]) for s in samples)
                shares.append(2 * right * (k - right) / (k * (k - 1)))
    return sum(shares) / len(shares) if shares else None


def spread(samples: Sequence[Sample], metric: str = "strict") -> Gsm8kSpread | None:
    """Return how far the repeats of a run are apart; None without repeats."""
    repeats: dict[int, list[bool]] = {}
    for sample in samples:
        if sample.get("error") is None:
            repeats.setdefault(int(sample.get("repeat", 0)), []).append(bool(sample[metric]))
    noise = flip_noise([_by_question(samples)], metric)
    if len(repeats) < 2 or noise is None:
        return None
    accuracies = [sum(right) / len(right) for _, right in sorted(repeats.items())]
    mean = sum(accuracies) / len(accuracies)
    variance = sum((a - mean) ** 2 for a in accuracies) / (len(accuracies) - 1)
    return Gsm8kSpread(accuracies, mean, variance**0.5, noise)


def paired_decision(
    samples: Sequence[Sample],
    baseline_samples: Sequence[Sample],
    *,
    max_drop: float | None = None,
    metric: str = "strict",
    confidence: float = CONFIDENCE,
) -> Decision:
    """Judge a run against a baseline on the questions that both answered.

    FAIL (degenerate) where it is shown that more than `MORE_CUT` of the answers end at the token limit that did not
    before. Else the interval of the difference decides: see `judge_pairing`; `max_drop` is `MAX_DROP` by default.

    Raises:
        UsageError: the baseline was made with other questions.
    """
    found = pair(samples, baseline_samples, metric=metric, confidence=confidence)
    decision = judge_pairing(found, MAX_DROP if max_drop is None else max_drop, metric, confidence)
    if found is None:
        return decision
    now, then = _by_question(samples), _by_question(baseline_samples)
    ends = compare_ends([(now[index][0], then[index][0]) for index in sorted(now.keys() & then.keys())])
    details = {**decision.details, "ends": vars(ends), "warnings": ends.warnings()}
    if ends.too_many:
        low = f"at least {100 * ends.interval.low:.0f} points more, {100 * MORE_CUT:g} are allowed"
        return Decision("FAIL", "degenerate", f"{ends.more_at_the_limit}: {low}; {decision.reason}", details)
    return replace(decision, details=details)


def judge_pairing(found: Pairing | None, max_drop: float, metric: str, confidence: float) -> Decision:
    """Judge a comparison by the interval of its difference.

    PASS where all of it lies above a drop of `max_drop`, FAIL (accuracy) where all of it lies below: the drop is shown to
    exceed what is allowed. Between, UNKNOWN (undecided): it may.
    """
    if found is None:
        details = {"max_drop": max_drop, "metric": metric}
        return Decision(
            "UNKNOWN", "undecided", "the baseline and this run answered no question in common", details
        )
    details = {
        **vars(found),
        "interval": [found.interval.low, found.interval.high],
        "max_drop": max_drop,
        "metric": metric,
        "confidence": confidence,
    }
    points = 100 * found.difference
    low, high = 100 * found.interval.low, 100 * found.interval.high
    compared = (
        f"{points:+.2f} points against the baseline ({low:+.2f} to {high:+.2f}; {found.lost} lost, {found.gained} gained "
        f"of {found.n:,}; mid-p {found.p:.2g})"
    )
    allowed = f"a drop of {100 * max_drop:g} points"
    worse = is_worse(found, confidence)
    if found.interval.low > -max_drop:
        real = "; the loss is no accident, but smaller than allowed" if worse else ""
        return Decision("PASS", "", f"{compared}: {allowed} is excluded{real}", details)
    lost_to = max(found.lost_to.items(), key=lambda item: item[1], default=("", 0))
    mostly = f"; {lost_to[1]} of the lost are now: {lost_to[0]}" if lost_to[1] * 2 > found.lost else ""
    if found.interval.high < -max_drop:
        return Decision("FAIL", "accuracy", f"{compared}: more than {allowed}{mostly}", details)
    needed = pairs_to_decide(found, max_drop)
    details["questions_to_decide"] = needed
    about = (
        f"about {needed:,} questions, or --repeat, would decide" if needed else "only --repeat could decide"
    )
    real = (
        f"worse than the baseline{mostly}, by how much is not decided" if worse else "not shown to be worse"
    )
    seen = "no drop" if found.smallest_drop is None else f"drops from {100 * found.smallest_drop:.2g} points"
    sees = f"this run can see {seen} (flip noise {100 * found.flip_noise:.2g} %)"
    return Decision(
        "UNKNOWN", "undecided", f"{compared}: {allowed} may be exceeded; {real}; {about}; {sees}", details
    )


def is_worse(found: Pairing, confidence: float) -> bool:
    """Return whether more was lost than chance explains: any drop, however small."""
    return found.interval.high < 0 if found.noise_measured else found.p < (1 - confidence) / 2


def pairs_to_decide(found: Pairing, max_drop: float) -> int | None:
    """Return how many questions with these shares would move the interval off the allowed drop; None where none would."""
    half = (found.interval.high - found.interval.low) / 2
    distance = abs(found.difference + max_drop)
    if half >= distance * math.sqrt(MOST_QUESTIONS / found.n):
        return None
    return math.ceil(found.n * (half / distance) ** 2)
