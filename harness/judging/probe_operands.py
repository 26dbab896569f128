"""Operands that tell how a GEMM adds.

They are random numbers, plain ones and ones whose exponents lie far apart, and in half of the rows the second half of k takes
back the first: what is left there is nothing but what the unit lost, and that differs from model to model also where
outputs are bfloat16.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from reference.formats import NVFP4, Coded, Format, in_e4m3
from reference.nvfp4 import BLOCK

Forms = tuple[Format, Format]
BOTH_NVFP4: Forms = (NVFP4, NVFP4)
_Side = tuple[Tensor, Tensor]
"""Codes `(rows, k)` and block scales `(rows, k / 16)` of one NVFP4 operand, uint8: what is drawn, for every format."""
_FIRST = 3  # a row whose exponents lie far apart and whose second half takes back the first
_CERTAIN = 1024  # products of a row whose sum is exact in every order: 22 bits of plain numbers


def in_format(form: Format, codes: Tensor, block_scale: Tensor) -> Coded:
    """Return an NVFP4 operand in another format, which holds the same numbers, or those that it has next to them.

    Scales of float32 are ones.
    """
    coded = Coded(codes, block_scale)
    if (form.block, form.scale) == (NVFP4.block, NVFP4.scale):
        return coded
    values = NVFP4.values(coded)
    if form.element != "e4m3" or form.scale == "ue8m0":
        return form.quantize(values)
    ones = [
        values.new_ones((*values.shape[:-1], count)) for count in (1, values.shape[-1] // (form.block or 1))
    ]
    scale = ones[1] if form.scale else codes.new_zeros((*values.shape[:-1], 0))
    return Coded(form.encode(values.double()), scale, ones[0] if form.rows else None)


@cache
def operands(rows: int, columns: int, k: int, forms: Forms = BOTH_NVFP4) -> tuple[Coded, Coded]:
    """Return both operands, `(rows, k)` and `(columns, k)`; kinds of rows of A take turns."""
    a, b = _drawn(rows, columns, k)
    return in_format(forms[0], *a), _weights(forms, b)


def _weights(forms: Forms, b: _Side) -> Coded:
    """Return the second operand in its format; with FP8 activations such powers of two as E4M3 can hold."""
    coded = in_format(forms[1], *b)
    if not forms[0].fp8 or forms[1].scale != "ue8m0":
        return coded
    return replace(coded, block_scale=in_e4m3(coded.block_scale.unsqueeze(0))[0])


def _drawn(rows: int, columns: int, k: int) -> tuple[_Side, _Side]:
    generator = torch.Generator().manual_seed(k)
    half = k // 2 // BLOCK * BLOCK

    def drawn(count: int) -> _Side:
        codes = torch.randint(0, 16, (count, k), generator=generator, dtype=torch.uint8)
        near, far = (
            torch.randint(*ends, (count, k // BLOCK), generator=generator, dtype=torch.uint8)
            for ends in ((48, 64), (1, 0x7F))
        )
        return codes, torch.where(torch.arange(count).unsqueeze(1) % 2 == 0, near, far)

    (a_codes, a_scale), (b_codes, b_scale) = drawn(rows), drawn(columns)
    blocks = half // BLOCK
    b_codes[:, half : 2 * half], b_scale[:, blocks : 2 * blocks] = b_codes[:, :half], b_scale[:, :blocks]
    takes_back = torch.arange(rows) % 4 > 1
    a_codes[takes_back, half : 2 * half] = a_codes[takes_back, :half] ^ 8
    a_scale[takes_back, blocks : 2 * blocks] = a_scale[takes_back, :blocks]
    return (a_codes, a_scale), (b_codes, b_scale)


@cache
def with_certain_rows(rows: int, columns: int, k: int, forms: Forms = BOTH_NVFP4) -> tuple[Coded, Coded]:
    """Return the same, but each fifth row's sums with the even columns are exact in every order: plain and mostly zero.

    The first row is of those that tell orders apart: a problem may have no other.
    """
    drawn = max(rows, _FIRST + 1)
    (codes, scale), b = _drawn(drawn, columns, k)
    generator = torch.Generator().manual_seed(k + 1)
    codes, scale = codes.clone(), scale.clone()
    some = torch.zeros(drawn, k, dtype=torch.bool)
    some.scatter_(1, torch.rand(drawn, k, generator=generator).topk(min(_CERTAIN, k), dim=1).indices, True)
    certain = _is_certain(drawn)
    codes[certain] = torch.randint(0, 16, (drawn, k), generator=generator, dtype=torch.uint8)[certain]
    codes[certain.unsqueeze(1) & ~some] = 0
    scale[certain] = 56
    a = codes.roll(-_FIRST, 0)[:rows], scale.roll(-_FIRST, 0)[:rows]
    return in_format(forms[0], *a), _weights(forms, b)


def certain_rows(rows: int) -> Tensor:
    """Return which rows of `with_certain_rows` have sums that are exact in every order, `(rows,)` bool."""
    return _is_certain(max(rows, _FIRST + 1)).roll(-_FIRST)[:rows]


def _is_certain(rows: int) -> Tensor:
    return torch.arange(rows) % 5 == 4
