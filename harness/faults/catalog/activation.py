"""Faults of the fused activation silu(gate) * up and of the rounding between it and the quantizer."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from harness.faults.calls import QuantizeCall
from harness.faults.fault import Parameters, fault
from reference.activations import Activation

_ACT = "silu_mul_quantize_grouped"


def _halves(call: QuantizeCall) -> tuple[Tensor, Tensor]:
    """Return gate and up, each `(l, m, k)` float32."""
    return call.way.split(call.x.float())


def _read_as(call: QuantizeCall, other: Activation) -> None:
    """Run on columns in which gate and up lie otherwise than the candidate's."""
    call.x = call.way.joined(*other.split(call.x))
    call.run()


def _run_as(call: QuantizeCall, other: Activation) -> None:
    """Run with another activation on the same gate and up."""
    call.run_on(other.value(call.x.float()).to(call.form.layer_dtype))


@fault(
    category="activation", stages=_ACT, bugs=("C01", "C13", "C14"), same_as=("gate_up_swapped",), killed_by="ACT",
    effect="collapse",
)  # fmt: skip
def gate_and_up_swapped(call: QuantizeCall, _: Parameters) -> None:
    """The up half goes through silu and the gate half does not."""
    gate, up = call.way.split(call.x)
    call.x = call.way.joined(up, gate)
    call.run()


@fault(category="activation", stages=_ACT, bugs=("B05", "C15"), killed_by="ACT", effect="collapse")
def gate_and_up_read_interleaved(call: QuantizeCall, _: Parameters) -> None:
    """Columns are read as gate, up, gate, up, but the halves follow each other."""
    _read_as(call, replace(call.way, interleave=0 if call.way.interleave == 1 else 1))


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
    _read_as(call, replace(call.way, interleave=0 if size == call.way.interleave else size))


@fault(category="activation", stages=_ACT, needs="silu", bugs=("A21",), killed_by="ACT", effect="none")
def silu_by_bf16_tanh(call: QuantizeCall, _: Parameters) -> None:
    """The sigmoid is computed as tanh(x / 2) / 2 + 1/2 in bfloat16."""
    gate, up = _halves(call)
    sigmoid = torch.tanh(gate.to(call.form.layer_dtype) / 2) * 0.5 + 0.5
    call.run_on((gate * sigmoid.float() * up).to(call.form.layer_dtype))


@fault(category="activation", stages=_ACT, needs="silu", bugs=("A22",), killed_by="ACT", effect="none")
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


@fault(category="activation", stages=_ACT, needs="silu", bugs=("H03",), killed_by="ACT", effect="shift")
def sigmoid_instead_of_silu(call: QuantizeCall, _: Parameters) -> None:
    """The gate is sigmoid(gate): the factor gate is missing."""
    gate, up = _halves(call)
    call.run_on((torch.sigmoid(gate) * up).to(call.form.layer_dtype))


@fault(category="activation", stages=_ACT, needs="silu", bugs=("H03",), killed_by="ACT", effect="shift")
def gelu_instead_of_silu(call: QuantizeCall, _: Parameters) -> None:
    """The gate goes through gelu instead of silu."""
    gate, up = _halves(call)
    call.run_on((torch.nn.functional.gelu(gate) * up).to(call.form.layer_dtype))


@fault(category="activation", stages=_ACT, needs="silu", bugs=("G14",), killed_by="ACT", effect="collapse")
def up_ignored(call: QuantizeCall, _: Parameters) -> None:
    """The activation is silu(gate) alone, as in a layer without gating."""
    gate, _up = _halves(call)
    call.run_on((gate * torch.sigmoid(gate)).to(call.form.layer_dtype))


@fault(
    category="activation", stages=_ACT, needs="silu", bugs=("H01", "H02", "H04"), killed_by="ACT", effect="shift",
    strengths=(1.0, 4.0, 10.0),
)  # fmt: skip
def clamp_limit_wrong(call: QuantizeCall, p: Parameters) -> None:
    """Gate and up are clamped at a limit (1, 4, 10) that this model does not have."""
    gate, up = call.way.split(call.x)
    call.x = call.way.joined(gate.clamp(max=p.strength), up.clamp(-p.strength, p.strength))
    call.run()


