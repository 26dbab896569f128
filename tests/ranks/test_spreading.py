"""A problem's ranks over more processes than it has: the reference plays the processes, and the result is that of the ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.ranks.messages import without_padding
from harness.ranks.spreading import Spread, in_order, with_rows_at
from reference import routing
from reference.routing import Dispatched

CASES = [(2, 2, 6), (2, 1, 3), (4, 1, 6), (4, 2, 6), (4, 4, 8), (8, 2, 10)]


def drawn(ranks: int, experts: int) -> tuple[list[Any], list[Any], list[Any]]:
    generator = torch.Generator().manual_seed(ranks * experts)
    counts = [5, 0, 3, 1][:ranks]
    x = [torch.randn(n, 128, generator=generator).bfloat16() for n in counts]
    ids = [torch.rand(n, experts, generator=generator).topk(3).indices for n in counts]
    for rows in ids:
        rows[::2, 1] = -1
    return x, ids, [torch.rand(rows.shape, generator=generator) for rows in ids]


def same(one: Dispatched, other: Dispatched) -> None:
    assert torch.equal(one.masked_m, other.masked_m)
    assert torch.equal(one.source, other.source)
    valid = one.source[..., 0] >= 0
    assert torch.equal(one.x.view(torch.uint8)[valid], other.x.view(torch.uint8)[valid])
    assert (one.scales is None) == (other.scales is None)
    if one.scales is not None and other.scales is not None:
        assert torch.equal(one.scales[valid], other.scales[valid])


@pytest.mark.parametrize(("processes", "ranks", "experts"), CASES)
@pytest.mark.parametrize("transport", ["bf16", "fp8"])
def test_what_ranks_receive_and_combine_is_what_they_would_alone(
    processes: int, ranks: int, experts: int, transport: str
) -> None:
    x, ids, weights = drawn(ranks, experts)
    spread = Spread(processes, ranks, experts, max_tokens=5, row_multiple=4)
    sizes = spread.sizes(128, 3, transport)
    assert processes * sizes.max_tokens % 4 == 0
    assert sizes.experts % processes == 0
    tokens, routes = spread.tokens(x, x[0][:0]), spread.routes(ids)
    sent = routing.dispatch(tokens, routes, sizes.experts, sizes.max_tokens, transport=transport)
    received = spread.received([without_padding(got) for got in sent], "cpu")
    wanted = routing.dispatch(x, ids, experts, 5, transport=transport)
    for one, other in zip(received, wanted, strict=True):
        same(one, other)
    if transport == "bf16":
        y = [got.x * 2 for got in received]
        of_processes = [
            Dispatched(rows, rows, source)
            for rows, source in zip(spread.rows(y, torch.nan, 128), spread.sources(received), strict=True)
        ]
        out = routing.combine(
            [got.x for got in of_processes], of_processes, routes, spread.tokens(weights, weights[0][:0])
        )
        alone = routing.combine(y, wanted, ids, weights)
        assert all(torch.equal(out[r * spread.each], one) for r, one in enumerate(alone))


def test_ranks_that_do_not_divide_and_tokens_where_none_were_sent_are_refused() -> None:
    with pytest.raises(ValueError, match="3 ranks must divide the 4 processes"):
        Spread(4, 3, 6, 5)
    spread = Spread(2, 1, 3, 5)
    x, ids, _ = drawn(1, 4)
    sent = routing.dispatch(spread.tokens(x, x[0][:0]), [ids[0], ids[0][:0]], 4, 5)
    with pytest.raises(ValueError, match="none for the last 1, to which no token was sent"):
        spread.received([without_padding(got) for got in sent], "cpu")


def test_rows_are_put_in_order_where_ranks_lie_together_and_else_stay() -> None:
    x, ids, _ = drawn(4, 4)
    for wanted in routing.dispatch(x, ids, 4, 5, transport="fp8"):
        count = int(wanted.masked_m[0])
        backwards = torch.arange(20)
        backwards[:count] = backwards[:count].flip(0)
        same(in_order(with_rows_at(wanted, backwards[None])), wanted)
    torn = torch.tensor([[[0, 1], [1, 0], [0, 0], [-1, -1]], [[1, 2], [0, 3], [0, 1], [-1, -1]]])
    numbered = torch.arange(8).view(2, 4, 1).bfloat16()
    got = in_order(Dispatched(numbered, torch.tensor([3, 3], dtype=torch.int32), torn))
    assert got.x.flatten().tolist() == [0, 1, 2, 3, 6, 5, 4, 7], "the first expert's rank 0 is torn"
