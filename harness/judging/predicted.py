"""What a candidate's accumulators hold, bit for bit, where its summation is known: asked where the bound leaves several values.

A right kernel may add in another order in some tiles or at some k (split k for few rows, stream k for the last tiles). So a
tile whose values are legal by the bound but not those of the known order is right as well if one other order explains
every element of it that the bound leaves open.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from harness.judging.cuts import cut_sets, fitting, step_of, table_of
from harness.judging.finish import Finish
from reference.bounds import LegalOutput, Predict
from reference.formats import NVFP4, Format, multiplied_in
from reference.matrix_units import ONE_PASS, KOrder, Operand, Summation, chosen

TILE = 64
MANNERS = ("in order", "last first", "pairwise")
_TILES = (64, 128, 256)
_FINE = 16  # k tiles of cuts into two parts, where cuts at multiples of 64 do not explain a tile
_FEW = (
    32,
    224,
)  # elements not as predicted that every order is asked for, and others: few of them tell orders apart
_MOST = (
    32  # orders that explain those and are asked for the whole tile: a narrow output hides most differences
)


@dataclass(frozen=True)
class Prediction:
    """A known summation and the operands that it is asked for.

    Attributes:
        summation: how the candidate's GEMM adds.
        a: `(experts, capacity, k)` float32, decoded.
        a_scale: `(experts, capacity, k / block)`, its block scales.
        b: `(experts, n, k)` float32, decoded.
        b_scale: `(experts, n, k / block)`.
        again: calls the candidate at the shape of the problem on the operands of a probe, which it returns with the output
            `(experts, capacity, n)`; None where the order is known at every shape.
        forms: of a and b.
    """

    summation: Summation
    a: Tensor
    a_scale: Tensor
    b: Tensor
    b_scale: Tensor
    again: Callable[[], tuple[Prediction, Tensor]] | None = None
    forms: tuple[Format, Format] = (NVFP4, NVFP4)

    def operands(self, expert: int, rows: int) -> tuple[Operand, Operand]:
        """Return both operands of an expert, the first one's valid rows."""
        return operands(
            self.summation,
            self.forms,
            (self.a[expert, :rows], self.a_scale[expert, :rows]),
            (self.b[expert], self.b_scale[expert]),
        )

    @property
    def within_float64(self) -> bool:
        """Whether it holds only where float64 sums are exact: a model that adds exactly, of operands of any magnitude."""
        return self.summation.unit.fraction is None and self.forms[0].element != "e2m1"

    def of_expert(self, expert: int, rows: int) -> Predict:
        """Return what legal_gemm asks for the sums of an expert's valid rows."""
        return lambda where: self.summation.chosen(*self.operands(expert, rows), where)


def operands(
    summation: Summation, forms: tuple[Format, Format], a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]
) -> tuple[Operand, Operand]:
    """Return both operands as a unit takes them.

    Args:
        summation: whose unit.
        forms: of a and b.
        a: `(m, k)` decoded and `(m, k / block)` block scales as they are stored.
        b: likewise, `(n, k)`.
    """
    left, right = (
        summation.operand(
            values, form.scales(scale), multiplied_in(forms[0], summation.name, form), form.scale
        )
        for form, (values, scale) in zip(forms, (a, b), strict=True)
    )
    return left, right


def orders_of(plain: Summation, k: int) -> list[Summation]:
    """Return a unit's orders along a k that a kernel may have, all with float32 partial sums, the simplest first."""
    split = [
        replace(plain, parts=parts, tile=tile)
        for tile in _TILES
        for parts in range(2, 9)
        if (parts - 1) * tile < k
    ]
    many = [order for order in split if order.parts > 2]
    return [
        plain,
        *split,
        *(replace(order, pairwise=True) for order in many),
        *(replace(order, reverse=True) for order in many),
        *(replace(plain, length=length) for length in (256, 512, 1024, 2048) if length < k),
        *in_registers(plain, k),
    ]


def in_registers(plain: Summation, k: int) -> list[Summation]:
    """Return the orders that have several accumulators without a cut of k: promotion, and lanes."""
    return [
        *(replace(plain, promote=every) for every in (64, 128, 256, 512) if every < k),
        *(order for order in lanes_of(plain)[1:] if k > order.turn),
    ]


def lanes_of(plain: Summation) -> list[Summation]:
    """Return a unit's summations with one to four accumulators that take k in turn, half as much at a time as well."""
    one, half = replace(plain, lanes=1, width=0), plain.unit.width // 2
    many = [replace(one, lanes=lanes) for lanes in (2, 4)]
    return [one, *many, *(replace(order, width=half) for order in many if half >= 64)]


