"""What the rows of experts may come to, GEMM after GEMM: the ranges of reference.propagate through a whole layer.

Where it is known what the first GEMM stored, `Experts.rows` begins there, and what was legal before it widens nothing.

Rule: MOE-2 (opaque layer).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from reference.activations import Activation
from reference.formats import NVFP4
from reference.intervals import Interval, quantized_values, scaled_values
from reference.legal import Arithmetic
from reference.propagate import Added, activated, gemm, relu2


def masked_moe(
    x: Interval,
    counts: list[int],
    w1: Tensor,
    w2: Tensor,
    scales: tuple[Tensor, Tensor | None, Tensor, Tensor],
    activation: str,
    arithmetic: Arithmetic,
    added: Added,
    unrounded: Collection[str] = (),
    weight_scales: tuple[Tensor | None, Tensor | None] = (None, None),
    second_added: Added | None = None,
    weighted: tuple[str, Tensor] | None = None,
    rounded: Collection[str] = (),
) -> Interval:
    """Return the legal range of the output rows, `(rows, k)`, ends being bfloat16 values.

    x is `(rows, k)`, valid rows, expert after expert: the layer's input, or with no input scale what the first GEMM multiplies
    (code x block scale). All other arguments are those of Experts. Rule: MOE-2.
    """
    experts = Experts(
        counts, w1, w2, scales, activation, arithmetic, added, unrounded, weight_scales, second_added, weighted, rounded
    )  # fmt: skip
    return experts.rows(experts.gate_up(x))


@dataclass(frozen=True)
class Experts:
    """The layer that rows go through, expert after expert, in two steps.

    Attributes:
        counts: how many of the rows each expert has.
        w1: `(l, 2n, k)` decoded weights (`(l, n, k)` for relu2).
        w2: `(l, k, n)` decoded weights.
        scales: w1_alpha, input encode scale (None for an input that is not quantized any more), a2 encode scale, w2_alpha;
            `(l,)` float32 each.
        activation: as reference.activations writes it.
        arithmetic: how the candidate quantizes.
        added: how it adds.
        unrounded: what it keeps in float32 instead of rounding it to bfloat16: "gemm1", the first GEMM's output, "hidden",
            the activation.
        weight_scales: decoded block scales of w1 and w2, `(l, n, k / 16)`, for a summation.
        second_added: how the second GEMM adds; None: as the first one.
        weighted: what the routing weights multiply, "hidden" or "rows" (reference.final_sum) or something else, and those of
            the rows, `(rows, 1)` float32.
        rounded: what may be rounded to bfloat16 where the path does not: "gate", the function of the gate.
    """

    counts: list[int]
    w1: Tensor
    w2: Tensor
    scales: tuple[Tensor, Tensor | None, Tensor, Tensor]
    activation: str
    arithmetic: Arithmetic
    added: Added
    unrounded: Collection[str] = ()
    weight_scales: tuple[Tensor | None, Tensor | None] = (None, None)
    second_added: Added | None = None
    weighted: tuple[str, Tensor] | None = None
    rounded: Collection[str] = ()

    def gate_up(self, x: Interval) -> Interval:
        """Return the range of what the first GEMM stores, `(rows, 2n)`, of the rows `(rows, k)` as masked_moe takes them."""
        return self.first(self.quantized_tokens(x))

    def rows(self, gate_up: Interval) -> Interval:
        """Return the range of what the second GEMM stores, `(rows, k)`, of what the first one has stored."""
        return self.second(self.quantized_hidden(gate_up))

    def quantized_tokens(self, x: Interval) -> Interval:
        """Return the range of what the first GEMM multiplies, `(rows, k)`, factors of the rows included."""
        input_scale = self.scales[1]
        return x if input_scale is None else self._quantized(x, input_scale)

    def quantized_hidden(self, gate_up: Interval) -> Interval:
        """Return the range of what the second GEMM multiplies, `(rows, n)`, factors of the rows included."""
        way, second = Activation.of(self.activation), self._type_of("hidden")
        of_hidden = self._weights_of("hidden")
        if way.gated:
            hidden = activated(gate_up, way, second, of_hidden, self.rounded)
        else:
            hidden = relu2(gate_up, second, of_hidden)
        return self._quantized(hidden, self.scales[2])

    def first(self, a: Interval, factors: Tensor | None = None) -> Interval:
        """Return the range of what the first GEMM stores.

        Args:
            a: `(rows, k)`, what it multiplies.
            factors: `(rows, 1)` float32, those of the rows that `a` leaves out.
        """
        dtype = self._type_of("gemm1")
        return self._multiplied(a, self.w1, self.scales[0], dtype, self.weight_scales[0], self.added, factors)

    def second(self, a: Interval, factors: Tensor | None = None) -> Interval:
        """Return the range of what the second GEMM stores. Arguments as for `first`; with factors no routing weights."""
        dtype, added = self.added.forms[0].layer_dtype, self.second_added or self.added
        factors = self._weights_of("rows") if factors is None else factors
        return self._multiplied(a, self.w2, self.scales[3], dtype, self.weight_scales[1], added, factors)

    def _weights_of(self, place: str) -> Tensor | None:
        at, weight = self.weighted or ("", None)
        return weight if at == place else None

    def _type_of(self, value: str) -> torch.dtype:
        return torch.float32 if value in self.unrounded else self.added.forms[0].layer_dtype

    def _quantized(self, values: Interval, scale: Tensor) -> Interval:
        form = self.added.forms[0]
        if form.plain:
            return Interval(values.low, values.high, values.low.new_zeros((len(values.low), 0)))
        times = torch.tensor(self.counts, device=values.low.device)
        of_rows = scale.repeat_interleave(times).unsqueeze(-1)
        if form != NVFP4:
            return scaled_values(form, values, of_rows)
        return quantized_values(values, of_rows, self.arithmetic)

    def _multiplied(
        self,
        a: Interval,
        weights: Tensor,
        alpha: Tensor,
        dtype: torch.dtype,
        weight_scale: Tensor | None,
        added: Added,
        factors: Tensor | None = None,
    ) -> Interval:
        of_expert = [None] * len(self.counts) if factors is None else torch.split(factors, self.counts)
        products = [
            gemm(
                part,
                weights[expert],
                alpha[expert],
                dtype,
                added,
                None if weight_scale is None else weight_scale[expert],
                of_expert[expert],
            )
            for expert, part in enumerate(a.split(self.counts))
            if self.counts[expert]
        ]
        return Interval(torch.cat([p.low for p in products]), torch.cat([p.high for p in products]))
