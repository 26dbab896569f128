"""`physical`: what FlashInfer's kernels do to bits and to memory, on a CPU.

Raw pointers in canonical layouts (strides are ignored), scales in 128x4 order, quantizers that stop at `masked_m` and
leave the rest of their buffers as the allocator gave it, a GEMM that loads and stores whole 128-row tiles, approximate
reciprocals, and an accumulator that truncates once per 64 products. Faults are planted around this candidate.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from harness.candidates.composition import ComposedMoe
from harness.candidates.decoded import DecodedOperands
from harness.candidates.layer_stages import PhysicalLayerStages
from harness.candidates.protocol import Traits
from harness.candidates.routed import ComposedRoutedMoe
from harness.candidates.support import Support, supported

if TYPE_CHECKING:
    from torch import Tensor

    from harness.candidates.layouts import Pair
    from reference.formats import Coded, Format

TILE = 128
_WEIGHTS = DecodedOperands()
_SMALL = 1 << 18  # elements of an operand


class PhysicalKernels(ComposedMoe, ComposedRoutedMoe):
    """The modelled kernels, in any format. See the module's docstring; shapes in harness.candidates.protocol.

    Args:
        traits: others than its own: the formats of its operands, for example.
    """

    name = "physical"
    sums_with_fma = takes_twice = True
    traits = Traits(device="cpu", summation="exact 64", k_multiple=16, n_multiple=8, cuda_graph=False)

    def __init__(self, **traits: Any) -> None:
        if traits:
            self.traits = replace(self.traits, **traits)

    @property
    def form(self) -> Format:
        """Format of the tokens and the intermediate when they are multiplied."""
        from reference.formats import FORMATS

        return FORMATS[self.traits.activation_format]

    def support(self) -> Support:
        """Return that it runs everywhere."""
        return supported()

    def reciprocal(self, x: Tensor) -> Tensor:
        """Return the modelled rcp.approx.ftz, float32 to float32: what a probe of the device would read."""
        from harness.emulation.quantize import simulated_rcp

        return simulated_rcp(x)

    def quantize_grouped(self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Pair:
        """Quantize rows below masked_m[e]; everything else keeps what the allocator left."""
        import torch

        from harness.candidates import layouts
        from harness.emulation.memory import raw, unwritten
        from reference.e2m1 import pack_e2m1
        from reference.layout import padded_extents

        experts, rows, k = x.shape
        form = self.form
        _require_contiguous(x, masked_m, global_scale_enc)
        taken = [
            torch.bfloat16,
            torch.float16,
            *([torch.float32] if "hidden" in self.traits.unrounded else []),
        ]
        _require(x.dtype in taken, f"x must be bfloat16 or float16, got {x.dtype}")
        _require(k % 16 == 0, f"k must be a multiple of 16, got {k}")
        _require(
            global_scale_enc.dtype == torch.float32,
            f"the global scale must be float32, got {global_scale_enc.dtype}",
        )
        expert, row = _valid_rows(masked_m, experts, rows)
        coded = self._quantized(
            raw(x, (experts, rows, k))[expert, row], raw(global_scale_enc, (experts,))[expert]
        )
        codes = pack_e2m1(coded.codes) if form.element == "e2m1" else coded.codes
        stored = unwritten((experts, rows, codes.shape[-1]), codes.dtype)
        stored[expert, row] = codes
        if not form.swizzled:
            return stored.permute(1, 2, 0), _in_padding(coded, (experts, rows), (expert, row))
        columns = k // form.block
        padded_rows, padded_columns = padded_extents(rows, columns, "128x4")
        swizzled = unwritten((experts, padded_rows, padded_columns), torch.uint8)
        place = _scale_index(rows, columns)[row] + expert.unsqueeze(-1) * padded_rows * padded_columns
        swizzled.view(-1)[place] = coded.block_scale
        scales = layouts.as_mma(swizzled)
        return stored.permute(1, 2, 0), scales if form.scale == "e4m3" else scales.view(torch.uint8)

    def _quantized(self, rows: Tensor, global_scale_enc: Tensor) -> Coded:
        """Return rows `(n, k)` in the format, in the kernels' order of operations where that is known."""
        from harness.emulation.quantize import quantize_kernel_order
        from reference.formats import Coded

        if self.form.name != "nvfp4":
            return self.form.quantize(rows, global_scale_enc)
        return Coded(*quantize_kernel_order(rows, global_scale_enc, rcp=self.reciprocal))

    def silu_mul_quantize_grouped(self, gate_up: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Pair:
        """Quantize the activation, computed in float32 and rounded to gate_up's type first."""
        import torch

        from harness.emulation.memory import raw, unwritten
        from reference.activations import Activation

        experts, rows, n2 = gate_up.shape
        own = torch.float32 if "hidden" in self.traits.unrounded else self.form.layer_dtype
        _require_contiguous(gate_up, masked_m, global_scale_enc)
        hidden = unwritten((experts, rows, n2 // 2), own)
        valid = _valid_rows(masked_m, experts, rows)
        way = Activation.of(self.traits.gated)
        gate_up = raw(gate_up, (experts, rows, n2))[valid].float()
        if way.kind == "silu":
            gate, up = way.clamped(*way.split(gate_up))
            up = up + way.beta if way.beta else up  # -0.0 stays
            hidden[valid] = (gate / (1 + torch.exp(-way.alpha * gate)) * up).to(own)
        else:
            hidden[valid] = way.value(gate_up).to(own)
        return self.quantize_grouped(hidden, masked_m, global_scale_enc)

    def masked_grouped_gemm(
        self,
        a: Tensor,
        a_scale: Any,
        b: Tensor,
        b_scale: Tensor,
        out: Tensor,
        masked_m: Tensor,
        alpha: Tensor | None,
    ) -> None:
        """Store ceil(masked_m[e] / 128) whole tiles per expert, garbage rows included, clipped at m."""
        from harness.emulation.accumulate import blocked_gemm
        from harness.emulation.memory import raw
        from reference.formats import FORMATS

        form, of_weights = self.form, FORMATS[self.traits.weight_format]
        rows, width, experts = a.shape
        k = width * 2 if form.element == "e2m1" else width
        n, half_k = b.shape[0], k // 2
        _require(
            tuple(b.shape) == (n, half_k, experts),
            f"b must be (n, {half_k}, {experts}), got {tuple(b.shape)}",
        )
        _require(
            tuple(out.shape) == (rows, n, experts),
            f"out must be {(rows, n, experts)}, got {tuple(out.shape)}",
        )
        # FlashInfer 0.7 checks this one layout and no other (flashinfer#3103).
        _require(
            out.permute(2, 0, 1).is_contiguous(), "out must be (m, n, l) over contiguous (l, m, n) memory"
        )
        target = raw(out, (experts, rows, n))
        alphas = None if alpha is None else raw(alpha, (experts,))
        of_a = _Memory(form, raw(a, (experts, rows, width)), a_scale, k)
        of_b = _Memory(of_weights, raw(b, (experts, n, half_k)), b_scale, k)
        for expert, count in enumerate(raw(masked_m, (experts,)).tolist()):
            stored = min(math.ceil(count / TILE) * TILE, rows)
            if not stored:
                continue
            product = blocked_gemm(
                of_a.values(expert, stored), of_b.kept(expert), chunk=self.traits.accumulator_chunk
            )
            if form.rows:
                product *= raw(a_scale, (experts, rows, 1))[expert, :stored]
            target[expert, :stored] = (product if alphas is None else product * alphas[expert]).to(out.dtype)


def _valid_rows(masked_m: Tensor, experts: int, rows: int) -> tuple[Tensor, Tensor]:
    """Return expert and row of each valid row, int64, expert after expert."""
    import torch

    from harness.emulation.memory import raw

    expert, row = torch.nonzero(torch.arange(rows) < raw(masked_m, (experts,)).unsqueeze(-1), as_tuple=True)
    return expert, row


class Physical(PhysicalKernels, PhysicalLayerStages):
    """Those of NVFP4, with the stages around them."""


class _Memory:
    """An operand of all experts as it lies in memory.

    Args:
        form: its format.
        stored: `(experts, rows, bytes or elements)`.
        scales: its block scales as they were handed over, or None.
        k: elements of a row.
    """

    def __init__(self, form: Format, stored: Tensor, scales: Any, k: int) -> None:
        from harness.emulation.memory import raw

        self._form, self._stored = form, stored
        # All experts of a small operand are decoded at once: a call costs more than they do.
        self._is_small = stored.shape[0] > 1 and stored.shape[0] * stored.shape[1] * k <= _SMALL
        self._bytes: Tensor | None = None
        self._floats: Tensor | None = None
        if form.scale == "float32":
            self._floats = raw(scales, (*stored.shape[:2], k // form.block))
        if form.swizzled:
            rows, columns = stored.shape[1], k // form.block
            self._bytes, self._index = _scale_memory(scales, rows, columns), _scale_index(rows, columns)

    def values(self, expert: int, rows: int) -> Tensor:
        """Return the values of one expert's first rows, float32."""
        if self._is_small:
            return self._all_values[expert, :rows]
        return self._values(slice(expert, expert + 1), rows)[0]

    def kept(self, expert: int) -> Tensor:
        """Return one expert's weights; in float64, which blocked_gemm multiplies in. Kept."""
        if self._is_small:
            return self._all_kept[expert]
        return self._kept(slice(expert, expert + 1))[0]

    @cached_property
    def _all_values(self) -> Tensor:
        return self._values(slice(None), self._stored.shape[1])

    @cached_property
    def _all_kept(self) -> Tensor:
        return self._kept(slice(None))

    def _values(self, experts: slice, rows: int) -> Tensor:
        """Return the values of the first rows of some experts, garbage where there is garbage."""
        import torch

        from reference.e2m1 import unpack_e2m1
        from reference.formats import Coded

        stored = self._stored[experts, :rows]
        codes = unpack_e2m1(stored) if self._form.element == "e2m1" else stored
        if self._floats is not None:
            return self._form.values(Coded(codes, self._floats[experts, :rows]), torch.float64)
        if self._bytes is None:
            return self._form.values(Coded(codes, codes.new_zeros((len(codes), rows, 0), dtype=torch.uint8)))
        return self._form.values(Coded(codes, self._bytes[experts][:, self._index[:rows]]))

    def _kept(self, experts: slice) -> Tensor:
        stored, scales = self._stored[experts], self._bytes
        assert scales is not None  # noqa: S101 - weights have block scales
        return _WEIGHTS.get(stored, scales[experts], lambda: self._values(experts, stored.shape[1]).double())


def _in_padding(coded: Coded, extents: tuple[int, int], places: tuple[Tensor, Tensor]) -> Tensor | None:
    """Return float32 scales of valid rows in a buffer `(experts, rows, columns)`, or None where there are none."""
    from harness.emulation.memory import unwritten

    scales = coded.block_scale if coded.row_scale is None else coded.row_scale
    if not scales.shape[-1]:
        return None
    buffer = unwritten((*extents, scales.shape[-1]), scales.dtype)
    buffer[places] = scales
    return buffer


def _scale_memory(scale: Tensor, rows: int, columns: int) -> Tensor:
    """Return the bytes of each expert's block scales, `(experts, bytes)`, in 128x4 order, as they lie in memory."""
    import torch

    from harness.emulation.memory import raw
    from reference.layout import padded_extents

    padded_rows, padded_columns = padded_extents(rows, columns, "128x4")
    return raw(scale.view(torch.uint8), (scale.shape[5], padded_rows * padded_columns))


def _scale_index(rows: int, columns: int) -> Tensor:
    """Return the 128x4 byte offset of each scale of a matrix, `(rows, columns)`; the kernels' formula."""
    import torch

    row, column = torch.arange(rows).unsqueeze(-1), torch.arange(columns)
    tile = row // 128 * math.ceil(columns / 4) + column // 4
    return tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + column % 4


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


def _require_contiguous(*tensors: Tensor) -> None:
    """Refuse what FlashInfer's grouped quantizers refuse (CHECK_CONTIGUOUS in thop/fp4Quantize.cpp)."""
    _require(all(t.is_contiguous() for t in tensors), "the input, masked_m and scales must be contiguous")
