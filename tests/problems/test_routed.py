"""What a problem means to a routed layer: which tokens go to which experts, and what the options do."""

from __future__ import annotations

import pytest
import torch

from harness.candidates.traits import Traits
from harness.problems.problem import parse_problem
from harness.problems.routed import RoutedProblem

SHAPE = "v2:5x40x64x32:40,0,17,3,40:normal:{seed}{extras}"


def made(seed: int = 1, extras: str = "", **traits: object) -> RoutedProblem:
    problem = parse_problem(SHAPE.format(seed=seed, extras=extras and f":{extras}"))
    return RoutedProblem(problem, Traits(device="cpu", k_multiple=16, n_multiple=8, **traits))  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(4))
def test_masked_m_is_how_many_tokens_go_to_each_expert(seed: int) -> None:
    r = made(seed)
    assert r.topk_idx.dtype == torch.int32
    assert r.routes.counts == [40, 0, 17, 3, 40]
    for ids in r.topk_idx.tolist():
        named = [expert for expert in ids if expert >= 0]
        assert len(named) == len(set(named))
    most, fewest = (r.routes.there.sum(-1).max(), r.routes.there.sum(-1).min())
    assert int(most - fewest) <= 1
    assert bool((r.topk_weights >= 0.1).all())


def test_no_valid_row_means_no_token_or_tokens_without_an_expert() -> None:
    for seed, tokens in ((2, 0), (3, 4)):
        r = RoutedProblem(parse_problem(f"v2:2x4x64x32:0,0:normal:{seed}"), Traits(device="cpu"))
        assert r.tokens == tokens
        assert r.x.shape == (tokens, 64)
        assert r.topk_idx.shape[0] == tokens
        assert not r.routes.there.any()


@pytest.mark.parametrize("seed", range(6))
def test_a_rank_of_several_has_experts_behind_an_offset(seed: int) -> None:
    r = made(seed, "sharded")
    assert r.total_experts in {10, 15, 20}
    assert r.offset % 5 == 0
    assert r.routes.counts == [40, 0, 17, 3, 40]
    elsewhere = (r.topk_idx >= 0) & ~r.routes.there
    assert bool(elsewhere.any()) or r.topk_idx.shape[1] == 3
    assert int(r.topk_idx.max()) < r.total_experts


def test_redundant_experts_share_weights_and_scales() -> None:
    problem = "v2:8x8x64x32:8*8:normal:5"
    r, plain = (
        RoutedProblem(parse_problem(problem + extras), Traits(device="cpu")) for extras in (":redundant", "")
    )
    held = r.held.tolist()
    assert len(set(held)) == 6
    for name in ("w1_alpha", "w2_alpha", "a2_scale"):
        assert torch.equal(getattr(r, name), getattr(plain, name)[r.held])
    assert torch.equal(r.w1.codes, plain.w1.codes[r.held])


def test_what_a_candidate_takes_is_what_it_gets() -> None:
    r = made(one_a2_scale=True, most_topk=2)
    assert len(set(r.a2_scale.tolist())) == 1
    assert r.topk_idx.shape[1] <= 2
    assert torch.allclose(r.w2_alpha * r.a2_scale, made().w2_alpha * made().a2_scale)
    assert made(final_sum="slots; weight on tokens").topk_idx.shape[1] == 1
    assert made().held_before().isnan().all()
    assert made().held_before(13.0).eq(13).all()
    assert made(final_sum="any; onto out").held_before().isfinite().all()


def test_a_part_of_the_tokens_keeps_what_belongs_to_them() -> None:
    r = made()
    some = torch.tensor([3, 0])
    part = r.only(some)
    assert part.tokens == 2
    assert torch.equal(part.topk_idx, r.topk_idx[some])
    assert torch.equal(part.x, r.x[some])
    assert torch.equal(part.quantized.codes, r.quantized.codes[some])
    assert sum(part.routes.counts) == int(r.routes.there[some].sum())
    assert sum(r.routes.counts) == 100
