"""Whose fault an error is, and that every way of misbehaving is a FAIL of the rule it belongs to."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from typing import Any

import pytest

from harness.rules import RULES
from harness.running.judge import Judge
from harness.running.outcome import Outcome, outcome_from, to_line

PROBLEM = "2x8x32x32:5,2:normal:3"
# Identified before they are judged, as in a run: their probes return nothing, or nothing that was asked for. The others
# answer a probe as anybody does, and what they do wrong shows whatever else is known about them.
IDENTIFIED = ("Raises", "ReturnsNone", "WritesNothing")


@pytest.fixture(scope="session")
def judge(faulty) -> Any:
    """Judge one problem by one rule on a candidate of faulty.py, without a process in between.

    As in a run, each candidate is loaded once and then judged by many rules.
    """

    @cache
    def of(candidate: str) -> Judge:
        return Judge(getattr(faulty, candidate)(), threads=1, probe=candidate in IDENTIFIED)

    def judged(candidate: str, rule: str, problem: str = PROBLEM) -> Outcome:
        return of(candidate).judge(rule, problem)

    return judged


def illegal(outcome: Outcome) -> list[str]:
    assert outcome.status == "judged", outcome
    return [c.stage for c in outcome.comparisons if c.illegal]


def with_every_type(stage: str) -> list[str]:
    return [f"{stage}{named}" for named in ("", ", float16", ", float32")]


@pytest.mark.parametrize(
    ("candidate", "rule", "words"),
    [
        ("Raises", "GEMM", "KeyError: 'tile shape (128, 4)'"),
        ("RaisesInTorch", "QUANT", "RuntimeError"),
        ("RaisesUnderNoGrad", "QUANT", "ValueError: my own mistake"),
        ("RaisesWithoutFrames", "QUANT", "TypeError"),
        ("RaisesInTorch", "PIPELINE", "RuntimeError"),
    ],
)
def test_what_a_candidate_raises_is_the_candidates(judge, candidate: str, rule: str, words: str) -> None:
    outcome = judge(candidate, rule)
    assert outcome.status == "raised", outcome
    assert words in outcome.error


def test_a_candidate_that_exits_raises(judge) -> None:
    """sys.exit(0) in a kernel's wrapper must not end the run with the code of a pass."""
    outcome = judge("Aborts", "QUANT", "4x8x32x32:1,1,1,1:normal:0")
    assert outcome.status == "raised"
    assert outcome.error.startswith("SystemExit: 0")


@pytest.mark.parametrize(
    ("candidate", "error"), [("BreaksARule", ZeroDivisionError), ("BreaksARuleInTorch", RuntimeError)]
)
def test_what_a_rule_raises_is_not_the_candidates(
    judge, monkeypatch: pytest.MonkeyPatch, candidate: str, error: type[Exception]
) -> None:
    from harness.rules import numbers

    monkeypatch.setattr(numbers, "quantize", numbers.quantize)  # put back what the candidate replaces
    with pytest.raises(error):
        judge(candidate, "QUANT")


