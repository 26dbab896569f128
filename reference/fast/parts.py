"""Exact dot products in torch alone on a GPU: rows in two parts, one on a coarse grid, each by tensor cores: docs/bounds.md.

A row's values have few bits and spread over many binades. What is left of them beside multiples of a power of two in the
middle is small, and the multiples are coarse: each part needs about half of the bits that the row needs, so that the products
of either with a row of weights, thousands of them, add up in float32 exactly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cache, lru_cache

import torch
from torch import Tensor

from reference.fast.launch import LIMIT
from reference.nvfp4 import BLOCK

_PIECE = 4096  # elements of k that are added in float32, at most: with 7,168 one row in thirty of a layer's tokens is left open
_ZERO = 8  # what exponents of steps are told apart from zero by


@lru_cache(maxsize=16)
def _fineness(device: torch.device) -> Tensor:
    """Return -log2 of the step of a block under each scale byte, and _ZERO, `(256,)` uint8; 0 under zero; read-only.

    The step is half the lowest bit of the scale: half is the step of the codes.
    """
    byte = torch.arange(256)
    exponent, mantissa = (byte >> 3) & 15, byte & 7
    mantissa = torch.where(exponent == 0, mantissa, mantissa | 8)
    lowest = (mantissa.unsqueeze(-1) % torch.tensor([2, 4, 8]) == 0).sum(-1)
    found = 11 - lowest - exponent.clamp(min=1) + _ZERO
    return torch.where(mantissa == 0, 0, found).to(torch.uint8).to(device)


def _pieces(k: int) -> list[slice]:
    """Return k in pieces of whole blocks."""
    count, blocks = -(-k // _PIECE), k // BLOCK
    return [
        slice(start * BLOCK, end * BLOCK)
        for start, end in itertools.pairwise(blocks * each // count for each in range(count + 1))
    ]


def _power(exponent: Tensor) -> Tensor:
    """Return 2^exponent, float32, of integers that no power of two leaves float32 for: exact, which exp2 need not be."""
    bits: Tensor = (exponent.int() + 127) << 23
    return bits.view(torch.float32)


def _finest(block_scale: Tensor) -> Tensor:
    """Return one over the finest step of the blocks of each row, `(*, blocks)` bytes to `(*)` float32."""
    found = _fineness(block_scale.device).index_select(0, block_scale.flatten().int())
    return _power(found.view(block_scale.shape).amax(-1).int() - _ZERO)


def _norm(values: Tensor) -> Tensor:
    """Return a bound on the Euclidean norm of each row, `(*, k)` to `(*)` float32; 0 of one that holds NaN.

    Whatever NaN is added to is NaN, in any order.
    """
    norm: Tensor = torch.linalg.vector_norm(values, dim=-1, dtype=torch.float32)
    return (norm * 1.001).nan_to_num_(0.0)  # more than float32 can have lost


def sizes(values: Tensor, block_scale: Tensor) -> Tensor:
    """Return a bound on the norm of each piece of a row over the step of its grid, `(*, pieces)` float32.

    Args:
        values: `(*, k)` bfloat16.
        block_scale: `(*, k / 16)` uint8 or float8_e4m3fn.
    """
    byte = block_scale.view(torch.uint8)
    return torch.stack(
        [_norm(values[..., each]) * _finest(_of(byte, each)) for each in _pieces(values.shape[-1])], -1
    )


def _of(byte: Tensor, piece: slice) -> Tensor:
    return byte[..., piece.start // BLOCK : piece.stop // BLOCK]


def split(values: Tensor, block_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows in two parts, and the larger of the sizes of both.

    Args:
        values: `(rows, k)` bfloat16.
        block_scale: `(rows, k / 16)` uint8 or float8_e4m3fn.

    Returns:
        `(rows, 2, k)` bfloat16, that add up to the values, and `(rows, pieces)` float32.
    """
    rows, k = values.shape
    parts = torch.empty(rows, 2, k, dtype=torch.bfloat16, device=values.device)
    found = []
    for piece in _pieces(k):
        given, coarse, fine = values[:, piece], parts[:, 0, piece], parts[:, 1, piece]
        finest = _finest(_of(block_scale.view(torch.uint8), piece))
        # Where both parts have the same size: what is left is spread evenly below the grid.
        middle = torch.log2(_norm(given) / finest * math.sqrt(12 / given.shape[1])) / 2
        grid = _power(middle.clamp(-10, 12).round())
        # All of it is exact: bfloat16 holds the bits of a value, and those above and below a bit of it.
        torch.div(given, grid.bfloat16().unsqueeze(-1), out=coarse)
        coarse.round_().mul_(grid.bfloat16().unsqueeze(-1))
        torch.sub(given, coarse, out=fine)
        found.append(torch.maximum(_norm(coarse) / grid, _norm(fine) * finest))
    return parts, torch.stack(found, -1)


