"""A control that multiplies by weights in an order of its own, which its stage `prepare` makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from harness.candidates.controls.in_formats import StrictKernels
from harness.candidates.prepared import PreparedGemm


class PreparedKernels(PreparedGemm, StrictKernels):
    """The stages of `physical` on weights whose rows lie last one first, with linear block scales."""

    name = "physical_prepared"

    def prepare(self, b: Tensor, b_scale: Tensor, alpha: Tensor | None) -> dict[str, Any]:
        """Return weights in this order. Shapes: harness.candidates.protocol."""
        from harness.candidates import layouts
        from reference.formats import NVFP4

        coded = layouts.loaded(NVFP4, (b, b_scale)).map(lambda t: t.flip(1))
        made = {"weight": coded.codes, "weight_scale": coded.block_scale, "extents": tuple(b.shape)}
        return made if alpha is None else made | {"alpha": alpha.reshape(-1).clone()}

    def multiply_prepared(
        self,
        a: Tensor,
        a_scale: Tensor,
        prepared: Mapping[str, Any],
        out: Tensor,
        masked_m: Tensor,
    ) -> None:
        """Multiply as `physical` does."""
        from harness.candidates import layouts
        from reference.formats import NVFP4, Coded

        coded = Coded(prepared["weight"], prepared["weight_scale"]).map(lambda t: t.flip(1))
        StrictKernels.masked_grouped_gemm(
            self, a, a_scale, *layouts.stored(NVFP4, coded), out, masked_m, prepared.get("alpha")
        )
