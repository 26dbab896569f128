"""How often each verdict is given to a model of known accuracy, computed exactly and written to docs.

`python -m harness.gsm8k.error_rates [FILE]` writes docs/gsm8k-error-rates.md. The probabilities of counts come from
dynamic programming over the questions; the verdict of each count comes from `decision.py` itself, so the document
cannot state other rules than the code has.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from harness.gsm8k.classify import AnswerClass
from harness.gsm8k.counts import DEFAULT_LIMITS, NEVER_STOPS, Counts
from harness.gsm8k.decision import full_decision, smallest_wave, smoke_decision
from harness.gsm8k.judgement import CONFIDENCE, DEAD_ALPHA, MAX_DROP, MAX_UNANSWERED
from harness.gsm8k.paired import judge_pairing, pair_counts
from harness.gsm8k.rate_tables import QUESTIONS, Rates, shown, table
from harness.gsm8k.statistics import log_binomial, refuted_at

WAVE = 32
ACCURACIES = (0.0, 0.05, 0.13, 0.5, 0.63, 0.9, 0.95)
EXPECTS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
THRESHOLDS = (0.5, 0.6, 0.85, 0.9, 0.93, 0.95)
LIMITED = (
    AnswerClass.FLOOD,
    AnswerClass.EMPTY,
    AnswerClass.CUT,
    NEVER_STOPS,
    AnswerClass.EXTRACTORS_DISAGREE,
)
SHARES = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5)
UNANSWERED = (0.0, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05)
NOISES = (0.006, 0.017, 0.034, 0.05)
DROPS = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05)

CountsOf = Callable[[int, int], Counts]
"""From a number of questions and how many of them are of the kind in question to the counts a verdict sees."""


@cache
def distribution(n: int, p: float) -> tuple[float, ...]:
    """Return the probability of 0 .. n successes, question by question; below 1e-60 it is 0."""
    states, first = [1.0], 0
    for _ in range(n):
        states = [
            missed * (1 - p) + hit * p for missed, hit in zip([*states, 0.0], [0.0, *states], strict=True)
        ]
        while states[-1] < 1e-60:
            states.pop()
        while states[0] < 1e-60:
            states.pop(0)
            first += 1
    return (*[0.0] * first, *states, *[0.0] * (n + 1 - first - len(states)))


@cache
def wave_verdict(counts_of: CountsOf, k: int, expect: float) -> str:
    """Return the verdict of a wave in which k answers are of the kind."""
    return smoke_decision(counts_of(WAVE, k), expect=expect).label


@cache
def full_verdict(counts_of: CountsOf, k: int, expect: float, min_accuracy: float | None) -> str:
    """Return the verdict of all questions of which k are of the kind."""
    return full_decision(counts_of(QUESTIONS, k), expect=expect, min_accuracy=min_accuracy).label


def wave_rates(counts_of: CountsOf, p: float, expect: float) -> Rates:
    """Return the probability of each verdict of a wave; p is the chance of an answer to be of the kind."""
    rates: defaultdict[str, float] = defaultdict(float)
    for k, mass in enumerate(distribution(WAVE, p)):
        rates[wave_verdict(counts_of, k, expect)] += mass
    return dict(rates)


def run_rates(counts_of: CountsOf, p: float, expect: float, min_accuracy: float | None = None) -> Rates:
    """Return the probability of each verdict of a whole run: the wave ends it on FAIL, else all questions decide."""
    rates: defaultdict[str, float] = defaultdict(float)
    alive = [0.0] * (WAVE + 1)
    for k, mass in enumerate(distribution(WAVE, p)):
        verdict = wave_verdict(counts_of, k, expect)
        if verdict.startswith("FAIL"):
            rates[verdict] += mass
        else:
            alive[k] = mass
    rest = distribution(QUESTIONS - WAVE, p)
    # Totals outside of these have less than 1e-20 in all; left out, they cost no digit of what is shown.
    likely = [i for i, mass in enumerate(rest) if mass > 1e-25]
    for total in range(likely[0], likely[-1] + WAVE + 1):
        first, last = max(0, total - len(rest) + 1), min(WAVE, total)
        mass = math.fsum(alive[k] * rest[total - k] for k in range(first, last + 1))
        if mass > 0.0:
            rates[full_verdict(counts_of, total, expect, min_accuracy)] += mass
    return dict(rates)


def right_answers(n: int, k: int) -> Counts:
    """Return counts of k right answers and n - k wrong numbers."""
    classes = {str(AnswerClass.RIGHT): k, str(AnswerClass.WRONG_NUMBER): n - k}
    return Counts(n, n, k, k, k, k, classes)


@cache
def answers_of_class(name: str) -> CountsOf:
    """Return counts with k answers of a class, the rest right; of answers that never stop all are right."""

    def counts(n: int, k: int) -> Counts:
        if name == NEVER_STOPS:
            return replace(right_answers(n, n), never_stops=k)
        right = n - k
        other = n if name == AnswerClass.EXTRACTORS_DISAGREE else right
        return Counts(n, n, right, other, other, other, {str(AnswerClass.RIGHT): right, str(name): k})

    return counts


def unanswered_questions(n: int, k: int) -> Counts:
    """Return counts of k unanswered questions, the rest right."""
    return Counts(n, n - k, n - k, n - k, n - k, n - k, {str(AnswerClass.RIGHT): n - k})


@cache
def paired_verdict(lost: int, gained: int) -> str:
    """Return the verdict of a comparison on all questions."""
    found = pair_counts(lost, gained, QUESTIONS, CONFIDENCE)
    return judge_pairing(found, MAX_DROP, "strict", CONFIDENCE).label


def paired_rates(drop: float, noise: float) -> Rates:
    """Return the probability of each verdict of a comparison; both kinds of change have half of the flip noise."""
    lost_share, changed_share = noise / 2 + drop, noise + drop
    rates: defaultdict[str, float] = defaultdict(float)
    # What is left out adds up to less than 1e-11.
    masses = [math.exp(log_binomial(k, QUESTIONS, changed_share)) for k in range(QUESTIONS + 1)]
    for changed, mass in enumerate(masses):
        if mass < 1e-14:
            continue
        for lost in range(changed + 1):
            part = mass * math.exp(log_binomial(lost, changed, lost_share / changed_share))
            if part > 1e-15:
                rates[paired_verdict(lost, changed - lost)] += part
    return dict(rates)


def document() -> str:
    """Return the first half of docs/gsm8k-error-rates.md: what needs no more than counts."""
    accuracies = [f"{p:g}" for p in ACCURACIES]
    wave_rows, run_rows = [], []
    for expect in EXPECTS:
        at = refuted_at(WAVE, expect, DEAD_ALPHA)
        line = f"at most {at}" if at >= 0 else f"never (needs {smallest_wave(expect)})"
        waves = [shown(wave_rates(right_answers, p, expect), "FAIL") for p in ACCURACIES]
        wave_rows.append((f"{expect:g}", [line, *waves]))
        runs = [shown(run_rates(right_answers, p, expect), "FAIL (dead)") for p in ACCURACIES]
        run_rows.append((f"{expect:g}", [f"at most {refuted_at(QUESTIONS, expect, DEAD_ALPHA)}", *runs]))
    threshold_rows = []
    for threshold in THRESHOLDS:
        for p in sorted({*ACCURACIES, threshold, round(threshold - 0.02, 4), round(threshold + 0.02, 4)}):
            rates = run_rates(right_answers, p, 0.5, threshold)
            cells = [shown(rates, start) for start in ("PASS", "UNKNOWN", "FAIL (accuracy)", "FAIL (dead)")]
            threshold_rows.append((f"{threshold:g}", [f"{p:g}", *cells]))
    class_rows = []
    for name in LIMITED:
        for kind, rates_of, words in (
            ("wave: FAIL", wave_rates, ("FAIL",)),
            ("wave: FAIL or UNKNOWN", wave_rates, ("FAIL", "UNKNOWN")),
            ("run: FAIL", run_rates, ("FAIL",)),
        ):
            cells = [shown(rates_of(answers_of_class(name), share, 0.5), *words) for share in SHARES]
            class_rows.append((f"{name}, {100 * DEFAULT_LIMITS[name]:g} %", [kind, *cells]))
    infra_rows = [
        (
            f"{share:g}",
            [
                shown(wave_rates(unanswered_questions, share, 0.5), "UNKNOWN (infra)"),
                shown(run_rates(unanswered_questions, share, 0.5), "UNKNOWN (infra)"),
            ],
        )
        for share in UNANSWERED
    ]
    paired_rows = [
        (
            f"{100 * noise:g} %",
            [f"{100 * drop:g}", *(shown(rates, word) for word in ("PASS", "UNKNOWN", "FAIL"))],
        )
        for noise in NOISES
        for drop in DROPS
        for rates in [paired_rates(drop, noise)]
    ]
    return _TEXT.format(
        questions=f"{QUESTIONS:,}",
        wave=WAVE,
        unanswered=f"{100 * MAX_UNANSWERED:g}",
        drop=f"{100 * MAX_DROP:g}",
        waves=table("expect", ["dead at right", *accuracies], wave_rows),
        runs=table("expect", ["dead at right", *accuracies], run_rows),
        thresholds=table(
            "min-accuracy", ["accuracy", "PASS", "UNKNOWN", "FAIL (accuracy)", "FAIL (dead)"], threshold_rows
        ),
        classes=table("class, limit", ["", *(f"{share:g}" for share in SHARES)], class_rows),
        infra=table("share", ["wave: UNKNOWN (infra)", "run: UNKNOWN (infra)"], infra_rows),
        paired=table("flip noise", ["drop in points", "PASS", "UNKNOWN", "FAIL"], paired_rows),
    )


_TEXT = """\
# Error rates of `harness gsm8k`

