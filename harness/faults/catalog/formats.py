"""Faults of operands in other formats than NVFP4: scales of tokens and channels, powers of two, activations left as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.faults.arithmetic import over
from harness.faults.calls import GemmCall, QuantizeCall
from harness.faults.fault import Parameters, fault
from reference.e4m3 import decode_e4m3
from reference.formats import FORMATS, Coded

_QUANTIZERS = ("quantize_grouped", "silu_mul_quantize_grouped")
_GEMM = "masked_grouped_gemm"


@fault(
    category="gemm", stages=_GEMM, needs="activations as they are", bugs=("F18",), killed_by="GEMM", effect="shift",
)  # fmt: skip
def activations_rounded_to_fp8(call: GemmCall, _: Parameters) -> None:
    """Activations are quantized to FP8 per token, though the weights alone are to be quantized: another kernel ran."""
    form = FORMATS["fp8_token"]
    rounded = form.dequantized(form.quantize(call.a_codes.nan_to_num(0, 0, 0)))
    call.a_codes = torch.where(call.a_codes.isfinite(), rounded.to(call.a_codes.dtype), call.a_codes)
    call.run()


@fault(
    category="gemm", stages=_GEMM, needs="activations as they are", bugs=("F13",), killed_by="GEMM", effect="shift",
)  # fmt: skip
def weights_rounded_to_fp8(call: GemmCall, _: Parameters) -> None:
    """Weights are multiplied with their block scales and rounded to E4M3 again before they are multiplied."""
    call.run()
    b = call.b_values.double()
    largest = over(b.nan_to_num(0).abs().amax(-1, keepdim=True).clamp(min=1e-30), 448)
    rounded = decode_e4m3(FORMATS["fp8"].encode(b / largest)).double() * largest
    call.store(call.scaled(call.accumulate(call.a_values, rounded)))


@fault(category="gemm", stages=_GEMM, needs="fp8_token", bugs=("F21",), killed_by="GEMM", effect="collapse")
def token_scales_dropped(call: GemmCall, _: Parameters) -> None:
    """The scales of the tokens are not applied: each is 1."""
    call.a_scale = torch.ones_like(call.a_scale)
    call.run()


@fault(category="gemm", stages=_GEMM, needs="fp8_token", bugs=("F21",), killed_by="GEMM", effect="collapse")
def token_scale_of_first_row(call: GemmCall, _: Parameters) -> None:
    """Every token of an expert is multiplied with the scale of its first one."""
    call.a_scale = call.a_scale[:, :1].expand_as(call.a_scale).contiguous()
    call.run()


@fault(
    category="gemm", stages=_GEMM, needs="fp8_128", bugs=("C08", "C12"), killed_by="GEMM", effect="collapse"
)
def channel_scale_of_neighbour(call: GemmCall, _: Parameters) -> None:
    """Each group of 128 channels is multiplied with the scale of the next one, or of the next row where there is one group."""
    call.a_scale = call.a_scale.flatten(1).roll(-1, 1).view_as(call.a_scale)
    call.run()


@fault(
    category="scales", stages=_QUANTIZERS, needs="activations in FP8 with a scale of each expert", bugs=("A20",), killed_by="QUANT",
    effect="collapse",
)  # fmt: skip
def static_scale_inverted(call: QuantizeCall, _: Parameters) -> None:
    """The tokens are divided by the encode scale instead of multiplied with it."""
    call.global_scale_enc = call.global_scale_enc.reciprocal()
    call.run()


def _with_scales(call: QuantizeCall, step: int) -> None:
    """Run, then store scales that are so many powers of two larger, and elements that were computed with them."""
    call.run()
    form = call.form
    byte = (call.block_scale.int() + step).clamp(0, 254).to(torch.uint8)
    divisor = form.scales(byte).double().repeat_interleave(form.block, -1)
    values: Tensor = call.values.double()
    codes = torch.where(values.isfinite(), form.encode(values.nan_to_num(0) / divisor), call.codes)
    kept = call.block_scale == form.nan_scale
    scale = torch.where(kept, call.block_scale, byte)
    coded = Coded(torch.where(kept.repeat_interleave(form.block, -1), call.codes, codes), scale)
    call.packed = layouts.elements(form, coded.codes)
    call.block_scale = coded.block_scale


@fault(
    category="scales", stages=_QUANTIZERS, needs="powers of two as scales of activations", bugs=("F13", "F14"), killed_by="QUANT",
    effect="shift", unit="block",
)  # fmt: skip
def power_of_two_scale_rounded_otherwise(call: QuantizeCall, _: Parameters) -> None:
    """The power of two of a block is the next one: rounded up where it is to be rounded down, or the other way round."""
    _with_scales(call, 1 if call.form.rounding == "floor" else -1)


@fault(
    category="gemm", stages=_GEMM, needs="powers of two as scales of weights", bugs=("F20",), killed_by="GEMM", effect="collapse",
)  # fmt: skip
def power_of_two_scales_read_as_e4m3(call: GemmCall, _: Parameters) -> None:
    """Bytes of weight scales that are powers of two are decoded as E4M3."""
    call.run()
    scale = decode_e4m3(call.b_block_scale)
    elements = call.weight_form.elements(call.b_codes)
    b = elements * scale.repeat_interleave(call.weight_form.block, -1)
    call.store(call.scaled(call.accumulate(call.a_values, b)))


@fault(
    category="layout", stages=_GEMM, needs="powers of two as scales of weights", bugs=("A33",), killed_by="GEMM", effect="collapse",
)  # fmt: skip
def weight_scale_covers_16(call: GemmCall, _: Parameters) -> None:
    """The GEMM applies each block scale of B to 16 elements instead of 32, and starts over in the second half of k."""
    scale = call.b_block_scale
    elements = call.weight_form.elements(call.b_codes)
    byte = scale.repeat(1, 1, 2).repeat_interleave(call.weight_form.block // 2, -1)
    call.run()
    call.store(call.scaled(call.accumulate(call.a_values, elements * call.weight_form.scales(byte))))
