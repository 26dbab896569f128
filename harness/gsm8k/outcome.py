"""From samples and decisions to one verdict, and to what the record holds under `gsm8k`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from harness.gsm8k.counts import count
from harness.gsm8k.judgement import Decision
from harness.gsm8k.paired import spread
from harness.gsm8k.statistics import wilson

if TYPE_CHECKING:
    from collections.abc import Sequence

_ORDER = {"FAIL": 0, "UNKNOWN": 1, "PASS": 2, "NOT DEAD": 3}


def combine(decisions: Sequence[Decision]) -> Decision:
    """Return the run's verdict: the worst, except that infra wins, because nothing behind it was measured."""
    infra = [d for d in decisions if d.qualifier == "infra"]
    if infra:
        return infra[0]
    worst = min(decisions, key=lambda d: _ORDER[d.word])
    same = [d for d in decisions if d.word == worst.word]
    reason = "; ".join(d.reason for d in same)
    return Decision(worst.word, worst.qualifier, reason, worst.details)


def summary(samples: Sequence[dict[str, Any]], planned: int, metric: str) -> dict[str, Any]:
    """Return the counts and accuracies of a run. Accuracies are of the answered questions."""
    counts = count(samples)
    n = counts.answered

    def share(right: int) -> float | None:
        return right / n if n else None

    def interval(right: int) -> list[float] | None:
        if not counts.independent:
            return None
        found = wilson(min(right / counts.repeats, counts.independent), counts.independent)
        return [found.low, found.high]

    return {
        "questions": planned,
        "answered": n,
        "unanswered": len(samples) - n,
        "not_asked": planned - len(samples),
        "correct_strict": counts.strict,
        "correct_flexible": counts.flexible,
        "correct_numeric": counts.numeric,
        "accuracy_strict": share(counts.strict),
        "accuracy_flexible": share(counts.flexible),
        "accuracy_numeric": share(counts.numeric),
        "interval": interval(counts.strict),
        "intervals": {m: interval(counts.right(m)) for m in ("strict", "flexible", "numeric")},
        "metric": metric,
        "classes": dict(sorted(counts.classes.items())),
        "finish_reasons": dict(
            sorted(Counter(str(s["finish_reason"]) for s in samples if s["error"] is None).items())
        ),
        "tokens": {
            name: sum(s["usage"][name] or 0 for s in samples)
            for name in ("prompt_tokens", "completion_tokens")
        },
        "repeats": _repeats(samples),
        "spread": asdict(found) if (found := spread(samples, metric)) else None,
    }


def _repeats(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one entry a repeat."""
    entries = []
    for repeat in sorted({s["repeat"] for s in samples}):
        counts = count([s for s in samples if s["repeat"] == repeat])
        entries.append(
            {
                "repeat": repeat,
                "questions": counts.questions,
                "answered": counts.answered,
                "correct_strict": counts.strict,
                "correct_flexible": counts.flexible,
                "correct_numeric": counts.numeric,
            }
        )
    return entries


def decision_json(decision: Decision | None) -> dict[str, Any] | None:
    """Return a decision for the record."""
    if decision is None:
        return None
    return {
        "word": decision.word,
        "qualifier": decision.qualifier,
        "reason": decision.reason,
        "details": decision.details,
    }
