"""Stream k with partial sums in the output's type: one set of cuts of k has to give every element of a stripe.

Which tiles of a kernel are split, and where, follows from its schedule; the others have the sums of one pass. The parts of a
tile are added in the order in which they arrive, element by element (see cuts.py). A stripe is 8 rows of 64 columns, of which
tiles are made. Cuts that give one are asked for all: finding them costs as much as asking for thousands.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from harness.judging.cuts import Cuts, cut_sets, fitting, streams, table_of
from harness.judging.finish import Finish
from harness.judging.predicted import TILE, Prediction, few_of
from reference.matrix_units import Operand, Summation, chosen

_ROWS = 8  # tiles of kernels are multiples of so many rows
_MOST = 8  # cuts that explain a few elements and are asked for all
_FIRST = (
    8  # elements of each stripe that are asked before all: of many parts each order is tried, where none fits
)


def streamed(
    bad: Tensor, out: Tensor, prediction: Prediction, expert: int, finish: Finish, known: list[Cuts]
) -> Counter[str]:
    """Clear the stripes that some cuts of k explain from the elements of an expert that are not those of one pass.

    Where one is unexplained the problem fails, and the others are only asked for cuts that were found.

    Args:
        bad: `(rows, n)` bool, not as predicted; changed in place.
        out: `(rows, n)`, the candidate's output.
        prediction: of one pass.
        expert: which one.
        finish: of the expert's rows.
        known: cuts that gave stripes of other experts, asked for first; those that are found here are added.

    Returns:
        Elements of the stripes of each number of parts.
    """
    found: Counter[str] = Counter()
    search = _Search(prediction.summation, *prediction.operands(expert, len(out)), out, finish)
    for cuts in known:
        if bool(bad.any()):
            search.clear(cuts, bad, found)
    while bool(bad.any()) and (new := search.explain_first(bad, found)):
        known.append(new)
    return found


@dataclass(frozen=True)
class _Search:
    """Looks for the cuts of the tiles of one expert."""

    summation: Summation
    a: Operand
    b: Operand
    out: Tensor
    finish: Finish

    def explain_first(self, bad: Tensor, found: Counter[str]) -> Cuts | None:
        """Return cuts that give the first stripe that needs them, and clear all that they give; None where none do."""
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
        sets = [cuts for cuts in cut_sets(len(table)) if cuts]
        for steps in islice(fitting(table, stored, finish, sets, "stream"), _MOST):
            self.clear(cuts := tuple(step * cut for cut in steps), bad, found)
            if not bool(bad[row, column]):
                return cuts
        return None

    def clear(self, cuts: Cuts, bad: Tensor, found: Counter[str]) -> None:
        """Clear the stripes of which every element is a sum of the parts, one of them stored first."""
        wrong = _stripes(bad)
        few = torch.zeros_like(wrong).scatter_(1, wrong.int().topk(_FIRST, dim=1).indices, value=True) & wrong
        given = self._given(cuts, _unstriped(few, bad)) & wrong.any(1)
        given &= self._given(cuts, _unstriped(given.unsqueeze(1).expand_as(wrong), bad))
        cleared = _unstriped(given.unsqueeze(1).expand_as(wrong), bad)
        bad &= ~cleared
        if count := int(cleared.sum()):
            found[f"{len(cuts) + 1} parts"] += count

    def _given(self, cuts: Cuts, where: Tensor) -> Tensor:
        """Return the stripes of which all chosen elements are such sums, `(stripes,)` bool.

        Args:
            cuts: of k.
            where: `(rows, n)` bool, the elements.
        """
        order, columns = replace(self.summation.order(self.a.k), cuts=()), where.any(0)
        b, asked = self.b.at(columns), where[:, columns]
        sums = [
            chosen(self.summation.unit, self.a.along_k(*ends), b.along_k(*ends), asked, order)
            for ends in zip((0, *cuts), (*cuts, self.a.k), strict=True)
        ]
        given = torch.ones(len(sums), *where.shape, dtype=torch.bool, device=where.device)
        stored = self.finish.at(where.nonzero()[:, 0])(torch.stack(sums))
        given[:, where] = streams(stored, self.out[where])[1]
        return _stripes(given, lacking=True).all(-1).any(0)


def _stripes(x: Tensor, *, lacking: bool = False) -> Tensor:
    """Return bools `(*, rows, n)` as `(*, stripes, elements)`; `lacking` stands for what the last ones lack."""
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
