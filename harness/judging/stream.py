"""Stream k with partial sums in the output's type: one set of cuts of k has to give every element of a stripe.

Which tiles of a kernel are split, and where, follows from its schedule; the others have the sums of one pass. The parts of a
tile are added in the order in which they arrive, element by element (see cuts.py). A stripe is 8 rows of 64 columns, of which
tiles are made. A few elements of every stripe say which cuts may be its own; those are asked for all of its elements.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise

import torch
from torch import Tensor

from harness.judging.cuts import Cuts, cut_sets, fitting, parts_of, same, step_of, streams, table_of
from harness.judging.finish import Finish
from harness.judging.predicted import TILE, Prediction, few_of, lanes_of
from reference.matrix_units import Operand, Summation, chosen

FEW_PARTS = 4  # most tiles have no more
_ROWS = 8  # tiles of kernels are multiples of so many rows
_MOST = 8  # cuts that explain a few elements and are asked for all
_FIRST = 16  # elements of each stripe that are asked before all
_CHANCE = 8  # times as many elements would show cuts that explain a tile as do: they do it by chance
_AT_ONCE = 1 << 24  # sums that are held at a time


@dataclass
class StreamedCall:
    """What is found of the tiles of one call whose elements are not those of one pass.

    All blocks of threads but the last add as many steps of k, so a part between two others is as long as the longest part of
    any tile of the call. This keeps many parts, which give nearly every value in some order, from explaining a wrong tile
    among tiles of few.

    Attributes:
        prediction: of one pass.
        found: elements of the stripes of each number of parts.
        longest: of all parts that were found, elements of k.
        known: cuts into many parts that were found, by what adds a part.
        failed: a stripe is unexplained: no other cuts into many parts are looked for.
    """

    prediction: Prediction
    found: Counter[str] = field(default_factory=Counter)
    longest: int = 0
    known: dict[Summation, list[Cuts]] = field(default_factory=dict)
    failed: bool = False

    def one_pass_or_few_parts(self, bad: Tensor, out: Tensor, expert: int, finish: Finish) -> None:
        """Clear the stripes that few parts give, or one pass, with as many accumulators in turn as any tile may have.

        Args:
            bad: `(rows, n)` bool, of an expert's elements not as predicted; changed in place, stripe by stripe.
            out: `(rows, n)`, the candidate's output.
            expert: which one.
            finish: of its rows.
        """
        searches = self._searches(out, expert, finish)
        for search in searches:
            if bool(bad.any()):
                self._note((), search.clear((), bad), search)
        for search in searches:
            if bool(bad.any()):
                for cuts, count in search.explain(bad):
                    self._note(cuts, count, search)

    def many_parts(self, bad: Tensor, out: Tensor, expert: int, finish: Finish) -> None:
        """Clear the stripes that many parts give; those of all experts were asked for few parts before."""
        searches = self._searches(out, expert, finish)
        for search in searches:
            known = self.known.setdefault(search.summation, [])
            for cuts in known:
                if bool(bad.any()):
                    self._note(cuts, search.clear(cuts, bad), search)
            while bool(bad.any()) and not self.failed:
                cuts, count = search.explain_first(bad, self.longest)
                if not count:
                    break
                self._note(cuts, count, search)
                known.append(cuts)
        self.failed |= bool(bad.any())

    def _searches(self, out: Tensor, expert: int, finish: Finish) -> list[_Search]:
        """Return one for all that may add a part, the known one first, and for each order of its factors."""
        known, made = self.prediction.summation, []
        mode = known.at(self.prediction.a.shape[-1]) or known
        part = Summation(mode.name, promote=mode.promote, lanes=mode.lanes, width=mode.width)
        for of_part in dict.fromkeys((part, *lanes_of(part))):
            sides = replace(self.prediction, summation=of_part).operands(expert, len(out))
            made += [_Search(of_part, *sides, out, way) for way in finish.orders()]
        return made

    def _note(self, cuts: Cuts, count: int, search: _Search) -> None:
        if count:
            self.found[f"{len(cuts) + 1} parts" if cuts else str(search.summation)] += count
        if count and cuts:
            self.longest = max(self.longest, longest(cuts, search.a.k))


def longest(cuts: Cuts, k: int) -> int:
    """Return the length of the longest part of k."""
    return max(end - start for start, end in pairwise((0, *cuts, k)))


@dataclass(frozen=True)
class _Search:
    """Looks for the cuts of the tiles of one expert."""

    summation: Summation
    a: Operand
    b: Operand
    out: Tensor
    finish: Finish

    def explain(self, bad: Tensor) -> Iterator[tuple[Cuts, int]]:
        """Clear the stripes that few parts give, and yield cuts with the elements of theirs."""
        left = self._may_be(bad)
        while left:
            ((cuts, _),) = Counter(some[0] for some in left.values()).most_common(1)
            asked = torch.zeros(len(_stripes(bad)), dtype=torch.bool, device=bad.device)
            asked[[stripe for stripe, some in left.items() if cuts in some]] = True
            given, count = self._clear(cuts, asked, bad)
            yield cuts, count
            right = set(given.nonzero().flatten().tolist())
            rest = {stripe: [c for c in some if c != cuts] for stripe, some in left.items()}
            left = {stripe: some for stripe, some in rest.items() if some and stripe not in right}

    def _may_be(self, bad: Tensor) -> dict[int, list[Cuts]]:
        """Return a few cuts into few parts that give some elements of each wrong stripe, by the number of the stripe."""
        stripes, elements = _some_elements(bad)
        steps = -(-self.a.k // step_of(self.summation))
        at_once = max(1, _AT_ONCE // (steps * (steps + 1) * _FIRST))
        found: dict[int, list[Cuts]] = {}
        for start in range(0, len(stripes), at_once):
            rows, columns = (at.flatten() for at in elements[:, start : start + at_once])
            table, step = table_of(self.summation, self.a.at(rows), self.b.at(columns))
            finish, stored = self.finish.at(rows), self.out[rows, columns]
            for count in range(2, FEW_PARTS + 1):
                sets = [cuts for cuts in cut_sets(len(table)) if len(cuts) + 1 == count]
                some = max(1, _AT_ONCE // (count * len(rows)))
                for i in range(0, len(sets), some):
                    given = streams(finish(parts_of(table, sets[i : i + some])), stored)[1]
                    fits = given.view(*given.shape[:2], -1, _FIRST).all(-1).any(1)
                    for cuts, stripe in fits.nonzero().tolist():
                        of_stripe = found.setdefault(int(stripes[start + stripe]), [])
                        if len(of_stripe) < _MOST:
                            of_stripe.append(tuple(step * cut for cut in sets[i + cuts]))
        return found

    def explain_first(self, bad: Tensor, least: int) -> tuple[Cuts, int]:
        """Return cuts into many parts that give the first wrong stripe, and the elements of all that they give, cleared.

        Args:
            bad: `(rows, n)` bool.
            least: elements of k of the longest part, at least, but for one step.

        Returns:
            Cuts, and 0 elements where none are found.
        """
        row, column = bad.nonzero()[0].tolist()
        rows, columns = (
            slice(at // of * of, at // of * of + of) for at, of in ((row, _ROWS), (column, TILE))
        )
        wrong = bad[rows, columns]
        few = few_of(wrong, ~wrong)
        of_a, of_b = few.nonzero().unbind(1)
        table, step = table_of(self.summation, self.a.at(rows).at(of_a), self.b.at(columns).at(of_b))
        # Many small steps, which a GPU takes no sooner.
        table, stored = table.cpu(), self.out[rows, columns][few].cpu()
        finish = self.finish.at(rows).at(of_a)
        sets = [
            cuts
            for cuts in cut_sets(len(table))
            if len(cuts) >= FEW_PARTS and (longest(cuts, len(table)) + 1) * step >= least
        ]
        differing = int(wrong.sum())
        for steps in islice(fitting(table, stored, finish, sets, "stream"), _MOST):
            if _would_show(table, finish, steps) > _CHANCE * differing:
                continue
            cuts = tuple(step * cut for cut in steps)
            count = self.clear(cuts, bad)
            if not bool(bad[row, column]):
                return cuts, count
        return (), 0

    def clear(self, cuts: Cuts, bad: Tensor) -> int:
        """Clear the stripes of which every element is a sum of the parts, one of them stored first; return their elements."""
        wrong = _stripes(bad)
        few = torch.zeros_like(wrong).scatter_(1, wrong.int().topk(_FIRST, dim=1).indices, value=True) & wrong
        return self._clear(cuts, self._given(cuts, _unstriped(few, bad)) & wrong.any(1), bad)[1]

    def _clear(self, cuts: Cuts, asked: Tensor, bad: Tensor) -> tuple[Tensor, int]:
        """Clear those of the asked stripes, `(stripes,)` bool, that the cuts give whole; return which, and their elements."""
        whole = _unstriped(asked.unsqueeze(1).expand(-1, _ROWS * TILE), bad)
        given = asked & self._given(cuts, whole)
        cleared = _unstriped(given.unsqueeze(1).expand(-1, _ROWS * TILE), bad)
        bad &= ~cleared
        return given, int(cleared.sum())

    def _given(self, cuts: Cuts, where: Tensor) -> Tensor:
        """Return the stripes of which all chosen elements are such sums, `(stripes,)` bool.

        Args:
            cuts: of k.
            where: `(rows, n)` bool, the elements.
        """
        order = self.summation.order(self.a.k)
        rows, columns = where.any(1), where.any(0)
        a, b, asked = self.a.at(rows), self.b.at(columns), where[rows][:, columns]
        sums = [
            chosen(self.summation.unit, a.along_k(*ends), b.along_k(*ends), asked, order)
            for ends in zip((0, *cuts), (*cuts, self.a.k), strict=True)
        ]
        given = torch.ones(len(sums), *where.shape, dtype=torch.bool, device=where.device)
        stored = self.finish.at(where.nonzero()[:, 0])(torch.stack(sums))
        given[:, where] = streams(stored, self.out[where])[1]
        return _stripes(given, lacking=1).bool().all(-1).any(0)


def _would_show(table: Tensor, finish: Finish, cuts: Cuts) -> int:
    """Return how many elements are not those of one pass if the last part is stored and the others are added in order.

    Many parts give nearly every value in some order. But a tile that they made differs from one pass in about as many
    elements as it does in this order; where it does in a few only, they explain it by chance.
    """
    whole, parts = table[0, -1], finish(parts_of(table, [cuts])[0])
    total = parts[-1]
    for part in parts[:-1]:
        total = (total.float() + part.float()).to(total.dtype)
    return int((~same(total, finish(whole))).sum())


def _some_elements(bad: Tensor) -> tuple[Tensor, Tensor]:
    """Return the stripes that hold an element that is not as predicted, and a few elements of each, such ones first.

    Returns:
        Their numbers, `(stripes,)`, and `(2, stripes, _FIRST)` rows and columns; where a stripe has fewer, some twice.
    """
    wrong = _stripes(bad).bool()
    stripes = wrong.any(1).nonzero().flatten()
    places = _stripes(torch.arange(bad.numel(), device=bad.device).view_as(bad), lacking=-1)[stripes]
    rank = wrong[stripes].int() + (places >= 0).int()
    places = places.gather(1, rank.topk(_FIRST, dim=1).indices)
    places = torch.where(places < 0, places[:, :1], places)
    columns = bad.shape[1]
    return stripes, torch.stack((places // columns, places % columns))


def _stripes(x: Tensor, *, lacking: int = 0) -> Tensor:
    """Return `(*, rows, n)` as `(*, stripes, elements)`; `lacking` stands for what the last ones lack."""
    end = (0, -x.shape[-1] % TILE, 0, -x.shape[-2] % _ROWS)
    padded = torch.nn.functional.pad(x, end, value=lacking)
    *first, rows, columns = padded.shape
    split = padded.view(*first, rows // _ROWS, _ROWS, columns // TILE, TILE)
    return split.transpose(-3, -2).reshape(*first, -1, _ROWS * TILE)


def _unstriped(stripes: Tensor, like: Tensor) -> Tensor:
    """Return `(stripes, elements)` as `(rows, n)`, the shape of `like`."""
    rows, columns = like.shape
    split = stripes.reshape(-1, -(-columns // TILE), _ROWS, TILE).transpose(1, 2)
    return split.flatten(2).flatten(0, 1)[:rows, :columns]
