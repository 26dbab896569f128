"""One call of the stage prepare, as a fault sees it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from harness.candidates import layouts
from harness.faults.calls import Call


class PrepareCall(Call):
    """prepare.

    Attributes:
        b: `(n, k/2, l)` uint8, logical; b_scale: logical 6-D; alpha: `(l,)` float32 or None.
        prepared: what the stage returned, after run().
    """

    names = ("b", "b_scale", "alpha")
    b: Tensor
    b_scale: Tensor
    alpha: Tensor | None
    prepared: dict[str, Any]

    def run(self) -> None:
        """Prepare; what was made is there afterwards."""
        self.prepared = dict(self.function(self.b, self.b_scale, self.alpha, **self.extra))

    def result(self) -> dict[str, Any]:
        """Return what was made."""
        return self.prepared

    @property
    def experts(self) -> int:
        """Experts whose weights these are."""
        return int(self.b.shape[2])

    @property
    def b_codes(self) -> Tensor:
        """`(l, n, k)` uint8; assign to change."""
        return layouts.loaded(self.weight_form, (self.b, self.b_scale)).codes

    @b_codes.setter
    def b_codes(self, codes: Tensor) -> None:
        self.b = layouts.elements(self.weight_form, codes)

    @property
    def b_block_scale(self) -> Tensor:
        """`(l, n, k/block)` uint8; assign to change."""
        return layouts.loaded(self.weight_form, (self.b, self.b_scale)).block_scale

    @b_block_scale.setter
    def b_block_scale(self, block_scale: Tensor) -> None:
        self.b_scale = layouts.with_block_scale(self.b_scale, block_scale)

    def of_experts(self) -> list[str]:
        """Return the names of the prepared tensors that have the experts first."""
        tensors = {name: value for name, value in self.prepared.items() if isinstance(value, Tensor)}
        return [name for name, value in tensors.items() if value.ndim and len(value) == self.experts]
