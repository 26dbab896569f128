"""How often the load sweep and the comparison of two live servers are right: the second half of the error rates' document.

`python -m harness.gsm8k.error_rates` writes both halves. Those of two servers are exact, by dynamic programming from look
to look; those of the sweep are simulated from a fixed seed, because it asks what it has found to ask. Both call the code
that judges a run.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import cache, partial

from harness.gsm8k.judgement import MAX_DROP
from harness.gsm8k.live import ALPHA, LOOK, early_word, last_word
from harness.gsm8k.load import ALONE_ERROR, SWEEP_ERROR, Sweep, load_decision
from harness.gsm8k.rate_tables import QUESTIONS, Rates, shown, table
from harness.gsm8k.statistics import log_binomial

SEED = 20394
HEALTHY_RUNS, ILL_RUNS = 2000, 400
ACCURACIES = (0.3, 0.5, 0.8, 0.95, 0.99)
SHOWN_ACCURACIES = (0.95, 0.6, 0.3)
FLIPS = (0.01, 0.03, 0.5)
NOISES = (0.006, 0.017, 0.034)
DROPS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.2)

Alive = Callable[[int], float]
"""From the number of requests in flight to the chance that a right answer stays right."""


def _at_most(k: int, size: int) -> float:
    return float(size <= k)


def _other_than(k: int, size: int) -> float:
    return float(size != k)


ILL: dict[str, Alive] = {
    **{f"dead above {k}": partial(_at_most, k) for k in (2, 8, 16, 64, 100)},
    "dead alone": lambda size: float(size > 1),
    **{f"dead at {k} only": partial(_other_than, k) for k in (8, 32, 128)},
    "half dead above 64": lambda size: 1.0 if size <= 64 else 0.5,
    "loses a fifth above 64": lambda size: 1.0 if size <= 64 else 0.8,
}


def swept(
    draw: random.Random, accuracy: float, flips: float, alive: Alive, own: int = 32, questions: int = 256
) -> tuple[str, int]:
    """Return the verdict of one simulated sweep, and for how many latencies it asked.

    A share `accuracy` of the questions is known; an answer is another one with half of the chance `flips`, so that about
    this share of the questions changes between two runs.
    """
    known = [draw.random() < accuracy for _ in range(questions)]
    latencies = 0

    def right(index: int, size: int) -> bool:
        return known[index] != (draw.random() < flips / 2) and draw.random() < alive(size)

    async def ask(size: int, targets: Sequence[int]) -> list[bool | None]:
        nonlocal latencies
        latencies += -(-len(targets) // size)
        return [right(index, size) for index in targets]

    found = Sweep(own, {index: right(index, own) for index in range(questions)})
    with contextlib.suppress(StopIteration):  # it runs through: nothing here is waited for
        found.run(ask).send(None)
    decision = load_decision(found.as_json())
    return decision.label if decision else "", latencies


def healthy_rows() -> list[tuple[str, list[str]]]:
    """Return a row an accuracy and flip noise: runs called ill, mean and most latencies."""
    draw = random.Random(SEED)
    rows = []
    for accuracy in ACCURACIES:
        for flips in FLIPS:
            runs = [swept(draw, accuracy, flips, lambda _: 1.0) for _ in range(HEALTHY_RUNS)]
            ill = sum(label.startswith("FAIL") for label, _ in runs)
            asked = [latencies for _, latencies in runs]
            cells = [f"{100 * flips:g} %", f"{ill}", f"{sum(asked) / len(asked):.1f}", f"{max(asked)}"]
            rows.append((f"{accuracy:g}", cells))
    return rows


def ill_rows() -> list[tuple[str, list[str]]]:
    """Return a row an ill server: share of runs that are FAIL (load), by accuracy."""
    draw = random.Random(SEED)
    rows = []
    for name, alive in ILL.items():
        cells = []
        for accuracy in SHOWN_ACCURACIES:
            labels = Counter(swept(draw, accuracy, 0.02, alive)[0] for _ in range(ILL_RUNS))
            cells.append(f"{labels['FAIL (load)'] / ILL_RUNS:.3f}")
        rows.append((name, cells))
    return rows


@cache
def _word(lost: int, gained: int, n: int) -> str:
    """Return the verdict after n pairs, or nothing where the run goes on."""
    if n % LOOK == 0 and (word := early_word(lost, gained, n, MAX_DROP)):
        return word
    return (last_word(lost, gained, n, MAX_DROP) or "UNKNOWN") if n == QUESTIONS else ""


def live_rates(drop: float, noise: float) -> tuple[Rates, float]:
    """Return the probability of each verdict of two servers, and the mean number of questions asked of both."""
    rates: defaultdict[str, float] = defaultdict(float)
    asked, states, n = 0.0, {(0, 0): 1.0}, 0
    while n < QUESTIONS:
        step = min(LOOK, QUESTIONS - n)
        n += step
        states = _after(states, _steps(step, noise / 2 + drop, noise / 2))
        for counts in list(states):
            if word := _word(*counts, n):
                mass = states.pop(counts)
                rates[word] += mass
                asked += mass * n
    return dict(rates), asked


def _steps(pairs: int, lost_share: float, gained_share: float) -> list[tuple[int, int, float]]:
    """Return how many of some pairs are lost and gained, with its probability."""
    found = []
    for lost in range(pairs + 1):
        first = log_binomial(lost, pairs, lost_share)
        for gained in range(pairs - lost + 1):
            mass = math.exp(first + log_binomial(gained, pairs - lost, gained_share / (1 - lost_share)))
            if mass > 1e-11:
                found.append((lost, gained, mass))
    return found


def _after(
    states: dict[tuple[int, int], float], steps: list[tuple[int, int, float]]
) -> dict[tuple[int, int], float]:
    after: defaultdict[tuple[int, int], float] = defaultdict(float)
    for (lost, gained), mass in states.items():
        for more_lost, more_gained, chance in steps:
            after[lost + more_lost, gained + more_gained] += mass * chance
    return {counts: mass for counts, mass in after.items() if mass > 1e-12}


def live_rows() -> list[tuple[str, list[str]]]:
    """Return a row a flip noise and drop: the verdicts' probabilities and the questions asked."""
    rows = []
    for noise in NOISES:
        for drop in DROPS:
            rates, asked = live_rates(drop, noise)
            words = (shown(rates, word) for word in ("PASS", "UNKNOWN", "FAIL"))
            rows.append((f"{100 * noise:g} %", [f"{100 * drop:g}", *words, f"{asked:,.0f}"]))
    return rows


