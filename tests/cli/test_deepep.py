"""`harness deepep`: what it runs, what it refuses, and how a run ends whose rank is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli import run
from harness.cli.deepep import over
from harness.ranks.torchrun import Place, find_place
from harness.records.record import load_record
from harness.verdict import UsageError

COMMAND = [sys.executable, "-m", "harness.cli", "deepep", "--candidate", "eager-gloo"]
TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--nproc-per-node",
    "2",
    "-m",
    "harness.cli",
    "deepep",
]
SECONDS = 20  # from the end of a rank to the end of the run


@pytest.mark.parametrize(
    ("candidate", "package"),
    [("deepep", "deep_ep"), ("deepep-elastic", "deep_ep"), ("nccl-ep", "nccl-extensions")],
)
def test_without_its_package_it_is_unknown_with_the_reason(
    candidate: str, package: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["deepep", "--candidate", candidate, "--rule", "ROUTE", "--out", str(tmp_path)]) == 2
    assert (
        f"{candidate} cannot run here: needs the package {package}, which is not installed"
        in capfd.readouterr().out
    )
    assert load_record(tmp_path).verdict == "UNKNOWN"


def test_how_many_ranks_is_a_part_of_the_candidates_name() -> None:
    assert over("eager-gloo", None) == "eager-gloo"
    assert over("eager-gloo+token_lost", 4) == "eager-gloo:4+token_lost"
    assert over("eager-gloo:4", 4) == "eager-gloo:4"
    assert over("my.kernels:OverRanks", 4) == "my.kernels:OverRanks"
    with pytest.raises(UsageError, match="'eager-gloo:2' and 4 ranks do not agree"):
        over("eager-gloo:2", 4)
    with pytest.raises(UsageError, match="candidate 'eager'"):
        over("eager", 2)


def test_where_a_process_stands_under_torchrun_is_read_from_its_environment() -> None:
    assert find_place({}) is None
    environment = {
        "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "first",
        "MASTER_PORT": "29500", "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    assert find_place(environment) == Place(3, 4, 1, "first", 29500, hosts_store=False, one_host=False)
    with pytest.raises(UsageError, match="not all that torchrun sets: 'MASTER_ADDR'"):
        find_place({"RANK": "0", "WORLD_SIZE": "2"})


def ranks_below(pid: int) -> dict[int, int]:
    """Return the processes of the ranks that a process of ours started, directly or not, by rank."""
    parents, ranks = {}, {}
    for entry in Path("/proc").iterdir():
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            words = (entry / "cmdline").read_text()
        except (OSError, ValueError):
            continue
        if "harness.ranks.worker" in words:
            ranks[int(entry.name)] = int(words.partition('"rank": ')[2].partition(",")[0])

    def is_below(one: int) -> bool:
        while one not in {0, pid}:
            one = parents.get(one, 0)
        return one == pid

    return {rank: one for one, rank in ranks.items() if is_below(one)}


def killed_run(out: Path) -> str:
    """Kill rank 1 of a run that is judging, and return what the run says."""
    process = subprocess.Popen(
        [*COMMAND, "--profile", "standard", "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    started = next(line for line in process.stdout if line.startswith("eager-gloo"))
    assert started == "eager-gloo:\n"
    ranks = ranks_below(process.pid)
    assert sorted(ranks) == [0, 1]
    os.kill(ranks[1], signal.SIGKILL)
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 1, said
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())
    return said


def check(said: str, out: Path) -> None:
    assert "rank lost: rank 1 of 2 was killed by SIGKILL in call " in said
    record = load_record(out)
    assert record.verdict == "FAIL"
    reasons = [rule.reason for rule in record.rules]
    assert any(reason.startswith("not judged: rank lost: rank 1 of 2") for reason in reasons), reasons


def test_a_killed_rank_ends_the_run_and_the_next_one_works(tmp_path: Path) -> None:
    check(killed_run(tmp_path), tmp_path)
    again = [*COMMAND, "--rule", "COMBINE", "--problem", "4x6x64x64:6*4:normal:3", "--out", str(tmp_path)]
    assert subprocess.run(again, check=False, capture_output=True).returncode == 0


@pytest.mark.long
@pytest.mark.parametrize("_", range(10))
def test_a_killed_rank_ends_the_run_every_time(_: int, tmp_path: Path) -> None:
    check(killed_run(tmp_path), tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("candidate", ["eager-gloo", "eager-gloo+weights_dropped"])
def test_ranks_of_torchrun_are_judged_by_the_first(candidate: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [*TORCHRUN, "--candidate", candidate, "--max-seconds", "4", "--out", str(tmp_path)],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    faulty = candidate != "eager-gloo"
    assert done.returncode == faulty, done.stderr
    record = load_record(tmp_path)
    assert record.verdict == ("FAIL" if faulty else "PASS"), record.reason
    assert record.candidates[0].name == candidate.replace("gloo", "gloo:2")


@pytest.mark.long
def test_a_rank_of_torchrun_that_is_killed_is_judged_as_well(tmp_path: Path) -> None:
    """torchrun ends its processes as soon as one has died: the first one judges all the same."""
    process = subprocess.Popen(
        [*TORCHRUN, "--candidate", "eager-gloo", "--profile", "standard", "--out", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    next(line for line in process.stdout if line.startswith("eager-gloo:2:"))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (second,) = (int(c) for c in children if b"\0RANK=1\0" in Path(f"/proc/{c}/environ").read_bytes())
    os.kill(second, signal.SIGKILL)
    process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    record = load_record(tmp_path)
    assert record.verdict == "FAIL"
    assert any("rank lost: rank 1 of 2 ended in call " in rule.reason for rule in record.rules)
