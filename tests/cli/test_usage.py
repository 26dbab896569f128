"""Bad input: one clear line and exit 64, before torch is loaded or anything is written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.cli import run

SMALL = "1x4x32x32:2:normal:1"

# Every line of bad input that a user may type, and words that must be in the answer.
BAD = [
    (["chek"], "unknown command 'chek': did you mean 'check'?"),
    (["canary", "srve"], "unknown command 'srve': did you mean 'serve'?"),
    (["check", "--candidat", "eager"], "No such option"),
    (["check", "surplus"], "unexpected extra argument"),
    (["check", "--candidate"], "requires an argument"),
    (["check", "--candidate", "eagre"], "unknown candidate 'eagre': did you mean 'eager'?"),
    (["check", "--candidate", "flashinfer_cutedsl"], "did you mean 'flashinfer-cutedsl'?"),
    (["check", "--candidate", ":x"], "unknown candidate ':x'"),
    (["check", "--candidate", "eager", "--profile", "quik"], "unknown profile 'quik': did you mean 'quick'?"),
    (["check", "--rule", "GEM"], "unknown rule 'GEM': did you mean 'GEMM'?"),
    (["check", "--problem", "4x160"], "is not of the form v2:EXPERTSxCAPACITYxHIDDENxINTER"),
    (["check", "--problem", "1x4x32x32:2:normal:-1"], "is not of the form"),
    (["check", "--problem", "1x4x30x32:2:normal:1"], "hidden must be a multiple of 16, got 30"),
    (["check", "--problem", "0x4x32x32::normal:1"], "masked_m must be numbers"),
    (["check", "--problem", "1x4x32x32:5:normal:1"], "masked_m must lie in [0, 4], got [5]"),
    (["check", "--problem", "2x4x32x32:1:normal:1"], "masked_m must have 2 entries, got 1"),
    (["check", "--problem", "1x4x32x32:1*99999999:normal:1"], "masked_m must be numbers"),
    (["check", "--problem", "1x4x32x32:1:weird:1"], "data must be one of normal, spread, grid, got 'weird'"),
    (["check", "--problem", "1x4x32x32:1:normal:1:nann"], "unknown trap or option 'nann'"),
    (["check", "--shapes", "deepseek-r2"], "did you mean 'deepseek-r1'?"),
    (["check", "--shapes", "nowhere/config.json"], "cannot be read as a config.json"),
    (["check", "--shapes", "deepseek-r1", "--ep", "7"], "--ep must divide the 256 experts"),
    (["check", "--ep", "8"], "--ep says how many ranks share the experts of --shapes"),
    (["check", "--ep", "eight"], "is not a valid integer"),
    (["check", "--seed", "-1"], "--seed must not be negative, got -1"),
    (["check", "--max-seconds", "-1"], "--max-seconds must not be negative"),
    (["check", "--max-memory", "-1"], "--max-memory must not be negative"),
    (["check", "--threads", "-1"], "--threads must not be negative"),
    (["check", "--max-seconds", "nan"], "--max-seconds must not be negative, got nan"),
    (["check", "--known-failures", "nowhere.toml"], "cannot be read as a list of known failures"),
    (["check", "--problem", ""], "problem: '' is not of the form"),
    (
        ["check", "--problem", f"{SMALL}8446744073709551615"],
        "seed must be at most 9223372036854775807, got 18446",
    ),
    (["check", "--problem", SMALL + "1" * 5000], "seed must be at most 9223372036854775807, got 1111"),
    (
        ["check", "--problem", "1x4x16000000000x32:2:normal:1"],
        "needs at least 834.5 GiB for its tensors, this machine",
    ),
    (
        ["check", "--problem", "1x4x64x32:2:normal:1", "--max-memory", "1e-9"],
        "bytes for its tensors, --max-memory allows",
    ),
    (["check", "--problem", "\u0661x4x32x32:2:normal:1"], "is not of the form"),
    (["check", "--problem", "1x4x32x32:\u0662:normal:1"], "masked_m must be numbers"),
    (["check", "--problem", f"{SMALL}:float32_out+float16_out"], "a GEMM has one output type"),
    (["check", "--problem", SMALL, "--shapes", "qwen3-30b"], "--problem names its own shape"),
    (["check", "--problem", SMALL, "--shapes", ""], "--problem names its own shape"),
    (["check", "--shapes", ""], "unknown shapes ''"),
    (["check", "--seed", "1" * 26], "is too large; the largest is 9223372036854775807"),
    (["check", "--seed", "\u0662"], "digits are 0 to 9"),
    (["check", "--max-seconds", "\u0662"], "digits are 0 to 9"),
    (["check", "--threads", "99999999999"], "--threads must be at most 1,024"),
    (["check", "--max-memory", "1e300"], "--max-memory must be at most 1,048,576, got 1e+300"),
    (["check", "--max-memory", "inf"], "--max-memory must be at most 1,048,576, got inf"),
    (
        ["check", "--candidate", "my/kernels.py:Moe"],
        "is the path of a file; write it with dots, as for import: my.kernels:Moe",
    ),
    (["check", "--candidate", "./kernels.py"], "as for import: kernels:CLASS"),
    (["check", "--workers", "-1"], "--workers must lie between 1 and 1,024, got -1"),
    (["check", "--workers", "2", "--no-isolate"], "several workers are several processes"),
    (["check", "--workers", "2", "--candidate", "eager-gloo:4"], "has ranks of its own"),
    (["check", "--gpus", "many"], "--gpus: expected all or a number of GPUs"),
    (["check", "--ray", "auto", "--workers", "2"], "give it without --workers and --gpus"),
    (["check", "--shard", "4/3"], "--shard: expected I/N with 1 <= I <= N"),
    (["check", "--shard", "1/3", "--problem", SMALL], "--problem is one problem, for one worker"),
    (["check", "--workers", "2", "--problem", SMALL], "--problem is one problem, for one worker"),
    (["check", "--shard", "1/3", "--max-seconds", "9"], "give it without --max-seconds"),
    (["report", "--merge", "a"], "--merge takes the RECORD of each shard, and --out DIR"),
    (["report", "--merge", "--out", "b"], "--merge takes the RECORD of each shard, and --out DIR"),
    (["report", "--merge", "nowhere", "--out", "b"], "cannot be read"),
    (["canary", "serve", "--port", "99999999"], "--port must lie between 0 and 65535, got 99999999"),
    (["canary", "serve", "--port", "-1"], "--port must lie between 0 and 65535, got -1"),
    (["report", "no\nwhere"], "no where"),
    (["report", "nowhere"], "cannot be read"),
    (["report"], "Missing argument 'RECORD'"),
    (["doctor", "--loud"], "No such option"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_one_line_and_exit_64(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 64
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("harness: ")
    assert words in err
    assert err.count("\n") == 1, "one line"
    assert "Traceback" not in err


def test_an_output_folder_that_cannot_be_made_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A path below a file: permissions would not stop a test that runs as root."""
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "out", tmp_path / "file"):
        assert run(["check", "--candidate", "eager", "--problem", SMALL, "--out", str(folder)]) == 64
        assert f"harness: --out: {folder} cannot be created" in capsys.readouterr().err


