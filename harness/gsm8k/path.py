"""The accuracy of a run as it went on: where it stood after each share of the questions, in the order they were asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.gsm8k.statistics import wilson
from harness.records.parts.gsm8k import PathPoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from harness.gsm8k.sample import Sample

MOST_POINTS = 120


def accuracy_path(asked: Sequence[Sample], metric: str, most: int = MOST_POINTS) -> list[PathPoint]:
    """Return the running accuracy with its interval, thinned to at most `most` points; the last one is the whole run's.

    Each interval is Wilson's of a run that had been planned to end there: it shows how the run went, and a run that
    stops where it likes the figure has no 95 %. Only the first repeat counts, so that the questions are independent.

    Args:
        asked: the run's samples in the order of its plan, which is random: every beginning is a random sample.
        metric: the extractor that counts.
        most: points kept.
    """
    first = min((s["repeat"] for s in asked), default=0)
    answered = [s for s in asked if s["repeat"] == first and s["error"] is None]
    right, points = 0, []
    kept = set(_spread(len(answered), most))
    for n, sample in enumerate(answered, start=1):
        right += bool(sample[metric])
        if n in kept:
            interval = wilson(right, n)
            ends = round(interval.low, 6), round(interval.high, 6)
            points.append(PathPoint(n, right, round(right / n, 6), *ends))
    return points


def _spread(n: int, most: int) -> Iterable[int]:
    """Return at most `most` of 1 to n, evenly spread, the last one always among them."""
    return (round(n * i / min(n, most)) for i in range(1, min(n, most) + 1)) if n else ()