def open_rows(a_sizes: Tensor, b_sizes: Tensor, of_row: Tensor) -> Tensor:
    """Return the rows of which a product with a row of b may be inexact, `(rows,)` bool.

    Args:
        a_sizes: `(rows, pieces)`, from `split`.
        b_sizes: `(experts, n, pieces)`, from `sizes`.
        of_row: `(rows,)` integer, the expert of each.
    """
    return (a_sizes * b_sizes.amax(1)[of_row] >= LIMIT).any(-1)


def products(
    a: tuple[Tensor, Tensor],
    b: tuple[Tensor, Tensor],
    counts: Sequence[int],
    of_row: Tensor,
    unasked: list[Tensor] | None = None,
) -> Tensor:
    """Return a @ b[e].T of the rows of each expert, each product as exact as float64 has it, `(rows, n)` float64.

    Args:
        a: values `(rows, k)` bfloat16, expert after expert, and their block scales, bytes.
        b: likewise, `(experts, n, k)`.
        counts: rows of each expert.
        of_row: `(rows,)` integer, the expert of each.
        unasked: takes whether any row is left open, `()` bool, for a caller that asks later: it calls again where one is. None:
            asked here, which waits for the device.
    """
    parts, a_sizes = split(*a)
    is_open = open_rows(a_sizes, sizes(*b), of_row)
    exact = _of_parts(parts, b[0], counts)
    if unasked is not None:
        unasked.append(is_open.any())
    elif bool(is_open.any()):  # asked when the device has all the rest to do
        for expert in sorted(set(of_row[is_open].tolist())):
            rows = is_open & (of_row == expert)
            exact[rows] = torch.mm(a[0][rows].double(), b[0][expert].double().T)
    return exact


def _of_parts(parts: Tensor, b: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the products of rows in parts `(rows, 2, k)` with b `(experts, n, k)`, exact where they are not open."""
    rows, _, k = parts.shape
    out = torch.empty(rows, b.shape[1], dtype=torch.float64, device=b.device)
    both = torch.empty(2 * rows, b.shape[1], dtype=torch.float32, device=b.device)
    coarse, fine = both.view(rows, 2, -1).unbind(1)
    flat, lengths = parts.view(2 * rows, k), [2 * count for count in counts]
    of_experts = torch.split(both, lengths)
    for number, piece in enumerate(_pieces(k)):
        operands = torch.split(flat[:, piece], lengths), b[..., piece].mT.unbind()
        for of_a, of_b, done in zip(*operands, of_experts, strict=True):
            if len(of_a):
                _multiply(of_a, of_b, done)
        if number:
            out += coarse
        else:
            out.copy_(coarse)
        out += fine
    return out


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Write a @ b of bfloat16, added in float32: TF32, where a process lets float32 be that, holds bfloat16 as well."""
    if _takes_bfloat16(a.device):
        torch.mm(a, b, out_dtype=torch.float32, out=out)
    else:
        torch.mm(a.float(), b.float(), out=out)


@cache
def _takes_bfloat16(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 to float32."""
    is_nvidia = device.type == "cuda" and torch.version.hip is None
    return is_nvidia and torch.cuda.get_device_capability(device) >= (8, 0)
