"""Stream k with partial sums in the output's type, where it is declared: some cuts of k give a whole tile, or it is a FAIL."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness.identification.gemm import gemm_findings
from harness.judging.comparison import Comparison
from tests.identification.modes import Streams
from tests.identification.test_summation import judged

TEXT = "sm_90 f16; stream"
UNEVEN = (
    lambda k: tuple(range(192, k, 384)),
    lambda k: (k // 4 // 64 * 64,),
    lambda k: tuple(range(512, k, 512)),
)


class TileTimes(Streams):
    """One tile times 1.01."""

    def outputs(self, *arguments: Any) -> Tensor:
        """Return what an expert stores."""
        out = super().outputs(*arguments)
        out[:64, :64] = (out[:64, :64].float() * 1.01).to(out.dtype)
        return out


class OneElement(Streams):
    """One element a unit in the last place larger than any order of its parts gives."""

    def outputs(self, *arguments: Any) -> Tensor:
        """Return what an expert stores."""
        out = super().outputs(*arguments)
        out[3, 5] = (out[3, 5].float() * 1.05).to(out.dtype)
        return out


def compared(kind: type[Streams], split: Any, k: int, seed: int, rows: int = 12) -> Comparison:
    """Return the comparison of a kernel that declares what it does."""
    candidate = kind("sm_90 f16", split, summation=TEXT, place_invariant=False)
    return judged(candidate, f"1x{rows}x{k}x32:{rows}:normal:{seed}", TEXT)


@pytest.mark.parametrize("split", UNEVEN)
def test_cuts_that_give_every_tile_are_found(split: Any) -> None:
    """In two to six parts, each element's added in an order of its own; the record says how many."""
    found = compared(Streams, split, 1024, 1)
    assert found.illegal == 0, found.message
    assert sum(found.judged.values()) == found.compared
    (words,) = (
        words
        for words, count in found.judged.items()
        if count and words.startswith("parts added in bfloat16")
    )
    assert words.endswith(f"{len(split(1024)) + 1} parts")


def test_rows_of_several_tiles_in_one_have_cuts_of_their_own() -> None:
    """The tiles of kernels need not be those of the judgement: 24 rows each here, of which every second is cut."""

    class Rows(Streams):
        def outputs(self, expert: int, a: Any, b: Any, alpha: Tensor | None, dtype: Any) -> Tensor:
            out = super().outputs(expert, a, b, alpha, dtype)
            for at in range(0, len(out), 48):
                rows = slice(at, at + 24)
                some = (a[0][rows], a[1][rows])
                sums = super().sums(expert, some, b)
                out[rows] = self.epilogue(sums, alpha, dtype)
            return out

    assert compared(Rows, UNEVEN[1], 512, 2, rows=60).illegal == 0


@pytest.mark.parametrize(("kind", "split"), [(TileTimes, UNEVEN[2]), (OneElement, UNEVEN[1])])
def test_what_no_cuts_give_is_a_fault(kind: type[Streams], split: Any) -> None:
    """A tile times 1.01, whose every element may be some order's; and one element of a tile."""
    found = compared(kind, split, 1024, 3)
    assert found.illegal > 0
    assert "; no cuts of k into parts added in bfloat16 give its tile" in found.message


@pytest.mark.long
@pytest.mark.parametrize("split", UNEVEN)
def test_a_tile_times_a_hundredth_more_is_seen_in_a_hundred_problems(split: Any) -> None:
    """None is missed, and none of the right ones is flagged."""
    assert [seed for seed in range(100) if not compared(TileTimes, split, 1024, seed).illegal] == []
    assert [seed for seed in range(100) if compared(Streams, split, 1024, seed).illegal] == []


@pytest.mark.parametrize("lanes", [1, 4])
def test_tiles_may_have_another_number_of_accumulators_in_turn(lanes: int) -> None:
    """Whether they are split or not: kernels choose it with the shape of a tile."""
    declared = "sm_90 f16; lanes 2; stream"
    for split in (lambda k: (), lambda k: tuple(range(256, k, 256))):
        candidate = Streams(f"sm_90 f16; lanes {lanes}", split, summation=declared, place_invariant=False)
        found = judged(candidate, "1x12x768x32:12:normal:3", declared)
        assert found.illegal == 0, found.message
        wrong = TileTimes(f"sm_90 f16; lanes {lanes}", split, summation=declared, place_invariant=False)
        assert judged(wrong, "1x12x768x32:12:normal:3", declared).illegal > 0


def test_a_declared_stream_is_confirmed_where_only_some_k_are_split() -> None:
    declared = "sm_90 f16; lanes 2; stream"
    candidate = Streams(
        "sm_90 f16; lanes 2", lambda k: tuple(range(256, k, 256)) if k > 384 else (), summation=declared,
        deterministic=False, place_invariant=False, out_dtypes=("bfloat16",), far=False,
    )  # fmt: skip
    assert str(gemm_findings(candidate).summation) == declared


@pytest.mark.parametrize("later", ["", "; from 1024; stream"])
def test_another_number_of_accumulators_in_one_pass_is_no_stream(later: str) -> None:
    """Found before cuts are looked for, and named as what it is."""
    declared = f"sm_90 f16; lanes 2{later or '; stream'}"
    candidate = Streams("sm_90 f16", lambda k: (), summation=declared, place_invariant=False)
    found = judged(candidate, "2x40x768x32:40,3:spread:3", declared)
    assert found.illegal == 0, found.message
    assert found.judged["one value, added in another order: sm_90 f16"] > 0
    assert not any(words.startswith("parts added") for words in found.judged)


def test_ten_parts_are_found() -> None:
    """As many as Humming's schedule makes at most; the last is stored and nine are added in any order."""
    found = compared(Streams, lambda k: tuple(range(64, k, 64)), 640, 5, rows=3)
    assert found.illegal == 0, found.message
    assert found.judged["parts added in bfloat16, by some cuts of k: 10 parts"] == found.compared


def test_many_parts_explain_no_wrong_tile_among_tiles_of_few() -> None:
    """In some of their orders they give nearly every value. But all blocks of threads add as many steps of k, and parts show."""

    class OneOff(Streams):
        def outputs(self, *arguments: Any) -> Tensor:
            out = super().outputs(*arguments)
            out.view(torch.int16)[0, 5] += 1
            return out

    for split in (lambda k: (), UNEVEN[1]):
        for seed in range(6):
            candidate = OneOff("sm_90 f16", split, summation=TEXT, place_invariant=False)
            assert judged(candidate, f"1x1x1024x64:1:normal:{seed}", TEXT).illegal > 0
