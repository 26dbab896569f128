"""Outputs of the interpreted FlashInfer kernel, stored: legal by this project's own judges, rows written as documented.

`make test` needs neither flashinfer nor cutlass for this; `make test-flashinfer` makes the same outputs again.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.judging.gemm import judge_gemm
from reference.bounds import Accumulator
from reference.e2m1 import decode_e2m1
from reference.e4m3 import decode_e4m3
from reference.matrix_units import UNITS, Operand, matmul
from reference.nvfp4 import decode_blocks
from tests.interpreter.make_golden import GOLDEN, PROBLEMS, SENTINEL


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as stored:
        return dict(stored)


def rows_written(masked_m, rows, cluster_m):
    """The write contract (docs/cutedsl-cpu.md): tiles of 128 rows, counted one by one and written in clusters."""
    return min(rows, -(-masked_m // 128) * 128 * cluster_m)


@pytest.mark.parametrize("name", PROBLEMS)
def test_stored_outputs_are_legal_and_only_whole_tiles_are_written(golden, name):
    _, rows, _, _, masked_m, dtype, options = PROBLEMS[name]
    tensors = {
        key: torch.from_numpy(golden[f"{name}/{key}"])
        for key in ("codes_a", "codes_b", "scales_a", "scales_b", "alpha", "out")
    }
    a, b = (decode_blocks(tensors[f"codes_{x}"], tensors[f"scales_{x}"], torch.float32) for x in "ab")
    out = tensors["out"].to(getattr(torch, dtype))
    found = judge_gemm(
        "gemm", out, a, b, tensors["alpha"], list(masked_m), Accumulator(24, 64, measured=True, window=27)
    )
    assert found.illegal == 0
    assert found.compared == sum(masked_m) * out.shape[2]
    certified = any(key.startswith("bit equality") and count for key, count in found.judged.items())
    assert certified == (name != "inexact")
    cluster_m = options.get("cluster_shape_mn", (1, 1))[0]
    for expert, count in enumerate(masked_m):
        written = rows_written(count, rows, cluster_m)
        assert (out[expert, written:] == SENTINEL).all()
        assert (out[expert, :written] != SENTINEL).any(-1).all()


@pytest.mark.parametrize("name", PROBLEMS)
def test_stored_outputs_are_those_of_the_unit_in_one_pass_over_k(golden, name):
    """The kernel adds its tiles of k in order into one accumulator: the model alone predicts every bit of it."""
    masked_m, dtype = PROBLEMS[name][4:6]
    for expert, count in enumerate(masked_m):
        a, b = (
            Operand.of(
                decode_e2m1(torch.from_numpy(golden[f"{name}/codes_{x}"][expert])),
                "e2m1",
                decode_e4m3(torch.from_numpy(golden[f"{name}/scales_{x}"][expert])),
            )
            for x in "ab"
        )
        sums = matmul(UNITS["sm_100 mxf4nvf4"], a.at(slice(0, count)), b)
        wanted = (sums * golden[f"{name}/alpha"][expert]).to(getattr(torch, dtype)).float()
        assert np.array_equal(wanted.numpy(), golden[f"{name}/out"][expert, :count])
        if name == "inexact":
            x, y = (
                decode_blocks(
                    torch.from_numpy(golden[f"{name}/codes_{s}"][expert]),
                    torch.from_numpy(golden[f"{name}/scales_{s}"][expert]),
                    torch.float64,
                )
                for s in "ab"
            )
            exact = x[:count] @ y.T
            assert (sums.double() != exact).double().mean() > 0.5


@pytest.mark.flashinfer
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_kernel_gives_the_stored_outputs_again(golden, name):
    from tests.interpreter.make_golden import interpreted

    for key, array in interpreted(name).items():
        assert np.array_equal(array, golden[f"{name}/{key}"], equal_nan=True), key
