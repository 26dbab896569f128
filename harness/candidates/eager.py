"""`eager`: the masked MoE in plain torch. The control that must always pass, on every device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.candidates.composition import ComposedMoe
from harness.candidates.decoded import DecodedOperands
from harness.candidates.layer_stages import LayerStages
from harness.candidates.protocol import Traits
from harness.candidates.support import Support, supported, unsupported

if TYPE_CHECKING:
    from torch import Tensor


class Eager(ComposedMoe, LayerStages):
    """Quantizes as the reference defines it, multiplies in float64, honours strides, writes valid rows only.

    The product is rounded once to float32: one legal value for every element, in whatever order torch adds.

    Args:
        device: torch device type to run on.
    """

    name = "eager"

    def __init__(self, device: str = "cpu") -> None:
        self.traits = Traits(
            device=device,
            arithmetic="real",
            accumulator_chunk=1,
            summation="exact",
            k_multiple=16,
            n_multiple=1,
            store_rows=1,
            reads_strides=True,
            cuda_graph=False,
        )
        self._weights = DecodedOperands()

    def support(self) -> Support:
        """Return whether torch has the device."""
        if self.traits.device == "cpu":
            return supported()
        import torch

        return (
            supported() if torch.cuda.is_available() else unsupported("needs a CUDA device, torch sees none")
        )

    def quantize_grouped(
        self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Quantize the valid rows; padding rows become zero. Shapes: harness.candidates.protocol."""
        import torch

        from harness.candidates import layouts
        from reference.moe import valid_rows
        from reference.nvfp4 import quantize_nvfp4

        codes = torch.zeros(x.shape, dtype=torch.uint8, device=x.device)
        block_scale = torch.zeros((*x.shape[:2], x.shape[2] // 16), dtype=torch.uint8, device=x.device)
        valid = valid_rows(masked_m, x.shape[1])
        of_row = global_scale_enc.unsqueeze(-1).expand(valid.shape)[valid]
        quantized = quantize_nvfp4(x[valid], of_row)
        codes[valid], block_scale[valid] = quantized.codes, quantized.block_scale
        return layouts.operand(codes), layouts.scales(block_scale)

    def silu_mul_quantize_grouped(
        self, gate_up: Tensor, masked_m: Tensor, global_scale_enc: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Quantize bf16(silu(gate) * up) of the valid rows. Shapes: harness.candidates.protocol."""
        import torch

        from reference.moe import activate, valid_rows

        hidden = torch.zeros(
            (*gate_up.shape[:2], gate_up.shape[2] // 2), dtype=torch.bfloat16, device=gate_up.device
        )
        valid = valid_rows(masked_m, gate_up.shape[1])
        hidden[valid] = activate(gate_up[valid], "silu")
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
        """Write alpha * a @ b.T into the valid rows of out. Shapes: harness.candidates.protocol."""
        import torch

        from harness.candidates import layouts
        from reference.moe import valid_rows
        from reference.nvfp4 import decode_blocks

        a_codes = layouts.codes_of(a)
        columns = a_codes.shape[2] // 16
        a_bytes = layouts.block_scales_of(a_scale, a_codes.shape[1], columns)
        packed, swizzled = b.permute(2, 0, 1).contiguous(), layouts.swizzled_bytes(b_scale)

        def decode() -> Tensor:
            b_bytes = layouts.block_scales_of(b_scale, b.shape[0], columns)
            return decode_blocks(layouts.codes_of(b), b_bytes, torch.float64)

        b_values = self._weights.get(packed, swizzled, decode)
        valid, counts = valid_rows(masked_m, a_codes.shape[1]), masked_m.tolist()
        a_values = torch.split(decode_blocks(a_codes[valid], a_bytes[valid], torch.float64), counts)
        for expert, rows in enumerate(counts):
            product = torch.mm(a_values[expert], b_values[expert].T).float()
            out[:rows, :, expert] = (product if alpha is None else product * alpha.reshape(-1)[expert]).to(
                out.dtype
            )


class EagerCuda(Eager):
    """`eager-cuda`: the same on a GPU; shows that the references and the suites themselves work there."""

    name = "eager-cuda"

    def __init__(self) -> None:
        super().__init__("cuda")