def test_an_error_of_an_earlier_problem_is_not_held_against_a_later_one(faulty, monkeypatch) -> None:
    """A rule may swallow what a candidate raised (a refused layout) and then fail by itself."""
    from harness.rules import numbers

    judge = Judge(faulty.RaisesInTorch(), threads=1, probe=False)
    assert judge.judge("QUANT", PROBLEM).status == "raised"

    def broken(ctx: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(numbers, "quantize", broken)
    with pytest.raises(ZeroDivisionError):
        judge.judge("QUANT", PROBLEM)
    assert judge.candidate._raised is None, "its trace would keep the tensors of the earlier problem alive"


def test_a_lost_device_is_a_crash_wherever_it_shows(judge, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA reports a bad access late, in whichever call comes next: often one of ours."""
    from harness.rules import numbers

    def late(ctx: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(numbers, "quantize", late)
    assert judge("QuantizesOnly", "QUANT").status == "crashed"


def test_a_device_lost_over_another_layout_is_not_taken_for_a_refusal(faulty) -> None:
    class Lost(faulty.Eager):
        def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha) -> None:
            if not out.permute(2, 0, 1).is_contiguous() or not a.permute(2, 0, 1).is_contiguous():
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)

    for rule in ("LAYOUT-OUT", "LAYOUT-IN"):
        assert Judge(Lost(), threads=1).judge(rule, PROBLEM).status == "crashed"


@pytest.mark.parametrize(
    ("candidate", "rule", "words"),
    [
        ("ReturnsNone", "QUANT", "quantize_grouped must return (packed, block_scale), got NoneType"),
        ("ReturnsNone", "ACT", "silu_mul_quantize_grouped must return (packed, block_scale), got NoneType"),
        ("ReturnsNone", "MOE", "masked_moe must return (2, 8, 32) bfloat16, got NoneType"),
        ("WrongShape", "QUANT", "packed (8, 16, 2) uint8, logical (m, k/2, l), got (8, 32, 2) uint8"),
        ("WrongType", "MOE", "must return (2, 8, 32) bfloat16, got (2, 8, 32) float32 on cpu"),
        ("Strided", "QUANT", "the GEMM reads raw memory, experts outermost, and ignores strides"),
        ("CutsOff", "CAPACITY", "masked_moe must return (2, 104, 32) bfloat16, got (2, 8, 32)"),
        ("ReturnsOnce", "EXPERTS", "masked_moe must return (2, 8, 32) bfloat16, got NoneType"),
    ],
)
def test_another_shape_type_or_layout_breaks_the_contract(
    judge, candidate: str, rule: str, words: str
) -> None:
    outcome = judge(candidate, rule)
    assert outcome.status == "contract", outcome
    assert words in outcome.error


@pytest.mark.parametrize("rule", [r.id for r in RULES])
def test_a_candidate_that_returns_nothing_never_looks_like_a_defect_of_the_harness(judge, rule: str) -> None:
    """Rules that call a stage past the checks of Context once died of the None that came back."""
    assert judge("ReturnsNone", rule).status in {"contract", "raised", "judged", "not applicable"}


@pytest.mark.parametrize(
    ("candidate", "rule", "stages"),
    [
        ("Doubled", "GEMM", ["gemm"]),
        ("Doubled", "PIPELINE", ["gemm1", "gemm2"]),
        ("Doubled", "MOE", ["layer, propagated"]),
        (
            "Mutates",
            "INPUTS",
            [
                *with_every_type("masked_grouped_gemm"),
                "masked_moe, quantized tokens",
                "routed_moe, quantized tokens",
            ],
        ),
        ("WritesEverywhere", "WRITES", with_every_type("rows past the last tile")),
        ("IgnoresMask", "GEMM", ["gemm"]),
        ("Nondeterministic", "REPEAT", ["layer", "layer, buffers reused"]),
        ("WritesNothing", "GEMM", ["gemm"]),
        ("WritesNothing", "WRITES", with_every_type("gemm")),
        ("WritesNothing", "PAD-OUT", with_every_type("gemm")),
        ("WritesNothing", "MOE", ["layer, propagated"]),  # buffers of a composed layer are poisoned
    ],
)
def test_each_way_of_misbehaving_is_illegal_under_its_rule(
    judge, candidate: str, rule: str, stages: list[str]
) -> None:
    # IgnoresMask takes 2 rows for 5 when the first expert has fewer than the second
    problem = "2x8x32x32:2,5:normal:3" if candidate == "IgnoresMask" else PROBLEM
    assert illegal(judge(candidate, rule, problem)) == stages


def test_an_output_that_was_never_written_is_called_that(judge) -> None:
    outcome = judge("WritesNothing", "PAD-OUT")
    assert outcome.comparisons[2].message.startswith("gemm: output never written")


def test_the_result_of_an_earlier_call_is_illegal_for_a_later_one(faulty) -> None:
    judge = Judge(faulty.Reuses(), threads=1, probe=False)
    assert illegal(judge.judge("QUANT", "1x4x32x32:4:normal:1")) == []
    assert illegal(judge.judge("QUANT", "1x4x32x32:4:normal:2")) == ["quantize.scale", "quantize.codes"]


def test_a_nondeterministic_candidate_that_says_so_is_not_judged_by_repeating_it(faulty) -> None:
    import dataclasses

    candidate = faulty.Nondeterministic()
    candidate.traits = dataclasses.replace(candidate.traits, deterministic=False)
    outcome = Judge(candidate, threads=1, probe=False).judge("REPEAT", PROBLEM)
    assert outcome.status == "not applicable"
    assert "deterministic=False" in outcome.error


def test_a_candidate_with_hints_that_json_cannot_hold_is_described_and_judged(faulty) -> None:
    import json

    judge = Judge(faulty.HintsOfAnyType(), threads=1, probe=False)
    assert json.loads(json.dumps(judge.describe().traits))["hints"] == [{"c_dtype": "torch.float16"}]
    assert illegal(judge.judge("HINTS", PROBLEM)) == []


def test_a_candidate_is_described_by_its_stages_traits_and_measurements(faulty) -> None:
    described = Judge(faulty.QuantizesOnly(), threads=1).describe()
    assert described.stages == ["quantize_grouped"]
    assert described.traits["k_multiple"] == 16
    assert "no masked_grouped_gemm" in described.measured["accumulator"]


def test_an_outcome_crosses_a_process_boundary_as_strict_json(judge) -> None:
    """A NaN in a ratio or a message would end the run when the record is written."""
    import json

    outcomes = [judge("WritesNothing", rule) for rule in ("GEMM", "PIPELINE", "MOE")]
    outcomes.append(judge("Doubled", "GEMM", "1x4x32x32:3:normal:0:inf+nan"))
    for outcome in outcomes:
        json.dumps(asdict(outcome), allow_nan=False)
        assert outcome_from(to_line(outcome)) == outcome
