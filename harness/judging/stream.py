"""Stream k with partial sums in the output's type: one set of cuts of k has to give every element of a tile.

Which tiles are split, and where, follows from the schedule; the others have the sums of one pass. The parts of a tile are
added in the order in which they arrive, element by element (see cuts.py).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from torch import Tensor

from harness.judging.cuts import Cuts, cut_sets, fitting, streams, table_of
from harness.judging.predicted import Finish, Prediction, few_of, tiles
from reference.matrix_units import Operand, Summation, matmul

_ROWS = 8  # tiles of kernels are multiples of so many rows: a tile here may hold parts of several
_MOST = 8  # cuts that explain a few elements and are asked for all


def streamed(bad: Tensor, out: Tensor, prediction: Prediction, expert: int, finish: Finish) -> Counter[str]:
    """Clear the tiles that some cuts of k explain from the elements of an expert that are not those of one pass.

    Args:
        bad: `(rows, n)` bool, not as predicted; changed in place.
        out: `(rows, n)`, the candidate's output.
        prediction: of one pass.
        expert: which one.
        finish: what the epilogue makes of float32 sums.

    Returns:
        Elements of the tiles of each number of parts.
    """
    found: Counter[str] = Counter()
    search = _Search(prediction.summation, *prediction.operands(expert, len(out)), out, finish)
    for rows, columns in tiles(bad):
        if not search.explain(rows, columns, bad, found):
            for at in range(rows.start, min(rows.stop, len(out)), _ROWS):
                search.explain(slice(at, at + _ROWS), columns, bad, found)
    return found


@dataclass
class _Search:
    """The cuts of the tiles of one expert; those that were found are tried first."""

    summation: Summation
    a: Operand
    b: Operand
    out: Tensor
    finish: Finish
    known: list[Cuts] = field(default_factory=list)
    failed: bool = False

    def explain(self, rows: slice, columns: slice, bad: Tensor, found: Counter[str]) -> bool:
        """Return whether some cuts give a tile, and clear it; true of one that needs none."""
        wrong = bad[rows, columns]
        if not bool(wrong.any()):
            return True
        a, b, out = self.a.at(rows), self.b.at(columns), self.out[rows, columns]
        few = few_of(wrong, ~wrong)
        row, column = few.nonzero().unbind(1)
        table, step = table_of(self.summation, a.at(row), b.at(column))
        table, stored = table.cpu(), out[few].cpu()  # many small steps, which a GPU takes no sooner
        # Where one tile is unexplained the problem fails, and the others are only asked for cuts that were found.
        every = [] if self.failed else [cuts for cuts in cut_sets(len(table)) if cuts]
        for sets in (self.known, every):
            for cuts in islice(fitting(table, stored, self.finish, sets, "stream"), _MOST):
                if self._gives(a, b, out, tuple(step * cut for cut in cuts)):
                    bad[rows, columns] = False
                    self.known = [cuts, *(other for other in self.known if other != cuts)]
                    found[f"{len(cuts) + 1} parts"] += out.numel()
                    return True
        self.failed |= rows.stop - rows.start <= _ROWS
        return False

    def _gives(self, a: Operand, b: Operand, out: Tensor, cuts: tuple[int, ...]) -> bool:
        """Return whether every element of a tile is a sum of the parts, one of them stored first."""
        order = replace(self.summation.order(a.k), cuts=())
        parts = [
            matmul(self.summation.unit, a.along_k(*ends), b.along_k(*ends), order).flatten()
            for ends in zip((0, *cuts), (*cuts, a.k), strict=True)
        ]
        return bool(streams(self.finish(torch.stack(parts)), out.flatten())[0].any())
