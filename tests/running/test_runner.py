"""One rule on many problems: seeds, shrinking, deadlines, crashes, power, and which verdict comes of it. No torch."""

from __future__ import annotations

import dataclasses
import random
import time
from typing import Any

import pytest

from harness.candidates.protocol import Traits
from harness.judging.compared import Compared
from harness.problems.problem import parse_problem
from harness.problems.profiles import PROFILES
from harness.problems.shapes import ModelShape
from harness.rules import find_rules
from harness.running import runner
from harness.running.failure import reproduce_command
from harness.running.outcome import Outcome, Status
from harness.running.runner import InternalError, RuleRun
from harness.running.settings import RunSettings
from harness.verdict import Verdict


@pytest.fixture(autouse=True)
def nothing_but_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Problems are counted here; those of seldom values come on top, see test_seldom_values.py."""
    monkeypatch.setattr("harness.running.runner.seldom_for", lambda *_: [])


QUANT, GEMM, MOE, HINTS = (find_rules([name])[0] for name in ("QUANT", "GEMM", "MOE", "HINTS"))

# As many problems as in quick, with few experts: most of the time goes into drawing a masked_m for each.
SMALL = dataclasses.replace(PROFILES["quick"], experts=4, capacity=40)


def settings(**words: Any) -> RunSettings:
    return RunSettings(**{"profile": SMALL, "candidate": "some:Candidate"} | words)


def test_the_same_seed_draws_the_same_problems_and_another_seed_others(told, answer) -> None:
    drawn = {}
    for name, seed in (("first", 7), ("again", 7), ("other", 8)):
        session = told(lambda _: answer())
        RuleRun(QUANT, session, settings(seed=seed)).draw()
        drawn[name] = session.problems
    assert drawn["first"] == drawn["again"]
    assert drawn["first"] != drawn["other"]
    assert len(set(drawn["first"])) > 20


def test_a_rule_that_finds_nothing_illegal_passes_and_counts_what_it_compared(told, answer) -> None:
    run = RuleRun(QUANT, told(lambda _: answer(compared=10)), settings())
    result, traps = run.draw(), run.traps
    assert result.verdict is Verdict.PASS
    assert (result.examples, result.compared) == (40, 400)
    assert result.judged == {"by hand": 400}
    assert result.reason == ""
    assert sum(traps.values()) > 40


def test_a_failing_problem_shrinks_to_the_smallest_one_that_still_fails(told, answer) -> None:
    session = told(lambda p: answer(illegal=int(p.tokens >= 3 and "nan" in p.extras)))
    result = RuleRun(QUANT, session, settings(profile=dataclasses.replace(SMALL, examples=150))).draw()
    assert result.verdict is Verdict.FAIL
    (failure,) = result.failures
    smallest = parse_problem(failure.problem)
    assert 3 <= smallest.tokens <= smallest.experts * smallest.capacity <= 8
    assert (smallest.hidden, smallest.inter, smallest.data) == (16, 16, "normal")
    assert smallest.extras == {"nan"}


def test_a_failure_says_the_rule_the_candidate_the_problem_and_one_command(told, answer) -> None:
    result = RuleRun(GEMM, told(lambda _: answer(illegal=3)), settings()).draw()
    (failure,) = result.failures
    assert failure.kind == "illegal"
    assert failure.stage == "gemm"
    assert failure.message.startswith("gemm[expert 0] = 1, legal is 2")
    for line in (
        "rule       GEMM",
        "candidate  some:Candidate",
        f"problem    {failure.problem}",
        failure.reproduce,
    ):
        assert line in failure.message
    assert result.reason == "gemm[expert 0] = 1, legal is 2"


def test_a_reproduce_command_survives_the_shell(told) -> None:
    import shlex

    command = reproduce_command("GEMM", "my module:it's", "1x1x16x16:0*3:normal:0:nan+relu2")
    assert "'1x1x16x16:0*3:normal:0:nan+relu2'" in command, "a shell would look for files of that name"
    assert shlex.split(command) == [
        "harness", "check", "--rule", "GEMM", "--candidate", "my module:it's",
        "--problem", "1x1x16x16:0*3:normal:0:nan+relu2",
    ]  # fmt: skip


def test_shrinking_ends_after_its_time(told, answer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "SHRINK_SECONDS", 0.0)
    session = told(lambda p: answer(illegal=int(p.experts > 2)))
    result = RuleRun(GEMM, session, settings()).draw()
    failing = [p for p in session.problems if p.experts > 2]
    assert len(failing) == 1, "no further problem is judged once the time for shrinking is over"
    assert result.failures[0].problem == str(failing[0])


def test_a_candidate_that_fails_only_once_still_fails(told, answer) -> None:
    answers = iter([answer(), answer(), answer(illegal=1)])
    session = told(lambda _: next(answers, answer()))
    result = RuleRun(
        GEMM, session, settings(profile=dataclasses.replace(SMALL, experts=2, capacity=2))
    ).draw()
    assert result.verdict is Verdict.FAIL
    assert result.failures[0].problem == str(session.problems[2])


@pytest.mark.parametrize("seed", [1, 3, 14, 23])
def test_a_candidate_that_fails_now_and_then_fails(told, answer, seed: int) -> None:
    """Shrinking comes back to problems that passed in an earlier round, which hypothesis once called flaky."""
    chance = random.Random(seed)
    session = told(lambda _: answer(illegal=int(chance.random() < 0.1)))
    result = RuleRun(GEMM, session, settings()).draw()
    assert result.verdict is Verdict.FAIL
    assert result.failures[0].problem in {str(problem) for problem in session.problems}


def test_the_deadline_ends_the_drawing_and_the_reason_says_how_far_it_came(told, answer, monkeypatch) -> None:
    session = told(lambda _: answer())
    monkeypatch.setattr("time.monotonic", lambda: float(len(session.problems)))  # each takes a second
    result = RuleRun(QUANT, session, settings(deadline=5.5)).draw()
    assert result.examples == len(session.problems) == 6
    assert result.verdict is Verdict.PASS
    assert result.reason == "6 of 40 problems before the time was over"


def test_a_deadline_that_is_over_at_the_start_leaves_the_rule_unknown(told, answer) -> None:
    session = told(lambda _: answer())
    result = RuleRun(QUANT, session, settings(deadline=time.monotonic() - 1)).draw()
    assert session.problems == []
    assert result.verdict is Verdict.UNKNOWN
    assert "the time was over" in result.reason


@pytest.mark.parametrize(("status", "kind"), [("crashed", "crash"), ("timeout", "timeout")])
def test_a_crash_or_a_hang_costs_one_problem_and_the_run_goes_on(
    told, answer, status: str, kind: str
) -> None:
    calls = iter(range(1000))
    session = told(lambda _: Outcome(Status(status), "SIGSEGV") if next(calls) == 4 else answer())
    result = RuleRun(QUANT, session, settings()).draw()
    assert result.verdict is Verdict.FAIL
    assert [f.kind for f in result.failures] == [kind]
    assert result.failures[0].problem == str(session.problems[4])
    assert f"{status}: SIGSEGV" in result.failures[0].message
    assert result.examples == 40
    assert result.compared == 390


def test_a_candidate_that_keeps_crashing_is_given_up_after_three_times(told) -> None:
    session = told(lambda _: Outcome(Status.CRASHED, "SIGSEGV"))
    result = RuleRun(QUANT, session, settings()).draw()
    assert len(session.problems) == len(result.failures) == runner.MOST_CRASHES == 3


@pytest.mark.parametrize(("status", "kind"), [("raised", "rejected"), ("contract", "illegal")])
def test_a_refused_problem_and_a_broken_contract_are_failures(told, status: str, kind: str) -> None:
    session = told(lambda p: Outcome(Status(status), "k must be even"))
    result = RuleRun(QUANT, session, settings()).draw()
    assert result.verdict is Verdict.FAIL
    assert [f.kind for f in result.failures] == [kind]
    assert "k must be even" in result.reason


def test_a_defect_of_the_harness_ends_the_run_with_its_trace(told) -> None:
    session = told(lambda _: Outcome(Status.INTERNAL, "Traceback: division by zero"))
    with pytest.raises(InternalError, match="division by zero"):
        RuleRun(QUANT, session, settings()).draw()


def test_a_rule_that_says_nothing_about_a_candidate_is_skipped_with_its_reason(told) -> None:
    session = told(lambda _: Outcome(Status.NOT_APPLICABLE, "the candidate declares no hints"))
    run = RuleRun(HINTS, session, settings())
    result, traps = run.draw(), run.traps
    assert result.skipped == "the candidate declares no hints"
    assert (result.examples, len(session.problems), sum(traps.values())) == (0, 1, 0)


def test_a_rule_that_compared_nothing_is_unknown(told, answer) -> None:
    result = RuleRun(QUANT, told(lambda _: answer(compared=0)), settings()).draw()
    assert result.verdict is Verdict.UNKNOWN
    assert result.empty == result.examples == 40
    assert "nothing was compared" in result.reason


# QUANT must have power on half of its problems, MOE on 90 %; here there are 40, the last of which is without rows.
@pytest.mark.parametrize(
    ("rule", "powerless", "verdict"),
    [
        (QUANT, 19, Verdict.PASS),
        (QUANT, 20, Verdict.UNKNOWN),
        (QUANT, 39, Verdict.UNKNOWN),
        (MOE, 3, Verdict.PASS),
        (MOE, 4, Verdict.UNKNOWN),
    ],
)
def test_a_blind_rule_is_unknown_and_a_degenerate_problem_here_and_there_is_not(
    told, answer, rule, powerless: int, verdict: Verdict
) -> None:
    numbers = iter(range(40))

    def each(_: object) -> Outcome:
        number = next(numbers)
        return answer(compared=10 if number < 39 else 0, power=number >= powerless)

    result = RuleRun(rule, told(each), settings()).draw()
    assert (result.powerless, result.empty) == (powerless, 1)
    assert result.verdict is verdict
    assert ("no power" in result.reason) == (verdict is Verdict.UNKNOWN)


# Of the first ten problems of one seed in eight, one is degenerate: a run that is stopped there is no reason for UNKNOWN.
@pytest.mark.parametrize(
    ("problems", "powerless", "verdict"),
    [
        (1, 1, Verdict.UNKNOWN),
        (2, 1, Verdict.PASS),
        (2, 2, Verdict.UNKNOWN),
        (9, 1, Verdict.PASS),
        (9, 2, Verdict.UNKNOWN),
    ],
)
def test_where_time_allowed_few_problems_a_single_degenerate_one_is_let_pass(
    told, answer, monkeypatch, problems: int, powerless: int, verdict: Verdict
) -> None:
    judged = 0

    def each(_: object) -> Outcome:
        nonlocal judged
        judged += 1
        return answer(compared=10, power=judged > powerless)

    monkeypatch.setattr("time.monotonic", lambda: float(judged))  # each problem takes a second
    result = RuleRun(MOE, told(each), settings(deadline=problems - 0.5)).draw()
    assert (result.examples, result.powerless) == (problems, powerless)
    assert result.verdict is verdict
    assert ("no power" in result.reason) == (verdict is Verdict.UNKNOWN)


def test_one_given_problem_is_judged_once_and_not_shrunk(told, answer) -> None:
    problem = parse_problem("4x160x256x128:64,0,3,160:normal:20394:e2m1_ties")
    session = told(lambda _: answer(illegal=1))
    run = RuleRun(GEMM, session, settings())
    result, traps = run.repeat(problem), run.traps
    assert session.problems == [problem]
    assert result.failures[0].problem == str(problem)
    assert result.verdict is Verdict.FAIL
    assert traps["e2m1_ties"] == 1


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ("2x128x48x64:1,1:normal:0", "hidden 48 is not a multiple of 64"),
        ("2x128x64x80:1,1:normal:0", "inter 80 is not a multiple of 64"),
        ("2x100x64x64:1,1:normal:0", "capacity 100 is not a multiple of 128"),
        ("1x128x64x64:1:normal:0", "1 experts are fewer than 2"),
        ("2x128x64x64:1,1:normal:0:relu2", "activation relu2 is none of silu"),
    ],
)
def test_a_problem_outside_what_the_candidate_declares_is_no_failure_of_it(
    told, answer, problem: str, words: str
) -> None:
    traits = Traits(device="cpu", m_multiple=128, min_experts=2, activations=("silu",))
    session = told(lambda _: answer(illegal=1), traits)
    result = RuleRun(MOE, session, settings()).repeat(parse_problem(problem))
    assert session.problems == []
    assert result.verdict is Verdict.UNKNOWN
    assert words in result.reason


def test_a_models_shape_that_the_candidate_cannot_take_is_unknown_with_the_reason(told, answer) -> None:
    session = told(lambda _: answer(), Traits(device="cpu", k_multiple=128))
    result = RuleRun(QUANT, session, settings(shape=ModelShape("mine", 2880, 2880, 8, 2))).draw()
    assert session.problems == []
    assert "hidden 2880 is not a multiple of 128" in result.reason


def test_drawn_problems_keep_to_every_declared_alignment(told, answer) -> None:
    traits = Traits(
        device="cpu",
        k_multiple=48,
        n_multiple=32,
        m_multiple=24,
        min_experts=3,
        max_experts=5,
        activations=("silu",),
        out_dtypes=("bfloat16",),
    )
    for rule in (GEMM, MOE):
        session = told(lambda _: answer(), traits)
        result = RuleRun(rule, session, settings()).draw()
        assert result.examples == 40
        for problem in session.problems:
            assert problem.hidden % 96 == problem.inter % 96 == problem.capacity % 24 == 0
            assert 3 <= problem.experts <= 5
            assert not problem.extras & {"relu2", "float32_out", "float16_out"}


def test_drawn_problems_of_a_model_have_its_widths_and_experts(told, answer) -> None:
    session = told(lambda _: answer())
    RuleRun(QUANT, session, settings(shape=ModelShape("mine", 2880, 1536, 32, 4, 8))).draw()
    assert {(p.experts, p.hidden, p.inter) for p in session.problems} == {(4, 2880, 1536)}


def test_progress_is_told_after_every_problem(told, answer) -> None:
    seen: list[tuple[str, int, int]] = []
    RuleRun(
        QUANT,
        told(lambda _: answer()),
        settings(progress=lambda rule, done, wanted: seen.append((rule.id, done, wanted))),
    ).draw()
    assert seen == [("QUANT", n, 40) for n in range(1, 41)]


def test_the_worst_error_is_kept_with_its_problem(told) -> None:
    numbers = iter(range(40))

    def each(_: object) -> Outcome:
        from_bound = {17: 0.75}.get(next(numbers), 0.25)
        return Outcome(Status.JUDGED, comparisons=[Compared("gemm", 1, worst_ratio=from_bound)])

    session = told(each)
    result = RuleRun(QUANT, session, settings()).draw()
    assert (result.worst_ratio, result.worst_problem) == (0.75, str(session.problems[17]))


def test_every_rule_has_its_least_number_of_problems(told, answer) -> None:
    session = told(lambda _: answer())
    few = dataclasses.replace(SMALL, examples=10, least=6)
    result = RuleRun(HINTS, session, settings(profile=few)).draw()  # its share would be 3
    assert result.examples == 6
