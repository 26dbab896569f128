"""A kernel that is wrong from one extent on, however far, as long as a PASS states that extent, is caught and placed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from torch import Tensor

from harness.candidates.eager import Eager
from harness.problems.problem import parse_problem
from harness.problems.profiles import PROFILES
from harness.problems.reach import TILE, extents_of
from harness.rules import find_rules
from harness.running.runner import RuleRun
from harness.running.session import InProcess
from harness.running.settings import RunSettings
from harness.verdict import Verdict

STAGES = {
    "QUANT": ("experts", "rows", "capacity", "tokens", "k"),
    "ACT": ("experts", "rows", "capacity", "tokens", "k"),
    "GEMM": ("experts", "rows", "capacity", "tokens", "k", "n", "tiles"),
}
LIMITS = {
    "experts": (9, 255), "rows": (257, 2047), "capacity": (201, 8192), "tokens": (1025, 2559), "k": (513, 7153),
    "n": (1025, 7168), "tiles": (148, 255),
}  # fmt: skip

QUICK = {("GEMM", "rows", 2047), ("GEMM", "n", 7168), ("QUANT", "k", 7153), ("ACT", "tokens", 2559)}


class WrongFrom(Eager):
    """Wrong in the elements from `limit` on of one extent, for the stage of one rule.

    Counted from 0: expert, row of an expert, token over all experts, element of k, column, tile of 128 x 128; of a
    capacity of `limit` or more the first valid row is wrong.
    """

    def __init__(self, rule: str, extent: str, limit: int) -> None:
        super().__init__()
        self.rule, self.extent, self.limit = rule, extent, limit

    def quantize_grouped(
        self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.rule == "QUANT":
            x = x.clone()
            for place in self._wrong(masked_m, x.shape[1], x.shape[2]):
                x[place] = 0
        return super().quantize_grouped(x, masked_m, global_scale_enc)

    def silu_mul_quantize_grouped(
        self, gate_up: Tensor, masked_m: Tensor, global_scale_enc: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.rule == "ACT":
            gate_up = gate_up.clone()
            half = gate_up.shape[2] // 2
            for expert, rows, columns in self._wrong(masked_m, gate_up.shape[1], half):
                gate_up[expert, rows, half:][..., columns] = 0
        return super().silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)

    def masked_grouped_gemm(
        self,
        a: Tensor,
        a_scale: Tensor,
        b: Tensor,
        b_scale: Tensor,
        out: Tensor,
        masked_m: Tensor,
        alpha: Any,
    ) -> None:
        if self.rule == "GEMM" and self.extent == "k":
            a = a.permute(2, 0, 1).clone().permute(1, 2, 0)
            a[:, self.limit // 2 :] = 0
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        if self.rule == "GEMM" and self.extent != "k":
            for expert, rows, columns in self._wrong(masked_m, out.shape[0], out.shape[1]):
                out[rows, columns, expert] = 0

    def _wrong(self, masked_m: Tensor, capacity: int, columns: int) -> Iterator[tuple[int, slice, slice]]:
        """Yield expert, rows and columns of what is wrong."""
        token = tile = 0
        every = slice(None)
        for expert, rows in enumerate(masked_m.tolist()):
            begin = {"rows": self.limit, "tokens": max(self.limit - token, 0)}.get(self.extent)
            if begin is not None and begin < rows:
                yield expert, slice(begin, rows), every
            if rows and (
                (self.extent == "experts" and expert >= self.limit)
                or (self.extent == "capacity" and capacity >= self.limit)
            ):
                yield expert, slice(0, 1), every
            if self.extent in ("k", "n") and rows:
                yield expert, slice(0, rows), slice(self.limit, None)
            if self.extent == "tiles":
                for row in range(0, rows, TILE):
                    for column in range(0, columns, TILE):
                        if tile >= self.limit:
                            yield expert, slice(row, min(row + TILE, rows)), slice(column, column + TILE)
                        tile += 1
            token += rows


def judged(candidate: Eager, rule: str) -> Any:
    return RuleRun(
        find_rules([rule])[0], InProcess(candidate), RunSettings(PROFILES["quick"], candidate="x")
    ).draw()


def size(rule: str, extent: str, problem: str) -> int:
    """How far a problem reaches in an extent as the rule's stage has it."""
    found = extents_of(parse_problem(problem))
    names = {"k": "inter" if rule == "ACT" else "hidden", "n": "inter"}
    return found[names.get(extent, extent)] * (2 if extent == "n" else 1)


@pytest.mark.parametrize(
    ("rule", "extent", "limit"),
    [
        pytest.param(rule, extent, limit, marks=() if (rule, extent, limit) in QUICK else pytest.mark.long)
        for rule, extents in STAGES.items()
        for extent in extents
        for limit in LIMITS[extent]
    ],
)
def test_a_fault_of_one_extent_is_caught_and_shrunk_to_it(
    monkeypatch: pytest.MonkeyPatch, rule: str, extent: str, limit: int
) -> None:
    monkeypatch.setattr("harness.running.runner.SHRINK_SECONDS", 2.0)
    result = judged(WrongFrom(rule, extent, limit), rule)
    assert result.verdict is Verdict.FAIL
    assert size(rule, extent, result.failures[0].problem) >= limit


def test_without_a_fault_it_passes_and_states_how_far_it_reached() -> None:
    result = judged(WrongFrom("GEMM", "experts", 1 << 30), "GEMM")
    assert result.verdict is Verdict.PASS
    assert {extent: result.extents[extent] for extent in ("experts", "capacity", "rows", "hidden")} == {
        "experts": 256, "capacity": 8192, "rows": 2048, "hidden": 7168,
    }  # fmt: skip
