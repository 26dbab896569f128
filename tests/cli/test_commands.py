"""`harness list`, `doctor` and `report`, and how little `--help` loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.candidates import CANDIDATES
from harness.cli import COMMANDS, run
from harness.problems.problem import OPTIONS, SHAPE_TRAPS
from harness.problems.profiles import PROFILES
from harness.problems.shapes import MODELS
from harness.problems.traps import TRAPS
from harness.records.record import RuleResult, RunRecord
from harness.rules import RULES
from harness.verdict import Verdict


def test_help_names_every_command_and_the_exit_codes(harness) -> None:
    done = harness("--help")
    assert done.code == 0
    for name, words in COMMANDS.items():
        assert name in done.out
        assert words.split(",")[0] in " ".join(done.out.split())
    assert (
        "0 PASS, 1 FAIL, 2 UNKNOWN, 64 bad usage, 70 internal error, 130 interrupted, 143 ended by SIGTERM"
        in " ".join(done.out.split())
    )


def test_every_command_has_its_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        assert run([name, "--help"]) == 0
        assert f"Usage: harness {name}" in capsys.readouterr().out


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    from harness.version import __version__

    assert run(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


def test_list_names_everything_that_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    names = {words[0] for words in lines}
    known = [CANDIDATES, PROFILES, MODELS, OPTIONS, TRAPS, SHAPE_TRAPS, [r.id for r in RULES]]
    for some in known:
        assert names >= set(some)
    assert all(len(words) > 1 for words in lines), "each with words"


def test_doctor_says_of_every_candidate_whether_it_runs_or_why_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    states = dict(line.split(": ", 1) for line in lines if line.split(":")[0] in CANDIDATES)
    assert set(states) == set(CANDIDATES)
    assert states["eager"].startswith("runs here: quantize_grouped, ")
    for state in states.values():
        assert state.startswith("runs here: ") or len(state.removeprefix("does not run here: ")) > 10
    assert any(line.split() == ["vllm", "not", "installed"] for line in lines) or any(
        line.startswith("  vllm ") for line in lines
    )


def test_doctor_is_unknown_where_nothing_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.candidates.support import unsupported

    monkeypatch.setattr("harness.candidates.support_of", lambda _: unsupported("nothing runs here"))
    assert run(["doctor"]) == 2
    assert "eager: does not run here: nothing runs here" in capsys.readouterr().out


@pytest.fixture
def record(tmp_path: Path) -> Path:
    made = RunRecord("run-<1>", "2026-01-01T00:00:00+00:00", ["harness", "check"], verdict=Verdict.PASS)
    made.rules.append(RuleResult("GEMM", "a sentence", "mine", Verdict.PASS, examples=1, compared=7))
    (tmp_path / "record").mkdir()
    made.write(tmp_path / "record" / "record.json")
    return tmp_path / "record"


def test_report_is_drawn_again_beside_its_record_or_elsewhere(
    record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", str(record)]) == 0
    assert capsys.readouterr().out == f"report: {record / 'report.html'}\n"
    assert run(["report", str(record / "record.json"), "--out", str(tmp_path / "new" / "place")]) == 0
    page = (tmp_path / "new" / "place" / "report.html").read_text()
    assert page == (record / "report.html").read_text()
    assert "run-<1>" not in page, "what a record holds is escaped"


def test_a_record_that_cannot_be_read_is_bad_usage_by_the_name_of_the_field(
    record: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = record / "record.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 99'))
    assert run(["report", str(record)]) == 64
    err = capsys.readouterr().err
    assert err.startswith(f"harness: {path}: record has schema 99")
    assert err.count("\n") == 1


LIGHT = """
import sys
{statement}
heavy = sorted({{"torch", "hypothesis", "numpy", "triton", "jinja2", "flashinfer"}} & set(sys.modules))
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    "statement",
    [
        "import harness",
        "import fp4_moe_harness_plugin",
        "from harness.cli import run; run(['--help'])",
        "from harness.cli import run; run(['list'])",
        "from harness.cli import run; assert run(['check', '--problem', 'x']) == 64",
        "import harness.candidates; assert harness.candidates.load_candidate('eager')",
        "import harness.candidates; assert harness.candidates.load_candidate('physical').support()",
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(statement: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT.format(statement=statement)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_judging_in_a_child_needs_no_torch_in_the_parent() -> None:
    """Only the description of the environment loads it there, to ask for the GPUs."""
    statement = """
import sys
from harness.running.check import CheckRequest, Progress, run_check
from harness.problems.problem import parse_problem
from harness.problems.profiles import PROFILES
from harness.records.record import RunRecord
from harness.rules import find_rules
from reports.html import render
request = CheckRequest(["eager"], find_rules(["QUANT"]), PROFILES["quick"], problem=parse_problem("1x4x32x32:2:normal:1"))
record = run_check(request, RunRecord("run", "now", [], profile="quick"), Progress())
assert record.verdict == "PASS", record.reason
assert "PASS" in render(record)
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", statement], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
