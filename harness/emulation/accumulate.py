"""Tensor-core accumulation, imitated: exact sums of a chunk of products, then one truncation or rounding.

A chunk is what one instruction adds. These are simple accumulators to judge bounds by; what real units do, bit for
bit, is in reference/matrix_units (docs/numerics.md).
"""

from __future__ import annotations

import torch
from torch import Tensor


def truncate(x: Tensor, bits: int = 24) -> Tensor:
    """Return float64 values cut to `bits` significant bits, toward zero. Subnormal float64 values lose more."""
    # A float64 holds 53 significant bits, the leading one implied: clearing low bits of the pattern cuts the magnitude.
    return (x.view(torch.int64) & -(1 << (53 - bits))).view(torch.float64)


def blocked_gemm(
    a: Tensor, b: Tensor, *, chunk: int = 64, bits: int = 24, rounding: str = "truncate"
) -> Tensor:
    """Return a @ b.T accumulated chunk by chunk.

    Args:
        a: `(m, k)` floating point.
        b: `(n, k)` floating point.
        chunk: products added exactly before the running sum loses bits.
        bits: significant bits of the running sum.
        rounding: "truncate" or "nearest" (float32, bits 24 only).

    Returns:
        `(m, n)` float32.
    """
    total = torch.zeros(a.shape[0], b.shape[0], dtype=torch.float64, device=a.device)
    for start in range(0, a.shape[1], chunk):
        part = slice(start, start + chunk)
        total += torch.mm(a[:, part].double(), b[:, part].double().T)
        total = truncate(total, bits) if rounding == "truncate" else total.float().double()
    return total.float()


def aligned_gemm(a: Tensor, b: Tensor, *, chunk: int = 64, bits: int = 24, window: int = 26) -> Tensor:
    """Return a @ b.T accumulated by instructions that align their terms before they add them.

    Each product and the running sum lose what lies below the window of the largest of them, toward zero; their sum is then
    truncated. An H100 keeps 26 bits in its bfloat16 instructions.

    Args:
        a: `(m, k)` floating point.
        b: `(n, k)` floating point.
        chunk: products of one instruction.
        bits: significant bits of the running sum.
        window: significant bits of the largest term that the others are aligned to.

    Returns:
        `(m, n)` float32.
    """
    out = torch.zeros(a.shape[0], b.shape[0], dtype=torch.float64, device=a.device)
    for row in range(a.shape[0]):
        total = out[row]
        for start in range(0, a.shape[1], chunk):
            part = slice(start, start + chunk)
            terms = torch.cat((a[row, part].double() * b[:, part].double(), total.unsqueeze(-1)), dim=-1)
            largest = torch.frexp(terms.abs().amax(-1, keepdim=True))[1]
            step = torch.ldexp(torch.ones_like(terms[:, :1]), largest - window)
            total = truncate((torch.trunc(terms / step) * step).sum(-1), bits)
        out[row] = total
    return out.float()