Written by `python -m harness.gsm8k.error_rates`; do not edit. How the verdicts are reached: [gsm8k.md](gsm8k.md).

Exact probabilities for {questions} questions and a wave of {wave}, answered independently: counts by dynamic programming
over the questions, verdicts by the code that judges a run. "0" and "1" are closer than 1e-12. The load sweep and the
comparison of two live servers stand at the end.

## The smoke wave calls a model dead

Columns: the model's true accuracy. Where the accuracy reaches `--expect` the figure is a false alarm, below it is the
share of dead models that the wave finds; the others are left to the full run.

{waves}
## A run calls a model dead (wave or full run)

Without `--min-accuracy` and `--baseline` all other runs of this model (answers that are right or a wrong number) are
UNKNOWN (not judged).

{runs}
## A run with `--min-accuracy`

`--expect` 0.5. At an accuracy equal to the threshold, and anywhere near it, the right verdict is UNKNOWN (undecided).

{thresholds}
## Classes of answers over their limit

Columns: the true share of answers of the class; all others are right, `--expect` 0.5. "extractors disagree": the share
of right answers that strict-match does not find. A wave that is UNKNOWN is not NOT DEAD; a full run goes on.

{classes}
## Unanswered questions

More than {unanswered} % of them is UNKNOWN (infra). The wave's column holds for `--mode smoke`; a full run goes on.

{infra}
## A run against a baseline

On {questions} paired questions, a drop of {drop} points allowed. Flip noise: share of questions whose result changes between
two runs of one model (0.6 to 5 % in published repeat runs). At a drop of exactly what is allowed, and near it, the
right verdict is UNKNOWN (undecided).

{paired}"""


def main(arguments: Sequence[str]) -> None:
    """Write the document, both its halves, to the file given, or to docs."""
    from harness.gsm8k import sequential_rates

    path = Path(arguments[0]) if arguments else Path(__file__).parents[2] / "docs" / "gsm8k-error-rates.md"
    path.write_text(document() + sequential_rates.document(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
