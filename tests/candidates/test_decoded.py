"""Kept weights never change a result: operands that changed, in place or not, are decoded anew."""

from __future__ import annotations

import pytest
import torch

from harness.candidates import eager, layouts
from harness.candidates.decoded import LIMIT, DecodedOperands
from harness.candidates.eager import Eager
from harness.candidates.physical import Physical
from harness.emulation.accumulate import truncate
from reference.formats import Format


def _operands(seed: int):
    generator = torch.Generator().manual_seed(seed)

    def codes(rows: int) -> torch.Tensor:
        return layouts.operand(torch.randint(0, 16, (2, rows, 64), dtype=torch.uint8, generator=generator))

    def scales(rows: int) -> torch.Tensor:
        return layouts.scales(torch.randint(40, 90, (2, rows, 4), dtype=torch.uint8, generator=generator))

    return codes(5), scales(5), codes(16), scales(16)


def _product(candidate, a, a_scale, b, b_scale) -> torch.Tensor:
    out = torch.full((2, 5, 16), torch.nan).permute(1, 2, 0)
    candidate.masked_grouped_gemm(
        a, a_scale, b, b_scale, out, torch.tensor([5, 3], dtype=torch.int32), torch.tensor([0.5, 2.0])
    )
    return out[:3].clone()


@pytest.mark.parametrize("candidate", [Eager, Physical])
def test_a_changed_operand_is_decoded_anew(candidate) -> None:
    a, a_scale, b, b_scale = _operands(1)
    used = candidate()
    first = _product(used, a, a_scale, b, b_scale)
    assert torch.equal(first, _product(used, a, a_scale, b, b_scale))
    b.bitwise_xor_(1)
    changed = _product(used, a, a_scale, b, b_scale)
    assert not torch.equal(first, changed)
    b_scale.view(torch.uint8).add_(8)
    doubled = _product(used, a, a_scale, b, b_scale)
    assert torch.equal(doubled, changed * 2)
    # What a fresh process would give: the same operands elsewhere in memory.
    copies = [t.permute(2, 0, 1).clone().permute(1, 2, 0) for t in (a, b)]
    assert torch.equal(doubled, _product(candidate(), copies[0], a_scale, copies[1], b_scale))


def test_what_is_too_large_to_be_kept_is_decoded_expert_by_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    given = _operands(2)
    wanted, decode, shapes = _product(Eager(), *given), layouts.values, []

    def noted(form: Format, pair: layouts.Pair, dtype: torch.dtype) -> torch.Tensor:
        shapes.append(tuple(pair[0].shape))
        return decode(form, pair, dtype)

    monkeypatch.setattr(eager, "keeps", lambda _: False)
    monkeypatch.setattr(layouts, "values", noted)
    assert torch.equal(_product(Eager(), *given), wanted)
    assert shapes == [(16, 32, 1), (16, 32, 1)], "the packed weights of each expert"


def test_a_kept_operand_is_not_decoded_again_and_the_oldest_makes_room() -> None:
    kept, decoded = DecodedOperands(), []
    many = [torch.full((LIMIT // 64,), i, dtype=torch.uint8) for i in range(9)]  # an eighth of the limit each
    scale = torch.zeros(1, dtype=torch.uint8)
    for index in (0, 1, 0, *range(2, 9), 0, 1):
        kept.get(many[index], scale, lambda i=index: decoded.append(i) or torch.empty(LIMIT // 32))
    assert decoded == [0, 1, 2, 3, 4, 5, 6, 7, 8, 1]  # 0 was used again before 1 had to go


def test_a_copy_elsewhere_in_memory_is_the_same_operand_and_one_byte_makes_another() -> None:
    kept, decoded = DecodedOperands(), []
    packed, scales = torch.arange(200, dtype=torch.uint8), torch.arange(50, dtype=torch.uint8)
    other = packed.clone()
    other[101] += 1  # none of the bytes by which operands are told apart at first
    for number, (a, b) in enumerate([(packed, scales), (packed.clone(), scales.clone()), (other, scales)]):
        kept.get(a, b, lambda i=number: decoded.append(i) or torch.empty(400))
    assert decoded == [0, 2]


@pytest.mark.parametrize("offset", [0, 1, 8])
@pytest.mark.parametrize("changed", [None, 0, 63, 64, 199])
def test_every_byte_counts_wherever_an_operand_lies(offset: int, changed: int | None) -> None:
    kept, decoded = DecodedOperands(), []
    memory, scales = torch.arange(300, dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8)
    operand = memory[offset : offset + 203]
    kept.get(operand.clone(), scales, lambda: decoded.append(0) or torch.empty(1))
    if changed is not None:
        operand[changed] += 1
    kept.get(operand, scales, lambda: decoded.append(1) or torch.empty(1))
    assert decoded == ([0] if changed is None else [0, 1])


def test_an_operand_above_the_limit_is_not_kept() -> None:
    kept, calls = DecodedOperands(), []
    big, scale = torch.zeros(LIMIT // 64 + 1, dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8)
    for _ in range(2):
        kept.get(big, scale, lambda: calls.append(1) or torch.empty(0))
    assert len(calls) == 2


@pytest.mark.parametrize("bits", [8, 13, 24, 52])
def test_truncation_is_that_of_the_definition(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    x = torch.randn(5000, dtype=torch.float64, generator=generator) * torch.exp2(
        torch.randint(-200, 200, (5000,), generator=generator).double()
    )
    x = torch.cat(
        (x, torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1.0, -6.0, 2.0**-9], dtype=torch.float64))
    )
    mantissa, exponent = torch.frexp(x)
    defined = torch.ldexp(torch.trunc(torch.ldexp(mantissa, torch.tensor(bits))), exponent - bits)
    assert torch.equal(truncate(x, bits), defined)
    assert truncate(torch.tensor([torch.nan], dtype=torch.float64), bits).isnan().all()