def explained(
    bad: Tensor, out: Tensor, legal: LegalOutput, prediction: Prediction, expert: int, finish: Finish
) -> Counter[str]:
    """Clear what one other order explains, tile by tile, from the elements of an expert that are not as predicted.

    Args:
        bad: `(rows, n)` bool, not as predicted; changed in place.
        out: `(rows, n)`, the candidate's output.
        legal: by the bound alone.
        prediction: of the known order.
        expert: which one.
        finish: of the expert's rows.

    Returns:
        Elements that the bound leaves open in the tiles of each other order.
    """
    found: Counter[str] = Counter()
    known: dict[str, KOrder] = {}
    outside = ~legal.accepts(out)
    undecided = (legal.low != legal.high) & legal.exact.isfinite()
    a, b = prediction.operands(expert, len(out))
    failed = False
    for rows, columns in tiles(bad):
        where, wrong = undecided[rows, columns], bad[rows, columns]
        if bool(outside[rows, columns].any()) or bool((wrong & ~where).any()):
            continue
        tile = _Tile(prediction.summation, a.at(rows), b.at(columns), out[rows, columns], finish.at(rows))
        # Where one tile is unexplained the problem fails, and the others are only asked for orders that were found.
        ways = known.items() if failed else tile.ways(known, few_of(wrong, where))
        name, order = next((way for way in islice(ways, _MOST) if tile.gives(way[1], where)), ("", ONE_PASS))
        if name:
            bad[rows, columns], known[name] = False, order
            found[name] += int(where.sum())
        failed |= not name
    return found


def tiles(bad: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield the tiles that hold one of some elements, `(rows, n)` bool."""
    for row, column in sorted({(r // TILE, c // TILE) for r, c in bad.nonzero().tolist()}):
        yield slice(row * TILE, (row + 1) * TILE), slice(column * TILE, (column + 1) * TILE)


def few_of(bad: Tensor, where: Tensor) -> Tensor:
    """Return a few elements of a tile that are not as predicted, and a few more: a mask."""
    few = torch.zeros_like(where)
    for some, count in zip((bad, where & ~bad), _FEW, strict=True):
        at = some.nonzero()
        few[tuple(at[:: max(1, len(at) // count)][:count].T)] = True
    return few


@dataclass(frozen=True)
class _Tile:
    """What was stored in a tile, `(rows, columns)`, and its operands."""

    summation: Summation
    a: Operand
    b: Operand
    stored: Tensor
    finish: Finish

    def gives(self, order: KOrder, where: Tensor) -> bool:
        """Return whether an order gives what was stored in some elements."""
        sums = chosen(self.summation.unit, self.a, self.b, where, order)
        return torch.equal(self.finish.at(where.nonzero()[:, 0])(sums), self.stored[where])

    def ways(self, known: dict[str, KOrder], few: Tensor) -> Iterator[tuple[str, KOrder]]:
        """Yield the orders that give what was stored in a few elements, those that were found before first."""
        plain, k = Summation(self.summation.name), self.a.k
        yield from [(name, order) for name, order in known.items() if self.gives(order, few)]
        row, column = few.nonzero().unbind(1)
        sides, stored, finish = (self.a.at(row), self.b.at(column)), self.stored[few], self.finish.at(row)
        step = step_of(plain)
        for size in (step, _FINE):
            if size < step and (plain.unit.k > size or k <= size):
                continue
            table, _ = table_of(plain, *sides, size)
            sets = cut_sets(len(table)) if size == step else [(cut,) for cut in range(1, len(table))]
            for manner in MANNERS:
                some = [cuts for cuts in sets if len(cuts) > 1 or manner == MANNERS[0]]
                for cuts in fitting(table, stored, finish, some, manner):
                    yield named(plain, tuple(size * cut for cut in cuts), manner, k)
            if size == step:
                registers = [(str(order), order.order(k)) for order in in_registers(plain, k)]
                yield from [way for way in registers if self.gives(way[1], few)]


def named(plain: Summation, cuts: tuple[int, ...], manner: str, k: int) -> tuple[str, KOrder]:
    """Return what cuts of k are called, and the order."""
    reverse, pairwise = manner == "last first", manner == "pairwise"
    order = KOrder(cuts, reverse=reverse, pairwise=pairwise)
    for summation in orders_of(plain, k):
        if summation.order(k) == order:
            return str(summation), order
    at = ", ".join(f"{cut:,}" for cut in cuts)
    return f"{plain}; cut at k {at}{'' if manner == MANNERS[0] else f'; {manner}'}", order
