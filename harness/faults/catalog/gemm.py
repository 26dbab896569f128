"""Faults of the grouped GEMM: alpha, operands, reduction, epilogue."""

from __future__ import annotations

import torch

from harness.faults.calls import GemmCall
from harness.faults.fault import Parameters, fault

_GEMM = "masked_grouped_gemm"


@fault(
    category="gemm",
    stages=_GEMM,
    bugs=("B04",),
    killed_by="GEMM",
    effect="shift",
    unit="expert",
)
def alpha_of_neighbour(call: GemmCall, _: Parameters) -> None:
    """Each expert's product is multiplied by the next expert's alpha."""
    if call.alpha is not None:
        call.alpha = call.alpha.roll(-1)
    call.run()


@fault(
    category="gemm",
    stages=_GEMM,
    bugs=("H05",),
    killed_by="GEMM",
    effect="shift",
    strengths=(2.0, 0.5, 1.1, 1.01),
)
def output_scaled(call: GemmCall, p: Parameters) -> None:
    """The product is off by a constant factor."""
    call.run()
    call.product = (call.product.float() * p.strength).to(call.out.dtype)


@fault(category="gemm", stages=_GEMM, bugs=("E05",), killed_by="PAD-OUT", effect="collapse")
def rows_never_written(call: GemmCall, _: Parameters) -> None:
    """Valid rows of the output are never written: they keep what the buffer held."""
    before = call.product.clone()
    call.run()
    valid = torch.arange(before.shape[1], device=before.device) < call.masked_m.unsqueeze(-1)
    call.product = torch.where(valid.unsqueeze(-1), before, call.product)
