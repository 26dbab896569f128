"""The sums of every stretch of k are those of the parts of an order, and lanes are those of what they take."""

from __future__ import annotations

import pytest
import torch

from reference.matrix_units import KOrder, Operand, Summation, dot, segments

UNITS = ("sm_90 f16", "sm_80 f16", "sm_100 mxf4nvf4", "exact", "exact 32", "fma")


def operands(name: str, k: int) -> tuple[Operand, Operand]:
    draw = torch.Generator().manual_seed(k)
    sides = []
    for _ in range(2):
        codes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6])
        values = codes[torch.randint(0, len(codes), (5, k), generator=draw)].double()
        scale = torch.exp2(torch.randint(-6, 8, (5, k // 16), generator=draw)).double()
        sides.append(Summation(name).operand(values * scale.repeat_interleave(16, -1), scale))
    return sides[0], sides[1]


@pytest.mark.parametrize("name", UNITS)
def test_a_stretch_is_a_sum_of_its_own(name: str) -> None:
    a, b = operands(name, 320)
    unit = Summation(name).unit
    table = segments(unit, a, b, 64)
    assert table.shape == (5, 6, 5)
    for i, j in ((0, 1), (0, 5), (1, 3), (4, 5)):
        assert torch.equal(table[i, j], dot(unit, a.along_k(64 * i, 64 * j), b.along_k(64 * i, 64 * j)))
    assert bool(table[3, 2].isnan().all())


@pytest.mark.parametrize("name", ["sm_90 f16", "sm_100 mxf4nvf4"])
def test_lanes_take_k_in_turn_and_the_last_part_may_come_first(name: str) -> None:
    a, b = operands(name, 320)
    unit = Summation(name).unit
    blocks = [(64 * i, 64 * i + 64) for i in range(5)]

    def of(places: list[int]) -> torch.Tensor:
        left, right = (
            Operand(
                side.elements[..., torch.cat([torch.arange(*blocks[i]) for i in places])],
                None
                if side.scales is None
                else side.scales[..., torch.cat([torch.arange(4 * i, 4 * i + 4) for i in places])],
            )
            for side in (a, b)
        )
        return dot(unit, left, right)

    assert torch.equal(dot(unit, a, b, KOrder(lanes=2)), of([0, 2, 4]) + of([1, 3]))
    parts = [of([0]), of([1, 2]), of([3, 4])]
    assert torch.equal(dot(unit, a, b, KOrder((64, 192), reverse=True)), (parts[2] + parts[1]) + parts[0])
    assert torch.equal(dot(unit, a, b, KOrder(partial="bfloat16")), of([0, 1, 2, 3, 4]))  # nothing is added
