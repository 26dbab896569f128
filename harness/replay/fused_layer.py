"""What a call of a fused layer comes to, in routed_moe's terms, and the text of its activation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from harness.candidates.fused_weights import Matrix
from harness.candidates.traits import Traits
from harness.diagnosis.cases.legality import Bounds
from harness.diagnosis.cases.observation import Observed
from harness.replay.captured import NotJudgedError

_RELU2, _SWIGLU = 6, 3
"""flashinfer.ActivationType."""


@dataclass(frozen=True)
class Layer:
    """A call of a fused layer.

    Attributes:
        traits: how its kernel computes.
        first, second: its weights, gate rows first.
        activation: as reference.activations writes it.
        given: the other arguments of routed_moe.
    """

    traits: Traits
    first: Matrix
    second: Matrix
    activation: str
    given: dict[str, Any]


@dataclass(frozen=True)
class Way:
    """One way in which a kernel may compute a call.

    Attributes:
        final_sum: as reference.final_sum writes it; "" for the one of the layer's traits.
        bounds: of its arithmetic.
    """

    final_sum: str
    bounds: Bounds

    def of(self, call: Observed) -> Observed:
        """Return a call that adds in this way."""
        return replace(call, final_sum=self.final_sum or call.final_sum)


def require_unasked(function: str, given: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raise NotJudgedError where a call is given one of some arguments that change what it computes: no rule reads them."""
    asked = [name for name in names if _is_given(given.get(name))]
    if asked:
        raise NotJudgedError(f"{function} with {', '.join(asked)}: not judged yet")


def _is_given(value: Any) -> bool:
    return value.numel() > 0 if isinstance(value, Tensor) else value not in (None, False, 0)


def gated_text(alpha: float | None = None, beta: float | None = None, limit: float | None = None) -> str:
    """Return the text of silu with a gate; None where a number is not given."""
    parts = ["silu"]
    parts += [f"alpha {alpha:g}"] if alpha is not None and alpha != 1 else []
    parts += [f"beta {beta:g}"] if beta else []
    parts += [f"limit {limit:g}"] if limit is not None and 0 < limit < 1e30 else []
    return "; ".join(parts)


def activation_text(kind: Any, limit: Any, alpha: Any, beta: Any) -> str:
    """Return the text of one of FlashInfer's activations, whose numbers are None, equal for all experts, or plain.

    Raises:
        NotJudgedError: it is another one, or experts have different numbers.
    """
    number = kind if isinstance(kind, int) else _SWIGLU
    if number == _RELU2:
        return "relu2"
    if number != _SWIGLU:
        raise NotJudgedError(f"activation {number} of flashinfer.ActivationType: not judged yet")
    return gated_text(*(_number(value) for value in (alpha, beta, limit)))


def _number(value: Any) -> float | None:
    if not isinstance(value, Tensor):
        return None if value is None else float(value)
    flat = value.reshape(-1)
    if not bool((flat == flat[0]).all()):
        raise NotJudgedError("experts with different numbers of their activation: not judged yet")
    return float(flat[0])
