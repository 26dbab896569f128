"""A masked NVFP4 MoE for any CUDA GPU with bf16 tensor cores, as an example of a candidate.

Products of E2M1 codes and E4M3 scales are exact in bfloat16, so a bf16 matmul over decoded operands differs from exact
arithmetic only in how the tensor cores accumulate, which the harness measures. Nothing here waits for the GPU or
allocates by data, so the layer can be captured in a CUDA graph.

    harness check --candidate examples.tensor_core_candidate:TensorCore
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness import Support, Traits
from harness.candidates.composition import ComposedMoe
from harness.candidates.traits import ANY_ROW

_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class TensorCore(ComposedMoe):
    """Every stage in torch on the GPU: float32 quantizers of FlashInfer's exact mode, bf16 matmuls."""

    name = "examples.tensor_core_candidate:TensorCore"
    traits = Traits(
        device="cuda",
        arithmetic="exact",
        accumulator_chunk=16,
        k_multiple=64,
        n_multiple=8,
        store_rows=ANY_ROW,
    )

    def __init__(self) -> None:
        self._table: Tensor | None = None

    def support(self) -> Support:
        """Return whether there is a GPU with bf16 tensor cores."""
        if not torch.cuda.is_available():
            return Support(ok=False, reason="needs a CUDA device, torch sees none")
        capability = torch.cuda.get_device_capability()
        return Support(
            ok=capability >= (8, 0), reason=f"needs sm_80 or newer, found sm_{capability[0]}{capability[1]}"
        )

    def quantize_grouped(
        self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Quantize all rows in the order of FlashInfer's exact mode; padding rows become zero."""
        experts, rows, k = x.shape
        padding = torch.arange(rows, device=x.device) >= masked_m.unsqueeze(-1)
        blocks = x.float().masked_fill(padding.unsqueeze(-1), 0).view(experts, rows, k // 16, 16)
        is_nan = blocks.isnan()
        amax = blocks.masked_fill(is_nan, 0).abs().amax(-1).masked_fill(is_nan.all(-1), torch.nan)
        gs = global_scale_enc.view(-1, 1, 1)
        scale = (amax * (gs * torch.full_like(gs, 6).reciprocal())).clamp(max=448).to(torch.float8_e4m3fn)
        factor = (scale.float() * gs.reciprocal()).reciprocal().clamp(max=torch.finfo(torch.float32).max)
        y = (blocks * torch.where(amax == 0, 0.0, factor).unsqueeze(-1)).flatten(2)
        magnitude = y.abs()
        codes = sum(
            (magnitude > m) if i % 2 == 0 else (magnitude >= m)
            for i, m in enumerate((0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0))
        )
        codes = torch.where(y.isnan(), 7, codes + 8 * y.signbit()).to(torch.uint8)
        packed = codes[..., ::2] | (codes[..., 1::2] << 4)
        return packed.permute(1, 2, 0), _swizzled(scale)

    def silu_mul_quantize_grouped(
        self, gate_up: Tensor, masked_m: Tensor, global_scale_enc: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute silu(gate) * up in float32, round to bfloat16, quantize."""
        gate, up = gate_up.float().chunk(2, dim=-1)
        return self.quantize_grouped(
            (gate / (1 + torch.exp(-gate)) * up).bfloat16(), masked_m, global_scale_enc
        )

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
        """Multiply with float32 accumulators; write valid rows, keep the rest."""
        product = torch.bmm(self._decode(a, a_scale), self._decode(b, b_scale).mT, out_dtype=torch.float32)
        if alpha is not None:
            product = product * alpha.view(-1, 1, 1)
        valid = torch.arange(a.shape[0], device=a.device) < masked_m.unsqueeze(-1)
        logical = out.permute(2, 0, 1)
        logical.copy_(torch.where(valid.unsqueeze(-1), product.to(out.dtype), logical))

    def _decode(self, packed: Tensor, scale: Tensor) -> Tensor:
        """Return code x scale, `(l, rows, k)` bfloat16, exact."""
        if self._table is None:  # made once: a copy from the host cannot be captured in a graph
            self._table = torch.tensor(
                [*_VALUES, *(-v for v in _VALUES)], dtype=torch.bfloat16, device="cuda"
            )
        memory = packed.permute(2, 0, 1)
        codes = torch.stack((memory & 15, memory >> 4), dim=-1).flatten(-2)
        rows, columns = codes.shape[1], codes.shape[2] // 16
        linear = scale.view(torch.uint8).permute(5, 2, 1, 0, 4, 3).reshape(len(codes), -1, scale.shape[4] * 4)
        factors = linear[:, :rows, :columns].contiguous().view(torch.float8_e4m3fn).bfloat16()
        values = self._table.index_select(0, codes.flatten().int()).view(len(codes), rows, columns, 16)
        return (values * factors.unsqueeze(-1)).flatten(2)


def _swizzled(scale: Tensor) -> Tensor:
    """Return linear scales as FlashInfer's 6-D view of 128x4 order."""
    experts, rows, columns = scale.shape
    row_tiles, column_tiles = -(-rows // 128), -(-columns // 4)
    padded = torch.zeros(experts, row_tiles * 128, column_tiles * 4, dtype=torch.uint8, device=scale.device)
    padded[:, :rows, :columns] = scale.view(torch.uint8)
    tiles = padded.view(experts, row_tiles, 4, 32, column_tiles, 4).permute(0, 1, 4, 3, 2, 5).contiguous()
    return tiles.view(torch.float8_e4m3fn).permute(3, 4, 1, 5, 2, 0)
