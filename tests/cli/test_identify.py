"""`harness identify`: a page about a candidate, its exit codes, and what `check` keeps of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.cli import run
from harness.records.record import load_record

PLAIN = "tests.identification.quantizers:Newcomer"
BROKEN = "tests.identification.quantizers:TiesDown"


def test_a_page_says_what_was_found_and_by_what(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["identify", "--candidate", PLAIN]) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"{PLAIN}, fingerprint ")
    assert "  block scale                  amax / 6 * gs\n" in page
    assert (
        "  ties                         to even\n    by all 65,536 codes under 1,024 encode scales\n" in page
    )


def test_what_the_contract_excludes_fails_and_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["identify", "--candidate", PLAIN, "--candidate", BROKEN]) == 1
    assert "toward zero (not declared; the contract has to even)" in capsys.readouterr().out


def test_json_holds_the_findings(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["identify", "--candidate", BROKEN, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)[BROKEN]
    assert {f["point"]: f["found"] for f in found["findings"]}["ties"] == "toward zero"
    assert len(found["fingerprint"]) == 12


def test_a_candidate_that_cannot_run_here_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["identify", "--candidate", "sglang-cutedsl"]) == 2
    assert "cannot run here" in capsys.readouterr().err


def test_check_names_the_mistake_in_its_first_line_and_keeps_what_was_found(tmp_path: Path) -> None:
    arguments = ["check", "--no-canary", "--rule", "DECLARED", "--candidate", BROKEN, "--out", str(tmp_path)]
    assert run(arguments) == 1
    record = load_record(tmp_path)
    assert record.reason.startswith(
        f"1 of 1 rules failed; first: DECLARED on {BROKEN}: quantize_grouped, ties: toward zero"
    )
    (failure,) = record.rules[0].failures
    assert 'legal for a candidate that declares Traits(deviations=("ties: toward zero",))' in failure.message
    assert [f.found for f in record.candidates[0].findings if f.deviates] == ["toward zero"]
    assert "toward zero" in (tmp_path / "report.html").read_text()
