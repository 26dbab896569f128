"""The bound of a GEMM that rounds partial sums to the output's type: every split and order lies in it, and little else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reference.bounds import Accumulator
from reference.intervals import Interval
from reference.matrix_units import Summation
from reference.propagate import Added, gemm

STREAM = Added(Accumulator(chunk=16), Summation.of("sm_90 f16; lanes 2; stream"))


def operands(k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(k)
    a, b = (torch.randn(48, k, generator=draw).to(dtype).double() for _ in range(2))
    return a, b


def parts(k: int, seed: int) -> list[slice]:
    """Return parts of k, some blocks of 64 each, in some order."""
    draw = torch.Generator().manual_seed(seed)
    cuts = torch.rand(k // 64 - 1, generator=draw).lt(0.6).nonzero().flatten().add(1).tolist()
    ends = list(zip([0, *cuts], [*cuts, k // 64], strict=True))
    return [
        slice(64 * ends[place][0], 64 * ends[place][1]) for place in torch.randperm(len(ends), generator=draw)
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("k", [64, 128, 448, 1024])
def test_parts_in_any_order_are_legal(k: int, dtype: torch.dtype) -> None:
    a, b = operands(k, dtype)
    for seed in range(20):
        alpha = torch.tensor((0.7, 0.5)[seed % 2])
        legal = gemm(Interval(a, a, a.new_zeros(len(a), 0)), b, alpha, dtype, STREAM)
        total = torch.zeros(len(a), len(b), dtype=dtype)
        for part in parts(k, seed):
            partial = (a[:, part] @ b[:, part].T).float()
            # A factor that the type holds may come after a rounding of its own.
            stored = (partial.to(dtype) if seed % 2 else partial) * alpha
            total = (total.float() + stored.to(dtype).float()).to(dtype)
        assert bool(((total.double() >= legal.low) & (total.double() <= legal.high)).all())


def test_a_tenth_off_is_found() -> None:
    a, b = operands(128, torch.bfloat16)
    legal = gemm(Interval(a, a, a.new_zeros(len(a), 0)), b, None, torch.bfloat16, STREAM)
    wrong = ((a @ b.T) * 1.1).bfloat16().double()
    assert float(((wrong < legal.low) | (wrong > legal.high)).double().mean()) > 0.8
