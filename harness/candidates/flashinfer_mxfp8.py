"""`flashinfer-mxfp8`: FlashInfer's masked MXFP8 quantizers, the first half of its masked path with MXFP8 operands.

Two stages, quantize_grouped and silu_mul_quantize_grouped; the GEMM behind them multiplies by MXFP8 weights, which no format of
weights here is. New in flashinfer-python 0.7.4 (quantization/fp8_quantization.py): mxfp8_grouped_quantize(a, mask, backend) and
silu_and_mul_mxfp8_experts_quantize(a, mask). Both pad k to whole tiles of 128 and round scales up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.candidates.cutedsl_support import path_traits
from harness.candidates.fused_support import fused_support, load_fused
from harness.candidates.protocol import Traits

if TYPE_CHECKING:
    from torch import Tensor

    from harness.candidates.layouts import Pair
    from harness.candidates.support import Support

_FUNCTIONS = ("mxfp8_grouped_quantize", "silu_and_mul_mxfp8_experts_quantize")


class FlashInferMxfp8:
    """FlashInfer's masked MXFP8 quantizers.

    Args:
        device: torch device type; another than "cuda" where the launch is replaced.
    """

    name = "flashinfer-mxfp8"

    def __init__(self, *, device: str = "cuda") -> None:
        self.device = device

    @property
    def traits(self) -> Traits:
        """What the package's code promises: E8M0 scales rounded up, k in tiles of 128."""
        return Traits(
            device=self.device,
            activation_format="mxfp8_up",
            arithmetic=path_traits().arithmetic,
            k_multiple=128,
            n_multiple=128,
            activations=("silu", "relu2"),
            finite_only=True,  # NaN and infinity become 448 on one backend and differ on others
        )

    def support(self) -> Support:
        """Return whether the quantizers can run here; the reason names the package, the device or the changed function."""
        return fused_support(self.name, _FUNCTIONS)

    def quantize_grouped(self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Pair:
        """Quantize the valid rows; encode scales have no meaning here. Shapes: harness.candidates.protocol."""
        del global_scale_enc
        return _stored(*load_fused("mxfp8_grouped_quantize")(x, masked_m, backend="cuda"))

    def silu_mul_quantize_grouped(self, gate_up: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Pair:
        """Quantize bf16(silu(gate) * up) of the valid rows. Shapes: harness.candidates.protocol."""
        del global_scale_enc
        return _stored(*load_fused("silu_and_mul_mxfp8_experts_quantize")(gate_up, masked_m))


def _stored(values: Tensor, scale: Tensor) -> Pair:
    """Return what a quantizer gave as the protocol has it: bytes, logical `(m, k, l)`, and 6-D E8M0 scales, both uint8."""
    import torch

    return values.view(torch.uint8), scale
