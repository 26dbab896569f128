"""A failing problem as a plain script: the same elements without the harness, and nothing once the bug is fixed."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from harness.diagnosis.cases.legality import Bounds
from harness.diagnosis.cases.observation import Observed
from harness.records.record import Failure
from harness.reproduction import plain
from harness.reproduction.legal import judged_call
from harness.reproduction.script import script_text
from harness.running.judge import Judge
from harness.running.outcome import Outcome
from reference.bounds import Accumulator
from reference.legal import Arithmetic

KERNEL = Path(__file__).with_name("plain_kernel.py")
PROBLEM = "2x5x32x48:5,3:normal:3"
BUGS = {"quantize": "QUANT", "scale": "QUANT", "silu": "ACT", "gemm": "GEMM", "moe": "MOE"}
ROOT = Path(__file__).parents[2]

# Runs each script with the bug and without it, where nobody can import the harness.
RUN_ALL = """
import contextlib, io, json, os, runpy, sys

class Blocked:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {"harness", "hypothesis", "click"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
found = {}
for bug in sys.argv[1:]:
    for now in (bug, ""):
        os.environ["BUG"] = now
        sys.modules.pop("plain_kernel", None)
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said):
                runpy.run_path(f"{bug}.py", run_name="__main__")
        except SystemExit as ended:
            found[f"{bug} {'buggy' if now else 'fixed'}"] = (ended.code, said.getvalue())
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def kernel() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plain_kernel", KERNEL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def kept(kernel: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what the judge says of a bug, and keep the calls in BUG.pt beside BUG.py."""

    def keep(
        bug: str, rule: str, problem: str = PROBLEM, *, before_each: bool = False
    ) -> tuple[Outcome, str]:
        monkeypatch.setattr(kernel, "BUG", bug)
        monkeypatch.setattr(plain, "SHOWN", 1000)
        judge = Judge(kernel.Kernel(), probe=False)
        judged = judge.judge(rule, problem)
        why_not = judge.keep_calls(rule, problem, tmp_path / f"{bug}.pt", before_each=before_each)
        text = script_text(failure(rule, problem), f"{bug}.py", warm=False).replace(
            "SHOWN = 20", "SHOWN = 1000"
        )
        (tmp_path / f"{bug}.py").write_text(text)
        return judged, why_not

    return keep


def failure(rule: str, problem: str, candidate: str = "plain_kernel:Kernel") -> Failure:
    return Failure(rule, candidate, problem, "", "illegal", 'it says """ and \\n', "harness check")


def test_a_bug_in_each_stage_is_shown_by_its_script_without_the_harness_and_is_gone_when_it_is_fixed(
    kept, tmp_path: Path
) -> None:
    judged = {bug: kept(bug, rule) for bug, rule in BUGS.items()}
    shutil.copy(KERNEL, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, *BUGS],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert sorted(found) == sorted(f"{bug} {word}" for bug in BUGS for word in ("buggy", "fixed"))
    for bug, (outcome, why_not) in judged.items():
        assert why_not == ""
        code, said = found[f"{bug} buggy"]
        *lines, last = said.splitlines()
        assert (code, last) == (1, f"{len(lines):,} wrong")
        assert len(lines) == sum(c.illegal for c in outcome.illegal), (
            f"{bug}: as many elements as the judge has"
        )
        places = {re.search(r"expert (\d+), row (\d+), \w+ (\d+)", line).groups() for line in lines}
        for comparison in outcome.illegal:
            assert tuple(str(number) for number in comparison.place.values()) in places
        assert found[f"{bug} fixed"] == [0, "nothing is wrong\n"]


@pytest.mark.parametrize(
    ("bug", "rule", "words"),
    [
        ("free", "REPEAT", "quantize_grouped codes[expert "),
        ("inputs", "INPUTS", "masked_grouped_gemm changed its input alpha"),
        ("writes", "WRITES", "masked_grouped_gemm wrote 0 to element"),
        ("now and then", "REPEAT", "quantize_grouped.codes[expert 0, row 0, col 0] = code 3 (+1.5)"),
        (
            "type",
            "QUANT",
            "quantize_grouped: packed must be (5, 16, 2) torch.uint8, got (2, 5, 16) torch.uint8",
        ),
    ],
)
def test_what_is_no_illegal_element_is_shown_as_well(
    kept, kernel, tmp_path, capsys, bug, rule, words
) -> None:
    judged, why_not = kept(bug, rule, f"{PROBLEM}:zero_row" if bug == "free" else PROBLEM)
    assert (judged.fails, why_not) == (True, "")
    file = tmp_path / f"{bug}.pt"
    # One that strikes in every other call needs the call before.
    assert plain.main(kernel.Kernel(), file, warm=bug == "now and then") == 1
    assert words in capsys.readouterr().out
    kernel.BUG = ""
    assert plain.main(kernel.Kernel(), file, warm=False) == 0


def test_a_call_that_raises_raises_in_the_script_and_is_judged_when_it_no_longer_does(
    kept, kernel, tmp_path: Path
) -> None:
    assert kept("raises", "QUANT")[1] == ""
    with pytest.raises(ValueError, match="no tile for it"):
        plain.main(kernel.Kernel(), tmp_path / "raises.pt", warm=False)
    for bug, code in (("quantize", 1), ("", 0)):
        kernel.BUG = bug
        assert plain.main(kernel.Kernel(), tmp_path / "raises.pt", warm=False) == code


