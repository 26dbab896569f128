"""Right quantizers are judged by what they compute, without a false alarm; what is declared otherwise is judged as declared."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from harness.identification.measure import measure, measured
from harness.judging.context import Context
from harness.mutants.false_alarms import draw_problem
from harness.problems.problem import parse_problem
from harness.rules import find_rules
from harness.running.judge import Watched, judge_context
from harness.running.outcome import Outcome
from tests.identification.quantizers import RIGHT, Newcomer, TiesDown, Written


class ChangesWithK(Newcomer):
    """Another formula from k 128 on, as kernels have that handle long rows in another way."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        """Quantize every row, padding too."""
        self.written = RIGHT[x.shape[-1] >= 128]
        return super().quantize_grouped(x, masked_m, global_scale_enc)


def judged(candidate: Newcomer, problem: str, rule: str = "QUANT") -> Outcome:
    known = measure(candidate).known
    return judge_context(find_rules([rule])[0], Context(Watched(candidate), parse_problem(problem), known))


def false_alarms(candidate: Newcomer, examples: int, seed: int = 0) -> list[str]:
    """Return what was flagged on drawn problems, and was right."""
    rule, rng, known = find_rules(["QUANT"])[0], random.Random(seed), measure(candidate).known
    found = []
    for _ in range(examples):
        problem = draw_problem(rule, candidate.traits, rng)
        outcome = judge_context(rule, Context(Watched(candidate), problem, known))
        found += [f"{problem}: {c.message}" for c in outcome.illegal] + [outcome.error] * bool(outcome.error)
    return found


@pytest.mark.parametrize("written", RIGHT, ids=lambda w: f"{w.scale_name}, {w.codes_name}")
def test_a_right_quantizer_is_never_flagged(written: Written) -> None:
    """A sample of what make test-all draws."""
    assert false_alarms(Newcomer(written), 8) == []


@pytest.mark.long
@pytest.mark.parametrize("written", RIGHT, ids=lambda w: f"{w.scale_name}, {w.codes_name}")
def test_a_right_quantizer_is_never_flagged_on_a_thousand_problems(written: Written) -> None:
    assert false_alarms(Newcomer(written), 1000, seed=1) == []


def test_a_formula_that_changes_with_k_is_right_and_counted_apart() -> None:
    candidate = ChangesWithK()
    assert false_alarms(candidate, 12) == []
    near, far = (judged(candidate, f"2x8x{k}x64:8,3:normal:1") for k in (64, 512))
    assert [c.judged for c in (*near.comparisons, *far.comparisons)] == [
        {"one legal scale: amax / 6 * gs": 44},
        {"one legal code: x * (gs / scale)": 704},
        {"one legal scale: amax / 6 * gs": 352},
        {"one legal code: x * (gs / scale)": 5632},
    ]
    ties = judged(candidate, "4x64x1024x64:64,64,64,64:normal:1:e2m1_ties")
    assert ties.illegal == []
    assert "one legal code: x * (gs / scale)" not in ties.comparisons[1].judged


def test_ties_that_are_declared_are_judged_as_declared() -> None:
    declares = TiesDown()
    declares.traits = replace(Newcomer.traits, deviations=("ties: toward zero",))
    problem = "2x64x256x64:64,9:normal:1:e2m1_ties"
    assert judged(TiesDown(), problem).illegal
    assert not judged(declares, problem).illegal
    assert not judged(declares, problem, "DECLARED").illegal
    right = Newcomer()
    right.traits = declares.traits
    assert not judged(right, problem).illegal, "the declaration counts only where it is what was found"


def test_the_fingerprint_tells_one_bit() -> None:
    class OneBit(Newcomer):
        """Another sign of one element of a kind of block that the probe holds."""

        def to_code(self, y):
            code = super().to_code(y)
            return torch.where(code == code.max(), code ^ 8, code)

    prints = [measure(candidate).fingerprint for candidate in (Newcomer(), Newcomer(), OneBit())]
    assert prints[0] == prints[1] != prints[2]
    assert len(prints[0]) == 12


def test_a_candidate_without_a_hash_is_measured() -> None:
    class Unhashable(Newcomer):
        __hash__ = None  # as that of a dataclass with eq

    candidate = Unhashable()
    assert measured(candidate).findings == measure(candidate).findings != []
