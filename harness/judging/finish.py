"""What a kernel's epilogue makes of float32 sums of some elements: times alpha and their rows' factors, in the output's type."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reference.epilogue import Epilogue


@dataclass(frozen=True)
class Finish:
    """An epilogue that multiplies in one order.

    Attributes:
        epilogue: with `alpha`, `()` float32 or None, and `dtype`, of the output.
        factor: float32 of the row of each element, `(elements,)`, or of all rows before `at`; None where rows have none.
        order: in which alpha and the factor are multiplied, one of `Epilogue.orders`.
    """

    epilogue: Epilogue
    alpha: Tensor | None
    dtype: torch.dtype
    factor: Tensor | None = None
    order: str = ""

    def orders(self) -> Iterator[Finish]:
        """Yield the finishes of a kernel whose order is not known: a kernel has one of them for all elements."""
        if self.factor is None:
            yield self
            return
        yield from (replace(self, order=order) for order in self.epilogue.orders)

    def at(self, rows: Tensor | slice) -> Finish:
        """Return the finish of some rows, or of elements that lie in them."""
        if self.factor is None:
            return self
        index = rows.to(self.factor.device) if isinstance(rows, Tensor) else rows
        return replace(self, factor=self.factor[index])

    def __call__(self, sums: Tensor) -> Tensor:
        """Return what is stored of sums `(*, elements)`, of `dtype`: of all elements, or of the first ones."""
        alpha = None if self.alpha is None else self.alpha.to(sums.device)
        if self.factor is None:
            return self.epilogue(sums, alpha, self.dtype)
        factor = self.factor[: sums.shape[-1]].to(sums.device)
        return self.epilogue.scaled(sums, alpha, factor, self.dtype, self.order)
