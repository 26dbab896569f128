"""masked_grouped_gemm of a kernel that takes weights in an order of its own: `prepare`, then `multiply_prepared`."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class PreparedStages(Protocol):
    """What a kernel with weights of its own has (harness.candidates.protocol)."""

    def prepare(self, b: Tensor, b_scale: Tensor, alpha: Tensor | None) -> dict[str, Any]:
        """Return what multiply_prepared takes."""

    def multiply_prepared(
        self, a: Tensor, a_scale: Any, prepared: dict[str, Any], out: Tensor, masked_m: Tensor, **hints: Any
    ) -> None:
        """Write into out."""


@dataclass
class _Kept:
    """Prepared weights, for as long as the tensors that they were made of are there and hold what they held."""

    found: dict[tuple[int, ...], tuple[dict[str, Any], list[int]]] = field(default_factory=dict)

    def get(self, stages: PreparedStages, b: Tensor, b_scale: Tensor, alpha: Tensor | None) -> dict[str, Any]:
        """Return the weights of these tensors, prepared now where they are others than before."""
        owners = [_owner(tensor) for tensor in (b, b_scale, alpha) if tensor is not None]
        key = (*map(id, owners), *b.shape, *b.stride(), b.storage_offset())
        versions = [owner._version for owner in owners]  # noqa: SLF001 - torch offers no other way to see a write
        if key not in self.found or self.found[key][1] != versions:
            for owner in owners if key not in self.found else ():
                weakref.finalize(owner, self.found.pop, key, None)
            self.found[key] = stages.prepare(b, b_scale, alpha), versions
        return self.found[key][0]


def _owner(tensor: Tensor) -> Tensor:
    """Return the tensor that a view was made of."""
    return tensor if tensor._base is None else tensor._base  # noqa: SLF001 - likewise


class PreparedGemm:
    """The stage masked_grouped_gemm, as a mixin: an engine prepares a layer's weights once, and so does this."""

    def masked_grouped_gemm(
        self: PreparedStages,
        a: Tensor,
        a_scale: Any,
        b: Tensor,
        b_scale: Tensor,
        out: Tensor,
        masked_m: Tensor,
        alpha: Tensor | None,
        **hints: Any,
    ) -> None:
        """Write alpha * a @ b.T into the valid rows of out. Shapes: harness.candidates.protocol."""
        kept: _Kept = vars(self).setdefault("_kept_weights", _Kept())
        self.multiply_prepared(a, a_scale, kept.get(self, b, b_scale, alpha), out, masked_m, **hints)


def multiply(
    stages: PreparedStages,
    a: Tensor,
    a_scale: Any,
    b: Tensor,
    b_scale: Tensor,
    out: Tensor,
    masked_m: Tensor,
    alpha: Tensor | None,
    **hints: Any,
) -> None:
    """Prepare and multiply in each call: what stands around a candidate may be wrong in either."""
    stages.multiply_prepared(a, a_scale, stages.prepare(b, b_scale, alpha), out, masked_m, **hints)