def test_a_call_that_may_never_end_is_on_the_disk_before_it_is_made(
    kept, kernel, tmp_path, monkeypatch
) -> None:
    def abort() -> None:
        assert (tmp_path / "aborts.pt").exists()
        raise SystemExit

    monkeypatch.setattr(os, "abort", abort)
    monkeypatch.setattr(kernel, "BUG", "aborts")
    judge = Judge(kernel.Kernel(), probe=False)
    with pytest.raises(SystemExit):
        judge.keep_calls("QUANT", PROBLEM, tmp_path / "aborts.pt", before_each=True)
    kernel.BUG = "quantize"
    assert plain.main(kernel.Kernel(), tmp_path / "aborts.pt", warm=False) == 1


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("LOAD", "LOAD calls load_experts, which take and return objects that only the harness makes"),
        ("QUANT", f"QUANT passed each of 4 times that it was repeated on {PROBLEM}"),
    ],
)
def test_where_there_is_no_script_it_is_said_why(kernel, tmp_path: Path, rule: str, words: str) -> None:
    judge = Judge(kernel.Kernel(), probe=False)
    file = tmp_path / "none.pt"
    why_not = judge.keep_calls(rule, PROBLEM, file, before_each=False)
    assert (why_not.replace("of 24 times", "of 4 times"), file.exists()) == (words, False)


def test_the_judge_and_the_script_read_scales_and_codes_alike(kernel: ModuleType) -> None:
    import torch

    from harness.candidates import layouts

    generator = torch.Generator().manual_seed(5)
    codes = torch.randint(16, (3, 200, 96), dtype=torch.uint8, generator=generator)
    scale = torch.randint(256, (3, 200, 6), dtype=torch.uint8, generator=generator)
    rows = torch.ones(3, 200, dtype=torch.bool).nonzero().unbind(1)
    call = {"stage": "quantize_grouped", "rows": rows, "shape": (3, 200, 96)}
    found = plain.valid_elements(call, (layouts.operand(codes), layouts.scales(scale)))
    assert torch.equal(found["codes"].view(codes.shape), codes)
    assert torch.equal(found["scale"].view(scale.shape), scale)


@pytest.mark.parametrize("stage", ["quantize_grouped", "silu_mul_quantize_grouped"])
def test_the_scale_of_a_block_with_a_half_of_nan_may_be_nan_as_well(stage: str) -> None:
    import torch

    from harness.candidates import layouts
    from harness.candidates.eager import Eager

    x = torch.ones(1, 2, 64, dtype=torch.bfloat16)
    x[0, 0, 1:16:2] = torch.nan  # half of a block
    x[0, 0, 33:46:2] = torch.nan  # all but one of the half of another
    given = torch.cat((32 * x, x / 32), -1) if stage == "silu_mul_quantize_grouped" else x
    arguments = {"x": given, "masked_m": torch.tensor([2]), "global_scale_enc": torch.tensor([448.0])}
    packed, scales = getattr(Eager(), stage)(*arguments.values())
    block_scale = layouts.block_scales_of(scales, 2, 4)
    for block, wrong in ((None, 0), (0, 0), (1, 1), (2, 1), (3, 1)):
        stored = block_scale.clone()
        if block is not None:
            stored[0, 0, block] = 0x7F
        output = packed, layouts.scales(stored)
        call = judged_call(Observed(stage, arguments, output), Bounds(Arithmetic("exact"), Accumulator()))
        assert len(plain.wrong_elements(call, output)) == wrong


def test_a_sum_that_may_be_zero_times_an_infinite_alpha_is_anything_but_a_number() -> None:
    import torch

    from harness.candidates import layouts
    from harness.candidates.eager import Eager

    codes = torch.full((1, 2, 16), 2, dtype=torch.uint8)
    codes[0, 1, ::2] = 10  # of the other sign
    one = layouts.scales(torch.full((1, 2, 1), 0x38, dtype=torch.uint8))
    ones = torch.full_like(codes, 2)
    arguments = {
        "a": layouts.operand(codes), "a_scale": one, "b": layouts.operand(ones), "b_scale": one,
        "out": layouts.empty_out(1, 2, 2, torch.bfloat16, "cpu", 0.0), "masked_m": torch.tensor([2]),
        "alpha": torch.tensor([torch.inf]),
    }  # fmt: skip
    Eager().masked_grouped_gemm(**arguments)
    out = arguments["out"]
    assert out[0].isinf().all()
    assert out[1].isnan().all()
    call = judged_call(Observed("masked_grouped_gemm", arguments, out), Bounds(Arithmetic(), Accumulator()))
    for row, value, wrong in ((0, torch.nan, 2), (0, -torch.inf, 2), (1, -torch.inf, 0), (1, 0.0, 2)):
        changed = out.clone()
        changed[row] = value
        assert len(plain.wrong_elements(call, changed)) == wrong
    assert plain.wrong_elements(call, out) == []


def test_a_candidate_of_the_harness_is_imported_from_it_and_the_head_says_so() -> None:
    own = script_text(failure("GEMM", PROBLEM), "f.py", warm=False)
    planted = script_text(failure("GEMM", PROBLEM, "physical+alpha_of_neighbour@7"), "f.py", warm=True)
    assert "import harness" not in own
    assert "from harness" not in own
    assert "Needs torch and the harness, which has the candidate." in planted
    assert "Needs torch and the candidate, nothing else." in own
    assert "load_named('physical+alpha_of_neighbour@7')" in planted
    for text in (own, planted):
        compile(text, "f.py", "exec")
        assert "compute-sanitizer python f.py" in text
        assert "f.pt, beside it" in text
