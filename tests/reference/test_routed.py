"""The routed layer's definition: which slots count, and what its final sum may come to."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from reference import routed_sum
from reference.final_sum import FinalSum
from reference.moe import masked_moe
from reference.nvfp4 import quantize_nvfp4
from reference.routed import require_distinct, routed_moe, routes_of
from reference.routed_sum import RoutedSum

TOKENS, LOCAL, K, N = 6, 3, 32, 32
IDS = torch.tensor([[4, 2, -1], [7, 9, 5], [-1, -1, -1], [3, 4, 5], [6, 2, 1], [5, -1, 3]])  # 3 to 5 are here


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights() -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, shape, seed in (("w1", (LOCAL, 2 * N, K), 1), ("w2", (LOCAL, K, N), 2)):
        values = random(*shape, seed=seed)
        quantized = [quantize_nvfp4(each, torch.tensor(700.0)) for each in values]
        found[name] = torch.stack([q.codes for q in quantized])
        found[f"{name}_blockscale"] = torch.stack([q.block_scale for q in quantized])
        found[f"{name}_alpha"] = torch.tensor([0.01, 0.02, 0.005])
    return found | {"a2_global_scale": torch.tensor([300.0, 500.0, 400.0])}


def test_the_layer_is_the_masked_one_token_by_token() -> None:
    """ROUTED-1, ROUTED-2: each slot's expert by itself, its weight, and a float32 sum over the slots."""
    x, of_slots = random(TOKENS, K, seed=3).bfloat16(), random(TOKENS, 3, seed=6).abs()
    scale = torch.tensor([500.0])
    out = routed_moe(x, IDS, of_slots, scale, **weights(), offset=3)
    for token in range(TOKENS):
        total = torch.zeros(K)
        for slot, expert in enumerate(IDS[token].tolist()):
            if 3 <= expert < 3 + LOCAL:
                one = {name: value[expert - 3 : expert - 2] for name, value in weights().items()}
                row = masked_moe(x[token].view(1, 1, K), scale, **one, masked_m=torch.tensor([1]))
                total = total + of_slots[token, slot] * row[0, 0].float()
        assert torch.equal(out[token], total.bfloat16())
    assert not out[2].any()
    held = (random(TOKENS, K, seed=4) * out.float().abs().max()).bfloat16()
    onto = routed_moe(
        x, IDS, of_slots, scale, **weights(), offset=3, way=FinalSum.of("slots; onto out"), out=held
    )
    assert torch.equal(onto[2], held[2])
    assert not torch.equal(onto[0], out[0])


def test_rows_lie_expert_after_expert() -> None:
    """ROUTED-1: tokens of an expert in their order; other ranks' experts and -1 have no row."""
    routes = routes_of(IDS, LOCAL, 3)
    assert routes.counts == [2, 2, 3]
    assert routes.token.tolist() == [3, 5, 0, 3, 1, 3, 5]
    assert routes.slot.tolist() == [0, 2, 0, 1, 2, 2, 0]
    assert routes.place.tolist() == [0, 1, 0, 1, 0, 1, 2]
    assert routes.most == 3
    rows = torch.arange(7.0).unsqueeze(-1)
    assert routes.spread(rows)[5, :, 0].tolist() == [6.0, 0.0, 1.0]
    assert routes_of(IDS[:0], LOCAL).counts == [0, 0, 0]


def test_the_same_expert_twice_is_refused() -> None:
    """ROUTED-1: -1 may come as often as it likes."""
    require_distinct(IDS)
    with pytest.raises(ValueError, match=r"must be distinct, got \[3, 1, 3\] for token 1"):
        require_distinct(torch.tensor([[0, -1, -1], [3, 1, 3]]))
    with pytest.raises(ValueError, match="weight on rows"):
        routed_moe(
            torch.zeros(1, K),
            IDS[:1],
            torch.ones(1, 3),
            torch.ones(1),
            **weights(),
            way=FinalSum(weight="rows"),
        )


def sums(text: str, *, topk: int = 4, seed: int = 5) -> tuple[RoutedSum, Tensor]:
    """Return a sum over rows whose order shows, and the rows."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(8, generator=generator)[:topk] for _ in range(12)])
    ids[::3, 0] = -1
    rows = (
        random(12, topk, 40, seed=seed) * torch.tensor([1.0, 30.0, 0.02, 5.0] * 2)[:topk].view(1, -1, 1)
    ).bfloat16()
    held, of_slots = random(12, 40, seed=seed + 1).bfloat16(), torch.rand(12, topk, generator=generator)
    # Two rows that cancel, far larger than the others: what float32 loses in between shows in bfloat16.
    rows[:6, 0] *= 2.0**19
    rows[:6, 1], of_slots[:, 1] = -rows[:6, 0], of_slots[:, 0]
    return RoutedSum(FinalSum.of(text), of_slots, ids, ids >= 0, held), rows


@pytest.mark.parametrize(
    "text",
    ["slots", "experts", "slots; rounded each step", "experts; weight on rows; onto out", "slots; times 2.5"],
)
def test_a_fixed_order_has_one_value_apart_from_fma(text: str) -> None:
    """ROUTED-2: the sum is what a loop over the slots gives, in float32 or in the output's type."""
    summed, rows = sums(text)
    got, legal = summed.total(rows), summed.legal(rows, rows)
    for token in range(len(rows)):
        slots = [slot for slot in range(4) if summed.there[token, slot]]
        if summed.way.order == "experts":
            slots.sort(key=lambda slot: int(summed.topk_idx[token, slot]))
        total = summed.start[token].float() if summed.way.onto else torch.zeros(40)
        for slot in slots:
            factor = summed.weights[token, slot] if summed.way.weight == "sum" else 1.0
            total = total + factor * rows[token, slot].float()
            total = total.bfloat16().float() if summed.way.stepwise else total
        assert torch.equal(got[token], (total * summed.way.times).bfloat16())
    fused = summed.total(rows, fused=True).double()
    assert torch.equal(
        legal.low, torch.minimum(got.double(), fused if summed.way.weight == "sum" else got.double())
    )
    assert torch.equal(
        legal.high, torch.maximum(got.double(), fused if summed.way.weight == "sum" else got.double())
    )


