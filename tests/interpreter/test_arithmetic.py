"""Each arithmetic instruction against the PTX ISA, in lanes of their own and with one value for all lanes."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from harness.interpreter import program
from harness.interpreter.emit import EMITTERS
from tests.interpreter.conftest import per_lane


def f(value):
    """Bits of a float32."""
    return struct.unpack("<I", struct.pack("<f", value))[0]


def half(a, b):
    """Two bfloat16 in one register, b in the upper half."""
    return f(a) >> 16 | (f(b) >> 16) << 16


def fp16(a):
    return int(np.float16(a).view(np.uint16))


NAN, INF, TINY = 0x7FC00000, 0x7F800000, 0x00000001
M = 0xFFFFFFFF

# name, code (inputs in %r0.., results in %r8..), rows of (inputs, results)
CASES = [
    ("add.s32", "add.s32 %r8, %r0, %r1;", [((M, 2), (1,)), ((5, -7), (-2,))]),
    ("sub.s32", "sub.s32 %r8, %r0, %r1;", [((1, 2), (-1,)), ((0x80000000, 1), (0x7FFFFFFF,))]),
    ("add.s64", "mov.b64 %d0, {%r0, %r1}; add.s64 %d1, %d0, -1; mov.b64 {%r8, %r9}, %d1;", [((0, 1), (M, 0)), ((0, 0), (M, M))]),
    ("add.s16", "cvt.u16.u32 %h0, %r0; add.s16 %h1, %h0, 1; cvt.u32.u16 %r8, %h1;", [((0xFFFF,), (0,)), ((5,), (6,))]),
    ("mul.lo.s32", "mul.lo.s32 %r8, %r0, %r1;", [((0x10000, 0x10000), (0,)), ((-3, 7), (-21,))]),
    ("mul.hi.s32", "mul.hi.s32 %r8, %r0, %r1;", [((-1, 1), (M,)), ((0x40000000, 8), (2,))]),
    ("mul.hi.u32", "mul.hi.u32 %r8, %r0, %r1;", [((M, M), (M - 1,)), ((0x40000000, 8), (2,))]),
    ("mul.hi.u16", "cvt.u16.u32 %h0, %r0; mul.hi.u16 %h1, %h0, 26215; cvt.u32.u16 %r8, %h1;", [((1000,), (400,)), ((5,), (2,))]),
    ("mul.lo.s16", "cvt.u16.u32 %h0, %r0; mul.lo.s16 %h1, %h0, 3; cvt.u32.u16 %r8, %h1;", [((0x8000,), (0x8000,)), ((7,), (21,))]),
    ("mul.wide.s32", "mul.wide.s32 %d0, %r0, %r1; mov.b64 {%r8, %r9}, %d0;", [((-2, 3), (-6, M)), ((1 << 20, 1 << 20), (0, 256))]),
    ("mul.wide.u32", "mul.wide.u32 %d0, %r0, %r1; mov.b64 {%r8, %r9}, %d0;", [((M, 2), (M - 1, 1)), ((3, 4), (12, 0))]),
    ("mad.lo.s32", "mad.lo.s32 %r8, %r0, %r1, %r2;", [((3, 4, 5), (17,)), ((-1, 1, 1), (0,))]),
    ("mad.wide.u32", "mov.b64 %d1, {%r2, 1}; mad.wide.u32 %d0, %r0, %r1, %d1; mov.b64 {%r8, %r9}, %d0;", [((2, 3, 4), (10, 1))]),
    ("div.s32", "div.s32 %r8, %r0, %r1;", [((-7, 2), (-3,)), ((7, -2), (-3,)), ((6, 3), (2,))]),
    ("div.u32", "div.u32 %r8, %r0, %r1;", [((M, 2), (0x7FFFFFFF,)), ((7, 8), (0,))]),
    ("rem.s32", "rem.s32 %r8, %r0, %r1;", [((-7, 2), (-1,)), ((7, -2), (1,))]),
    ("rem.u32", "rem.u32 %r8, %r0, %r1;", [((7, 4), (3,)), ((M, 16), (15,))]),
    ("min.s32", "min.s32 %r8, %r0, %r1; max.s32 %r9, %r0, %r1;", [((-1, 1), (-1, 1)), ((5, 3), (3, 5))]),
    ("min.u32", "min.u32 %r8, %r0, %r1; max.u32 %r9, %r0, %r1;", [((-1, 1), (1, M)), ((5, 3), (3, 5))]),
    ("neg.s32", "neg.s32 %r8, %r0; abs.s32 %r9, %r0;", [((-5,), (5, 5)), ((7,), (-7, 7)), ((0x80000000,), (0x80000000, 0x80000000))]),
    ("and.b32", "and.b32 %r8, %r0, %r1; or.b32 %r9, %r0, %r1; xor.b32 %r10, %r0, %r1; not.b32 %r11, %r0;",
     [((0xF0F0, 0xFF00), (0xF000, 0xFFF0, 0x0FF0, 0xFFFF0F0F))]),
    ("or.b64", "mov.b64 %d0, {%r0, %r1}; or.b64 %d1, %d0, 70403103981568; mov.b64 {%r8, %r9}, %d1;", [((1, 2), (0x10001, 2 | 0x4008))]),
    ("shl.b32", "shl.b32 %r8, %r0, 4; shl.b32 %r9, %r0, %r1;", [((0xF0000001, 31), (0x10, 0x80000000)), ((1, 32), (16, 0)), ((1, 33), (16, 0))]),
    ("shr.u32", "shr.u32 %r8, %r0, 4; shr.u32 %r9, %r0, %r1;", [((0x80000000, 31), (0x08000000, 1)), ((0xFF, 40), (0xF, 0))]),
    ("shr.s32", "shr.s32 %r8, %r0, 4; shr.s32 %r9, %r0, %r1;", [((0x80000000, 31), (0xF8000000, M)), ((-1, 99), (M, M)), ((64, 3), (4, 8))]),
    ("shr.s16", "cvt.u16.u32 %h0, %r0; shr.s16 %h1, %h0, 5; cvt.u32.u16 %r8, %h1; shr.u16 %h2, %h0, 5; cvt.u32.u16 %r9, %h2;",
     [((0x8000,), (0xFC00, 0x0400)), ((0x40,), (2, 2))]),
    ("shr.u64", "mov.b64 %d0, {%r0, %r1}; shr.u64 %d1, %d0, 16; mov.b64 {%r8, %r9}, %d1;", [((0x10000, 0x30002), (0x20001, 3))]),
    ("selp.b32", "setp.ne.b32 %p0, %r0, 0; selp.b32 %r8, 16384, %r1, %p0;", [((0, 7), (7,)), ((1, 7), (16384,))]),
    ("setp.s32", "setp.lt.s32 %p0, %r0, %r1; selp.b32 %r8, 1, 0, %p0; setp.gt.s32 %p1, %r0, -1; selp.b32 %r9, 1, 0, %p1;",
     [((-1, 1), (1, 0)), ((5, 5), (0, 1))]),
    ("setp.u32", "setp.lt.u32 %p0, %r0, %r1; selp.b32 %r8, 1, 0, %p0; setp.ge.u32 %p1, %r0, %r1; selp.b32 %r9, 1, 0, %p1;",
     [((-1, 1), (0, 1)), ((4, 5), (1, 0))]),
    ("setp.two", "setp.eq.s32 %p0|%p1, %r0, %r1; selp.b32 %r8, 1, 0, %p0; selp.b32 %r9, 1, 0, %p1;", [((3, 3), (1, 0)), ((3, 4), (0, 1))]),
    ("setp.and", "setp.eq.s32 %p2, %r0, 1; setp.eq.and.s32 %p0, %r1, 2, %p2; selp.b32 %r8, 1, 0, %p0;", [((1, 2), (1,)), ((0, 2), (0,))]),
    ("pred", ("setp.ne.b32 %p0, %r0, 0; setp.ne.b32 %p1, %r1, 0; and.pred %p2, %p0, %p1; or.pred %p3, %p0, %p1; xor.pred %p4, %p0, %p1;"
     "not.pred %p5, %p0; selp.b32 %r8, 1, 0, %p2; selp.b32 %r9, 1, 0, %p3; selp.b32 %r10, 1, 0, %p4; selp.b32 %r11, 1, 0, %p5;"),
     [((1, 0), (0, 1, 1, 0)), ((1, 1), (1, 1, 0, 0)), ((0, 0), (0, 0, 0, 1))]),
    ("mov.pack", "mov.b64 %d0, {%r0, %r1}; mov.b64 {_, %r8}, %d0; mov.b64 {%r9, _}, %d0;", [((1, 2), (2, 1))]),
    ("mov.halves", "mov.b32 {%h0, %h1}, %r0; mov.b32 %r8, {%h1, %h0};", [((0x12345678,), (0x56781234,))]),
    ("mov.bytes", "{ .reg .b8 b0; .reg .b8 b1; cvt.u16.u32 b0, %r0; cvt.u16.u32 b1, %r1; mov.b32 %r8, {b0, b1, b0, b1}; }",
     [((1, 2), (0x02010201,))]),
    ("cvt.u64.u32", "cvt.u64.u32 %d0, %r0; mov.b64 {%r8, %r9}, %d0; cvt.s64.s32 %d1, %r0; mov.b64 {%r10, %r11}, %d1;", [((-1,), (M, 0, M, M)), ((3,), (3, 0, 3, 0))]),
    ("cvt.u32.u64", "mov.b64 %d0, {%r0, %r1}; cvt.u32.u64 %r8, %d0; cvt.u16.u64 %h0, %d0; cvt.u32.u16 %r9, %h0;", [((0x12345678, 9), (0x12345678, 0x5678))]),
    ("cvt.s32.s16", "cvt.u16.u32 %h0, %r0; cvt.s32.s16 %r8, %h0;", [((0x8000,), (0xFFFF8000,)), ((5,), (5,))]),
    ("cvt.s8", "cvt.s8.s32 %h0, %r0; cvt.s16.s8 %h1, %h0; cvt.u32.u16 %r8, %h1;", [((0x80,), (0xFF80,)), ((0x17F,), (0x7F,))]),
    ("popc.b32", "popc.b32 %r8, %r0;", [((0xF0F,), (8,)), ((0,), (0,))]),
    ("prmt.b32", "prmt.b32 %r8, %r0, %r1, 0x5410; prmt.b32 %r9, %r0, %r1, %r2;",
     [((0x33221100, 0x77665544, 0x7632), (0x55441100, 0x77663322)), ((0x80000080, 0, 0x0008), (0x00000080, 0x808080FF))]),
    ("shfl.bfly", "shfl.sync.bfly.b32 %r8, %r0, 1, 31, -1;", [((10,), (11,)), ((11,), (10,))]),
    ("shfl.up", "mov.u32 %r1, %laneid; shfl.sync.up.b32 %r8|%p0, %r1, 1, 0, -1; selp.b32 %r9, 1, 0, %p0;", [((0,), (0, 0)), ((0,), (0, 1))]),
    ("shfl.down", "mov.u32 %r1, %laneid; shfl.sync.down.b32 %r8, %r1, 1, 31, -1;", [((0,), (1,)), ((0,), (2,))]),
    ("shfl.idx", "mov.u32 %r1, %laneid; shfl.sync.idx.b32 %r8, %r1, 7, 31, -1;", [((0,), (7,))]),
    ("elect.sync", "elect.sync %r1|%p0, -1; selp.b32 %r8, 1, 0, %p0;", [((0,), (1,)), ((0,), (0,))]),
    # floats
    ("add.f32", "add.f32 %r8, %r0, %r1; sub.f32 %r9, %r0, %r1;", [((f(1), f(2.0**-24)), (f(1), f(1 - 2.0**-24))), ((TINY, TINY), (2, 0))]),
    ("mul.f32", "mul.f32 %r8, %r0, %r1; mul.ftz.f32 %r9, %r0, %r1;", [((f(3), f(0.5)), (f(1.5), f(1.5))), ((TINY, f(2)), (2, 0)), ((f(0), INF), (0xFFC00000, 0xFFC00000))]),
    ("mul.f32x2", "mov.b64 %d0, {%r0, %r1}; mov.b64 %d1, {%r2, %r2}; mul.f32x2 %d2, %d0, %d1; mov.b64 {%r8, %r9}, %d2;", [((f(3), f(-1), f(2)), (f(6), f(-2)))]),
    ("add.f32x2", "mov.b64 %d0, {%r0, %r1}; add.f32x2 %d2, %d0, %d0; mov.b64 {%r8, %r9}, %d2;", [((f(3), f(-1)), (f(6), f(-2)))]),
    ("fma.rn.f32", "fma.rn.f32 %r8, %r0, %r1, %r2;",
     # the exact product 1 + 2^-11 + 2^-24 keeps its last bit only if it is not rounded before the addition
     [((f(1 + 2.0**-12), f(1 + 2.0**-12), f(-1)), (f(2.0**-11 + 2.0**-24),)), ((f(1), f(1), f(2.0**-24 + 2.0**-47)), (f(1 + 2.0**-23),))]),
    ("fma.rn.f32x2", "mov.b64 %d0, {%r0, %r1}; fma.rn.f32x2 %d2, %d0, %d0, %d0; mov.b64 {%r8, %r9}, %d2;", [((f(3), f(-1)), (f(12), f(0)))]),
    ("div.rn.f32", "div.rn.f32 %r8, %r0, %r1;", [((f(1), f(3)), (0x3EAAAAAB,)), ((f(1), f(0)), (INF,))]),
    ("min.f32", "min.f32 %r8, %r0, %r1; max.f32 %r9, %r0, %r1; max.NaN.f32 %r10, %r0, %r1;",
     [((f(1), f(2)), (f(1), f(2), f(2))), ((NAN, f(2)), (f(2), f(2), 0x7FFFFFFF)), ((f(-0.0), f(0)), (f(-0.0), f(0), f(0)))]),
    ("neg.f32", "neg.f32 %r8, %r0; abs.f32 %r9, %r0;", [((f(1),), (f(-1), f(1))), ((f(-2),), (f(2), f(2)))]),
    ("setp.f32", ("setp.lt.f32 %p0, %r0, %r1; selp.b32 %r8, 1, 0, %p0; setp.ltu.f32 %p1, %r0, %r1; selp.b32 %r9, 1, 0, %p1;"
     "setp.nan.f32 %p2, %r0, %r1; selp.b32 %r10, 1, 0, %p2; setp.neu.f32 %p3, %r0, %r1; selp.b32 %r11, 1, 0, %p3;"),
     [((f(1), f(2)), (1, 1, 0, 1)), ((NAN, f(2)), (0, 1, 1, 1)), ((f(2), f(2)), (0, 0, 0, 0))]),
    ("setp.gt.bf16", "mov.b32 {%h0, %h1}, %r0; setp.gt.bf16 %p0, %h0, %h1; selp.u16 %h2, 1, 0, %p0; cvt.u32.u16 %r8, %h2;", [((half(2, 1),), (1,)), ((half(1, 2),), (0,))]),
    ("rcp.approx.ftz.f32", "rcp.approx.ftz.f32 %r8, %r0;", [((f(6),), (f(1 / 6),)), ((TINY,), (INF,)), ((f(2.0**127),), (0,)), ((0x80000000,), (0xFF800000,))]),
    ("ex2.approx.f32", "ex2.approx.f32 %r8, %r0; ex2.approx.ftz.f32 %r9, %r0;", [((f(3),), (f(8), f(8))), ((f(-149),), (1, 0))]),
    ("lg2.approx.f32", "lg2.approx.f32 %r8, %r0;", [((f(8),), (f(3),)), ((f(0),), (0xFF800000,))]),
    ("sqrt.rn.f32", "sqrt.rn.f32 %r8, %r0;", [((f(2),), (f(2**0.5),))]),
    ("cvt.rn.bf16x2.f32", "cvt.rn.bf16x2.f32 %r8, %r0, %r1;",
     [((f(2), f(1)), (half(1, 2),)), ((0x3F808000, 0x3F818000), (0x3F803F82,)), ((NAN, INF), (0x7FFF7F80,)), ((0x7F7FFFFF, 0), (0x7F800000,))]),
    ("cvt.rn.f16x2.f32", "cvt.rn.f16x2.f32 %r8, %r0, %r1;", [((f(2), f(1)), (fp16(2) << 16 | fp16(1),)), ((f(1e6), NAN), (0x7C007FFF,))]),
    ("cvt.f32.bf16", "mov.b32 {%h0, %h1}, %r0; cvt.f32.bf16 %r8, %h1;", [((half(1, 3),), (f(3),))]),
    ("cvt.f32.f16", "cvt.u16.u32 %h0, %r0; cvt.f32.f16 %r8, %h0;", [((fp16(1.5),), (f(1.5),))]),
    ("cvt.rn.bf16.f32", "cvt.rn.bf16.f32 %h0, %r0; cvt.u32.u16 %r8, %h0; cvt.rn.f16.f32 %h1, %r0; cvt.u32.u16 %r9, %h1;", [((f(3),), (f(3) >> 16, fp16(3)))]),
    ("cvt.rn.f32.s32", "cvt.rn.f32.s32 %r8, %r0; cvt.rn.f32.u32 %r9, %r0;", [((-1,), (f(-1), f(2.0**32))), ((7,), (f(7), f(7)))]),
    ("cvt.rzi.s32.f32", "cvt.rzi.s32.f32 %r8, %r0; cvt.rni.s32.f32 %r9, %r0;", [((f(-1.75),), (-1, -2)), ((f(2.5),), (2, 2)), ((f(1e20),), (0x7FFFFFFF, 0x7FFFFFFF))]),
    ("cvt.e2m1x2", "cvt.rn.satfinite.e2m1x2.f32 %h0, %r0, %r1; cvt.u32.u16 %r8, %h0;",
     [((f(1), f(-6)), (0x2F,)), ((f(0.25), f(0.75)), (0x02,)), ((f(5), f(2.5)), (0x64,)), ((NAN, f(-0.0)), (0x78,)), ((f(100), f(1.25 + 2.0**-20)), (0x73,))]),
    ("cvt.e4m3x2", "cvt.rn.satfinite.e4m3x2.f32 %h0, %r0, %r1; cvt.u32.u16 %r8, %h0;",
     [((f(1), f(448)), (0x387E,)), ((f(1e9), f(-1)), (0x7EB8,)), ((f(2.0**-10), f(2.0**-9)), (0x0001,)), ((NAN, f(1.0625)), (0x7F38,))]),
    ("cvt.f16x2.e4m3x2", "cvt.u16.u32 %h0, %r0; cvt.rn.f16x2.e4m3x2 %r8, %h0;", [((0x387E,), (fp16(1) << 16 | fp16(448),))]),
    ("max.bf16x2", "max.bf16x2 %r8, %r0, %r1; min.bf16x2 %r9, %r0, %r1; abs.bf16x2 %r10, %r0;",
     [((half(1, -2), half(-1, 3)), (half(1, 3), half(-1, -2), half(1, 2)))]),
    ("mul.bf16x2", "mul.rn.bf16x2 %r8, %r0, %r1; fma.rn.bf16x2 %r9, %r0, %r1, %r1;", [((half(1, -2), half(-1, 3)), (half(-1, -6), half(-2, -3)))]),
    ("max.f16x2", "max.f16x2 %r8, %r0, %r1;", [((fp16(1) | fp16(-2) << 16, fp16(-1) | fp16(3) << 16), (fp16(1) | fp16(3) << 16,))]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "code", "rows"), CASES, ids=[case[0] for case in CASES])
def test_instruction_as_the_isa_defines_it(name, code, rows):
    inputs = [row[0] for row in rows]
    found = per_lane(code, inputs)
    for got, (given, wanted) in zip(found, rows, strict=True):
        assert [hex(x) for x in got[: len(wanted)]] == [hex(x & M) for x in wanted], (
            f"{name} of {[hex(x & M) for x in given]}"
        )


LANE_DEPENDENT = {"shfl.bfly", "shfl.up", "shfl.down", "elect.sync"}


@pytest.mark.parametrize(("name", "code", "rows"), CASES, ids=[case[0] for case in CASES])
def test_one_value_for_all_lanes_gives_the_same(name, code, rows):
    """Values that are the same in all lanes are Python numbers, which another branch of each function handles."""
    if name in LANE_DEPENDENT:
        pytest.skip("its result depends on the lane")
    for given, wanted in rows:
        got = per_lane(code, [given], uniform=True)[0]
        assert [hex(x) for x in got[: len(wanted)]] == [hex(x & M) for x in wanted]


def test_small_floats_are_rounded_as_the_reference_rounds_them():
    """Every value near a midpoint of E2M1 and E4M3, against reference/."""
    import torch

    from harness.interpreter.floats import from_e4m3, to_bf16, to_e2m1, to_e4m3
    from reference.e2m1 import encode_e2m1
    from reference.e4m3 import decode_e4m3, encode_e4m3

    draw = np.random.default_rng(0)
    values = (draw.normal(size=20000) * 10.0 ** draw.uniform(-4, 4, 20000)).astype(np.float32)
    grid = decode_e4m3(torch.arange(0x7F, dtype=torch.uint8)).numpy()
    middles = np.concatenate([(grid[:-1] + grid[1:]) / 2, [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5]]).astype(
        np.float32
    )
    near = np.concatenate([np.nextafter(middles, np.float32(s)) for s in (-np.inf, np.inf)])
    values = np.concatenate([values, middles, near, -middles, -near, [np.nan, np.inf, -np.inf, -0.0]]).astype(
        np.float32
    )
    bits, tensor = values.view(np.uint32), torch.from_numpy(values)
    assert np.array_equal(to_e2m1(bits), encode_e2m1(tensor, nan="as_max").numpy())
    assert np.array_equal(to_e4m3(bits) & 0x7F, encode_e4m3(tensor).numpy() & 0x7F)
    assert np.array_equal(from_e4m3(np.arange(127, dtype=np.uint32)).view(np.float32), grid)
    finite = ~np.isnan(values)
    assert np.array_equal(
        to_bf16(bits)[finite], tensor.bfloat16().view(torch.int16).numpy().view(np.uint16)[finite]
    )


def test_every_emitter_has_a_test():
    """By the opcode's first word, in any file of this folder."""
    from pathlib import Path

    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    pseudo = {"bra_if", "_result"}
    missing = [name for name in EMITTERS if name not in pseudo and f"{name}" not in text]
    assert missing == []


def test_a_name_in_generated_code_means_one_thing():
    """The functions that generated code calls come from several modules, into one namespace."""
    found = {}
    for module in program.CALLED:
        for name, value in vars(module).items():
            if not name.startswith("_"):
                assert found.setdefault(name, value) is value, f"{name} of {module.__name__}"
