"""Which elements a row of the first GEMM took over from another row, read off the layer's final output.

Nothing of the first GEMM is seen, but little is lost behind it: most layers have a w2 with at least as many rows as columns,
so what was quantized in between follows from the output, up to rounding. Each column of it is one of four: of the row's own
gate and up, or of the other row's. The other rows are ordered by how near their best choice comes, and the nearest few are
solved for (`exchange.py`).

Any other row brings the output nearer, since each column is a free choice: n choices of one bit fit k elements to n / k bits
each by chance. A source is believed only where more bits than that, and almost all of the difference, are explained.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.candidates.composition import compose_masked_moe
from harness.diagnosis.cases.layer_case import LayerCase
from harness.diagnosis.cases.models import Model
from harness.diagnosis.cases.replay import unharmed
from harness.diagnosis.cases.views import decoded_weights
from harness.diagnosis.hypotheses.exchange import Exchange, exchange_of

Row = tuple[int, int]
_MOST_ROWS = 8  # a race strikes a few rows; where many are wrong, it is something else
_SOLVED = 3  # sources, the likeliest first
_LEFT = 0.1  # of the distance of the right output: more than legal flips of codes leave
_NOTHING = 1e-3  # of that distance: what exchanging a column may change without being seen
_SPARE_BITS = 32  # for the choice of a source, and to be sure
_RIDGE = 1e-4  # of the mean eigenvalue of w2' w2: below it there is nothing but rounding


class ThroughLayer:
    """Reads off a layer's final output what rows of the first GEMM took over.

    Args:
        case: a layer.
    """

    def __init__(self, case: LayerCase) -> None:
        self._case = case
        self._products: Tensor | None = None
        self._found: dict[Row, list[tuple[Row, Tensor]]] = {}

    def sources(self, row: Row) -> list[Row]:
        """Return the rows that an illegal row may have taken elements from, the likeliest first; none where no row explains it."""
        return [source for source, _ in self._of(row)]

    def columns(self, row: Row, source: Row) -> Tensor:
        """Return all columns of the first GEMM, those first that were surely taken from a source, `(columns,)` int64."""
        found = next((columns for s, columns in self._of(row) if s == source), None)
        return torch.arange(self._first_products().shape[-1]) if found is None else found

    def _of(self, row: Row) -> list[tuple[Row, Tensor]]:
        if row not in self._found and len(self._found) < _MOST_ROWS:
            self._found[row] = self._solved(row)
        return self._found.get(row, [])

    def _first_products(self) -> Tensor:
        """Return the right output of the first GEMM, `(experts, rows, columns)`."""
        if self._products is None:
            recorder = _FirstProduct(self._case.model)
            with unharmed(self._case.call):
                compose_masked_moe(
                    recorder, **self._case.call.arguments, unrounded=self._case.model.unrounded
                )
            assert recorder.first is not None  # noqa: S101 - a layer has two GEMMs
            self._products = recorder.first
        return self._products

    def _solved(self, row: Row) -> list[tuple[Row, Tensor]]:
        """Return sources that explain a row, the nearest first, each with all columns, those first that are surely taken."""
        a, products = self._case.call.arguments, self._first_products()
        expert, token = row
        one = slice(expert, expert + 1)
        w2 = decoded_weights(a["w2"][one], a["w2_blockscale"][one])[0]
        own = products[row]
        everything = torch.ones(own.shape, dtype=torch.bool)
        exchange = exchange_of(self._case, expert, torch.tensor([token]), (own[None], own[None]), everything)
        others = self._case.valid.clone()
        others[row] = False
        index = others.nonzero()
        if not len(index) or not bool(exchange.wanted.isfinite().all()):
            return []
        theirs = products[index[:, 0], index[:, 1]]
        right = exchange.distance(exchange.between(~everything), w2)
        cost, beginnings = _nearest_columns(exchange, theirs, w2)
        found = []
        for number in cost.argsort()[:_SOLVED].tolist():
            of_source = replace(exchange, products=(own[None], theirs[number][None]))
            chosen = of_source.exchanged(beginnings[number], w2)
            left = of_source.distance(of_source.between(chosen), w2)
            if left <= right * min(_LEFT, 2 ** (-(len(own) + _SPARE_BITS) / exchange.wanted.numel())):
                source = int(index[number, 0]), int(index[number, 1])
                found.append((left, source, _surest_first(chosen, of_source.gains(chosen, w2), right)))
        return [(source, columns) for _, source, columns in sorted(found, key=lambda f: f[0])]


def _surest_first(chosen: Tensor, gains: Tensor, right: float) -> Tensor:
    """Order columns: surely taken, perhaps taken, surely not; of those in the middle as many as one likes may be taken.

    Args:
        chosen: `(columns,)` bool.
        gains: of `Exchange.gains`, in that state.
        right: the distance of the right output, which says how much is nothing.
    """
    nothing = gains >= -((_NOTHING * right) ** 2)
    free = nothing[:, 0]
    if gains.shape[1] > 1:  # where either of gate and up makes no difference, both of them may make one
        free = torch.cat((free, nothing[:, 1] & (nothing[:, 2] | ~free)))
    rank = torch.where(chosen, torch.where(free, 1, 0), torch.where(free, 2, 3))
    harm = -gains[:, :2].T.flatten()  # of putting a chosen column back, of taking another one
    order = torch.where(chosen, -harm, harm).argsort(stable=True)
    return order[rank[order].argsort(stable=True)]


class _FirstProduct:
    """A model that keeps the output of the first GEMM it computes."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.first: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def masked_grouped_gemm(self, *arguments: Any) -> None:
        """Compute a GEMM; arguments of harness.candidates.protocol."""
        self._model.masked_grouped_gemm(*arguments)
        if self.first is None:
            self.first = arguments[4].permute(2, 0, 1).clone()


def _nearest_columns(exchange: Exchange, theirs: Tensor, w2: Tensor) -> tuple[Tensor, Tensor]:
    """Choose for each source, column by column, what is nearest to what was quantized in between.

    Args:
        exchange: of one token.
        theirs: the first GEMM's output of the sources, `(sources, columns)`.
        w2: code x block scale, `(k, n)`.

    Returns:
        The squared distance `(sources,)`, and the columns that come from the source, `(sources, columns)` bool.
    """
    own = exchange.products[0][0]
    between = exchange.between(torch.zeros(own.shape, dtype=torch.bool))[0].double()
    w = w2.double()
    gram = w.T @ w
    ridge = _RIDGE * gram.diagonal().mean().clamp(min=1e-30) * torch.eye(len(gram), dtype=torch.float64)
    missing = exchange.wanted[0].double() - w @ between
    wanted = between + torch.linalg.solve(gram + ridge, w.T @ missing)
    halves = 2 if exchange.gated else 1
    kinds = torch.cartesian_prod(*[torch.tensor([False, True])] * halves).view(-1, halves)
    options = []
    for kind in kinds:
        taken = kind.repeat_interleave(len(own) // halves)
        options.append(exchange.quantized(torch.where(taken, theirs, own)).double())
    nearest = (torch.stack(options) - wanted).square().min(0)
    columns = kinds[nearest.indices]  # sources x n x halves
    return nearest.values.sum(-1), columns.transpose(1, 2).flatten(1)
