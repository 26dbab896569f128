"""What is in the matrix: real models, every tile, nothing that the contract rules out, and guards that it does rule out."""

from __future__ import annotations

from collections import Counter

import pytest

from harness.compile.case import ARCHITECTURES, pair
from harness.compile.draw import draw_shapes
from harness.compile.matrix import drawn_shapes, matrix
from harness.problems.shapes import MODELS

ENTRIES = matrix()
BITS = {
    "float4_e2m1fn": 4,
    "float8_e4m3fn": 8,
    "float8_e5m2": 8,
    "float16": 16,
    "bfloat16": 16,
    "float32": 32,
}


def broken_promises(case):
    """What the contract of the masked GEMM says against a case, written from its description and not from its code."""
    o = case.full()
    tile, cluster = pair(o["tile"]), pair(o["cluster"])
    contiguous = o["m"] if o["swap"] else o["n"]
    rules = {
        "rows of A and B are multiples of 16 bytes": o["k"] * BITS[o["ab"]] % 128 == 0,
        "rows of the output are multiples of 16 bytes": contiguous * BITS[o["out"]] % 128 == 0,
        "a tile has 128 or 256 rows and columns": set(tile) <= {128, 256},
        "a cluster is 1, 2 or 4 each way": set(cluster) <= {1, 2, 4},
        "256 rows are made by pairs of CTAs": tile[0] == 128 or cluster[0] % 2 == 0,
        "E4M3 scales are for blocks of 16": o["sf"] == "float8_e8m0fnu" or o["vec"] == 16,
        "8-bit operands have blocks of 32": BITS[o["ab"]] == 4 or o["vec"] == 32,
        "fused combine swaps the operands, on one tile": not o["ranks"]
        or (o["swap"] == 1 and tile == (128, 128)),
    }
    return [rule for rule, kept in rules.items() if not kept]


def test_it_is_large_enough_without_repeats_and_the_same_on_both_architectures():
    assert len({e.case for e in ENTRIES}) == len(ENTRIES)
    shapes = {arch: {e.case.shape for e in ENTRIES if e.case.arch == arch} for arch in ARCHITECTURES}
    assert shapes["sm_100a"] == shapes["sm_103a"]
    assert len(shapes["sm_100a"]) >= 150


@pytest.mark.parametrize("name", MODELS)
def test_both_gemms_of_every_model_are_there_on_every_tile(name):
    model = MODELS[name]
    for half, n, k in (("gate_up", 2 * model.inter, model.hidden), ("down", model.hidden, model.inter)):
        found = [e.case.full() for e in ENTRIES if f"{name} {half}" in e.origin.split(", ")]
        assert {(o["n"], o["k"]) for o in found} == {(n, k)}
        assert {o["tile"] for o in found} == {"128x128", "128x256", "256x128", "256x256"}
        assert all(model.experts % o["l"] == 0 for o in found)


@pytest.mark.parametrize("guard", [False, True])
def test_guards_break_the_contract_and_nothing_else_does(guard):
    found = [e for e in ENTRIES if e.case.kernel == "masked_gemm" and e.guard is guard]
    wrong = {
        str(e.case): broken_promises(e.case) for e in found if bool(broken_promises(e.case)) is not guard
    }
    assert found
    assert wrong == {}


def test_every_promise_has_a_guard_that_breaks_it_alone():
    alone = Counter(
        rules[0]
        for e in ENTRIES
        if e.guard and e.case.kernel == "masked_gemm" and len(rules := broken_promises(e.case)) == 1
    )
    assert len(alone) == 8, alone


def test_drawn_shapes_can_be_drawn_again_and_those_that_are_kept_fit():
    again = draw_shapes(5, 3)
    assert len(again) > 2
    for shape in [*again, *drawn_shapes()]:
        assert set(shape) == {"l", "m", "n", "k"}
        assert shape["k"] % 64 == shape["n"] % 64 == 0
        assert min(shape.values()) > 0
    assert len(drawn_shapes()) >= 20
