"""The right implementations that hypotheses are planted in: the kernels' arithmetic, in a few legal variants.

A kernel that is right need not agree with `physical` bit for bit: reciprocals and the order of addition are its own. The
variant that agrees with the candidate best where nothing is wrong is the one that faults are planted in; the others
tell whether a single differing code is a legal flip.

A model can be kept to some rows: it then computes only those and leaves the others unwritten, so that many hypotheses
can be screened quickly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.composition import compose_masked_moe
from harness.candidates.traits import Traits
from harness.diagnosis.cases.habits import TILE, Habits, tail_value
from harness.emulation.accumulate import blocked_gemm
from harness.emulation.memory import unwritten
from harness.emulation.quantize import correctly_rounded_rcp, quantize_kernel_order, simulated_rcp
from reference.activations import Activation
from reference.e2m1 import pack_e2m1, unpack_e2m1
from reference.formats import FORMATS, NVFP4, Coded, Format
from reference.layout import padded_extents
from reference.legal import Arithmetic
from reference.nvfp4 import quantize_nvfp4

Quantizer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Product = Callable[[Tensor, Tensor], Tensor]
_KEPT = 64  # decoded operands that are kept between hypotheses


def _up(x: Tensor) -> Tensor:
    rounded = x.reciprocal()
    return torch.nextafter(rounded, rounded * 2)


def _down(x: Tensor) -> Tensor:
    return torch.nextafter(x.reciprocal(), torch.zeros_like(x))


def _kernel(rcp: Callable[[Tensor], Tensor]) -> Quantizer:
    return lambda x, gs: quantize_kernel_order(x, gs, rcp=rcp)


def _real(x: Tensor, gs: Tensor) -> tuple[Tensor, Tensor]:
    codes = torch.empty(x.shape, dtype=torch.uint8)
    block_scale = torch.empty(x.shape[0], x.shape[1] // 16, dtype=torch.uint8)
    for scale in torch.unique(gs):
        same = gs == scale
        quantized = quantize_nvfp4(x[same], scale)
        codes[same], block_scale[same] = quantized.codes, quantized.block_scale
    return codes, block_scale


def _exact_mode(x: Tensor, gs: Tensor) -> tuple[Tensor, Tensor]:
    return quantize_kernel_order(x, gs, exact=True)


def _chunks(a: Tensor, b: Tensor) -> Tensor:
    return blocked_gemm(a, b, chunk=64)


def _float32(a: Tensor, b: Tensor) -> Tensor:
    return torch.mm(a, b.T)


def at_once(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b.T with one rounding at the end."""
    return torch.mm(a.double(), b.double().T).float()