def document() -> str:
    """Return the second half of docs/gsm8k-error-rates.md."""
    accuracies = [f"accuracy {p:g}" for p in SHOWN_ACCURACIES]
    return _TEXT.format(
        alone=f"{ALONE_ERROR:.1e}",
        error=f"{SWEEP_ERROR:g}",
        healthy_runs=f"{HEALTHY_RUNS:,}",
        ill_runs=f"{ILL_RUNS:,}",
        healthy=table("accuracy", ["flip noise", "FAIL", "latencies, mean", "most"], healthy_rows()),
        ill=table("server", accuracies, ill_rows()),
        alpha=f"{100 * ALPHA:g}",
        look=LOOK,
        questions=f"{QUESTIONS:,}",
        drop=f"{100 * MAX_DROP:g}",
        live=table("flip noise", ["drop in points", "PASS", "UNKNOWN", "FAIL", "questions"], live_rows()),
    )


_TEXT = """
## The load sweep

Of all healthy servers at most {error} are called ill, whatever their accuracy and flip noise: {alone} by the questions
asked alone, the rest by the pairs of sizes (Ville's inequality). Simulated from a fixed seed, --concurrency 32:
{healthy_runs} runs a row. A latency is the time of one wave or of one request alone.

{healthy}
Ill servers: share of {ill_runs} runs that are FAIL (load), at a flip noise of 2 %. Dead above 2 is what the run calls
dead, and the sweep's label is the cause: the few questions asked alone are right too seldom in a weak model.

{ill}
## Two live servers

`--against URL`, a drop of {drop} points allowed, a look after every {look} pairs of {questions}. PASS at a true drop of {drop} points
or more, and FAIL at one of {drop} points or less, has a probability of {alpha} % at most, wherever the run ends: half by
Ville's inequality, half that of an interval. Exact, from look to look; the last column is the mean number of questions
asked of both.

{live}"""
