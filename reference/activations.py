"""Activation functions of a gated layer as values: what gate and up go through, and how they lie in the first GEMM's columns.

    hidden = f(gate) * (up + beta),    gate = min(gate, limit),    up = max(min(up, limit), -limit)
    silu      f(x) = x * sigmoid(alpha * x)
    gelu      f(x) = x / 2 * (1 + erf(x / sqrt(2)))
    gelu_tanh f(x) = x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))
    relu2     max(x, 0)^2 of all columns: no gate

As text, the function first, then what differs from silu with the gate half first:

* `silu; limit 10` (DeepSeek-V4); `swigluoai`, which is `silu; alpha 1.702; beta 1; limit 7` (gpt-oss), each of them another
  one behind it: `swigluoai; limit 10`.
* `silu; up first`: the up half lies in front. `silu; interleave 16`: columns alternate, 16 of gate, 16 of up.

Rule: ACT-2. Source: vLLM and SGLang, fused MoE (swiglu_limit, gemm1_alpha, gemm1_beta, gemm1_clamp_limit); torch.nn.functional.gelu.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("silu", "gelu", "gelu_tanh", "relu2")
INTERLEAVES = (1, 8, 16, 32, 64)
_MINIMA = {
    "silu": (-1.2784645427610738, -0.2784645427610738),
    "gelu": (-0.7517915246935645, -0.16997120747990363),
    "gelu_tanh": (-0.7524614220710163, -0.1700407505712541),
}
"""Where each function of the gate has its only minimum, and that: it falls up to there and rises from there on."""
_NUMBERS = ("alpha", "beta", "limit")


@dataclass(frozen=True)
class Activation:
    """One activation.

    Attributes:
        kind: one of KINDS.
        alpha: factor inside the sigmoid of silu.
        beta: what is added to up.
        limit: of gate from above and of up from both sides; 0 for none.
        up_first: whether up lies in front of gate.
        interleave: columns of gate that alternate with as many of up; 0: halves.
    """

    kind: str = "silu"
    alpha: float = 1.0
    beta: float = 0.0
    limit: float = 0.0
    up_first: bool = False
    interleave: int = 0

    @staticmethod
    def of(text: str) -> Activation:
        """Return the activation that a text stands for.

        Raises:
            ValueError: it stands for none: what was expected.
        """
        name, *options = (part.strip() for part in text.split(";"))
        found = SWIGLUOAI if name == "swigluoai" else Activation(name)
        if found.kind not in KINDS:
            raise ValueError(f"an activation begins with {', '.join((*KINDS, 'swigluoai'))}, got {name!r}")
        for option in options:
            found = _with(found, option)
        if found.alpha != 1 and found.kind != "silu":
            raise ValueError(f"alpha belongs to silu, got {text!r}")
        if not found.gated and found != Activation("relu2"):
            raise ValueError(f"relu2 has no options, got {text!r}")
        return found

    @property
    def gated(self) -> bool:
        """Whether there is a gate."""
        return self.kind != "relu2"

    def split(self, gate_up: Tensor) -> tuple[Tensor, Tensor]:
        """Return gate and up, each `(*, n)`, of `(*, 2n)` columns as they lie there."""
        if self.interleave:
            pairs = gate_up.unflatten(-1, (-1, 2, self.interleave))  # type: ignore[no-untyped-call]
            first, second = (pairs[..., part, :].flatten(-2) for part in (0, 1))
        else:
            first, second = gate_up.chunk(2, dim=-1)
        return (second, first) if self.up_first else (first, second)

    def joined(self, gate: Tensor, up: Tensor) -> Tensor:
        """Return the columns `(*, 2n)` in which gate and up, `(*, n)`, lie so."""
        import torch

        first, second = (up, gate) if self.up_first else (gate, up)
        if not self.interleave:
            return torch.cat((first, second), dim=-1)
        parts = [half.unflatten(-1, (-1, self.interleave)) for half in (first, second)]  # type: ignore[no-untyped-call]
        return torch.stack(parts, dim=-2).flatten(-3)

    def clamped(self, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """Return gate and up within the limit."""
        if not self.limit:
            return gate, up
        return gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)

    def of_gate(self, gate: Tensor) -> Tensor:
        """Return f(gate), in gate's type."""
        import torch

        if self.kind == "silu":
            return gate * torch.sigmoid(self.alpha * gate if self.alpha != 1 else gate)
        approximate = "none" if self.kind == "gelu" else "tanh"
        return torch.nn.functional.gelu(gate, approximate=approximate)

    def minimum(self) -> tuple[float, float]:
        """Return where f has its minimum, and that."""
        at, value = _MINIMA[self.kind]
        return at / self.alpha, value / self.alpha

    def value(self, gemm1: Tensor) -> Tensor:
        """Return the activation of the first GEMM's output in its type: `(*, 2n)` to `(*, n)`, `(*, n)` to `(*, n)` of relu2."""
        if not self.gated:
            return gemm1.clamp(min=0).square()
        gate, up = self.clamped(*self.split(gemm1))
        return self.of_gate(gate) * (up + self.beta if self.beta else up)


def float32_freedom(way: Activation, exponent: Tensor) -> Tensor:
    """Return how far float32 arithmetic may be off the activation, relative to it: docs/bounds.md, "Activation".

    Args:
        way: the activation, with a gate.
        exponent: `(*)` float64, alpha times the gate.
    """
    import torch

    if way.kind != "silu":
        return torch.full_like(exponent, 8 * 2.0**-23)
    # __expf errs by 2 + 1.173 |x| units; it weighs in with exp(-x) / (1 + exp(-x)); 4 units for +, / and *
    freedom = ((2 + 1.173 * exponent.abs()) * torch.sigmoid(-exponent)).nan_to_num(
        0.0
    )  # infinity has no exp to err
    plain = way.alpha == 1 and not way.beta  # else alpha * x and up + beta are rounded too
    return (freedom + (4 if plain else 6 + 0.5 * exponent.abs().clamp(max=100))) * 2.0**-23


def _with(found: Activation, option: str) -> Activation:
    key, _, value = option.partition(" ")
    try:
        number = float(value) if key in _NUMBERS else 0.0
        if number > 0:
            changed: dict[str, Any] = {key: number}
            return replace(found, **changed)
        if key == "interleave" and int(value) in INTERLEAVES:
            return replace(found, interleave=int(value))
    except ValueError:
        pass
    if option == "up first":
        return replace(found, up_first=True)
    wanted = f"{', '.join(f'{name} NUMBER' for name in _NUMBERS)}, up first and interleave {'|'.join(map(str, INTERLEAVES))}"
    raise ValueError(f"options of an activation are {wanted}, got {option!r}")


SWIGLUOAI = Activation(alpha=1.702, beta=1.0, limit=7.0)
SILU = Activation()
