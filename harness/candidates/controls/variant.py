"""A masked NVFP4 MoE with habits of its own, every one of them legal: what the controls are made of.

Nothing here may be called wrong by any rule. Each variant declares its traits truthfully.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.composition import ComposedMoe
from harness.candidates.protocol import Traits
from harness.candidates.support import Support, supported
from harness.candidates.traits import VARIES
from harness.emulation import quantize
from harness.emulation.activations import ACTIVATIONS
from harness.emulation.orders import Order, accumulate
from reference.nvfp4 import decode_blocks

QUANTIZERS = ("kernel", "fused", "real with fma")
GARBAGE_FLOATS = (math.nan, math.inf, -math.inf, 448.0, -6e4, 1e-40)


@dataclass(frozen=True)
class Habit:
    """What a variant does in its own way. The defaults are those of `physical`.

    Attributes:
        order: of the additions in the GEMM.
        arithmetic: "fast", "exact" or "real", as declared.
        quantizer: one of QUANTIZERS; "kernel" follows the arithmetic.
        reciprocal: in fast mode.
        tells_reciprocal: whether the harness gets to know the reciprocal.
        activation: a key of harness.emulation.activations.ACTIVATIONS.
        fill: bytes that quantizers leave in rows and scale padding that they do not write; None for random ones.
        quantizes_padding: quantizers also quantize the rows past masked_m, whatever they hold.
        store_rows: rows of a store tile of the GEMM.
        tail: what the GEMM stores in the rest of its last tile: "zeros", "nan", "random" or "nothing".
        tile: rows and columns of the tiles that the GEMM computes one by one, None for all at once.
        tile_order: of those tiles: "forward", "reversed" or "shuffled".
        garbage_in: what the variant finds in padding rows of its inputs, whatever the caller put there.
        inner_capacity: rows that it pads every expert to inside.
        varies: "", "place" (the reduction is split by place in the grid) or "call" (differently in every call).
        sign_of_zero: whether -0.0 keeps its sign.
        refuses_layouts: raises on operands that are not in the canonical layout, instead of reading their strides.
        traits: other fields of Traits.
    """

    order: Order = field(default_factory=Order)
    arithmetic: str = "fast"
    quantizer: str = "kernel"
    reciprocal: quantize.Reciprocal = quantize.simulated_rcp
    tells_reciprocal: bool = True
    activation: str = "division"
    fill: int | None = 0xFF
    quantizes_padding: bool = False
    store_rows: int = 128
    tail: str = "zeros"
    tile: tuple[int, int] | None = None
    tile_order: str = "forward"
    garbage_in: bool = False
    inner_capacity: int = 0
    varies: str = ""
    sign_of_zero: bool = True
    refuses_layouts: bool = False
    traits: dict[str, Any] = field(default_factory=dict)


_FLOAT32 = 24  # significant bits


def _kept(order: Order) -> int:
    """Return the bits that sums keep of terms of one instruction and of several."""
    return order.bits if order.window is None else min(order.bits, order.window)


class Variant(ComposedMoe):
    """A candidate with a habit. Stages and shapes: harness.candidates.protocol.

    Args:
        name: of the control.
        habit: what it does in its own way.
    """

    def __init__(self, name: str, habit: Habit) -> None:
        self.name, self.habit = name, habit
        declared: dict[str, Any] = {
            "device": "cpu",
            "arithmetic": habit.arithmetic,
            "accumulator_chunk": habit.order.chunk,
            "summation": "exact 64" if habit.order == Order() else VARIES,
            "deviations": (f"accumulator: {kept} bits",) if (kept := _kept(habit.order)) < _FLOAT32 else (),
            "k_multiple": 16,
            "n_multiple": 8,
            "store_rows": 1 if habit.tail == "nothing" else habit.store_rows,
            "deterministic": habit.varies != "call",
            "place_invariant": habit.varies == "",
            "reads_strides": not habit.refuses_layouts,
            "keeps_sign_of_zero": habit.sign_of_zero,
            "cuda_graph": False,
        }
        self.traits = Traits(**(declared | habit.traits))
        tells = habit.arithmetic == "fast" and habit.tells_reciprocal
        self.reciprocal = habit.reciprocal if tells else None
        self._calls = 0
        self._noise = torch.Generator().manual_seed(7)

    def support(self) -> Support:
        """Return that it runs everywhere."""
        return supported()

    def quantize_grouped(
        self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Quantize the valid rows; what else is written, the habit says."""
        x = self._given(x, masked_m)
        experts, rows, k = x.shape
        inner = max(rows, self.habit.inner_capacity)
        codes = self._bytes((experts, inner, k)) & 0xF
        block_scale = self._bytes((experts, inner, k // 16))
        stops = torch.full_like(masked_m, rows) if self.habit.quantizes_padding else masked_m
        expert, row = torch.nonzero(torch.arange(rows) < stops.unsqueeze(-1), as_tuple=True)
        codes[expert, row], block_scale[expert, row] = self._quantized(
            x[expert, row], global_scale_enc[expert]
        )
        fill = int(self._bytes((1,))) if self.habit.fill is None else self.habit.fill
        return layouts.operand(codes[:, :rows].contiguous()), layouts.scales(block_scale[:, :rows], fill)

    def silu_mul_quantize_grouped(
        self, gate_up: Tensor, masked_m: Tensor, global_scale_enc: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Quantize bf16(silu(gate) * up)."""
        gate, up = self._given(gate_up, masked_m).float().chunk(2, dim=-1)
        hidden = ACTIVATIONS[self.habit.activation](gate, up).bfloat16()
        return self.quantize_grouped(hidden, masked_m, global_scale_enc)

    def masked_grouped_gemm(
        self,
        a: Tensor,
        a_scale: Tensor,
        b: Tensor,
        b_scale: Tensor,
        out: Tensor,
        masked_m: Tensor,
        alpha: Tensor | None,
        **hints: Any,
    ) -> None:
        """Multiply; the order of additions, the tiles and the tail of the last tile are the habit's."""
        self._calls += 1
        self._check_layouts(a, a_scale, b, b_scale, out)
        rows, half_k, _ = a.shape
        operands = layouts.codes_of(a), layouts.block_scales_of(a_scale, rows, half_k // 8)
        weights = layouts.codes_of(b), layouts.block_scales_of(b_scale, b.shape[0], half_k // 8)
        for expert, count in enumerate(masked_m.tolist()):
            if not count:
                continue
            a_values = decode_blocks(operands[0][expert, :count], operands[1][expert, :count], torch.float32)
            b_values = decode_blocks(weights[0][expert], weights[1][expert], torch.float32)
            for row, column in self._tiles(count, b.shape[0], hints.get("tile")):
                product = accumulate(a_values[row], b_values[column], self._order(expert, row.start or 0))
                stored = (product if alpha is None else product * alpha[expert]).to(out.dtype)
                out[row, column, expert] = stored
            stop = min(math.ceil(count / self.habit.store_rows) * self.habit.store_rows, rows)
            self._store_tail(out[count:stop, :, expert])

    def _quantized(self, x: Tensor, gs: Tensor) -> tuple[Tensor, Tensor]:
        if self.habit.quantizer == "fused":
            codes, scale = quantize.quantize_fused(x, gs)
        elif self.habit.quantizer == "real with fma":
            codes, scale = quantize.quantize_real_with_fma(x, gs)
        else:
            exact = self.habit.arithmetic == "exact"
            codes, scale = quantize.quantize_kernel_order(x, gs, exact=exact, rcp=self.habit.reciprocal)
        return (codes if self.habit.sign_of_zero else torch.where(codes == 8, 0, codes)), scale

    def _given(self, x: Tensor, masked_m: Tensor) -> Tensor:
        """Return an input as the variant finds it: with garbage in its padding rows, where that is its habit."""
        if not self.habit.garbage_in:
            return x
        padding = torch.arange(x.shape[1]) >= masked_m.unsqueeze(-1)
        choice = torch.randint(len(GARBAGE_FLOATS), x.shape, generator=self._noise)
        return torch.where(padding.unsqueeze(-1), torch.tensor(GARBAGE_FLOATS)[choice].to(x.dtype), x)

    def _bytes(self, shape: tuple[int, ...]) -> Tensor:
        if self.habit.fill is None:
            return torch.randint(0, 256, shape, generator=self._noise, dtype=torch.uint8)
        return torch.full(shape, self.habit.fill, dtype=torch.uint8)

    def _order(self, expert: int, row: int) -> Order:
        if self.habit.varies == "place":
            return replace(self.habit.order, splits=1 + (expert + row // 64) % 3)
        if self.habit.varies == "call":
            return replace(self.habit.order, products="shuffled", seed=self._calls)
        return self.habit.order

    def _tiles(self, rows: int, columns: int, hint: tuple[int, int] | None) -> list[tuple[slice, slice]]:
        height, width = hint or self.habit.tile or (rows, columns)
        tiles = [
            (slice(r, min(r + height, rows)), slice(c, min(c + width, columns)))
            for r in range(0, rows, height)
            for c in range(0, columns, width)
        ]
        if self.habit.tile_order == "reversed":
            return tiles[::-1]
        if self.habit.tile_order == "shuffled":
            return [tiles[i] for i in torch.randperm(len(tiles), generator=self._noise).tolist()]
        return tiles

    def _store_tail(self, tail: Tensor) -> None:
        """Store what a whole tile holds below the valid rows."""
        if self.habit.tail == "nan":
            tail.fill_(math.nan)
        elif self.habit.tail == "random":
            choice = torch.randint(len(GARBAGE_FLOATS), tail.shape, generator=self._noise)
            tail.copy_(torch.tensor(GARBAGE_FLOATS)[choice])
        elif self.habit.tail == "zeros":
            tail.zero_()

    def _check_layouts(self, a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, out: Tensor) -> None:
        if not self.habit.refuses_layouts:
            return
        for name, tensor, kind in (
            ("a", a, "rows"),
            ("a_scale", a_scale, "scales"),
            ("b", b, "rows"),
            ("b_scale", b_scale, "scales"),
            ("out", out, "rows"),
        ):
            if not layouts.canonical(tensor, kind):
                raise ValueError(f"masked_grouped_gemm: {name} must lie in memory experts outermost")
