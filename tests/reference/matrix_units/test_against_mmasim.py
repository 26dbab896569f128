"""Every model against mmasim, another implementation, whose authors compared theirs with real GPUs.

`make test` looks at some dot products of each; make test-all at a million.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from reference.e2m1 import decode_e2m1
from reference.matrix_units import UNITS, MatrixUnit, Operand, add_products

mmasim = pytest.importorskip("mmasim.nv_ptx.sim", reason="needs mmasim, which needs torch 2.9")

HALF = {"result": "float16", "zero": -21}  # what changes where the accumulator is float16
PRODUCTS = {
    "sm_80 f16": ("MMA", "Ampere", "m16n8k16.f32.bf16.bf16.f32", {}),
    "sm_89 f8": ("MMA", "Ada Lovelace", "m16n8k32.f32.e4m3.e4m3.f32", {}),
    "sm_90 f16": ("WGMMA", "Hopper", "m64n8k16.f32.bf16.bf16", {}),
    "sm_90 f16, float16": ("WGMMA", "Hopper", "m64n8k16.f32.f16.f16", {}),
    "sm_90 f16, float16 result": ("WGMMA", "Hopper", "m64n8k16.f16.f16.f16", HALF),
    "sm_90 f8": ("WGMMA", "Hopper", "m64n8k32.f32.e4m3.e4m3", {}),
    "sm_90 f8, E5M2": ("WGMMA", "Hopper", "m64n8k32.f32.e5m2.e5m2", {}),
    "sm_100 f16": ("TCGen05MMA", "Blackwell", "m64n8k16.kind::f16.f32.bf16.bf16", {}),
    "sm_100 f8f6f4": ("TCGen05MMA", "Blackwell", "m64n8k32.kind::f8f6f4.f32.e4m3.e4m3", {}),
}
SCALED = {
    "sm_100 mxf4nvf4": ("TCGen05MMABlockScale", "Blackwell", "m128n8k64.kind::mxf4nvf4.block16.f32.e2m1.e2m1.ue4m3"),
    "sm_100 mxf4nvf4, MXFP4": ("TCGen05MMABlockScale", "Blackwell", "m128n8k64.kind::mxf4.block32.f32.e2m1.e2m1.ue8m0"),
    "sm_100 mxf8f6f4": (
        "TCGen05MMABlockScale", "Blackwell", "m128n8k32.kind::mxf8f6f4.block32.f32.e4m3.e4m3.ue8m0",
    ),
    "sm_120 mxf4nvf4": (
        "MMABlockScale", "RTX Blackwell", "m16n8k64.kind::mxf4nvf4.block16.f32.e2m1.e2m1.f32.ue4m3",
    ),
    "sm_120 mxf8f6f4": (
        "MMABlockScale", "RTX Blackwell", "m16n8k32.kind::mxf8f6f4.block32.f32.e4m3.e4m3.f32.ue8m0",
    ),
}  # fmt: skip
FORMATS = {
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float8_e4m3fn: "e4m3",
    torch.float8_e5m2: "e5m2",
    torch.float8_e8m0fnu: "ue8m0",
}
COUNTS = [1_000, pytest.param(100_000, marks=pytest.mark.long)]
KINDS = ("normal", "any bits", "far apart", "mostly zero")
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def drawn(kind: str, dtype: torch.dtype, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """Return numbers of a type. "any bits" holds NaN, infinities and subnormals."""
    if kind == "normal":
        return torch.randn(shape, generator=draw).to(dtype)
    if kind == "any bits":
        bits = torch.randint(0, 1 << 8 * dtype.itemsize, shape, generator=draw)
        return bits.to(INTEGERS[dtype.itemsize]).view(dtype)
    sign = torch.randint(0, 2, shape, generator=draw) * 2 - 1
    if kind == "far apart":
        exponent = torch.randint(-12, 13, shape, generator=draw)
        significand = 1 + torch.randint(0, 4, shape, generator=draw) / 4
        return (sign * significand * torch.exp2(exponent.float())).to(dtype)
    power = torch.exp2(torch.randint(-2, 2, shape, generator=draw).float())
    return (sign * power * (torch.rand(shape, generator=draw) < 0.3)).to(dtype)


def same_bits(got: Tensor, wanted: Tensor) -> bool:
    integer = INTEGERS[got.dtype.itemsize]
    return bool((got.view(integer) == wanted.view(integer)).all())


def in_steps(unit: MatrixUnit, a: Operand, b: Operand, total: Tensor) -> Tensor:
    for at in range(0, a.k, unit.k):
        total = add_products(unit, a.along_k(at, at + unit.k), b.along_k(at, at + unit.k), total)
    return total


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name: str, count: int) -> None:
    """Twelve sets of operands and accumulators; "cancelled" ones are minus the sum of the products."""
    kind_of, architecture, shape, changes = PRODUCTS[name]
    theirs = getattr(mmasim, kind_of)(architecture, shape)
    unit = dataclasses.replace(UNITS[name.split(",", maxsplit=1)[0]], **changes)
    draw = torch.Generator().manual_seed(sum(name.encode()))
    for kind in KINDS:
        a, b = (drawn(kind, theirs.a_type, (count, theirs.k), draw) for _ in "ab")
        cancelled = -(a.double() * b.double()).sum(-1).to(theirs.d_type)
        for total in (*(drawn(k, theirs.d_type, (count,), draw) for k in ("normal", "any bits")), cancelled):
            ours = in_steps(unit, *(Operand.of(x, FORMATS[theirs.a_type]) for x in (a, b)), total)
            assert same_bits(ours, theirs.dpa(a, b, total)), kind


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", SCALED)
def test_scaled_products(name: str, count: int) -> None:
    """Twelve sets of operands, scales of every byte and near one, accumulators of any bits or zero."""
    kind_of, architecture, shape = SCALED[name]
    theirs = getattr(mmasim, kind_of)(architecture, shape)
    unit = UNITS[name.split(",", maxsplit=1)[0]]
    draw = torch.Generator().manual_seed(sum(name.encode()))
    for kind in KINDS:
        if theirs.packing == 2:
            given = [
                torch.randint(0, 256, (count, theirs.k // 2), generator=draw, dtype=torch.uint8) for _ in "ab"
            ]
            if kind == "mostly zero":
                given = [torch.where(torch.rand(x.shape, generator=draw) < 0.1, x, 0) for x in given]
            pairs = [torch.stack((x >> 4, x & 15), dim=-1).flatten(1) for x in given]  # mmasim's own order
            values, number_format = [decode_e2m1(x) for x in pairs], "e2m1"
        else:
            given = [drawn(kind, theirs.a_type, (count, theirs.k), draw) for _ in "ab"]
            values, number_format = given, FORMATS[theirs.a_type]
        middle = 127 if theirs.s_type == torch.float8_e8m0fnu else 56
        for low, high in ((0, 256), (middle - 12, middle + 12), (0, 20)):
            scales = [
                torch.randint(low, high, (count, theirs.k // theirs.block_size), generator=draw)
                .to(torch.uint8).view(theirs.s_type) for _ in "ab"
            ]  # fmt: skip
            a, b = (
                Operand.of(x, number_format, s, FORMATS[theirs.s_type])
                for x, s in zip(values, scales, strict=True)
            )
            for total in (drawn("any bits", torch.float32, (count,), draw), torch.zeros(count)):
                assert same_bits(in_steps(unit, a, b, total), theirs.dpa(*given, total, *scales)), (kind, low)
