"""`harness compile` as a process, with the real worker on stand-ins for FlashInfer and its compiler."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from harness.verdict import Verdict

GOOD = "masked_gemm@sm_100a,l=2,m=128,n=256,k=512"
ODD = "masked_gemm@sm_100a,l=2,m=128,n=256,k=528"
ABORTS = "masked_gemm@sm_100a,l=2,m=101,n=256,k=512"
FAILS = "masked_gemm@sm_103a,l=2,m=103,n=256,k=512"


def cases(*names):
    return [word for name in names for word in ("--case", name)]


def test_a_baseline_is_written_and_the_next_run_is_compared_with_it_and_comes_out_of_the_cache(
    harness_compile, tmp_path
):
    kept = tmp_path / "baseline.json"
    first, record = harness_compile(*cases(GOOD, ODD), "--no-baseline", "--write-baseline", str(kept))
    assert first.returncode == 0, first.stderr
    found = {c["case"]: c for c in record.compile["cases"]}
    good, odd = found[GOOD], found[ODD]
    assert (good["status"], good["registers"], good["threads"], good["shared_bytes"]) == (
        "compiled",
        40,
        192,
        226_304,
    )
    assert good["features"] == {
        "block_scale 16": 1, "cta_group::2": 1, "mbarrier": 1, "tcgen05.mma mxf4nvf4": 1,
    }  # fmt: skip
    assert good["spill_bytes"] == 0
    assert odd["status"] == "refused"
    assert "multiples of 16 bytes" in odd["reason"]

    second, record = harness_compile(*cases(GOOD, ODD), "--baseline", str(kept))
    assert (second.returncode, record.compile["cached"], record.compile["changes"]) == (0, 2, [])
    assert "flashinfer-python 9.9.0" in second.stdout

    spilling, record = harness_compile(
        *cases(GOOD, ODD), "--baseline", str(kept), "--fresh", FAKE_SPILLS="16"
    )
    assert spilling.returncode == 1
    assert [c["kind"] for c in record.compile["changes"] if c["bad"]] == ["spills"]
    assert "16 bytes of stack, 32 of spill stores and loads" in spilling.stdout

    unchecked, record = harness_compile(
        *cases(GOOD, ODD), "--baseline", str(kept), "--fresh", FAKE_NO_CHECKS="1"
    )
    (change,) = record.compile["changes"]
    assert (unchecked.returncode, change["case"], change["kind"]) == (0, ODD, "compiles now")


def test_a_compiler_that_aborts_costs_its_case_and_the_others_are_compiled(harness_compile, tmp_path):
    done, record = harness_compile(*cases(ABORTS, FAILS, GOOD), "--no-baseline")
    assert done.returncode == 1
    found = {c["case"]: c for c in record.compile["cases"]}
    assert {name: c["status"] for name, c in found.items()} == {
        ABORTS: "crashed", FAILS: "failed", GOOD: "compiled",
    }  # fmt: skip
    assert "SIGABRT" in found[ABORTS]["reason"]
    assert "LLVM ERROR: out of ideas" in found[ABORTS]["reason"]
    assert "NVVM: no such intrinsic" in record.reason
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Cross-compilation" in page
    assert "out of ideas" in page


def test_packages_that_cannot_be_imported_together_are_a_fail(harness_compile):
    done, record = harness_compile(*cases(GOOD), "--no-baseline", FAKE_IMPORT_ERROR="1")
    assert done.returncode == 1
    assert "cannot import name 'dsl_user_op'" in record.reason
    assert "nvidia-cutlass-dsl 9.8.0" in record.reason


@pytest.mark.skipif(importlib.util.find_spec("flashinfer") is not None, reason="flashinfer is installed here")
def test_missing_packages_are_unknown_with_the_reason_and_the_remedy(harness_compile):
    done, record = harness_compile(*cases(GOOD), PYTHONPATH="")
    assert (done.returncode, record.verdict) == (2, Verdict.UNKNOWN)
    assert "flashinfer-python is not installed; run: pip install 'fp4-moe-harness[cutedsl]'" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arch", "sm_90a"], "--arch must be one of sm_100a, sm_103a"),
        (["--kernel", "gemm"], "--kernel must be one of masked_gemm"),
        (["--origin", "nowhere"], "no case is left by these options; origins are"),
        (["--case", "masked_gemm@sm_100a,l=2"], "needs the option m"),
        (["--case", "masked_gemm@sm_100a", "--kernel", "masked_gemm"], "leave --kernel and --origin out"),
        (["--jobs", "-1"], "--jobs must not be negative"),
        (["--timeout", "nan"], "--timeout must be positive"),
        (["--baseline", "a", "--no-baseline"], "exclude each other"),
        (["--baseline", "nowhere.json"], "cannot be read"),
        (
            ["--arch", "sm_100a", "--write-baseline", "/dev/null"],
            "a part of the matrix would take the place of all",
        ),
    ],
)
def test_bad_usage_is_64_and_says_what_is_expected(capsys, arguments, words):
    from harness.cli import run

    assert run(["compile", *arguments]) == 64
    assert words in capsys.readouterr().err


def test_the_command_imports_no_torch():
    code = "import sys, harness.cli.compile, harness.compile.run, harness.compile.matrix; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
