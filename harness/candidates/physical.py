"""`physical`: what FlashInfer's kernels do to bits and to memory, on a CPU.

Raw pointers in canonical layouts (strides are ignored), scales in 128x4 order, quantizers that stop at `masked_m` and
leave the rest of their buffers as the allocator gave it, a GEMM that loads and stores whole 128-row tiles, approximate
reciprocals, and an accumulator that truncates once per 64 products. Faults are planted around this candidate.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from harness.candidates.composition import ComposedMoe
from harness.candidates.decoded import DecodedOperands
from harness.candidates.layer_stages import PhysicalLayerStages
from harness.candidates.protocol import Traits
from harness.candidates.support import Support, supported

if TYPE_CHECKING:
    from torch import Tensor

TILE = 128
_WEIGHTS = DecodedOperands()


class Physical(ComposedMoe, PhysicalLayerStages):
    """The modelled kernels. See the module's docstring; shapes in harness.candidates.protocol."""

    name = "physical"
    traits = Traits(device="cpu", summation="exact 64", k_multiple=16, n_multiple=8, cuda_graph=False)

    def support(self) -> Support:
        """Return that it runs everywhere."""
        return supported()

    def reciprocal(self, x: Tensor) -> Tensor:
        """Return the modelled rcp.approx.ftz, float32 to float32: what a probe of the device would read."""
        from harness.emulation.quantize import simulated_rcp

        return simulated_rcp(x)

    def quantize_grouped(
        self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Quantize rows below masked_m[e]; everything else keeps what the allocator left."""
        import torch

        from harness.candidates import layouts
        from harness.emulation.memory import raw, unwritten
        from harness.emulation.quantize import quantize_kernel_order
        from reference.e2m1 import pack_e2m1
        from reference.layout import padded_extents

        experts, rows, k = x.shape
        _require_contiguous(x, masked_m, global_scale_enc)
        _require(x.dtype in {torch.bfloat16, torch.float16}, f"x must be bfloat16 or float16, got {x.dtype}")
        _require(k % 16 == 0, f"k must be a multiple of 16, got {k}")
        _require(
            global_scale_enc.dtype == torch.float32,
            f"the global scale must be float32, got {global_scale_enc.dtype}",
        )
        padded_rows, padded_columns = padded_extents(rows, k // 16, "128x4")
        packed = unwritten((experts, rows, k // 2), torch.uint8)
        swizzled = unwritten((experts, padded_rows, padded_columns), torch.uint8)
        expert, row = _valid_rows(masked_m, experts, rows)
        codes, block_scale = quantize_kernel_order(
            raw(x, (experts, rows, k))[expert, row],
            raw(global_scale_enc, (experts,))[expert],
            rcp=self.reciprocal,
        )
        packed[expert, row] = pack_e2m1(codes)
        place = _scale_index(rows, k // 16)[row] + expert.unsqueeze(-1) * padded_rows * padded_columns
        swizzled.view(-1)[place] = block_scale
        return packed.permute(1, 2, 0), layouts.as_mma(swizzled)

    def silu_mul_quantize_grouped(
        self, gate_up: Tensor, masked_m: Tensor, global_scale_enc: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Quantize silu(gate) * up, computed in float32 and rounded to bfloat16 first."""
        import torch

        from harness.emulation.memory import raw, unwritten

        experts, rows, n2 = gate_up.shape
        _require_contiguous(gate_up, masked_m, global_scale_enc)
        hidden = unwritten((experts, rows, n2 // 2), torch.bfloat16)
        valid = _valid_rows(masked_m, experts, rows)
        gate, up = raw(gate_up, (experts, rows, n2))[valid].float().chunk(2, dim=-1)
        hidden[valid] = (gate / (1 + torch.exp(-gate)) * up).bfloat16()
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
    ) -> None:
        """Store ceil(masked_m[e] / 128) whole tiles per expert, garbage rows included, clipped at m."""
        from harness.emulation.accumulate import blocked_gemm
        from harness.emulation.memory import raw

        rows, half_k, experts = a.shape
        n, k = b.shape[0], half_k * 2
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
        a_memory, b_memory = raw(a, (experts, rows, half_k)), raw(b, (experts, n, half_k))
        a_bytes, b_bytes = _scale_memory(a_scale, (rows, k)), _scale_memory(b_scale, (n, k))
        a_index, b_index = (_scale_index(extent, k // 16) for extent in (rows, n))
        for expert, count in enumerate(raw(masked_m, (experts,)).tolist()):
            stored = min(math.ceil(count / TILE) * TILE, rows)
            if not stored:
                continue
            a_values = _decoded(a_memory[expert, :stored], a_bytes[expert], a_index[:stored])
            b_values = _weight_values(b_memory[expert], b_bytes[expert], b_index)
            product = blocked_gemm(a_values, b_values, chunk=self.traits.accumulator_chunk)
            target[expert, :stored] = (product if alphas is None else product * alphas[expert]).to(out.dtype)


def _valid_rows(masked_m: Tensor, experts: int, rows: int) -> tuple[Tensor, Tensor]:
    """Return expert and row of each valid row, int64, expert after expert."""
    import torch

    from harness.emulation.memory import raw

    expert, row = torch.nonzero(torch.arange(rows) < raw(masked_m, (experts,)).unsqueeze(-1), as_tuple=True)
    return expert, row


def _weight_values(packed: Tensor, scales: Tensor, index: Tensor) -> Tensor:
    """Return one expert's weights; in float64, which blocked_gemm multiplies in. Kept."""
    return _WEIGHTS.get(packed, scales, lambda: _decoded(packed, scales, index).double())


def _scale_memory(scale: Tensor, extents: tuple[int, int]) -> Tensor:
    """Return the bytes of each expert's block scales, `(experts, bytes)`, in 128x4 order, as they lie in memory."""
    import torch

    from harness.emulation.memory import raw
    from reference.layout import padded_extents

    padded_rows, padded_columns = padded_extents(extents[0], extents[1] // 16, "128x4")
    return raw(scale.view(torch.uint8), (scale.shape[5], padded_rows * padded_columns))


def _decoded(packed: Tensor, scales: Tensor, index: Tensor) -> Tensor:
    """Return the values of one expert's codes; `index` says where the scale of each block lies."""
    import torch

    from reference.e2m1 import unpack_e2m1
    from reference.nvfp4 import decode_blocks

    return decode_blocks(unpack_e2m1(packed), scales[index], torch.float32)


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
