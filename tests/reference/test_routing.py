"""Dispatch and combine over simulated ranks against loops over tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from reference.routing import NO_EXPERT, combine, dispatch, route_topk

HIDDEN = 6


def problem(
    ranks: int, experts: int, topk: int, counts: list[int], seed: int, *, repeat: bool = False
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return tokens, expert ids with some slots empty, and weights, per rank."""
    generator = torch.Generator().manual_seed(seed)
    x, ids, weights = [], [], []
    for rank in range(ranks):
        tokens = counts[rank % len(counts)]
        x.append(torch.randn(tokens, HIDDEN, generator=generator).bfloat16())
        order = torch.rand(tokens, experts, generator=generator).argsort(-1)
        chosen = torch.randint(0, experts, (tokens, topk), generator=generator) if repeat else order[:, :topk]
        chosen[torch.rand(tokens, topk, generator=generator) < 0.2] = NO_EXPERT
        ids.append(chosen)
        weights.append(torch.rand(tokens, topk, generator=generator))
    return x, ids, weights


CASES = [
    (1, 4, 2, [5]),
    (2, 4, 2, [3, 7]),
    (4, 8, 3, [0, 6, 1, 4]),
    (3, 3, 1, [4]),
    (2, 6, 6, [5]),
    (2, 2, 1, [0]),
]


@pytest.mark.parametrize("repeat", [False, True], ids=["distinct", "repeated experts"])
@pytest.mark.parametrize(("ranks", "experts", "topk", "counts"), CASES)
def test_every_token_arrives_once_at_each_of_its_experts_bit_for_bit(
    ranks: int, experts: int, topk: int, counts: list[int], repeat: bool
) -> None:
    """DISPATCH-1, DISPATCH-2: nothing is lost, doubled or changed; rows of a rank lie together; padding says so."""
    x, ids, _ = problem(ranks, experts, topk, counts, seed=1, repeat=repeat)
    received = dispatch(x, ids, experts, max(counts))
    local = experts // ranks
    assert len(received) == ranks
    for owner, got in enumerate(received):
        assert got.x.shape == (local, ranks * max(counts), HIDDEN)
        for place in range(local):
            expected = {
                (rank, token)
                for rank in range(ranks)
                for token in range(len(x[rank]))
                if owner * local + place in ids[rank][token].tolist()
            }
            rows = int(got.masked_m[place])
            sources = [tuple(pair) for pair in got.source[place, :rows].tolist()]
            assert len(sources) == len(expected)
            assert set(sources) == expected
            for row, (rank, token) in enumerate(sources):
                assert torch.equal(got.x[place, row].view(torch.int16), x[rank][token].view(torch.int16))
            order = [rank for rank, _ in sources]
            assert order == sorted(order)
            assert (got.source[place, rows:] == -1).all()
            assert got.x[place, rows:].isnan().all()


@pytest.mark.parametrize("repeat", [False, True], ids=["distinct", "repeated experts"])
@pytest.mark.parametrize(("ranks", "experts", "topk", "counts"), CASES)
def test_combine_is_a_float32_sum_over_the_slots_in_order_rounded_once(
    ranks: int, experts: int, topk: int, counts: list[int], repeat: bool
) -> None:
    """COMBINE-1, COMBINE-2: each expert scales its rows by its own number; per token, in numpy's float32."""
    x, ids, weights = problem(ranks, experts, topk, counts, seed=2, repeat=repeat)
    received = dispatch(x, ids, experts, max(counts))
    local = experts // ranks
    factor = torch.arange(1, experts + 1) / 3
    y = [
        (got.x.float() * factor[owner * local : (owner + 1) * local].view(-1, 1, 1)).bfloat16()
        for owner, got in enumerate(received)
    ]
    out = combine(y, received, ids, weights)
    for rank in range(ranks):
        assert out[rank].shape == (len(x[rank]), HIDDEN)
        assert out[rank].dtype == torch.bfloat16
        for token in range(len(x[rank])):
            total = np.zeros(HIDDEN, dtype=np.float32)
            for slot in range(topk):
                expert = int(ids[rank][token, slot])
                if expert != NO_EXPERT:
                    row = (x[rank][token].float() * factor[expert]).bfloat16().float().numpy()
                    total = total + np.float32(weights[rank][token, slot]) * row
            assert torch.equal(out[rank][token], torch.from_numpy(total).bfloat16())


