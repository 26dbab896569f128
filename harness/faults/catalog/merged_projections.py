"""Faults of gate and up, two projections that are loaded into one tensor and one scale.

Each is planted in load_experts, or in masked_moe of a candidate that has no load_experts: see LoadCall.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness.faults.fault import Parameters, fault
from harness.faults.layer_calls import LoadCall
from reference.loading import count_experts, tensor_name

_STAGES = ("load_experts", "masked_moe")


@fault(
    category="loading", stages=_STAGES, bugs=("C21",), killed_by="LOAD", effect="collapse", strengths=(16, 8),
)  # fmt: skip
def interleave_width_mistaken(call: LoadCall, p: Parameters) -> None:
    """Gate and up rows alternate in groups of 16 (8) for a kernel that reads groups of 8 (16)."""
    call.run()
    if not call.gated:
        return
    half, width = call.w1.shape[1] // 2, p.strength
    read = 24 - width
    row = torch.arange(2 * half, device=call.w1.device)
    written = row.view(2, half // width, width).transpose(0, 1).flatten()
    order = written[row.view(half // read, 2, read).transpose(0, 1).flatten()]
    scale: Tensor = call.w1_block_scale[:, order]
    call.w1 = call.w1[:, order].contiguous()
    call.w1_block_scale = scale


@fault(
    category="loading", stages=_STAGES, bugs=("B26",), killed_by="LOAD", effect="shift", unit="expert",
    strengths=(0.3, 0.6),
    simulated="where only masked_moe is seen, the checkpoint is not: the scale is off by a drawn ratio of the two",
)  # fmt: skip
def input_scale_of_up(call: LoadCall, p: Parameters) -> None:
    """The input scale of up is written over gate's: what is larger in gate's saturates."""
    call.run()
    if call.input_global_scale is None:
        return
    factor = p.strength
    if call.checkpoint is not None:
        names = [tensor_name(e, "up", "input_scale") for e in range(count_experts(call.checkpoint))]
        factor = max(float(call.checkpoint[name]) for name in names) * float(call.input_global_scale[0])
        if math.isclose(factor, 1.0, rel_tol=1e-6):
            return  # up's is the largest
    call.input_global_scale = call.input_global_scale / factor
    call.w1_alpha = call.w1_alpha * factor
