"""How often healthy runs FAIL: simulated pairs of runs of one model, judged by the code that judges a run.

`python -m harness.gsm8k.healthy_runs [RUNS]` prints the verdicts of RUNS (10,000) pairs: accuracy 0.3 to 0.99, 1 to 3 %
of the questions change their result between the two, answers get up to a tenth longer or shorter along the run, and a
few right answers miss the format or are cut. Each second run is judged alone (`--expect` 0.2), and wave and all with the
first one as its baseline.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from harness.gsm8k.classify import AnswerClass
from harness.gsm8k.counts import count
from harness.gsm8k.decision import full_decision, smoke_decision
from harness.gsm8k.outcome import combine
from harness.gsm8k.paired import paired_decision

if TYPE_CHECKING:
    from harness.gsm8k.sample import Sample

QUESTIONS, WAVE = 1319, 32
ACCURACY, FLIP_NOISE, LENGTH_DRIFT = (0.3, 0.99), (0.01, 0.03), (-0.1, 0.1)
MISSED_FORMAT, CUT = 0.03, 0.01
"""Largest shares of answers that miss the format, and that are cut, in a simulated run."""


def healthy_pair(draw: random.Random, questions: int = QUESTIONS) -> tuple[list[Sample], list[Sample]]:
    """Draw two runs of one healthy model on the same questions, each in its own random order."""
    accuracy = draw.uniform(*ACCURACY)
    # Half of the changes are lost answers and half are gained ones, of those that there are.
    half = min(draw.uniform(*FLIP_NOISE) / 2, 0.9 * (1 - accuracy))
    first = [draw.random() < accuracy for _ in range(questions)]
    second = [
        draw.random() >= half / accuracy if right else draw.random() < half / (1 - accuracy)
        for right in first
    ]
    lengths = [draw.lognormvariate(5.0, 0.4) for _ in range(questions)]
    missed, cut, drift = draw.uniform(0, MISSED_FORMAT), draw.uniform(0, CUT), draw.uniform(*LENGTH_DRIFT)

    def run(results: list[bool]) -> list[Sample]:
        order = list(range(questions))
        draw.shuffle(order)
        return [
            _sample(
                index,
                order[index],
                right=right,
                strict=right and draw.random() >= missed,
                by_length=draw.random() < cut,
                tokens=round(
                    lengths[index] * (1 + drift * order[index] / questions) * draw.lognormvariate(0, 0.1)
                ),
            )
            for index, right in enumerate(results)
        ]

    return run(first), run(second)


def _sample(
    index: int, order: int, *, right: bool, strict: bool, by_length: bool, tokens: int
) -> dict[str, Any]:
    kind = (
        AnswerClass.RIGHT
        if strict
        else AnswerClass.EXTRACTORS_DISAGREE
        if right
        else AnswerClass.WRONG_NUMBER
    )
    return {
        "index": index,
        "repeat": 0,
        "order": order,
        "wave": order < WAVE,
        "error": None,
        "question": index,
        "class": str(AnswerClass.CUT if by_length and not strict else kind),
        "strict": strict,
        "flexible": right,
        "numeric": right,
        "finish_reason": "length" if by_length else "stop",
        "usage": {"completion_tokens": tokens},
    }


def judge(samples: list[Sample], baseline: list[Sample]) -> str:
    """Return the verdict of a run against its baseline, as `run.py` reaches it; that of the run alone where it FAILs."""
    alone = full_decision(samples, expect=0.2)
    if alone.word == "FAIL":
        return f"alone: {alone.label}"
    had = count(baseline)
    wave = smoke_decision([s for s in samples if s["wave"]], baseline=had)
    if wave.word == "FAIL":
        return f"wave: {wave.label}"
    full = full_decision(samples, compared=True, baseline=had)
    return combine([full, paired_decision(samples, baseline)]).label


def healthy_verdicts(runs: int, seed: int = 0) -> Counter[str]:
    """Return how often each verdict is given to simulated healthy runs."""
    draw = random.Random(seed)
    return Counter(judge(second, first) for first, second in (healthy_pair(draw) for _ in range(runs)))


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    for label, times in sorted(healthy_verdicts(number).items()):
        print(f"{label}: {times:,} of {number:,}")  # noqa: T201 - a command of its own
