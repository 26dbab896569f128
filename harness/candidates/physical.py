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
        memory, counts = raw(x, (experts, rows, k)), raw(masked_m, (experts,)).tolist()
        scales = raw(global_scale_enc, (experts,))
        index = _scale_index(rows, k // 16)
        for expert, count in enumerate(counts):
            codes, block_scale = quantize_kernel_order(
                memory[expert, :count], scales[expert].expand(count), rcp=self.reciprocal
            )
            packed[expert, :count] = pack_e2m1(codes)
            swizzled[expert].view(-1)[index[:count]] = block_scale
        return packed.permute(1, 2, 0), layouts.as_mma(swizzled)

    def silu_mul_quantize_grouped(
        self, gate_up: Tensor, masked_m: Tensor, global_scale_enc: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Quantize silu(gate) * up, computed in float32 and rounded to bfloat16 first."""
        import torch

        from harness.emulation.memory import raw, unwritten

        experts, rows, n2 = gate_up.shape
        _require_contiguous(gate_up, masked_m, global_scale_enc)
        gate, up = raw(gate_up, (experts, rows, n2)).float().chunk(2, dim=-1)
        hidden = unwritten((experts, rows, n2 // 2), torch.bfloat16)
        for expert, count in enumerate(raw(masked_m, (experts,)).tolist()):
            x = gate[expert, :count]
            hidden[expert, :count] = (x / (1 + torch.exp(-x)) * up[expert, :count]).bfloat16()
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
        for expert, count in enumerate(raw(masked_m, (experts,)).tolist()):
            stored = min(math.ceil(count / TILE) * TILE, rows)
            if not stored:
                continue
            a_values = _operand_values(a_memory[expert], a_scale, expert, (rows, k), stored)
            b_values = _weight_values(b_memory[expert], b_scale, expert, (n, k))
            product = blocked_gemm(a_values, b_values, chunk=self.traits.accumulator_chunk)
            target[expert, :stored] = (product if alphas is None else product * alphas[expert]).to(out.dtype)


def _operand_values(
    packed: Tensor, scale: Tensor, expert: int, extents: tuple[int, int], stored: int
) -> Tensor:
    """Return the first `stored` rows of one expert's operand, read from raw memory."""
    return _decoded(packed, _scale_memory(scale, expert, extents), extents, stored)


def _weight_values(packed: Tensor, scale: Tensor, expert: int, extents: tuple[int, int]) -> Tensor:
    """Return one expert's weights, read from raw memory; in float64, which blocked_gemm multiplies in. Kept."""
    scales = _scale_memory(scale, expert, extents)
    return _WEIGHTS.get(packed, scales, lambda: _decoded(packed, scales, extents, extents[0]).double())


def _scale_memory(scale: Tensor, expert: int, extents: tuple[int, int]) -> Tensor:
    """Return the bytes of one expert's block scales, in 128x4 order, as they lie in memory."""
    import torch

    from harness.emulation.memory import raw
    from reference.layout import padded_extents

    padded_rows, padded_columns = padded_extents(extents[0], extents[1] // 16, "128x4")
    return raw(scale.view(torch.uint8), (scale.shape[5], padded_rows * padded_columns))[expert]


def _decoded(packed: Tensor, scales: Tensor, extents: tuple[int, int], stored: int) -> Tensor:
    import torch

    from reference.e2m1 import unpack_e2m1
    from reference.nvfp4 import decode_blocks

    block_scale = scales[_scale_index(extents[0], extents[1] // 16)[:stored]]
    return decode_blocks(unpack_e2m1(packed[:stored]), block_scale, torch.float32)


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
