"""`harness check` from request to record, without a process: traps and their floor, interrupts, what is skipped."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from harness.candidates import CANDIDATES, OVER_RANKS
from harness.candidates.errors import CandidateStartError
from harness.candidates.protocol import Traits
from harness.problems.problem import SHAPE_TRAPS, parse_problem
from harness.problems.profiles import PROFILES
from harness.problems.strategies import possible_traps
from harness.problems.traps import TRAPS
from harness.records.record import RunRecord
from harness.rules import find_rules
from harness.running import check
from harness.running.check import CheckRequest, Progress, run_check
from harness.running.outcome import Outcome, Status
from harness.running.runner import RuleRun
from harness.running.settings import RunSettings
from harness.verdict import Verdict

# As many problems as in standard, with extents that are drawn quickly.
STANDARD = dataclasses.replace(PROFILES["standard"], experts=4, capacity=160, k=256, n=128)


@pytest.fixture
def run(told, answer, monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(request: CheckRequest, reply: Any = None, traits: Traits | None = None) -> RunRecord:
        monkeypatch.setitem(PROFILES, "standard", STANDARD)
        monkeypatch.setattr(
            check, "open_session", lambda *_, **__: told(reply or (lambda _: answer()), traits)
        )
        return run_check(request, RunRecord("run", "now", [], profile=request.profile.name), Progress())

    return run


def test_a_standard_run_draws_every_trap_often_enough(run) -> None:
    """Five rules are enough, so that chance does not decide in a whole run."""
    record = run(CheckRequest(["mine"], find_rules(["QUANT", "ACT", "GEMM", "ROUTE", "COMBINE"]), STANDARD))
    assert record.missing_traps == []
    assert record.verdict is Verdict.PASS
    assert min(record.traps[trap] for trap in (*TRAPS, *SHAPE_TRAPS)) >= 5


def without_nan(*_: object) -> st.SearchStrategy[Any]:
    extras = st.sets(st.sampled_from(sorted(set(TRAPS) - {"nan"})), max_size=3)
    return extras.map(
        lambda e: dataclasses.replace(
            parse_problem("3x130x48x256:0,1,130:normal:0"), extras=frozenset(e), seed=len(e)
        )
    )


def test_a_trap_that_was_never_drawn_fails_a_standard_run(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.problems.strategies.problems", without_nan)
    record = run(CheckRequest(["mine"], find_rules(["QUANT", "GEMM"]), STANDARD))
    assert record.verdict is Verdict.FAIL
    assert record.missing_traps == ["nan", "one_expert"]
    assert record.reason == "traps drawn too seldom to count as tested: nan, one_expert"


@pytest.mark.parametrize(
    "part",
    [
        {"all_rules": False},
        {"max_seconds": 1000},
        {"problem": parse_problem("1x1x16x16:1:normal:0")},
        {"profile": PROFILES["quick"]},
    ],
)
def test_a_part_of_a_run_need_not_draw_every_trap(run, monkeypatch: pytest.MonkeyPatch, part: Any) -> None:
    monkeypatch.setattr("harness.problems.strategies.problems", without_nan)
    values = {"profile": STANDARD} | part
    record = run(CheckRequest(["mine"], find_rules(["QUANT"]), **values))
    assert record.missing_traps == []
    assert record.verdict is Verdict.PASS


PLACES = ("quantizer", "gate", "alpha", "gemm alpha", "weights", "logits", "topk weights", "expert outputs")


@pytest.mark.parametrize("multiple", [16, 32, 64, 128])
def test_traps_that_alignments_rule_out_are_not_asked_for(multiple: int) -> None:
    traits = Traits(device="cpu", k_multiple=multiple, n_multiple=1)
    possible = possible_traps(traits, PLACES)
    assert ("ragged_blocks" in possible) == (multiple < 64)
    assert set(possible) >= set(TRAPS)
    assert ("ragged_capacity" in possible_traps(dataclasses.replace(traits, m_multiple=multiple), [])) == (
        multiple < 128
    )
    assert "one_expert" not in possible_traps(dataclasses.replace(traits, min_experts=2), [])
    assert set(possible) | {"ragged_blocks"} == {*TRAPS, *SHAPE_TRAPS}


def test_a_pass_says_what_the_candidate_declares_out_of_its_contract(run) -> None:
    request = CheckRequest(["mine"], find_rules(["GEMM"]), PROFILES["quick"])
    plain = Traits(device="cpu", k_multiple=16, n_multiple=1)
    assert "contract" not in run(request, traits=plain).reason
    record = run(request, traits=dataclasses.replace(plain, finite_only=True, keeps_sign_of_zero=False))
    assert record.verdict is Verdict.PASS
    assert record.reason.endswith(
        "; declared out of the contract, not tested: NaN and infinities, the sign of zero"
    )


def test_widths_are_multiples_of_every_declared_alignment() -> None:
    assert Traits(k_multiple=48, n_multiple=32).width_multiple == 96
    assert Traits(k_multiple=16, n_multiple=1).width_multiple == 16
    assert "ragged_blocks" in possible_traps(Traits(k_multiple=96, n_multiple=1), [])


def test_traps_that_a_contract_or_the_stages_leave_out_are_not_asked_for() -> None:
    traits = Traits(device="cpu", k_multiple=16, n_multiple=1)
    assert set(TRAPS) - set(possible_traps(traits, ["quantizer", "gate"])) == {
        name for name, trap in TRAPS.items() if trap.into not in ("quantized", "quantizer", "gate")
    }
    finite = possible_traps(dataclasses.replace(traits, finite_only=True), PLACES)
    assert set(TRAPS) - set(finite) == {
        "nan", "inf", "some_nan", "half_nan", "infinities", "gate_specials", "alpha_overflow",
        "alpha_specials", "nan_scales", "output_specials",
    }  # fmt: skip
    flushed = possible_traps(dataclasses.replace(traits, keeps_subnormals=False), PLACES)
    assert set(TRAPS) - set(flushed) == {
        "scale_underflow", "subnormal_scales", "subnormal", "alpha_subnormal", "outlier_block",
    }  # fmt: skip


def test_max_seconds_ends_the_whole_run_and_leaves_what_was_not_judged_unknown(
    run, answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = 0

    def each(_: object) -> Outcome:
        nonlocal judged
        judged += 1
        return answer()

    monkeypatch.setattr("time.monotonic", lambda: float(judged))  # each problem takes a second
    record = run(CheckRequest(["mine"], find_rules(["QUANT", "GEMM"]), STANDARD, max_seconds=0.5), each)
    assert judged == 1
    assert [r.verdict for r in record.rules] == [Verdict.PASS, Verdict.UNKNOWN]
    assert record.verdict is Verdict.UNKNOWN


def test_max_seconds_begins_with_the_first_problem_of_each_candidate(
    told, answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start-up of minutes (torch, a first compilation, the probe) once left no problem to be judged."""
    now = 0.0

    def problem(_: object) -> Outcome:
        nonlocal now
        now += 1
        return answer()

    def opened(*_: object, **__: object) -> Any:
        nonlocal now
        now += 1000
        return told(problem)

    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr(check, "open_session", opened)
    request = CheckRequest(["mine", "its"], find_rules(["QUANT"]), STANDARD, max_seconds=19.5)
    record = run_check(request, RunRecord("run", "now", [], profile="standard"), check.Progress())
    assert [r.examples for r in record.rules] == [10, 10]