ANY = [
    "any", "any; rounded each step", "any; weight on rows; rounded each step; onto out", "any; weight on rows; times 2.5"
]  # fmt: skip


def every_order(summed: RoutedSum, rows: Tensor) -> list[Tensor]:
    found = []
    for order in itertools.permutations(range(rows.shape[1])):
        way = replace(summed.way, order="slots")
        moved = list(order)
        again = RoutedSum(
            way, summed.weights[:, moved], summed.topk_idx[:, moved], summed.there[:, moved], summed.start
        )
        found.append(again.total(rows[:, moved]).double())
    return found


@pytest.mark.parametrize("text", ANY)
def test_any_order_is_legal_and_no_other_value(text: str) -> None:
    """ROUTED-3: all 24 orders lie in the range, its ends are reached, and orders differ."""
    summed, rows = sums(text)
    legal, orders = summed.legal(rows, rows), torch.stack(every_order(summed, rows))
    assert bool(((orders >= legal.low) & (orders <= legal.high)).all())
    if summed.way.weight == "rows":
        assert torch.equal(orders.amin(0), legal.low)
        assert torch.equal(orders.amax(0), legal.high)
    assert bool((orders.amin(0) != orders.amax(0)).any())


@pytest.mark.parametrize("text", ANY)
def test_the_bound_of_many_slots_holds_every_order(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """ROUTED-3: where orders are too many to be tried the range holds them all, and is not wide."""
    summed, rows = sums(text)
    exact = summed.legal(rows, rows)
    monkeypatch.setattr(routed_sum, "MOST_ORDERED", 0)
    bound = summed.legal(rows, rows)
    assert bool(((bound.low <= exact.low) & (bound.high >= exact.high)).all())
    magnitude = (summed.factors.unsqueeze(-1) * rows.float().abs()).sum(1) + summed.start.float().abs()
    unit = 2.0**-8 if summed.way.stepwise else 2.0**-24
    widest = magnitude.double() * summed.way.times * (2.0**-7 + 24 * unit)
    assert bool((bound.high - bound.low <= widest).all())


def test_ends_of_rows_give_ends_of_sums() -> None:
    """ROUTED-2: rows between two ends give sums between the legal ones; NaN stays NaN."""
    summed, rows = sums("slots")
    low, high = (rows.float() - 0.01).bfloat16(), (rows.float() + 0.01).bfloat16()
    legal, inner = summed.legal(low, high), summed.total(rows).double()
    assert bool(((inner >= legal.low) & (inner <= legal.high)).all())
    rows[1, 2] = torch.nan
    assert bool(summed.legal(rows, rows).low[1].isnan().all())


def test_negative_weights_turn_the_ends_round() -> None:
    """ROUTED-2: logits may be weights; the smallest row then gives the largest sum."""
    summed, rows = sums("slots")
    summed = replace(summed, weights=summed.weights - 0.5)
    low, high = (rows.float() - 0.01).bfloat16(), (rows.float() + 0.01).bfloat16()
    legal, inner = summed.legal(low, high), summed.total(rows).double()
    assert bool((legal.low <= legal.high).all())
    assert bool(((inner >= legal.low) & (inner <= legal.high)).all())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("slots", FinalSum()),
        ("slots; weight on rows; times 2.5", FinalSum(weight="rows", times=2.5)),
        ("any; weight on rows; rounded each step", FinalSum("any", "rows", stepwise=True)),
        ("experts; weight on hidden; onto out", FinalSum("experts", "hidden", onto=True)),
    ],
)
def test_a_text_stands_for_a_sum(text: str, expected: FinalSum) -> None:
    """ROUTED-2: order first, then options."""
    assert FinalSum.of(text) == expected
    assert expected.fixed == (expected.order != "any")


@pytest.mark.parametrize("text", ["", "sum", "slots; weight on everything", "any; rounded", "slots; times 0"])
def test_another_text_is_refused(text: str) -> None:
    """ROUTED-2: with what was expected."""
    with pytest.raises(ValueError, match=r"a final sum begins with|options of a final sum are"):
        FinalSum.of(text)
