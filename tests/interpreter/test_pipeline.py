"""A whole tile, with everything asynchronous: right, the same in every schedule, and wrong as soon as one wait is missing."""

from __future__ import annotations

import re

import numpy as np
import pytest

from harness.interpreter.errors import InterpreterError, UnsupportedPtxError
from harness.interpreter.schedule import seeded
from tests.interpreter import pipeline


@pytest.fixture(scope="module")
def ptx():
    return pipeline.text()


@pytest.fixture(scope="module")
def given():
    return pipeline.problem(5)


def test_a_tile_is_the_exact_product(ptx):
    for tiles in (1, 2, 5):
        problem = pipeline.problem(tiles, seed=tiles)
        c = pipeline.run(ptx, tiles, problem)
        assert np.array_equal(c, problem[2].astype(np.float32))


def test_every_schedule_gives_the_same_bits(ptx, given):
    wanted = given[2].astype(np.float32)
    for seed in range(1, 13):
        assert np.array_equal(pipeline.run(ptx, 5, given, seeded(seed)), wanted), seed


DELETIONS = {
    "producer's wait for a free stage": (r"mbarrier\.try_wait\.parity\.shared\.b64 (\w+), \[%r27\], %r22;", r"mov.pred \1, -1;"),
    "MMA's wait for a full stage": (r"mbarrier\.try_wait\.parity\.shared\.b64 (\w+), \[%r33\], %r32;", r"mov.pred \1, -1;"),
    "epilogue's wait for the accumulator": (r"mbarrier\.try_wait\.parity\.shared\.b64 (\w+), \[%r34\], 0;", r"mov.pred \1, -1;"),
    "fence towards the TMA store": (r"fence\.proxy\.async\.shared::cta;", ""),
    "wait for the TMA store's read": (r"cp\.async\.bulk\.wait_group\.read 0;", ""),
    "barrier before the TMA store": (r"(fence\.proxy\.async\.shared::cta;) bar\.sync 1, 128;", r"\1"),
    "barrier behind the TMA store": (r"(STORED\d+:) bar\.sync 1, 128;", r"\1"),
    "commit to the empty barrier": (r"tcgen05\.commit[^;]*\[%r33\+16\];", ""),
    "commit to the accumulator's barrier": (r"tcgen05\.commit[^;]*\[%r0\+32\];", ""),
    "commit before the MMAs are done": (r"tcgen05\.commit[^;]*(\[%r0\+32\]);", r"mbarrier.arrive.shared.b64 %d9, \1;"),
    "a copy of scales": (r"tcgen05\.cp[^;]*;", ""),
    "16 bytes too few announced": (r"36864", "36848"),
    "dealloc": (r"tcgen05\.dealloc[^;]*;", ""),
    "init of a barrier": (r"mbarrier\.init\.shared\.b64 \[%r0\+32\], %r4;", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", DELETIONS)
def test_a_deletion_is_caught(ptx, given, name):
    pattern, new = DELETIONS[name]
    broken, count = re.subn(pattern, new, ptx, count=1)
    assert count == 1, "the mutation found no place: this test would pass for nothing"
    assert _caught(broken, given), f"{name}: 20 schedules gave the right result"


def _caught(broken, given):
    wanted = given[2].astype(np.float32)
    for seed in range(20):
        try:
            c = pipeline.run(broken, 5, given, seeded(seed) if seed else None)
        except UnsupportedPtxError:
            raise  # says nothing about the mistake
        except InterpreterError:
            return True
        if not np.array_equal(c, wanted):
            return True
    return False


WRONG = {
    "swizzle of the epilogue": (r"and\.b32 %r46, %r1, 7;", "and.b32 %r46, %r1, 3;"),
    "k step of A": (r"add\.s64 %d6, %d1, 2;", "add.s64 %d6, %d1, 4;"),
    "scale columns of A": (r"add\.s32 %r43, %r10, 132;", "add.s32 %r43, %r10, 136;"),
    "first MMA accumulates": (r"setp\.ne\.b32 %p22, %r30, 0;", "mov.pred %p22, -1;"),
    "one k tile short": (r"setp\.lt\.u32 %p5, %r20, %r3;", "add.s32 %r92, %r20, 1; setp.lt.u32 %p5, %r92, %r3;"),
    "column of the accumulator": (r"add\.s32 %r48, %r47, 32;", "add.s32 %r48, %r47, 0;"),
    "column of the output": (r"\[%d0, \{32, 0\}\]", "[%d0, {64, 0}]"),
    "rows of the epilogue": (r"shl\.b32 %r47, %r2, 21;", "mov.b32 %r47, 0;"),
    "coordinate of A": (r"\[%d0, \{%r28, 0\}\]", "[%d0, {0, 0}]"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_number_shows_in_the_latest_schedule(ptx, given, name):
    pattern, new = WRONG[name]
    broken, count = re.subn(pattern, new, ptx, count=1)
    assert count == 1
    try:
        c = pipeline.run(broken, 5, given)
    except UnsupportedPtxError:
        raise
    except InterpreterError:
        return
    assert not np.array_equal(c, given[2].astype(np.float32))
