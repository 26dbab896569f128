"""The whole of it with real processes: two workers, and three shards merged, leave the record of one run. Minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli import run
from harness.records.record import RunRecord, load_record
from tests.running.shared_runs import what_was_found

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("in_candidates_folder")]

CANDIDATES = [
    ["--candidate", "eager", "--candidate", "physical"],
    ["--candidate", "physical+alpha_of_neighbour@7", "--rule", "GEMM", "--rule", "QUANT", "--rule", "MOE"],
    ["--candidate", "faulty:Doubled", "--candidate", "eager", "--rule", "GEMM", "--rule", "QUANT"],
    ["--candidate", "faulty:Aborts", "--rule", "QUANT", "--rule", "GEMM", "--rule", "PAD-ROWS"],
    ["--candidate", "faulty:Stub", "--rule", "QUANT", "--rule", "GEMM", "--rule", "PAD-ROWS"],
]


def checked(folder: Path, *arguments: str) -> tuple[int, RunRecord]:
    code = run(["check", "--no-canary", "--threads", "1", *arguments, "--out", str(folder)])
    return code, load_record(folder)


@pytest.mark.parametrize("arguments", CANDIDATES, ids=" ".join)
def test_workers_and_shards_leave_the_record_and_the_exit_code_of_one_run(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # How small a failing problem gets in 20 s depends on what else the machine does.
    monkeypatch.setattr("harness.running.runner.SHRINK_SECONDS", 600.0)
    code, alone = checked(tmp_path / "alone", *arguments)
    shared, record = checked(tmp_path / "workers", *arguments, "--workers", "2")
    assert (shared, what_was_found(record)) == (code, what_was_found(alone))
    assert record.sharing_part.workers == 2
    parts = [str(tmp_path / f"part-{number}") for number in (1, 2, 3)]
    for number, part in enumerate(parts, start=1):
        assert checked(Path(part), *arguments, "--shard", f"{number}/3")[0] in {1, 2}
    whole = tmp_path / "whole"
    assert run(["report", "--merge", *parts, "--out", str(whole)]) == code
    assert what_was_found(load_record(whole)) == what_was_found(alone)
    assert (whole / "report.html").is_file()
    assert "3 shards merged" in (whole / "report.html").read_text(encoding="utf-8")


def test_a_stage_that_is_not_implemented_for_some_problems_fails_however_the_run_is_shared(
    tmp_path: Path,
) -> None:
    """Which problem shows it depends on what its process has returned for before."""
    arguments = ["--candidate", "faulty:NarrowOnly", "--rule", "QUANT", "--rule", "PAD-ROWS"]
    found = [checked(tmp_path / f"{n}", *arguments, "--workers", str(n)) for n in (1, 2)]
    assert [(code, [rule.verdict for rule in record.rules]) for code, record in found] == [
        (1, ["FAIL", "FAIL"])
    ] * 2
