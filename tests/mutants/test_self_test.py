"""Broken checks are found out, each by the means that it should be; the rules of the harness are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.cli import mutants_checks
from harness.judging.comparison import altered_copies, compare
from harness.judging.context import Context
from harness.mutants.broken_checks import BROKEN_CHECKS
from harness.mutants.probing import Probe, Probed
from harness.mutants.self_test import CANDIDATES, PROBING, _prepared, examine
from harness.problems.problem import parse_problem
from harness.problems.rows import Rows
from harness.records.parts.mutants import CheckFinding, SelfTest
from harness.rules import RULES, find_rules
from harness.running.judge import Watched, judge_context

NO_POWER, BLIND_ROWS, NOTHING = "an altered copy", "no comparison looked at", "nothing was compared"
BY = {
    "shared_quantizer": "powerless: it kills none of",
    "underflowing_data": f"{NO_POWER}.*zeros",
    "over_wide_bound": f"{NO_POWER}.*x0.5",
    "cosine_in_bfloat16": f"{NO_POWER}.*x0.5",
    "share_of_elements": f"{NO_POWER}.*: one element zeroed \\(\\d+\\)",  # before anything else
    "only_finite": f"{NO_POWER}.*zeros",
    "oracle_compares_the_padding": BLIND_ROWS,
    "oracle_forgets_the_mask": "FAIL on a right candidate",
    "compares_nothing": NOTHING,
    "first_expert_only": BLIND_ROWS,
    "first_columns_only": "blind: .* last column",
    "expected_is_overwritten": "powerless: it kills none of",
    "previous_stages_are_believed": "blind: .* quantize_grouped",
    "empty_problems": NOTHING,
    "errors_are_caught": "blind: .*raises .*the check went on after an error",
}


@pytest.mark.parametrize("name", BROKEN_CHECKS)
def test_a_broken_check_is_found_out(name: str) -> None:
    import re

    finding = examine(name, BROKEN_CHECKS[name])
    assert finding.detected
    assert re.search(BY[name], finding.how), finding.how


FAST = ("QUANT", "ACT", "GEMM", "WRITES", "HINTS", "LAYOUT-OUT", "ISOLATION", "COMBINE")


@pytest.mark.parametrize("name", FAST)
def test_a_rule_of_the_harness_notices_every_probe(name: str) -> None:
    finding = examine(name, find_rules([name])[0])
    assert not finding.detected, finding.how
    assert finding.planted >= 20
    assert finding.verdict == "PASS"


@pytest.mark.long
@pytest.mark.parametrize(
    "rule", [rule for rule in RULES if rule.id not in FAST and not rule.once], ids=lambda rule: rule.id
)
def test_every_other_rule_of_the_harness_notices_every_probe(rule: Any) -> None:
    finding = examine(rule.id, rule)
    assert not finding.detected, finding.how
    assert finding.planted or "CUDA" in finding.reason


def test_a_rule_whose_comparison_is_taken_away_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules pass the self-test because they see, not because it lets everything pass."""
    from harness.rules import numbers

    genuine = numbers.gemm

    def blind(ctx: Context) -> list[Any]:
        found = genuine(ctx)
        found[0].illegal = 0
        return found

    monkeypatch.setattr(numbers, "gemm", blind)
    finding = examine("GEMM", find_rules(["GEMM"])[0])
    assert finding.verdict == "PASS"
    assert finding.how.startswith(("powerless", "blind"))


@pytest.mark.parametrize("share", [False, True])
def test_one_wrong_element_must_be_noticed(share: bool) -> None:
    wanted = torch.arange(1.0, 401.0).view(10, 40)

    def accepts(values: torch.Tensor, rows: slice) -> torch.Tensor:
        close = values == wanted[rows]
        return torch.full_like(close, bool(close.double().mean() >= 0.97)) if share else close

    result = compare(
        "out",
        accepts(wanted, slice(None)),
        Rows.valid([10], 10, "cpu"),
        judged={"close": 400},
        altered=altered_copies(wanted, accepts),
        show=lambda _r, _c: "",
    )
    assert result.accepted_altered == (["one element zeroed"] if share else [])


def test_an_error_that_a_rule_hides_is_the_candidates_all_the_same() -> None:
    base, known = _prepared(CANDIDATES[0])
    raising = Probed(base, Probe("masked_grouped_gemm", 0, "raises"))
    problem = parse_problem(PROBING[0])
    outcome = judge_context(BROKEN_CHECKS["errors_are_caught"], Context(Watched(raising), problem, known))
    assert outcome.status == "raised"
    assert (
        "planted: the stage raises (the rule went on as if the candidate had not raised it)" in outcome.error
    )


def test_valid_rows_that_no_comparison_looks_at_are_named() -> None:
    base, known = _prepared(CANDIDATES[0])
    problem = parse_problem("3x9x64x32:9,4,7:normal:3")
    outcome = judge_context(BROKEN_CHECKS["first_expert_only"], Context(Watched(base), problem, known))
    assert outcome.unseen == {"1": 4, "2": 7}
    genuine = judge_context(find_rules(["GEMM"])[0], Context(Watched(base), problem, known))
    assert genuine.unseen == {}


def run_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: list[bool], rules: list[bool]
) -> int:
    def finding(name: str, detected: bool) -> CheckFinding:
        return CheckFinding(name, detected=detected, how="blind", planted=3)

    result = SelfTest(
        passed=all(broken) and not any(rules),
        seconds=1.0,
        broken=[finding(f"check {i}", d) for i, d in enumerate(broken)],
        rules=[finding(f"rule {i}", d) for i, d in enumerate(rules)],
    )
    monkeypatch.setattr("harness.mutants.self_test.run_self_test", lambda _progress: result)
    return mutants_checks.run_checks(
        controls=False, self_test=True, examples=1, seed=0, jobs=1, max_seconds=0, folder=tmp_path
    )


def test_the_command_fails_where_a_broken_check_is_not_detected(tmp_path, monkeypatch, capsys) -> None:
    assert run_command(tmp_path, monkeypatch, [True, True], [False]) == 0
    assert "2 of 2 broken checks detected; 1 of 1 rules" in capsys.readouterr().out
    assert run_command(tmp_path, monkeypatch, [True, False], [False]) == 1
    assert "broken checks not detected: check 1" in capsys.readouterr().out
    assert run_command(tmp_path, monkeypatch, [True], [False, True]) == 1
    assert "rules without the power that they claim: rule 1" in capsys.readouterr().out
