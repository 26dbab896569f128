"""Faults of the encode scale of each expert (448 * 6 / amax), as the quantizers read it."""

from __future__ import annotations

import torch

from harness.faults.arithmetic import over
from harness.faults.calls import QuantizeCall
from harness.faults.fault import Parameters, fault

_QUANTIZERS = ("quantize_grouped", "silu_mul_quantize_grouped")


@fault(
    category="scales",
    stages=_QUANTIZERS,
    needs="nvfp4",
    bugs=("A20", "B17"),
    killed_by="QUANT",
    effect="collapse",
)
def global_scale_inverted(call: QuantizeCall, _: Parameters) -> None:
    """The encode scale is taken for its reciprocal: producer and consumer disagree on its direction."""
    call.global_scale_enc = call.global_scale_enc.reciprocal()
    call.run()


@fault(
    category="scales",
    stages=_QUANTIZERS,
    needs="nvfp4",
    bugs=("B14", "A25"),
    killed_by="QUANT",
    effect="collapse",
)
def global_scale_omitted(call: QuantizeCall, _: Parameters) -> None:
    """The encode scale is not applied: it is 1."""
    call.global_scale_enc = torch.ones_like(call.global_scale_enc)
    call.run()


@fault(
    category="scales", stages=_QUANTIZERS, needs="nvfp4", bugs=("A34",), killed_by="QUANT", effect="shift", strengths=(2688, 448),
)  # fmt: skip
def global_scale_constant(call: QuantizeCall, p: Parameters) -> None:
    """The encode scale is a constant (2688 = 448 * 6, or 448) whatever the input's amax is."""
    call.global_scale_enc = torch.full_like(call.global_scale_enc, float(p.strength))
    call.run()


@fault(category="scales", stages=_QUANTIZERS, needs="nvfp4", bugs=("B15",), killed_by="QUANT", effect="shift")
def global_scale_without_six(call: QuantizeCall, _: Parameters) -> None:
    """The encode scale is 448 / amax instead of 448 * 6 / amax: block scales use a sixth of their range."""
    call.global_scale_enc = over(call.global_scale_enc, 6)
    call.run()


@fault(
    category="scales", stages=_QUANTIZERS, needs="nvfp4", bugs=("A20", "A25"), killed_by="QUANT", effect="shift",
    strengths=(2.0, 0.5, 1.25, 1.0625),
)  # fmt: skip
def global_scale_off(call: QuantizeCall, p: Parameters) -> None:
    """The encode scale is off by a constant factor (x1.0625 moves every block scale by half a step or more)."""
    call.global_scale_enc = call.global_scale_enc * p.strength
    call.run()


@fault(
    category="scales", stages=_QUANTIZERS, needs="nvfp4", bugs=("A10", "B13", "A17"), killed_by="QUANT", effect="shift",
    unit="expert",
)  # fmt: skip
def global_scale_of_expert_0(call: QuantizeCall, _: Parameters) -> None:
    """Every expert is quantized with expert 0's encode scale."""
    call.global_scale_enc = call.global_scale_enc[:1].expand_as(call.global_scale_enc).contiguous()
    call.run()


@fault(
    category="scales",
    stages=_QUANTIZERS,
    needs="nvfp4",
    bugs=("B06",),
    killed_by="QUANT",
    effect="shift",
    unit="expert",
)
def global_scale_of_neighbour(call: QuantizeCall, _: Parameters) -> None:
    """Each expert is quantized with the next expert's encode scale."""
    call.global_scale_enc = call.global_scale_enc.roll(-1).contiguous()
    call.run()


@fault(
    category="scales", stages=_QUANTIZERS, needs="nvfp4", bugs=("B19", "B08"), killed_by="QUANT", effect="shift",
    unit="expert",
)  # fmt: skip
def global_scale_shared(call: QuantizeCall, _: Parameters) -> None:
    """All experts share one encode scale, that of the expert with the largest elements."""
    call.global_scale_enc = call.global_scale_enc.amin().expand_as(call.global_scale_enc).contiguous()
    call.run()


@fault(
    category="scales", stages=_QUANTIZERS, needs="nvfp4", bugs=("A23",), killed_by="QUANT", effect="collapse"
)
def global_scale_bf16_read_as_f32(call: QuantizeCall, _: Parameters) -> None:
    """The encode scales are bfloat16 in memory and read as float32: two of them make one number."""
    bits = call.global_scale_enc.bfloat16()
    call.global_scale_enc = (
        torch.cat((bits, torch.zeros_like(bits))).view(torch.float32)[: bits.numel()].clone()
    )
    call.run()


@fault(
    category="scales",
    stages=_QUANTIZERS,
    needs="nvfp4",
    bugs=("B16", "B04"),
    killed_by="POW2",
    effect="shift",
    unit="call",
)
def global_scale_stale(call: QuantizeCall, p: Parameters) -> None:
    """The encode scales of the first call with this shape are kept for all later ones."""
    key = (call.stage, tuple(call.x.shape))
    call.global_scale_enc = p.state.setdefault(key, call.global_scale_enc.clone())
    call.run()