def test_an_output_folder_that_is_not_writable_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # click asks os.access too, about reading; a test that runs as root can write anywhere
    monkeypatch.setattr("harness.ci.folder.os", SimpleNamespace(access=lambda *_: False, W_OK=2, X_OK=1))
    assert run(["check", "--candidate", "eager", "--problem", SMALL, "--out", str(tmp_path)]) == 64
    assert f"--out: {tmp_path} is not writable" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("chek",), "unknown command"),
        (("check", "--profile", "quik"), "did you mean 'quick'"),
        (
            ("check", "--candidate", "nowhere_at_all:Kernel", "--problem", SMALL),
            "No module named 'nowhere_at_all'",
        ),
        (("check", "--candidate", "faulty:Missing", "--problem", SMALL), "has no attribute 'Missing'"),
    ],
)
def test_64_through_a_process(harness, arguments: tuple[str, ...], words: str) -> None:
    done = harness(*arguments)
    assert done.code == 64, done.err
    assert words in done.err
    assert done.out == ""
    assert not (done.folder / "record.json").exists()


def test_without_a_command_the_help_is_shown(harness) -> None:
    done = harness()
    assert done.code in {0, 64}  # click's own answer differs between its versions; neither is a verdict
    assert "Commands:" in done.out + done.err


def test_an_error_nobody_expected_is_an_internal_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.rules.find_rules", lambda _: 1 // 0)
    assert run(["check"]) == 70
    err = capsys.readouterr().err
    assert "ZeroDivisionError" in err
    assert "a defect of the harness" in err


def test_an_interrupt_before_anything_runs_is_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.rules.find_rules", interrupted)
    assert run(["check"]) == 130
    assert capsys.readouterr().err.strip() == "harness: interrupted"
