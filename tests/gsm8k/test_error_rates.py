"""The documented error rates are those of the code: recomputed, and met by simulated runs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from harness.gsm8k import error_rates, sequential_rates
from harness.gsm8k.decision import full_decision, smoke_decision
from harness.gsm8k.statistics import at_most, log_binomial

DOCUMENT = Path(__file__).parents[2] / "docs" / "gsm8k-error-rates.md"
RUNS = 10_000


@pytest.fixture(scope="module")
def generator():
    return np.random.default_rng(20394)


def agree(rates, verdicts, runs):
    """Every verdict was seen as often as its exact probability allows: within five standard deviations."""
    assert math.fsum(rates.values()) == pytest.approx(1, abs=1e-9)
    for label in {*rates, *verdicts}:
        p = rates.get(label, 0.0)
        allowed = 5 * math.sqrt(runs * p * max(0.0, 1 - p)) + 2 * (p > 0)
        assert abs(verdicts.get(label, 0) - runs * p) <= allowed, (
            f"{label}: {verdicts.get(label, 0)} of {runs}, expected {p:.3g}"
        )


def tally(labels):
    found = {}
    for label in labels:
        found[label] = found.get(label, 0) + 1
    return found


def test_the_document_is_up_to_date():
    """Otherwise: python -m harness.gsm8k.error_rates."""
    assert DOCUMENT.read_text(encoding="utf-8").startswith(error_rates.document())


@pytest.mark.long
def test_the_second_half_of_the_document_is_up_to_date():
    """A minute: it simulates the load sweep and goes through every state of a comparison of two live servers."""
    assert DOCUMENT.read_text(encoding="utf-8").endswith(sequential_rates.document())


@pytest.mark.parametrize("p", [0.0, 0.05, 0.5, 0.95, 1.0])
def test_counts_have_the_binomial_distribution(p):
    found = error_rates.distribution(200, p)
    expected = [math.exp(log_binomial(k, 200, p)) for k in range(201)]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-50)


def test_the_figures_of_the_wave_are_the_binomial_test():
    rates = error_rates.wave_rates(error_rates.right_answers, 0.05, 0.5)
    assert rates["FAIL (dead)"] == pytest.approx(at_most(2, 32, 0.05), rel=1e-9)


@pytest.mark.parametrize("p", error_rates.ACCURACIES)
def test_ten_thousand_simulated_runs_have_the_documented_rates(generator, p):
    waves = generator.binomial(error_rates.WAVE, p, RUNS)
    totals = waves + generator.binomial(error_rates.QUESTIONS - error_rates.WAVE, p, RUNS)
    for expect in error_rates.EXPECTS:
        in_wave = [error_rates.wave_verdict(error_rates.right_answers, int(k), expect) for k in waves]
        agree(error_rates.wave_rates(error_rates.right_answers, p, expect), tally(in_wave), RUNS)
        in_run = [
            wave
            if wave.startswith("FAIL")
            else error_rates.full_verdict(error_rates.right_answers, int(k), expect, None)
            for wave, k in zip(in_wave, totals, strict=True)
        ]
        agree(error_rates.run_rates(error_rates.right_answers, p, expect), tally(in_run), RUNS)
    judged = [error_rates.full_verdict(error_rates.right_answers, int(k), 0.05, 0.9) for k in totals]
    agree(error_rates.run_rates(error_rates.right_answers, p, 0.05, 0.9), tally(judged), RUNS)


def test_ten_thousand_waves_of_samples_have_the_documented_rates(generator, make_sample):
    """Sample by sample, through the counting that a run does."""
    right, wrong = make_sample(0), make_sample(0, "so\n#### 17")
    for p in error_rates.ACCURACIES:
        runs = RUNS // len(error_rates.ACCURACIES)
        answers = generator.random((runs, error_rates.WAVE)) < p
        labels = [
            smoke_decision([right if hit else wrong for hit in wave], expect=0.5).label for wave in answers
        ]
        agree(error_rates.wave_rates(error_rates.right_answers, p, 0.5), tally(labels), runs)


@pytest.mark.parametrize("name", error_rates.LIMITED)
@pytest.mark.parametrize("share", [0.01, 0.1, 0.25])
def test_simulated_classes_have_the_documented_rates(generator, name, share):
    counts_of = error_rates.answers_of_class(name)
    waves = generator.binomial(error_rates.WAVE, share, RUNS)
    labels = [error_rates.wave_verdict(counts_of, int(k), 0.5) for k in waves]
    agree(error_rates.wave_rates(counts_of, share, 0.5), tally(labels), RUNS)


@pytest.mark.parametrize(("drop", "noise"), [(0.0, 0.034), (0.01, 0.017), (0.02, 0.05)])
def test_simulated_comparisons_have_the_documented_rates(generator, drop, noise):
    changes = generator.multinomial(
        error_rates.QUESTIONS, [noise / 2 + drop, noise / 2, 1 - noise - drop], RUNS
    )
    labels = [error_rates.paired_verdict(int(lost), int(gained)) for lost, gained, _ in changes]
    agree(error_rates.paired_rates(drop, noise), tally(labels), RUNS)


def test_a_healthy_or_dead_model_is_never_misjudged_in_practice():
    """Always right passes, always wrong is dead, whatever is expected."""
    for expect in error_rates.EXPECTS:
        assert (
            full_decision(error_rates.right_answers(1319, 1319), expect=expect, min_accuracy=0.9).word
            == "PASS"
        )
        assert full_decision(error_rates.right_answers(1319, 0), expect=expect).label == "FAIL (dead)"