def test_an_interrupt_keeps_what_was_found_until_then(told, answer, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Counter()

    def interrupted(_: object) -> Outcome:
        calls["judged"] += 1
        if calls["judged"] == 50:
            raise KeyboardInterrupt
        return answer()

    closed = []
    session = told(interrupted)
    session.close = lambda: closed.append(True)
    monkeypatch.setattr(check, "open_session", lambda *_, **__: session)
    record = RunRecord("run", "now", [], profile="quick")
    with pytest.raises(KeyboardInterrupt):
        run_check(
            CheckRequest(["mine"], find_rules(["QUANT", "GEMM"]), PROFILES["quick"]), record, Progress()
        )
    assert [r.rule for r in record.rules] == ["QUANT"]
    assert record.interrupted
    assert (record.verdict, record.reason) == (Verdict.UNKNOWN, "interrupted")
    assert closed == [True]


def test_a_candidate_that_cannot_run_counts_only_if_it_was_asked_for(
    told, answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_session(name: str, **_: Any) -> Any:
        if name != "eager":
            raise CandidateStartError("needs sm_100")
        return told(lambda _: answer())

    monkeypatch.setattr(check, "open_session", open_session)
    found = {}
    for names in ([], ["eager", "physical"]):
        record = RunRecord("run", "now", [], profile="quick")
        run_check(CheckRequest(names, find_rules(["QUANT"]), PROFILES["quick"]), record, Progress())
        found[len(names)] = record
    assert found[0].verdict is Verdict.PASS
    assert [c.reason for c in found[0].candidates if not c.ran] == ["needs sm_100"] * (
        len(CANDIDATES) - len(OVER_RANKS) - 1
    )
    assert found[2].verdict is Verdict.UNKNOWN
    assert found[2].reason == "physical cannot run here: needs sm_100"


def test_a_missing_stage_is_a_skip_with_its_reason(told, answer, monkeypatch: pytest.MonkeyPatch) -> None:
    session = told(lambda _: answer())
    described = replace(session.describe(), stages=["quantize_grouped"])
    session.describe = lambda: described
    monkeypatch.setattr(check, "open_session", lambda *_, **__: session)
    record = RunRecord("run", "now", [], profile="quick")
    run_check(CheckRequest(["mine"], find_rules(["QUANT", "GEMM"]), PROFILES["quick"]), record, Progress())
    assert [r.rule for r in record.rules] == ["QUANT"]
    assert [(s.what, s.reason) for s in record.skips] == [
        ("GEMM on mine", "the candidate has no masked_grouped_gemm")
    ]
    assert record.candidates[0].missing_stages == [
        "silu_mul_quantize_grouped", "masked_grouped_gemm", "masked_moe", "routed_moe", "route_topk", "dispatch", "combine",
        "load_experts",
    ]  # fmt: skip


@pytest.mark.parametrize("isolate", [True, False])
def test_a_candidate_that_raises_when_it_is_made_cannot_run_and_is_no_defect_of_the_harness(
    isolate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent / "candidates")
    record = RunRecord("run", "now", [], profile="quick")
    request = CheckRequest(
        ["faulty:RaisesAtStart"], find_rules(["QUANT"]), PROFILES["quick"], isolate=isolate
    )
    run_check(request, record, Progress())
    assert record.verdict is Verdict.UNKNOWN
    assert record.reason == "faulty:RaisesAtStart cannot run here: FileNotFoundError: libkernel.so"


def test_a_problem_without_memory_for_judging_it_is_unknown_and_passed_over(told, answer) -> None:
    """It says nothing about the candidate: the others are judged."""
    rule = find_rules(["QUANT"])[0]
    none = Outcome(Status.NO_MEMORY, "RuntimeError: can't allocate memory")
    settings = RunSettings(PROFILES["quick"])
    alone = RuleRun(rule, told(lambda _: none), settings).repeat(parse_problem("1x4x32x32:2:normal:1"))
    assert (alone.verdict, alone.examples) == (Verdict.UNKNOWN, 0)
    assert alone.reason.startswith(
        "no problem was judged: there is not memory enough to judge 1x4x32x32:2:normal:1"
    )
    mixed = RuleRun(rule, told(lambda p: none if p.experts > 4 else answer()), settings).draw()
    assert (mixed.verdict, mixed.failures) == (Verdict.PASS, [])
    assert "there is not memory enough to judge " in mixed.reason
