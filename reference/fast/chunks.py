"""Exact dot products in torch alone on a GPU: chunks of k by tensor cores, their sums in float64; docs/bounds.md derives it."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from reference.fast.launch import LIMIT
from reference.nvfp4 import BLOCK

# Elements of a chunk, at most. A shorter one is proved more often and costs more sums: of a layer's tokens all rows are
# proved with 256, of what its activation returns one in five with 256, nine in ten with 128.
CHUNK = 256
_PARTIAL = 1 << 27  # products of chunks that are kept at a time


@lru_cache(maxsize=16)
def _finest(device: torch.device) -> Tensor:
    """Return one over the step of a block under each scale byte, `(256,)` float32; 0 under zero; read-only.

    The step is half the lowest bit of the scale: half is the step of the codes.
    """
    byte = torch.arange(256)
    exponent, mantissa = (byte >> 3) & 15, byte & 7
    mantissa = torch.where(exponent == 0, mantissa, mantissa | 8)
    lowest = torch.log2((mantissa & -mantissa).float()).int()  # minus infinity has no bits to be wrong
    steps = torch.ldexp(torch.ones(256), 11 - lowest - exponent.clamp(min=1))
    return torch.where(mantissa == 0, 0.0, steps).to(device)


def sizes(values: Tensor, block_scale: Tensor) -> Tensor:
    """Return a bound on the Euclidean norm of each chunk over the step of its grid, `(*, chunks)` float32.

    A chunk that holds NaN has 0: whatever it is multiplied with is NaN, in any order.

    Args:
        values: `(*, k)` bfloat16.
        block_scale: `(*, k / 16)` uint8 or float8_e4m3fn.
    """
    chunk = math.gcd(values.shape[-1], CHUNK)
    rows = values.view(*values.shape[:-1], -1, chunk)
    norm = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float32)
    byte = block_scale.view(torch.uint8).flatten().int()
    finest = _finest(values.device).index_select(0, byte).view(*norm.shape, chunk // BLOCK).amax(-1)
    return (norm * finest * 1.001).nan_to_num(0.0)  # float32 loses less


def open_rows(a_sizes: Tensor, b_sizes: Tensor, of_row: Tensor) -> Tensor:
    """Return the rows that hold a chunk of which a product may be inexact, `(rows,)` bool.

    Args:
        a_sizes: `(rows, chunks)`, from `sizes`.
        b_sizes: `(experts, n, chunks)`.
        of_row: `(rows,)` integer, the expert of each.
    """
    return (a_sizes * b_sizes.amax(1)[of_row] >= LIMIT).any(-1)


def dot_products(a: Tensor, b: Tensor, is_open: Tensor, count: int) -> Tensor:
    """Return a @ b.T, each as exact as float64 has it, `(m, n)` float64.

    Args:
        a: `(m, k)` bfloat16.
        b: `(n, k)` bfloat16.
        is_open: `(m,)` bool, from `open_rows`.
        count: of these that are.
    """
    if 2 * count > len(a):
        return torch.mm(a.double(), b.double().T)
    chunk = math.gcd(a.shape[-1], CHUNK)
    chunks = a.shape[-1] // chunk
    columns = b.view(-1, chunks, chunk).permute(1, 2, 0)
    out = torch.empty(len(a), len(b), dtype=torch.float64, device=a.device)
    at_once = max(1, _PARTIAL // (chunks * len(b)))
    for rows, done in zip(torch.split(a, at_once), torch.split(out, at_once), strict=True):
        torch.sum(_products(rows.view(-1, chunks, chunk).transpose(0, 1), columns), 0, out=done)
    if count:
        out[is_open] = torch.mm(a[is_open].double(), b.double().T)
    return out


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Return the products of matrices of bfloat16, `(chunks, m, n)` float32, added there."""
    if a.is_cuda:
        return torch.bmm(a, b, out_dtype=torch.float32)
    return torch.bmm(a.float(), b.float())