def test_the_order_of_rows_within_a_rank_is_free() -> None:
    """DISPATCH-2, COMBINE-1: shuffled rows, with their sources, combine to the same bits."""
    x, ids, weights = problem(2, 4, 3, [6, 5], seed=3)
    received = dispatch(x, ids, 4, 6)
    generator = torch.Generator().manual_seed(4)
    shuffled = []
    for got in received:
        xs, sources = got.x.clone(), got.source.clone()
        for place, rows in enumerate(got.masked_m.tolist()):
            order = torch.randperm(rows, generator=generator)
            xs[place, :rows], sources[place, :rows] = got.x[place, order], got.source[place, order]
        shuffled.append(type(got)(xs, got.masked_m, sources))
    straight = combine([g.x for g in received], received, ids, weights)
    turned = combine([g.x for g in shuffled], shuffled, ids, weights)
    for a, b in zip(straight, turned, strict=True):
        assert torch.equal(a, b)


def test_weights_that_add_up_to_one_bring_tokens_back() -> None:
    """DISPATCH-1, COMBINE-1: with powers of two as weights and the identity as expert the round trip is exact."""
    x, ids, _ = problem(4, 8, 2, [3, 0, 5, 2], seed=5)
    ids = [torch.where(i == NO_EXPERT, (i.flip(-1) + 1).clamp(min=0) % 8, i) for i in ids]
    weights = [torch.tensor([0.25, 0.75]).expand(i.shape) for i in ids]
    received = dispatch(x, ids, 8, 5)
    for token, back in zip(x, combine([g.x for g in received], received, ids, weights), strict=True):
        assert torch.equal(token, back)


def test_a_token_without_an_expert_comes_back_as_zeros_and_is_sent_nowhere() -> None:
    """COMBINE-2: every slot is -1."""
    x = [torch.ones(2, HIDDEN).bfloat16()]
    ids = [torch.tensor([[NO_EXPERT, NO_EXPERT], [1, NO_EXPERT]])]
    received = dispatch(x, ids, 2, 2)
    assert received[0].masked_m.tolist() == [0, 1]
    out = combine([received[0].x], received, ids, [torch.ones(1, 2).expand(2, 2)])
    assert out[0].tolist() == [[0.0] * HIDDEN, [1.0] * HIDDEN]


def test_bytes_are_moved_as_they_are() -> None:
    """DISPATCH-1: packed codes travel as uint8; padding holds 0xFF."""
    x = [torch.arange(12, dtype=torch.uint8).view(2, 6)]
    got = dispatch(x, [torch.tensor([[0], [0]])], 1, 3)[0]
    assert torch.equal(got.x[0, :2], x[0])
    assert (got.x[0, 2:] == 0xFF).all()


def test_topk_takes_the_largest_softmax_weights() -> None:
    """ROUTE-1: against float64 loops; normalized or not."""
    logits = torch.randn(20, 7, generator=torch.Generator().manual_seed(6)).bfloat16()
    experts, weights = route_topk(logits, 3)
    _, raw = route_topk(logits, 3, normalize=False)
    for token in range(20):
        p = np.exp(logits[token].double().numpy())
        p /= p.sum()
        chosen = experts[token].tolist()
        assert len(set(chosen)) == 3
        assert sorted(p[chosen], reverse=True) == list(p[chosen])
        assert p[chosen].min() >= np.delete(p, chosen).max()
        np.testing.assert_allclose(raw[token].numpy(), p[chosen], rtol=1e-6)
        np.testing.assert_allclose(weights[token].numpy(), p[chosen] / p[chosen].sum(), rtol=1e-6)
    assert weights.dtype == torch.float32


def test_wrong_arguments_raise() -> None:
    """ROUTE-1, DISPATCH-1: limits and extents."""
    x, ids = [torch.ones(2, HIDDEN)], [torch.zeros(2, 1, dtype=torch.int64)]
    with pytest.raises(ValueError, match=r"topk must lie in \[1, 4\], got 5"):
        route_topk(torch.zeros(2, 4), 5)
    with pytest.raises(ValueError, match="multiple of the number of ranks, got 3 and 2"):
        dispatch(x * 2, ids * 2, 3, 2)
    with pytest.raises(ValueError, match="multiple of the number of ranks, got 3 and 0"):
        dispatch([], [], 3, 2)
    with pytest.raises(ValueError, match="rank 0 sends 2 tokens, max_tokens is 1"):
        dispatch(x, ids, 1, 1)
    with pytest.raises(ValueError, match="2 tokens and 3 rows of topk_idx"):
        dispatch(x, [torch.zeros(3, 1, dtype=torch.int64)], 1, 2)
    for bad in (-2, 1):
        with pytest.raises(ValueError, match=r"topk_idx must lie in \[-1, 1\)"):
            dispatch(x, [torch.full((2, 1), bad)], 1, 2)
