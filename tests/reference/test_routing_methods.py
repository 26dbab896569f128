"""Routing methods against token-by-token float32 kernels, and what is left open against what could be computed otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from reference.routing_methods import Routing, choose
from tests.capture.real.routing_kernels import METHODS, route

NAMES = {"renormalize_naive": "renormalize"}


def drawn(tokens: int, experts: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens * experts)
    return (
        (torch.randn(tokens, experts, generator=generator) * 3).to(dtype),
        torch.randn(experts, generator=generator) / 4,
    )


def asked(name: str, topk: int) -> tuple[Routing, dict[str, Any]]:
    number, _, options = METHODS[name]
    given = {
        "routing_method_type": number,
        "top_k": topk,
        "n_group": 0,
        "topk_group": 0,
        "routed_scaling_factor": None,
    }
    given |= options
    factor = given["routed_scaling_factor"] or 1.0
    return Routing(NAMES.get(name, name), topk, given["n_group"], given["topk_group"], factor), given


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("experts", "dtype"), [(16, torch.float32), (64, torch.bfloat16)])
def test_what_is_known_is_what_a_kernel_computes(name: str, experts: int, dtype: torch.dtype) -> None:
    """ROUTED-4: ids as sets, since equal scores have no order; weights bit for bit."""
    logits, bias = drawn(200, experts, dtype)
    routing, given = asked(name, 4)
    bias = bias if METHODS[name][1] else None  # type: ignore[assignment]
    found = choose(logits, bias, routing)
    ids, weights = route(logits, bias, given)
    assert found.known.float().mean() > 0.7, "ties among bfloat16 logits leave some open"
    known = found.known
    order, other = (one[known].sort(-1) for one in (found.topk_idx, ids))
    assert torch.equal(order.values, other.values)
    by_expert = found.topk_weights[known].gather(-1, order.indices)
    assert torch.equal(by_expert, weights.bfloat16().float()[known].gather(-1, other.indices))


def test_a_tie_at_the_last_place_is_open() -> None:
    """ROUTED-4: either of two equal experts may be taken; not so where both are."""
    logits = torch.tensor([[3.0, 2.0, 2.0, 1.0], [3.0, 3.0, 2.0, 1.0]])
    assert choose(logits, None, Routing("renormalize", 2)).known.tolist() == [False, True]
    near = torch.tensor([[3.0, 2.0, 2.0 - 2.0**-22, 1.0]])
    assert choose(near, None, Routing("renormalize", 2)).known.tolist() == [True], (
        "logits are compared as they are"
    )
    assert choose(near, None, Routing("sigmoid", 2)).known.tolist() == [False], "sigmoids are rounded"


def test_a_bias_chooses_and_does_not_weigh() -> None:
    """ROUTED-4."""
    logits, bias = torch.zeros(1, 4), torch.tensor([0.0, 0.5, 1.0, 0.25])
    found = choose(logits, bias, Routing("minimax2", 2, factor=2.0))
    assert found.topk_idx.tolist() == [[2, 1]]
    assert found.topk_weights.tolist() == [[1.0, 1.0]]


def test_experts_come_from_the_best_groups() -> None:
    """ROUTED-4: the largest score of all lies in a group that is not chosen."""
    logits = torch.tensor([[4.0, -9.0, 2.0, 2.0, 1.0, 1.0, -9.0, -9.0]])
    found = choose(logits, None, Routing("deepseek_v3", 2, groups=4, topk_groups=1))
    assert sorted(found.topk_idx[0].tolist()) == [2, 3]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="method must be one of default"):
        Routing("argmax", 1)
    with pytest.raises(ValueError, match="1 for llama4, got 2"):
        Routing("llama4", 2)
    with pytest.raises(ValueError, match="5 of 4 experts in 1 groups"):
        choose(torch.zeros(1, 4), None, Routing("topk", 5))
