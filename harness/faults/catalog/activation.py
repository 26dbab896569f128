"""Faults of the fused activation silu(gate) * up and of the rounding between it and the quantizer."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.faults.calls import QuantizeCall, split
from harness.faults.fault import Parameters, fault

_ACT = "silu_mul_quantize_grouped"


def _halves(call: QuantizeCall) -> tuple[Tensor, Tensor]:
    """Return gate and up, each `(l, m, k)` float32."""
    gate, up = call.x.float().chunk(2, dim=-1)
    return gate, up


@fault(
    category="activation", stages=_ACT, bugs=("C01", "C13", "C14"), same_as=("gate_up_swapped",), killed_by="ACT",
    effect="collapse",
)  # fmt: skip
def gate_and_up_swapped(call: QuantizeCall, _: Parameters) -> None:
    """The up half goes through silu and the gate half does not."""
    gate, up = call.x.chunk(2, dim=-1)
    call.x = torch.cat((up, gate), dim=-1)
    call.run()


@fault(category="activation", stages=_ACT, bugs=("B05", "C15"), killed_by="ACT", effect="collapse")
def gate_and_up_read_interleaved(call: QuantizeCall, _: Parameters) -> None:
    """Columns are read as gate, up, gate, up, but the halves follow each other."""
    call.x = torch.cat((call.x[..., 0::2], call.x[..., 1::2]), dim=-1)
    call.run()


@fault(
    category="activation",
    stages=_ACT,
    bugs=("B05",),
    killed_by="ACT",
    effect="collapse",
    strengths=(64, 16, 8),
)
def gate_and_up_in_groups(call: QuantizeCall, p: Parameters) -> None:
    """Columns are read in groups (64, 16 or 8 of gate, then as many of up), but the halves follow each other."""
    k = call.shape[2]
    size = p.strength if k % p.strength == 0 else 8
    groups = split(call.x, size)
    call.x = torch.cat((groups[..., 0::2, :].flatten(-2), groups[..., 1::2, :].flatten(-2)), dim=-1)
    call.run()


@fault(category="activation", stages=_ACT, bugs=("A21",), killed_by="ACT", effect="none")
def silu_by_bf16_tanh(call: QuantizeCall, _: Parameters) -> None:
    """The sigmoid is computed as tanh(x / 2) / 2 + 1/2 in bfloat16."""
    gate, up = _halves(call)
    sigmoid = torch.tanh(gate.to(call.form.layer_dtype) / 2) * 0.5 + 0.5
    call.run_on((gate * sigmoid.float() * up).to(call.form.layer_dtype))


@fault(category="activation", stages=_ACT, bugs=("A22",), killed_by="ACT", effect="none")
def silu_rounded_before_up(call: QuantizeCall, _: Parameters) -> None:
    """Silu(gate) is rounded to bfloat16 before it is multiplied with up."""
    gate, up = _halves(call)
    call.run_on(
        ((gate * torch.sigmoid(gate)).to(call.form.layer_dtype).float() * up).to(call.form.layer_dtype)
    )


@fault(
    category="activation", stages=_ACT, bugs=("A22",), killed_by="ACT", effect="none", needs="block scales"
)
def no_bf16_before_quantization(call: QuantizeCall, _: Parameters) -> None:
    """The activation is quantized in float32: its rounding to bfloat16 is left out."""
    gate, up = _halves(call)
    call.run_on(gate * torch.sigmoid(gate) * up)


@fault(category="activation", stages=_ACT, bugs=("H03",), killed_by="ACT", effect="shift")
def sigmoid_instead_of_silu(call: QuantizeCall, _: Parameters) -> None:
    """The gate is sigmoid(gate): the factor gate is missing."""
    gate, up = _halves(call)
    call.run_on((torch.sigmoid(gate) * up).to(call.form.layer_dtype))


@fault(category="activation", stages=_ACT, bugs=("H03",), killed_by="ACT", effect="shift")
def gelu_instead_of_silu(call: QuantizeCall, _: Parameters) -> None:
    """The gate goes through gelu instead of silu."""
    gate, up = _halves(call)
    call.run_on((torch.nn.functional.gelu(gate) * up).to(call.form.layer_dtype))


@fault(category="activation", stages=_ACT, bugs=("G14",), killed_by="ACT", effect="collapse")
def up_ignored(call: QuantizeCall, _: Parameters) -> None:
    """The activation is silu(gate) alone, as in a layer without gating."""
    gate, _up = _halves(call)
    call.run_on((gate * torch.sigmoid(gate)).to(call.form.layer_dtype))


@fault(
    category="activation", stages=_ACT, bugs=("H01", "H02", "H04"), killed_by="ACT", effect="shift",
    strengths=(1.0, 4.0, 10.0),
)  # fmt: skip
def clamp_limit_wrong(call: QuantizeCall, p: Parameters) -> None:
    """Gate and up are clamped at a limit (1, 4, 10) that this model does not have."""
    gate, up = call.x.chunk(2, dim=-1)
    limited = torch.cat((gate.clamp(max=p.strength), up.clamp(-p.strength, p.strength)), dim=-1)
    call.x = limited
    call.run()


@fault(category="activation", stages=_ACT, bugs=("H03", "H04"), killed_by="ACT", effect="shift")
def swiglu_with_bias(call: QuantizeCall, _: Parameters) -> None:
    """The gate is gate * sigmoid(1.702 gate) and up is up + 1: another model's SwiGLU."""
    gate, up = _halves(call)
    call.run_on((gate * torch.sigmoid(1.702 * gate) * (up + 1)).to(call.form.layer_dtype))