@dataclass
class Model:
    """The stages of a candidate that is right.

    Attributes:
        name: for words.
        quantizer: of `(rows, k)` values and `(rows,)` encode scales, to codes and block scales.
        product: a @ b.T of decoded values, float32.
        float64_activation: silu in float64 instead of float32.
        rows: rows to compute, by expert; None for all.
        habits: what it leaves where it need not write.
        reads: decoded weights by the memory that they were decoded from.
        store_rows: a GEMM multiplies and stores whole tiles of so many rows.
        unrounded: as in Traits: values of a layer that stay float32.
        declared: formats and activation; of activations that are not NVFP4 the quantizer is the reference's.
    """

    name: str
    quantizer: Quantizer
    product: Product
    float64_activation: bool = False
    rows: Mapping[int, Tensor] | None = None
    habits: Habits = field(default_factory=Habits)
    reads: dict[Any, tuple[Any, Tensor]] = field(default_factory=dict)
    store_rows: int = TILE
    unrounded: tuple[str, ...] = ()
    declared: Traits = field(default_factory=Traits)

    @property
    def forms(self) -> tuple[Format, Format]:
        """Formats of activations and weights."""
        return FORMATS[self.declared.activation_format], FORMATS[self.declared.weight_format]

    @property
    def gated(self) -> str:
        """The activation with a gate."""
        return self.declared.gated

    @property
    def traits(self) -> Traits:
        """Its formats and its activation, as a candidate declares them."""
        return self.declared

    def keep_to(self, rows: Mapping[int, Tensor] | None) -> Model:
        """Return the same model that computes some rows only; decoded operands are shared."""
        return replace(self, rows=rows)

    def _chosen(self, expert: int, count: int) -> Tensor:
        if self.rows is None:
            return torch.arange(count)
        rows = self.rows.get(expert)
        return torch.empty(0, dtype=torch.long) if rows is None else rows[rows < count]

    def quantize_grouped(self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> layouts.Pair:
        """Quantize valid rows; the rest stays unwritten. Shapes: harness.candidates.protocol."""
        experts, rows, k = x.shape
        form, fill = self.forms[0], self.habits.fill
        counts, scales = masked_m.tolist(), global_scale_enc.reshape(-1).float().expand(experts)
        chosen = [self._chosen(expert, min(count, rows)) for expert, count in enumerate(counts)]
        expert_of = torch.cat([torch.full((len(c),), e) for e, c in enumerate(chosen)])
        row_of = torch.cat(chosen)
        given = x[expert_of, row_of], scales[expert_of]
        coded = Coded(*self.quantizer(*given)) if form == NVFP4 else form.quantize(*given)
        codes = pack_e2m1(coded.codes) if form.element == "e2m1" else coded.codes
        never_written = torch.nan if form.plain else fill
        stored = torch.full((experts, rows, codes.shape[-1]), never_written, dtype=codes.dtype)
        stored[expert_of, row_of] = codes
        if not form.swizzled:
            floats = coded.row_scale if form.rows else coded.block_scale if form.scale else None
            if floats is None:
                return stored.permute(1, 2, 0), None
            buffer = torch.full((experts, rows, floats.shape[-1]), torch.nan)
            buffer[expert_of, row_of] = floats
            return stored.permute(1, 2, 0), buffer
        columns = k // form.block
        swizzled = torch.full((experts, *padded_extents(rows, columns, "128x4")), fill, dtype=torch.uint8)
        place = _scale_index(rows, columns)[row_of]
        swizzled.view(experts, -1)[expert_of.unsqueeze(-1), place] = coded.block_scale
        scales = layouts.as_mma(swizzled)
        return stored.permute(1, 2, 0), scales if form.scale == "e4m3" else scales.view(torch.uint8)

    def silu_mul_quantize_grouped(
        self, gate_up: Tensor, masked_m: Tensor, global_scale_enc: Tensor
    ) -> layouts.Pair:
        """Quantize bf16(silu(gate) * up) of valid rows. Shapes: harness.candidates.protocol."""
        experts, rows, n2 = gate_up.shape
        hidden = unwritten((experts, rows, n2 // 2), self._hidden)
        for expert, count in enumerate(masked_m.tolist()):
            chosen = self._chosen(expert, min(count, rows))
            if not len(chosen):
                continue
            hidden[expert, chosen] = self.activated(gate_up[expert, chosen])
        return self.quantize_grouped(hidden, masked_m, global_scale_enc)

    def activated(self, gate_up: Tensor) -> Tensor:
        """Return the activation of `(..., 2n)`, `(..., n)` bfloat16, or float32 where that is not rounded."""
        way = Activation.of(self.gated)
        if self.float64_activation:
            return way.value(gate_up.double()).float().to(self._hidden)
        if way.kind != "silu":
            return way.value(gate_up.float()).to(self._hidden)
        gate, up = way.clamped(*way.split(gate_up.float()))
        up = up + way.beta if way.beta else up
        return (gate / (1 + torch.exp(-way.alpha * gate)) * up).to(self._hidden)

    @property
    def _hidden(self) -> torch.dtype:
        return torch.float32 if "hidden" in self.unrounded else self.forms[0].layer_dtype

    def masked_moe(self, *positional: Any, **named: Any) -> Tensor:
        """Return the layer's output; what is not rounded between the stages stays float32."""
        return compose_masked_moe(self, *positional, **named, unrounded=self.unrounded)

    def masked_grouped_gemm(
        self,
        a: Tensor,
        a_scale: Tensor,
        b: Tensor,
        b_scale: Tensor,
        out: Tensor,
        masked_m: Tensor,
        alpha: Tensor | None,
        **_hints: Any,
    ) -> None:
        """Multiply whole tiles of valid rows into out. Shapes: harness.candidates.protocol."""
        rows = a.shape[0]
        n, k = b.shape[0], b.shape[1] * 2
        target, a_rows = out.permute(2, 0, 1), a.permute(2, 0, 1)
        for expert, count in enumerate(masked_m.tolist()):
            stored = min(math.ceil(count / self.store_rows) * self.store_rows, rows)
            chosen = self._chosen(expert, stored)
            if not len(chosen):
                continue
            a_values = _values(self.forms[0], a_rows[expert, chosen], a_scale, expert, (rows, k), chosen)
            factor = a_scale[expert, chosen] if self.forms[0].rows else None
            product = self.product(a_values, self._weights(b, b_scale, expert, (n, k)))
            if factor is not None:
                product = product * factor
            if alpha is not None:
                product = product * alpha.reshape(-1)[expert]
            product = product.to(out.dtype)
            if self.habits.tail != "product" and count < stored:
                past, value = chosen >= count, tail_value(self.habits.tail)
                product[past] = target[expert, chosen[past]] if value is None else value
            target[expert, chosen] = product

    def _weights(self, b: Tensor, b_scale: Tensor, expert: int, extents: tuple[int, int]) -> Tensor:
        """Return one expert's decoded weights; kept while the same tensors come again, since most faults leave them be."""
        key = (_identity(b), _identity(b_scale), expert)
        if key not in self.reads:
            n, k = extents
            packed = b.permute(2, 0, 1)[expert]
            values = _values(self.forms[1], packed, b_scale, expert, (n, k), torch.arange(n))
            while len(self.reads) >= _KEPT:
                self.reads.pop(next(iter(self.reads)))
            self.reads[key] = (b, b_scale), values  # the tensors too: while they live, their memory is theirs
        return self.reads[key][1]


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Return what two tensors have in common only if they hold the same values now."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor._version  # noqa: SLF001 - no public name for it


def _values(
    form: Format, stored: Tensor, scale: Any, expert: int, extents: tuple[int, int], chosen: Tensor
) -> Tensor:
    rows, k = extents
    codes = unpack_e2m1(stored) if form.element == "e2m1" else stored
    if form.scale == "float32":
        return form.values(Coded(codes, scale[expert, chosen]), torch.float64)
    if not form.swizzled:
        return form.values(Coded(codes, codes.new_zeros((len(codes), 0), dtype=torch.uint8)))
    swizzled = layouts.swizzled_bytes(scale[..., expert : expert + 1]).view(-1)
    return form.values(Coded(codes, swizzled[_scale_index(rows, k // form.block)[chosen]]))


@lru_cache(maxsize=32)
def _scale_index(rows: int, columns: int) -> Tensor:
    """Return the 128x4 byte offset of each scale, `(rows, columns)`."""
    row, column = torch.arange(rows).unsqueeze(-1), torch.arange(columns)
    tile = row // 128 * math.ceil(columns / 4) + column // 4
    return tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + column % 4


def models(
    arithmetic: Arithmetic,
    store_rows: int = TILE,
    unrounded: tuple[str, ...] = (),
    declared: Traits | None = None,
) -> list[Model]:
    """Return the legal variants, the likeliest first.

    Args:
        arithmetic: what the candidate declares, with its own reciprocal where that was probed.
        store_rows: a GEMM multiplies and stores whole tiles of so many rows.
        unrounded: values of a layer that stay float32.
        declared: formats and activation.
    """
    kernel = Model("physical", _kernel(arithmetic.reciprocal or simulated_rcp), _chunks)
    real = Model("eager", _real, _float32, float64_activation=True)
    exact = Model("exact mode", _exact_mode, at_once)
    rounded = Model("reciprocals rounded", _kernel(correctly_rounded_rcp), at_once, float64_activation=True)
    first = {"real": [real, kernel, exact], "exact": [exact, kernel, real]}
    order = first.get(arithmetic.kind, [kernel, real, exact])
    variants = [
        *order,
        rounded,
        Model("reciprocals up", _kernel(_up), _float32),
        Model("reciprocals down", _kernel(_down), _float32),
    ]
    for model in variants:
        model.store_rows, model.unrounded, model.declared = store_rows, unrounded, declared or Traits()
    return variants
