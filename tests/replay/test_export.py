"""A failing call cut to a file: stages of every format, and a routed layer cut to one token."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.candidates import layouts
from harness.candidates.eager import EagerKernels
from harness.candidates.protocol import ROUTED
from harness.diagnosis.cases.observation import MASKED_GEMM, Observed
from harness.faults.named import plant
from harness.judging.context import Context, Known
from harness.judging.routed import arguments
from harness.problems.problem import parse_problem
from harness.replay.export import MOST_BYTES, export, illegal
from harness.replay.judging import Judged
from harness.replay.rerun import run_again
from harness.verdict import UsageError
from reference.e2m1 import pack_e2m1
from reference.formats import FORMATS

KNOWN = Judged.on(None, "real")


def exported(path: Path, call: Observed) -> Any:
    """Return the call that the exported file holds."""
    export(path, call, KNOWN, function="f", place="rank 0", title="wrong", capability=None)
    assert path.stat().st_size < MOST_BYTES
    return runpy.run_path(str(path))["CALL"]


def eager(activations: str, weights: str) -> EagerKernels:
    return EagerKernels(activation_format=activations, weight_format=weights, k_multiple=32)


@pytest.mark.parametrize("formats", [("nvfp4", "nvfp4"), ("bf16", "mxfp4"), ("fp8_token", "nvfp4")])
def test_a_gemm_of_any_format_is_cut_to_one_row(tmp_path: Path, formats: tuple[str, str]) -> None:
    right = eager(*formats)
    forms = FORMATS[formats[0]], FORMATS[formats[1]]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 5, 256, generator=generator).bfloat16()
    masked_m = torch.tensor([5, 2], dtype=torch.int32)
    codes = torch.randint(0, 16, (2, 64, 256), generator=generator, dtype=torch.uint8)
    of_blocks = torch.randint(
        110, 120, (2, 64, 256 // forms[1].block), generator=generator, dtype=torch.uint8
    )
    scale = layouts.as_mma(layouts.swizzle_128x4(of_blocks))
    a, a_scale = right.quantize_grouped(x, masked_m, torch.ones(2))
    given = {
        "a": a, "a_scale": a_scale, "b": pack_e2m1(codes).permute(1, 2, 0),
        "b_scale": scale if formats[1] == "nvfp4" else scale.view(torch.uint8), "masked_m": masked_m,
        "alpha": torch.ones(2), "out": layouts.empty_out(2, 5, 64, torch.bfloat16, "cpu", torch.nan),
    }  # fmt: skip
    call = run_again(Observed(MASKED_GEMM, given, None, forms=forms), right)
    call.output[3, 11, 0] += 1000
    kept = exported(tmp_path / "test_gemm.py", call)
    assert (kept.forms, kept.output.shape) == (forms, (1, 8, 1))
    assert illegal(kept, arithmetic="real")
    kept.output = run_again(kept, right).output
    assert illegal(kept, arithmetic="real") == []


@pytest.mark.parametrize("formats", [("nvfp4", "nvfp4"), ("bf16", "mxfp4")])
def test_a_routed_layer_is_cut_to_one_token_and_its_experts(tmp_path: Path, formats: tuple[str, str]) -> None:
    right = eager(*formats)
    problem = parse_problem("v2:6x20x128x64:20,0,7,3,3,9:normal:1")
    given = arguments(Context(right, problem, Known.declared(right.traits)))
    output = plant(right, "routed_weights_dropped").routed_moe(**{**given, "out": None})
    call = Observed(ROUTED, {**given, "out": None}, output, forms=(FORMATS[formats[0]], FORMATS[formats[1]]))
    kept = exported(tmp_path / "test_routed.py", call)
    assert kept.output.shape == (1, 8)
    assert len(kept.arguments["w1"]) <= 3
    assert illegal(kept, arithmetic="real")
    kept.output = run_again(kept, right).output
    assert illegal(kept, arithmetic="real") == []


def test_a_layer_whose_weights_do_not_fit_says_so(tmp_path: Path) -> None:
    right = eager("nvfp4", "nvfp4")
    problem = parse_problem("v2:1x2x1024x512:2:normal:1")
    given = arguments(Context(right, problem, Known.declared(right.traits)))
    call = Observed(ROUTED, {**given, "out": None}, torch.full((2, 1024), 1e4).bfloat16())
    with pytest.raises(UsageError, match="no slice of rank 0 under 100,000 bytes is illegal by itself"):
        exported(tmp_path / "test_large.py", call)
