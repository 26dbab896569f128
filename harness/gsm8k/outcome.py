"""From decisions to one verdict, and from samples to the counts that the record holds under `gsm8k`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from harness.gsm8k.counts import METRICS, count
from harness.gsm8k.paired import spread
from harness.gsm8k.statistics import wilson
from harness.records.parts.gsm8k import Decision, Gsm8kRepeat, Gsm8kRun

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.records.parts.gsm8k import Gsm8kSample

_ORDER = {"FAIL": 0, "UNKNOWN": 1, "PASS": 2, "NOT DEAD": 3}


def combine(decisions: Sequence[Decision]) -> Decision:
    """Return the run's verdict: the worst, except that infra wins, because nothing behind it was measured.

    The warnings of all of them stand behind its reason.
    """
    infra = [d for d in decisions if d.qualifier == "infra"]
    worst = infra[0] if infra else min(decisions, key=lambda d: _ORDER[d.word])
    same = [worst] if infra else [d for d in decisions if d.word == worst.word]
    warnings = dict.fromkeys(w for d in decisions for w in d.details.get("warnings", []))
    reason = "; ".join([*(d.reason for d in same), *(f"warning: {w}" for w in warnings)])
    return Decision(worst.word, worst.qualifier, reason, worst.details)


def counted(samples: Sequence[Gsm8kSample], planned: int, metric: str) -> Gsm8kRun:
    """Return a run with its samples, counts and accuracies, and without a verdict. Accuracies are of the answered questions."""
    counts = count(samples)
    n = counts.answered

    def share(right: int) -> float | None:
        return right / n if n else None

    def interval(right: int) -> list[float] | None:
        if not counts.independent:
            return None
        found = wilson(min(right / counts.repeats, counts.independent), counts.independent)
        return [found.low, found.high]

    finished = Counter(str(s["finish_reason"]) for s in samples if s["error"] is None)
    return Gsm8kRun(
        questions=planned,
        answered=n,
        unanswered=len(samples) - n,
        not_asked=planned - len(samples),
        correct_strict=counts.strict,
        correct_flexible=counts.flexible,
        correct_numeric=counts.numeric,
        accuracy_strict=share(counts.strict),
        accuracy_flexible=share(counts.flexible),
        accuracy_numeric=share(counts.numeric),
        interval=interval(counts.strict),
        intervals={m: interval(counts.right(m)) for m in METRICS},
        metric=metric,
        classes=dict(sorted(counts.classes.items())),
        finish_reasons=dict(sorted(finished.items())),
        tokens={
            "prompt_tokens": sum(s["usage"]["prompt_tokens"] or 0 for s in samples),
            "completion_tokens": sum(s["usage"]["completion_tokens"] or 0 for s in samples),
        },
        repeats=_repeats(samples),
        spread=spread(samples, metric),
        samples=list(samples),
    )


def _repeats(samples: Sequence[Gsm8kSample]) -> list[Gsm8kRepeat]:
    """Return one entry a repeat."""
    entries = []
    for repeat in sorted({s["repeat"] for s in samples}):
        counts = count([s for s in samples if s["repeat"] == repeat])
        right = counts.strict, counts.flexible, counts.numeric
        entries.append(Gsm8kRepeat(repeat, counts.questions, counts.answered, *right))
    return entries
