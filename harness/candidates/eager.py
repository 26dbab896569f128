"""`eager`: the masked MoE in plain torch. The control that must always pass, on every device."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.candidates.composition import ComposedMoe
from harness.candidates.decoded import DecodedOperands, keeps
from harness.candidates.layer_stages import LayerStages
from harness.candidates.protocol import Traits
from harness.candidates.routed import ComposedRoutedMoe
from harness.candidates.support import Support, supported, unsupported

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from harness.candidates.layouts import Pair
    from reference.formats import Coded, Format


class EagerKernels(ComposedMoe, ComposedRoutedMoe):
    """The stages of the masked MoE alone, in any format: quantizes as the reference defines it, multiplies in float64, honours strides, writes valid rows only.

    The product is rounded once to float32: one legal value for every element, in whatever order torch adds.

    Args:
        device: torch device type to run on.
        traits: others than its own: the formats of its operands, for example.
    """

    name = "eager"

    def __init__(self, device: str = "cpu", **traits: Any) -> None:
        declared = Traits(
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
        self.traits = replace(declared, **traits)
        self._weights = DecodedOperands()

    def support(self) -> Support:
        """Return whether torch has the device."""
        if self.traits.device == "cpu":
            return supported()
        import torch

        return (
            supported() if torch.cuda.is_available() else unsupported("needs a CUDA device, torch sees none")
        )

    @property
    def form(self) -> Format:
        """Format of the tokens and the intermediate when they are multiplied."""
        from reference.formats import FORMATS

        return FORMATS[self.traits.activation_format]

    def quantize_grouped(self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Pair:
        """Quantize the valid rows; padding rows become zero. Shapes: harness.candidates.protocol."""
        from harness.candidates import layouts
        from reference.moe import valid_rows

        valid = valid_rows(masked_m, x.shape[1])
        of_row = global_scale_enc.unsqueeze(-1).expand(valid.shape)[valid]

        def padded(rows: Tensor) -> Tensor:
            whole = rows.new_zeros((*x.shape[:2], rows.shape[-1]))
            whole[valid] = rows
            return whole

        quantized: Coded = self.form.quantize(x[valid], of_row)
        return layouts.stored(self.form, quantized.map(padded))

    def silu_mul_quantize_grouped(self, gate_up: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Pair:
        """Quantize the activation, rounded to the layer's type unless declared, of the valid rows. Shapes: harness.candidates.protocol."""
        import torch

        from reference.moe import activate, valid_rows

        own = torch.float32 if "hidden" in self.traits.unrounded else self.form.layer_dtype
        hidden = torch.zeros((*gate_up.shape[:2], gate_up.shape[2] // 2), dtype=own, device=gate_up.device)
        valid = valid_rows(masked_m, gate_up.shape[1])
        hidden[valid] = activate(gate_up[valid], self.traits.gated, own)
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
        """Write alpha * a @ b.T into the valid rows of out. Shapes: harness.candidates.protocol."""
        import torch

        from harness.candidates import layouts
        from reference.formats import FORMATS
        from reference.moe import valid_rows

        coded, of_weights = layouts.loaded(self.form, (a, a_scale)), FORMATS[self.traits.weight_format]
        valid, counts = valid_rows(masked_m, coded.codes.shape[1]), masked_m.tolist()

        def decoded(experts: slice) -> Tensor:
            return layouts.values(of_weights, (b[..., experts], b_scale[..., experts]), torch.float64)

        b_values: Iterable[Tensor]
        if keeps(b):
            packed, swizzled = b.permute(2, 0, 1).contiguous(), layouts.swizzled_bytes(b_scale)
            b_values = self._weights.get(packed, swizzled, lambda: decoded(slice(None)))
        else:  # one after the other: all experts of a real model would take a hundred gigabytes
            b_values = (decoded(slice(e, e + 1 if rows else e)).squeeze(0) for e, rows in enumerate(counts))
        values = self.form.values(coded.map(lambda t: t[valid]), torch.float64)
        of_experts = zip(counts, torch.split(values, counts), b_values, strict=True)
        for expert, (rows, of_a, of_b) in enumerate(of_experts):
            if not rows:
                continue
            product = torch.mm(of_a, of_b.T).float()
            if coded.row_scale is not None:
                product *= coded.row_scale[expert, :rows]
            out[:rows, :, expert] = (product if alpha is None else product * alpha.reshape(-1)[expert]).to(
                out.dtype
            )


class Eager(EagerKernels, LayerStages):
    """Those of NVFP4, with the stages around them."""


class EagerCuda(Eager):
    """`eager-cuda`: the same on a GPU; shows that the references and the suites themselves work there."""

    name = "eager-cuda"

    def __init__(self) -> None:
        super().__init__("cuda")
