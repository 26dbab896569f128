"""Output folders: of one command, of one run at a time, and never with half a file in them."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.ci.folder import held_folder
from harness.cli import COMMANDS, run
from harness.verdict import UsageError

SMALL = "1x4x32x32:2:normal:1"
CHECK = ["check", "--no-isolate", "--candidate", "eager", "--rule", "QUANT", "--problem", SMALL]
WRONG = ["check", "--no-isolate", "--candidate", "eager+output_scaled", "--rule", "GEMM", "--problem", SMALL]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_command_runs_again_in_its_own_folder(in_folder: Path) -> None:
    assert run(WRONG) == 1
    first = (in_folder / "harness-out/record.json").read_text()
    assert run(CHECK) == 0
    assert (in_folder / "harness-out/record.json").read_text() != first
    assert names(in_folder) == {"harness-out"}


def test_another_commands_folder_is_refused_unless_it_may_be_overwritten(
    in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*CHECK, "--out", "out"]) == 0
    before = (in_folder / "out/record.json").read_text()
    capsys.readouterr()
    assert run(["races", "--out", "out"]) == 64
    assert capsys.readouterr().err == (
        "harness: --out: out holds the record of `harness check`; give another folder, or --overwrite to replace it\n"
    )
    assert (in_folder / "out/record.json").read_text() == before
    run(["races", "--out", "out", "--overwrite", "--schedules", "1", "--kernel", "128x128"])
    assert json.loads((in_folder / "out/record.json").read_text())["command"][:2] == ["harness", "races"]


def test_a_failure_is_not_repeated_over_its_record(in_folder: Path) -> None:
    assert run(WRONG) == 1
    before = (in_folder / "harness-out/record.json").read_text()
    assert run(["reproduce", "harness-out", "--out", "harness-out"]) == 64
    assert (in_folder / "harness-out/record.json").read_text() == before


@pytest.mark.long
def test_a_failure_is_repeated_beside_its_record(in_folder: Path) -> None:
    assert run(WRONG) == 1
    before = (in_folder / "harness-out/record.json").read_text()
    for _ in range(2):
        assert run(["reproduce", "harness-out"]) == 1
    assert (in_folder / "harness-out/record.json").read_text() == before
    assert names(in_folder) == {"harness-out", "reproduce-run"}


def test_no_two_commands_have_the_same_folder(capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for name in [*COMMANDS, "canary run", "canary table"]:
        run([*name.split(), "--help"])
        words = " ".join(capsys.readouterr().out.split())
        if "--overwrite" in words:
            found.append(words.partition("--out PATH")[2].partition("[default: ")[2].partition("]")[0])
    assert len(found) == len(set(found)) == 10


def test_the_second_of_two_runs_is_refused(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with held_folder(in_folder / "out", ["harness", "check"], "--overwrite"):
        assert run([*CHECK, "--out", "out", "--overwrite"]) == 64
        assert capsys.readouterr().err == (
            "harness: --out: another run is writing to out; give another folder\n"
        )
    assert run([*CHECK, "--out", "out"]) == 0


def test_a_copy_of_the_process_does_not_keep_the_folder(in_folder: Path) -> None:
    with held_folder(in_folder, ["harness", "check"], "--overwrite"):
        process = os.fork()
        if not process:
            signal.pause()
    try:
        with held_folder(in_folder, ["harness", "check"], "--overwrite"):
            pass
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def test_a_session_of_pytest_does_not_write_over_a_command(in_folder: Path) -> None:
    assert run([*CHECK, "--out", "out"]) == 0
    with (
        pytest.raises(
            UsageError, match=r"--moe-record: out holds the record of `harness check`; .* or remove it"
        ),
        held_folder(Path("out"), ["pytest"], "remove it", "--moe-record"),
    ):
        pass


@pytest.fixture
def largest_file() -> Iterator[None]:
    """No file may grow beyond 40,000 bytes: a report is cut short as by a full disk, a small record is not."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_costs_a_file_and_not_the_verdict(
    in_folder: Path, largest_file: None, capfd: pytest.CaptureFixture[str]
) -> None:
    (in_folder / "out").mkdir()
    for name in ("report.html", "junit.xml"):
        (in_folder / "out" / name).write_text("of an earlier run")
    assert run([*CHECK, "--out", "out"]) == 0
    out, err = capfd.readouterr()
    assert out.startswith("PASS: ")
    assert [line for line in err.splitlines() if "written" in line] == [
        "error: the report could not be written: File too large"
    ]
    assert names(in_folder / "out") == {"record.json"}, "whole, and nothing of an earlier run beside it"


def test_a_record_that_cannot_be_written_leaves_none_of_an_earlier_run(
    in_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run([*CHECK, "--out", "out"]) == 0
    capsys.readouterr()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.records.whole_files.tempfile.mkstemp", full)
    assert run([*WRONG, "--out", "out"]) == 1
    out, err = capsys.readouterr()
    assert out == "FAIL: 1 of 1 rules failed; first: GEMM on eager+output_scaled\n"
    assert err.endswith("error: the record could not be written: No space left on device\n")
    assert names(in_folder / "out") == set()


@pytest.mark.parametrize("target", ["/dev/full", pytest.param("closed", marks=pytest.mark.long)])
def test_an_output_that_nobody_can_read_costs_no_verdict(in_folder: Path, target: str) -> None:
    command = [sys.executable, "-m", "harness.cli", *CHECK]
    given = 'exec "$@" >&-' if target == "closed" else f'exec "$@" > {target}'
    done = subprocess.run(
        ["bash", "-c", given, "bash", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (target == "closed") or done.stderr.endswith(
        "harness: not all of the output could be written to stdout: No space left on device\n"
    )
    assert names(in_folder / "harness-out") == {"record.json", "report.html", "junit.xml"}


def test_a_link_and_a_device_stay_what_they_are(in_folder: Path) -> None:
    (in_folder / "elsewhere.xml").write_text("")
    (in_folder / "junit.xml").symlink_to("elsewhere.xml")
    assert run([*CHECK, "--junit", "junit.xml"]) == 0
    assert (in_folder / "junit.xml").is_symlink()
    assert (in_folder / "elsewhere.xml").read_text().startswith("<?xml")
    assert run([*CHECK, "--junit", os.devnull]) == 0
    assert Path(os.devnull).is_char_device()
