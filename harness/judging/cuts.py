"""Where a kernel cut k, and how it added the parts: every way that gives the stored values of a few elements.

A way is a set of cuts and a manner of joining. Cuts: any one; or all of one length but for the first and the last part,
which is what stream k makes of k wherever a tile begins in its schedule, split k too; or the cuts of a declared order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import permutations

import torch
from torch import Tensor

from reference.matrix_units import Operand, Summation, segments
from reference.matrix_units.order import KOrder

Cuts = tuple[int, ...]
MOST_PARTS = 16  # of parts that are joined in a fixed manner
MOST_STREAMED = 10  # of parts that arrive in any order, as kernels have at most: 9! orders of those that are added to the first
_STEP = 64  # elements of k
_FIRST = 4  # elements that are asked before all
_ALL_FIRST = 4  # parts of which each may have been stored first; of more the first or the last
_FEW_ORDERS = 16  # orders that are tried before more: they give most elements of right cuts
_AT_ONCE = 1 << 22  # sums that are held at a time


def step_of(summation: Summation) -> int:
    """Return what cuts of k are multiples of: a turn of all lanes, 64 of k, or whole instructions where those are longer."""
    unit = summation.unit
    if summation.lanes > 1:
        return summation.turn * summation.lanes
    return _STEP if unit.k <= _STEP or unit.result == "nearest" else -(-unit.k // _STEP) * _STEP


def table_of(summation: Summation, a: Operand, b: Operand, step: int = 0) -> tuple[Tensor, int]:
    """Return the sums of every stretch of k of some elements, as `segments` does, and the step.

    Args:
        summation: its unit and lanes count.
        a: `(elements, k)`.
        b: `(elements, k)`.
        step: elements of k, with one lane; 0 for `step_of`.
    """
    unit, lanes, turn = summation.unit, summation.lanes, summation.turn
    if lanes == 1:
        step = step or step_of(summation)
        return segments(unit, a, b, step), step
    first, *others = (
        segments(unit, a.turns(lane, lanes, turn), b.turns(lane, lanes, turn), turn)
        for lane in range(lanes)
        if lane * turn < a.k
    )
    for other in others:  # a last stretch may be shorter than a turn of all lanes
        steps = len(other)
        first[:steps, 1 : steps + 1] += other[:, 1:]
        first[:steps, steps + 1 :] += other[:, -1:]
    return first, turn * lanes


@cache
def cut_sets(steps: int) -> tuple[Cuts, ...]:
    """Return the cuts of k that are tried, each in steps, few parts and even ones first; () is one pass."""
    found: dict[Cuts, int] = {(): 0}
    for length in range(1, steps):
        for first in range(1, length + 1):
            cuts = tuple(range(first, steps, length))
            if 0 < len(cuts) < MOST_PARTS:
                # Equal parts come before a short first one, which only stream k makes.
                found.setdefault(cuts, int(first != length))
    for first in range(1, steps):
        found.setdefault((first,), 2)
    return tuple(sorted(found, key=lambda cuts: (len(cuts), found[cuts], cuts)))


def fitting(
    table: Tensor, out: Tensor, finish: Callable[[Tensor], Tensor], sets: Iterable[Cuts], manner: str = "in order",
    partial: torch.dtype = torch.float32,
) -> Iterator[Cuts]:  # fmt: skip
    """Yield the cuts that give every value, few parts first.

    Args:
        table: `segments` of the elements.
        out: `(elements,)` what was stored.
        finish: what the kernel makes of float32 sums: alpha, factors of rows, and the output's type.
        sets: cuts in steps.
        manner: "in order", "last first", "pairwise", or "stream": finished first, then added in any order.
        partial: type that the sum of a part is rounded to.
    """
    by_count: dict[int, list[Cuts]] = defaultdict(list)
    for cuts in sets:
        by_count[len(cuts) + 1].append(cuts)
    for count, of_count in by_count.items():
        if count > (MOST_STREAMED if manner == "stream" else MOST_PARTS):
            continue
        left = of_count
        # A few elements leave few cuts for all of them.
        for some in (slice(0, _FIRST), slice(0, len(out))):
            if left:
                left = _fitting(table[..., some], out[some], finish, left, manner, partial)
        yield from left


def _fitting(
    table: Tensor, out: Tensor, finish: Callable[[Tensor], Tensor], sets: list[Cuts], manner: str, partial: torch.dtype
) -> list[Cuts]:  # fmt: skip
    """Return those of the cuts, all of as many parts, that give every value."""
    found, count = [], len(sets[0]) + 1
    at_once = max(1, _AT_ONCE // (count * len(out)))
    for i in range(0, len(sets), at_once):
        parts = parts_of(table, sets[i : i + at_once])
        if count > 1:
            parts = parts.to(partial).float()
        if manner == "stream":
            fits = streams(finish(parts), out)[0].any(1)
        else:
            fits = same(finish(joined(parts, manner)), out).all(-1)
        found += [sets[i + int(j)] for j in fits.nonzero()]
    return found


def parts_of(table: Tensor, sets: list[Cuts]) -> Tensor:
    """Return the sums of the parts of k, `(sets, parts, elements)` float32, of cuts in steps that all make as many."""
    ends = torch.tensor([(0, *cuts, len(table)) for cuts in sets], device=table.device)
    return table[ends[:, :-1], ends[:, 1:]]


def in_order(table: Tensor, step: int, order: KOrder) -> Tensor | None:
    """Return the sums of the elements in an order along k, `(elements,)` float32; None where the table does not have it.

    Args:
        table: `segments` of the elements, of the order's lanes.
        step: elements of k between two of its stretches.
        order: without later modes.
    """
    cuts = order.cuts or (range(order.promote, len(table) * step, order.promote) if order.promote else ())
    two_kinds = (order.promote and (order.cuts or order.lanes > 1)) or (order.pairwise and order.reverse)
    if two_kinds or any(cut % step for cut in cuts):
        return None
    ends = torch.tensor((0, *(cut // step for cut in cuts), len(table)), device=table.device)
    parts = table[ends[:-1], ends[1:]]
    if order.cuts:
        parts = parts.to(getattr(torch, order.partial)).float()
    return joined(parts, "pairwise" if order.pairwise else "last first" if order.reverse else "in order")


def same(x: Tensor, out: Tensor) -> Tensor:
    """Return where two results are the same number, or both are none."""
    return (x == out) | (x.isnan() & out.isnan())


def joined(parts: Tensor, manner: str) -> Tensor:
    """Return the float32 sums of `(*, parts, elements)` in a fixed manner."""
    sums = list(parts.unbind(-2))
    if manner == "last first":
        sums.reverse()
    while len(sums) > 1:
        count = len(sums) // 2 if manner == "pairwise" else 1
        sums = [sums[2 * i] + sums[2 * i + 1] for i in range(count)] + sums[2 * count :]
    return sums[0]


def streams(parts: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Return where parts that are added in the output's type, in any order, give what was stored.

    One part is stored and the others are added to it as they arrive, so each element may have an order of its own: adders
    of a GPU's memory keep one for a few neighbours only. Of more than four parts the first or the last is stored.

    Args:
        parts: `(*, parts, elements)` of the output's type.
        out: `(elements,)` of that type.

    Returns:
        For each part that may have been stored first, `(*, parts)` bool, whether every element has such an order; and for
        that part which elements have, `(*, parts, elements)`.
    """
    count, elements = parts.shape[-2:]
    wide = parts.float().movedim(-2, 0).reshape(count, -1)
    wanted = out.float().expand(*parts.shape[:-2], elements).reshape(-1)
    given = torch.zeros(parts.shape, dtype=torch.bool, device=parts.device)
    firsts = range(1 if count < 3 else count) if count <= _ALL_FIRST else (0, count - 1)
    for first in firsts:
        given[..., first, :] = _arrived(wide, first, wanted, out.dtype).view(given[..., first, :].shape)
    return given.all(-1), given


def _arrived(wide: Tensor, first: int, wanted: Tensor, dtype: torch.dtype) -> Tensor:
    """Return which elements some order of the parts after the first gives; `wide` is `(parts, elements)`."""
    orders = _orders(len(wide), first).to(wide.device)
    given = torch.zeros(len(wanted), dtype=torch.bool, device=wide.device)
    left, at, at_once = torch.arange(len(wanted), device=wide.device), 0, _FEW_ORDERS
    while at < len(orders) and len(left):
        some = wide[:, left]
        chunk = orders[at : at + max(1, min(at_once, _AT_ONCE // len(left)))]
        total = some[first].expand(len(chunk), -1)
        for part in chunk.T:
            total = (total + some[part]).to(dtype).float()
        now = same(total, wanted[left]).any(0)
        given[left[now]] = True
        left, at, at_once = left[~now], at + len(chunk), at_once * 8
    return given


@cache
def _orders(count: int, first: int) -> Tensor:
    """Return all orders of the parts but one, `(orders, parts - 1)`."""
    return torch.tensor(list(permutations(part for part in range(count) if part != first)))
