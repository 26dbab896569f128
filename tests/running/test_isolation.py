"""A candidate in a process of its own: whatever it does to that process costs one problem."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.candidates.errors import CandidateStartError
from harness.candidates.protocol import Traits
from harness.problems.problem import parse_problem
from harness.problems.profiles import PROFILES
from harness.rules import find_rules
from harness.running.runner import RuleRun
from harness.running.session import Child
from harness.running.settings import RunSettings
from harness.verdict import UsageError, Verdict

pytestmark = pytest.mark.usefixtures("in_candidates_folder")

QUICK = dataclasses.replace(PROFILES["quick"], problem_seconds=20)


def problem(experts: int) -> str:
    return f"{experts}x4x32x32:{','.join(['2'] * experts)}:normal:0"


@pytest.fixture
def child() -> Iterator[Child]:
    session = Child("faulty:Aborts", threads=1)
    yield session
    session.close()


def test_each_way_to_die_is_answered_and_the_next_problem_gets_a_fresh_process(child: Child) -> None:
    rule = find_rules(["QUANT"])[0]

    def run(experts: int, seconds: float = 20) -> tuple[Verdict, str]:
        profile = dataclasses.replace(QUICK, problem_seconds=seconds)
        chosen = parse_problem(problem(experts))
        result = RuleRun(rule, child, RunSettings(profile, candidate="faulty:Aborts")).repeat(chosen)
        for failure in result.failures:
            assert failure.problem == str(chosen)
            assert f"--problem '{chosen}'" in failure.reproduce or "*" not in failure.problem
        return result.verdict, result.reason

    assert run(1)[0] is Verdict.PASS
    first = child._process.pid
    assert run(2) == (Verdict.FAIL, "crashed: the candidate's process was killed by SIGABRT")
    assert run(1)[0] is Verdict.PASS, "the run goes on"
    assert child._process.pid != first
    # os._exit(0) looks like success to whoever waits for the process
    assert run(3) == (Verdict.FAIL, "crashed: the candidate's process exited with 0")
    assert run(4)[1].startswith("raised: SystemExit: 0")
    assert run(5) == (Verdict.FAIL, "crashed: the candidate's process was killed by SIGSEGV")
    assert run(1)[0] is Verdict.PASS
    hanging = Path(f"/proc/{child._process.pid}")
    assert run(6, seconds=0.5) == (
        Verdict.FAIL,
        "timeout: it hangs: no answer, and nothing done for 0.5 s (idle)",
    )
    assert not hanging.exists(), "a hanging process is killed and waited for"


def test_a_gemm_that_never_survives_is_a_failure_of_the_rules_and_not_a_candidate_that_cannot_run() -> None:
    """It dies of the probe already; saying "cannot run here" would make a crash an UNKNOWN."""
    session = Child("faulty:AbortsInGemm", threads=1)
    try:
        assert "ended or stopped" in session.describe().measured["accumulator"]
        assert session.judge("QUANT", problem(1), 20).status == "judged"
        assert session.judge("GEMM", problem(1), 20).status == "crashed"
    finally:
        session.close()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("faulty:AbortsAtStart", "killed by SIGABRT"),
        ("faulty:RaisesAtStart", "FileNotFoundError: libkernel.so"),
        ("faulty:Unsupported", "needs a machine that does not exist"),
    ],
)
def test_a_candidate_that_does_not_start_says_why(name: str, words: str) -> None:
    with pytest.raises(CandidateStartError, match=words):
        Child(name, threads=1)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere_at_all:Kernel", "cannot be imported: No module named 'nowhere_at_all'"),
        ("faulty:Missing", "cannot be imported: module 'faulty' has no attribute 'Missing'"),
        ("faulty:NOT_A_CANDIDATE", "has none of the stages"),
    ],
)
def test_a_candidate_that_does_not_exist_is_bad_usage_and_not_unable_to_run(name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Child(name, threads=1)


def test_a_folder_called_like_the_harness_does_not_stand_in_its_way(tmp_path, monkeypatch) -> None:
    """The current directory of a user may well hold a package `harness` of their own."""
    (tmp_path / "harness").mkdir()
    (tmp_path / "harness" / "__init__.py").write_text("raise RuntimeError('not this one')")
    (tmp_path / "mine.py").write_text(
        "from harness import Traits\n"
        "class Mine:\n"
        "    traits = Traits(device='cpu')\n"
        "    def quantize_grouped(self, x, masked_m, global_scale_enc): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    session = Child("mine:Mine", threads=1)
    assert session.describe().traits["device"] == Traits(device="cpu").device
    session.close()


def test_the_memory_limit_reaches_the_process_and_closing_ends_it() -> None:
    session = Child("faulty:QuantizesOnly", threads=1, memory_gib=3)
    process = Path(f"/proc/{session._process.pid}")
    limits = (process / "limits").read_text()
    session.close()
    assert not process.exists()
    session.close()  # twice does no harm
    (line,) = [line for line in limits.splitlines() if line.startswith("Max data size")]
    assert line.split()[3] == str(3 * 2**30)