@fault(category="activation", stages=_ACT, needs="silu", bugs=("H03", "H04"), killed_by="ACT", effect="shift")
def swiglu_with_bias(call: QuantizeCall, _: Parameters) -> None:
    """The gate is gate * sigmoid(1.702 gate) and up is up + 1: another model's SwiGLU."""
    gate, up = _halves(call)
    call.run_on((gate * torch.sigmoid(1.702 * gate) * (up + 1)).to(call.form.layer_dtype))


@fault(
    category="activation", stages=_ACT, needs="a limit", bugs=("H01", "H02", "H04"), killed_by="ACT", effect="shift",
)  # fmt: skip
def clamp_limit_dropped(call: QuantizeCall, _: Parameters) -> None:
    """The limit is lost on the way: neither gate nor up is clamped."""
    _run_as(call, replace(call.way, limit=0.0))


@fault(
    category="activation", stages=_ACT, needs="a limit", bugs=("H01", "H02"), killed_by="ACT", effect="shift",
    strengths=(7.0, 10.0, 1.01),
)  # fmt: skip
def clamp_limit_of_another_model(call: QuantizeCall, p: Parameters) -> None:
    """The limit is another model's (7, 10), or a hundredth too large."""
    other = p.strength if p.strength not in {1.01, call.way.limit} else call.way.limit * 1.01
    _run_as(call, replace(call.way, limit=other))


@fault(category="activation", stages=_ACT, needs="a limit", bugs=("H02",), killed_by="ACT", effect="shift")
def up_not_clamped(call: QuantizeCall, _: Parameters) -> None:
    """Only the gate is clamped: up goes through as it is."""
    gate, up = _halves(call)
    hidden = call.way.of_gate(gate.clamp(max=call.way.limit)) * (up + call.way.beta)
    call.run_on(hidden.to(call.form.layer_dtype))


@fault(
    category="activation",
    stages=_ACT,
    needs="a limit, and activations as they are",
    bugs=("H02",),
    killed_by="ACT",
    effect="shift",
)
def gate_clamped_from_below(call: QuantizeCall, _: Parameters) -> None:
    """The gate is clamped from both sides, as up is."""
    gate, up = _halves(call)
    call.x = call.way.joined(gate.clamp(min=-call.way.limit), up).to(call.x.dtype)
    call.run()


@fault(
    category="activation", stages=_ACT, needs="a factor in the sigmoid", bugs=("H03", "H04"), killed_by="ACT", effect="shift",
)  # fmt: skip
def sigmoid_factor_dropped(call: QuantizeCall, _: Parameters) -> None:
    """The factor inside the sigmoid (alpha) is lost on the way: it is 1."""
    _run_as(call, replace(call.way, alpha=1.0))


@fault(
    category="activation", stages=_ACT, needs="a bias of up", bugs=("H03", "H04"), killed_by="ACT", effect="collapse",
)  # fmt: skip
def up_bias_dropped(call: QuantizeCall, _: Parameters) -> None:
    """What is added to up (beta) is lost on the way."""
    _run_as(call, replace(call.way, beta=0.0))


@fault(
    category="activation", stages=_ACT, needs="a bias of up", bugs=("H03",), killed_by="ACT", effect="shift",
)  # fmt: skip
def up_bias_before_the_clamp(call: QuantizeCall, _: Parameters) -> None:
    """What is added to up (beta) is added before up is clamped."""
    gate, up = _halves(call)
    gate, up = call.way.clamped(gate, up + call.way.beta)
    call.run_on((call.way.of_gate(gate) * up).to(call.form.layer_dtype))


@fault(category="activation", stages=_ACT, needs="gelu", bugs=("H03",), killed_by="ACT", effect="none")
def gelu_by_tanh(call: QuantizeCall, _: Parameters) -> None:
    """Gelu is computed by its tanh approximation."""
    _run_as(call, replace(call.way, kind="gelu_tanh"))


@fault(category="activation", stages=_ACT, needs="gelu", bugs=("H03",), killed_by="ACT", effect="shift")
def silu_instead_of_gelu(call: QuantizeCall, _: Parameters) -> None:
    """The gate goes through silu instead of gelu."""
    _run_as(call, replace(call.way, kind="silu"))
