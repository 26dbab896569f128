"""masked_grouped_gemm of a kernel that takes weights in an order of its own: `prepare`, then `multiply_prepared`."""

from __future__ import annotations

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


_KEPT_BYTES = 1 << 32  # of all prepared weights that are kept


@dataclass
class _Kept:
    """Prepared weights with the tensors that they were made of, which are held, so that no other can take their place."""

    found: list[tuple[list[Tensor], list[tuple[Any, ...]], dict[str, Any]]] = field(default_factory=list)

    def get(self, stages: PreparedStages, b: Tensor, b_scale: Tensor, alpha: Tensor | None) -> dict[str, Any]:
        """Return the weights of these tensors, prepared now where they are others than before, or were written to."""
        given = [tensor for tensor in (b, b_scale, alpha) if tensor is not None]
        identity = [_identity(tensor) for tensor in given]
        for _, known, prepared in self.found:
            if known == identity:
                return prepared
        prepared = stages.prepare(b, b_scale, alpha)
        self.found.append((given, identity, prepared))
        while len(self.found) > 1 and sum(map(_bytes, (each[2] for each in self.found))) > _KEPT_BYTES:
            self.found.pop(0)
        return prepared


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Return what tells whether a tensor is the same memory, holding what it held."""
    written = 0 if tensor.is_inference() else tensor._version  # noqa: SLF001 - torch offers no other way to see a write
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, written


def _bytes(prepared: dict[str, Any]) -> int:
    return sum(getattr(value, "nbytes", 0) for value in prepared.values())


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
