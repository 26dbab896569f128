"""The real packages: a handful of kernels of each kind, against the shipped baseline and against ptxas' own report."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from harness.compile.baseline import SHIPPED, load_baseline
from harness.records.record import load_record

pytestmark = pytest.mark.flashinfer

SHAPE = "l=8,m=256,n=1024,k=2048"
CASES = [
    f"masked_gemm@sm_100a,{SHAPE}",
    f"masked_gemm@sm_103a,{SHAPE},out=float32,tile=256x256,cluster=2x1",
    f"masked_gemm@sm_100a,{SHAPE},swap=1,ranks=4",
    "nvfp4_quantize@sm_100a,k=7168",
    "silu_mul_quantize@sm_103a,k=2048",
    "mxfp4_quantize@sm_100a,k=2880",
    "mxfp8_quantize@sm_100a,k=2880",
    "moe_gemm1@sm_100a,tile=256x256,cluster=2x1",
    "moe_gemm2@sm_103a",
]
GUARDS = [
    "masked_gemm@sm_100a,l=8,m=256,n=1024,k=2064",
    f"masked_gemm@sm_103a,{SHAPE},tile=256x128",
    "nvfp4_quantize@sm_100a,k=2056",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The command on these cases with the real worker; PTX and cubins are kept."""
    folder = tmp_path_factory.mktemp("compile")
    arguments = [word for name in [*CASES, *GUARDS] for word in ("--case", name)]
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", "compile", *arguments, "--jobs", "1", "--fresh", "--out", str(folder),
         "--cache", str(folder / "cache"), "--keep", str(folder / "kept")],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    return done, load_record(folder), folder


def test_nothing_got_worse_since_the_shipped_baseline(run):
    done, record, _ = run
    assert done.returncode == 0, done.stdout + done.stderr
    found = {c["case"]: c for c in record.compile["cases"]}
    assert {found[name]["status"] for name in CASES} == {"compiled"}
    assert {found[name]["status"] for name in GUARDS} == {"refused"}
    baseline = load_baseline(SHIPPED)
    if (
        baseline.versions == record.compile["versions"]
    ):  # the compiler is deterministic: the very same PTX comes out
        assert {name: found[name]["ptx_digest"] for name in CASES} == {
            name: baseline.results[name].ptx_digest for name in CASES
        }


def test_the_instructions_are_those_of_the_kernel_that_was_asked_for(run):
    found = {c["case"]: c for c in run[1].compile["cases"]}
    one, pairs, fused, quantize, silu = (found[name]["features"] for name in CASES[:5])
    # k = 2048 is 32 instructions of 64 products; the loop over k is unrolled.
    assert one["tcgen05.mma mxf4nvf4"] == one["block_scale 16"] == 32
    assert "cta_group::2" not in one
    assert pairs["cta_group::2"] > 32
    assert pairs["multicast::cluster"] > 0
    assert "multimem" in fused
    assert "cvt e2m1" in quantize
    assert "tcgen05.alloc" not in quantize
    assert "ex2.approx" in silu


def test_what_the_cubin_says_is_what_ptxas_reported(run):
    """Registers come from the ELF file, spills from the report: a kernel that spills has a stack in the ELF file too."""
    found = {c["case"]: c for c in run[1].compile["cases"]}
    for name in CASES:
        case = found[name]
        assert case["spill_bytes"] is not None
        assert 16 <= case["registers"] <= 255
        assert case["threads"] % 32 == 0
        assert case.get("stack_bytes", 0) > 0 or case["spill_bytes"] == 0, name
        assert 0 < case["shared_bytes"] <= 232_448 or "quantize" in name


def test_ptx_and_cubins_are_kept(run):
    kept = sorted(path.name for path in (run[2] / "kept").iterdir())
    assert len(kept) == 2 * len(CASES)
    text = (run[2] / "kept" / "nvfp4_quantize@sm_100a_k7168.ptx").read_text()
    assert ".target sm_100a" in text
    assert json.dumps(run[1].compile)  # plain data
