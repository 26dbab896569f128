"""The section about cross-compilation."""

from __future__ import annotations

import re
from html import unescape

from harness.records.record import RunRecord
from harness.verdict import Verdict
from reports import compile as cross_compile
from reports.html import render

GEMM = "masked_gemm@sm_100a,l=8,m=256,n=1024,k=2048"
STAGE = {
    "verdict": "FAIL",
    "reason": "1 spills (2 compiled, 1 refused)",
    "versions": {"flashinfer-python": "9.9.0"},
    "baseline": {"name": "the shipped baseline", "versions": {"flashinfer-python": "9.8.0"}, "made": "2025-01-02"},
    "changes": [
        {"case": GEMM, "kind": "spills", "text": "16 bytes of stack <b>", "bad": True},
        {"case": GEMM + ",tile=256x256", "kind": "registers", "text": "60, were 50", "bad": False},
    ],
    "cases": [
        {"case": GEMM, "origin": "variant", "status": "compiled", "registers": 50, "spill_bytes": 32, "stack_bytes": 16,
         "shared_bytes": 226_304, "cpu_seconds": 1.25, "features": {"tcgen05.mma mxf4nvf4": 112, "mbarrier": 80}},
        {"case": GEMM + ",tile=256x256", "status": "compiled", "registers": 60, "spill_bytes": 0, "cpu_seconds": 2.0,
         "features": {"mbarrier": 81}},
        {"case": "nvfp4_quantize@sm_103a,k=2056", "origin": "guard", "guard": True, "status": "refused",
         "reason": "AssertionError: K (2056) must be divisible by 16"},
    ],
    "seconds": 7.0,
    "cpu_seconds": 6.5,
    "cached": 1,
}  # fmt: skip


def text(markup):
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", re.sub(r"(?s)<svg.*?</svg>", "", str(markup)))).split())


def rows(markup):
    return [text(row) for row in re.findall(r"(?s)<tr .*?</tr>", str(markup))]


def record(**changes):
    return RunRecord("r", "now", ["harness", "compile"], Verdict.FAIL, compile={**STAGE, **changes})


def test_differences_kernels_features_and_cases():
    drawn = cross_compile.section(record())
    found = rows(drawn)
    assert f"{GEMM} spills 16 bytes of stack <b>" in found
    assert "masked_gemm@sm_100a 2 compiled 50 to 60 226,304 1 3.25 s 2.00 s" in found
    assert "nvfp4_quantize@sm_103a 1 refused 0 0.00 s 0.00 s" in found
    assert found.index("mbarrier 2 masked_gemm") < found.index("tcgen05.mma mxf4nvf4 1 masked_gemm")
    assert f"{GEMM} variant compiled, spills 32 bytes 50 226,304 1.25 s" in found
    assert (
        "nvfp4_quantize@sm_103a,k=2056 guard refused: AssertionError: K (2056) must be divisible by 16"
        in found
    )
    assert "<b>" not in str(drawn)
    assert "made 2025-01-02 with flashinfer-python 9.8.0" in text(drawn)


def test_a_run_that_compiled_nothing_and_one_without_a_baseline():
    empty = {"verdict": "UNKNOWN", "reason": "nothing was compiled: flashinfer-python is not installed"}
    drawn = cross_compile.section(RunRecord("r", "now", [], compile=empty))
    assert "nothing was compiled: flashinfer-python is not installed" in text(drawn)
    assert "Compared with nothing" in text(cross_compile.section(record(baseline=None)))
    assert cross_compile.section(RunRecord("r", "now", [])) is None


def test_the_page_has_the_section_and_does_not_speak_of_rules():
    page = render(record())
    assert ">Cross-compilation<" in page
    assert "none judged" not in page


def test_no_list_is_endless():
    many = [{**STAGE["cases"][0], "case": f"{GEMM},m={i}"} for i in range(cross_compile.MOST_CASES + 7)]
    changes = [STAGE["changes"][1]] * (cross_compile.MOST_CHANGES + 3)
    drawn = text(cross_compile.section(record(cases=many, changes=changes)))
    assert "7 more cases are in record.json" in drawn
    assert "3 more differences are in record.json" in drawn
