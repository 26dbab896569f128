"""`harness deepep`: what it runs, what it refuses, and how a run ends whose rank is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from harness.candidates.over_names import OverName
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


def test_transports_and_experts_are_a_part_of_it_too() -> None:
    assert over("eager-gloo", None, "nvfp4,logfmt") == "eager-gloo:nvfp4,logfmt"
    name = over("eager-gloo+token_lost", 4, "fp8", "humming-masked:nvfp4-bf16-stream")
    assert name == "eager-gloo:4:fp8:experts=humming-masked:nvfp4-bf16-stream+token_lost"
    said = OverName.of(name.partition("+")[0])
    assert said == OverName("eager-gloo", 4, ("fp8",), "humming-masked:nvfp4-bf16-stream")
    assert over("eager-gloo:fp8", 4, "fp8") == "eager-gloo:4:fp8"
    for given, message in (
        (("eager-gloo:fp8", None, "bf16"), "'eager-gloo:fp8' and --transports bf16 do not agree"),
        (("eager-gloo:experts=eager", None, "", "physical"), "and --experts physical do not agree"),
        (("my.kernels:OverRanks", None, "bf16"), "--transports and --experts are for eager-gloo, deepep"),
        (("eager-gloo", None, "fp9"), "unknown transport 'fp9'"),
        (("eager-gloo:2:bf16:x", None), "is not of the form eager-gloo"),
        (("eager-gloo:experts=", None), "the name of a candidate must follow experts="),
    ):
        with pytest.raises(UsageError, match=message):
            over(*given)


def test_what_was_not_judged_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In the record, the verdict's line and the report."""
    line = [
        "deepep",
        "--candidate",
        "eager-gloo",
        "--transports",
        "nvfp4",
        "--rule",
        "DISPATCH",
        "--rule",
        "COMBINE",
    ]
    assert run([*line, "--problem", "4x6x64x64:6*4:normal:3", "--out", str(tmp_path)]) == 0
    said = (
        "left out of this run, not tested: dispatch by bf16, dispatch by fp8, dispatch by fp8-rounded, "
        "dispatch by fp8-ue8m0, combine by logfmt"
    )
    assert said in capfd.readouterr().out
    record = load_record(tmp_path)
    assert record.reason.endswith(said)
    assert record.candidates[0].name == "eager-gloo:nvfp4"
    assert said in (tmp_path / "report.html").read_text()


def test_a_transport_that_it_lacks_is_unknown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    line = ["deepep", "--candidate", "eager-gloo", "--transports", "fp8", "--experts", "sglang-loader"]
    assert run([*line, "--rule", "EP", "--out", str(tmp_path)]) == 2
    assert load_record(tmp_path).candidates[0].name == "eager-gloo:fp8:experts=sglang-loader"
    assert "cannot run here" in capfd.readouterr().out


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


def agents(out: Path, *options: str) -> list[subprocess.Popen[str]]:
    """Start torchrun twice, as on two hosts: one rank each, which find each other through torchrun's own rendezvous."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    found_by = {
        "nnodes": "2", "nproc-per-node": "1", "rdzv-backend": "c10d", "rdzv-id": "harness", "local-addr": "127.0.0.1",
        "rdzv-endpoint": f"127.0.0.1:{port}",
    }  # fmt: skip
    line = [*TORCHRUN[:3], *(f"--{name}={value}" for name, value in found_by.items()), *TORCHRUN[5:]]
    # the interface by which gloo finds the others: on hosts of a cluster, theirs
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    return [
        subprocess.Popen(
            [*line, "--candidate", "eager-gloo", *options, "--out", str(out / str(number))],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(2)
    ]  # fmt: skip


@pytest.mark.long
def test_ranks_of_two_torchruns_are_judged_by_the_first(tmp_path: Path) -> None:
    both = agents(tmp_path, "--rule", "DISPATCH", "--rule", "EP", "--max-seconds", "4")
    said = [process.communicate(timeout=240)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    (out,) = tmp_path.iterdir()  # rank 0 is whoever came first
    record = load_record(out)
    assert record.verdict == "PASS", record.reason
    assert record.candidates[0].name == "eager-gloo:2"
    assert sum(rule.compared for rule in record.rules) > 10_000
