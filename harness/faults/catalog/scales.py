"""Faults of the quantizers' scales: the block scale of 16 elements. The expert's own scale: global_scales.py."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.faults.arithmetic import over
from harness.faults.calls import QuantizeCall, split
from harness.faults.fault import Parameters, fault
from reference.e4m3 import MAX_BYTE, NAN_BYTE, decode_e4m3, round_to_byte

_QUANTIZERS = ("quantize_grouped", "silu_mul_quantize_grouped")
_SLACK = 1e-6  # a kernel's float32 scale may miss an exact E4M3 value by that much, and is not off by a step


def _store(call: QuantizeCall, scale: Tensor) -> None:
    """Run, then store other real scales `(l, m, k/16)`, rounded to E4M3, where they are numbers."""
    call.run()
    finite = scale.isfinite()
    byte = round_to_byte(scale.masked_fill(~finite, 0))
    call.rescale(torch.where(finite, byte, call.block_scale))


@fault(
    category="scales", stages=_QUANTIZERS, needs="nvfp4", bugs=("F13",), same_as=("block_scale_rounded_up",), killed_by="QUANT", effect="shift", unit="block",
    strengths=(8, 4, 2, 1),
)  # fmt: skip
def block_scale_too_high(call: QuantizeCall, p: Parameters) -> None:
    """The block scale is some E4M3 codes too high (8 codes: twice as large)."""
    call.run()
    stored = call.block_scale
    higher = (stored.int() + p.strength).clamp(max=MAX_BYTE).to(torch.uint8)
    call.rescale(torch.where((stored > 0) & (stored < NAN_BYTE), higher, stored))


@fault(
    category="scales", stages=_QUANTIZERS, needs="nvfp4", bugs=("F13", "E03"), same_as=("block_scale_truncated",), killed_by="QUANT", effect="shift", unit="block",
    strengths=(8, 4, 2, 1),
)  # fmt: skip
def block_scale_too_low(call: QuantizeCall, p: Parameters) -> None:
    """The block scale is some E4M3 codes too low, so that large elements saturate."""
    call.run()
    stored = call.block_scale
    lower = (stored.int() - p.strength).clamp(min=0).to(torch.uint8)
    call.rescale(torch.where(stored < NAN_BYTE, lower, stored))


@fault(
    category="scales",
    stages=_QUANTIZERS,
    needs="nvfp4",
    bugs=("F06",),
    same_as=("block_scale_too_high",),
    killed_by="QUANT",
    effect="none",
    unit="block",
)
def block_scale_rounded_up(call: QuantizeCall, _: Parameters) -> None:
    """The block scale is rounded up instead of to the nearest E4M3 value."""
    call.run()
    stored = call.block_scale
    below = decode_e4m3(stored).double() < call.real_scale() * (1 - _SLACK)
    call.rescale(torch.where(below & (stored < MAX_BYTE), stored + 1, stored))


@fault(
    category="scales",
    stages=_QUANTIZERS,
    needs="nvfp4",
    bugs=("F13",),
    same_as=("block_scale_too_low",),
    killed_by="QUANT",
    effect="none",
    unit="block",
)
def block_scale_truncated(call: QuantizeCall, _: Parameters) -> None:
    """The block scale is cut off instead of rounded to the nearest E4M3 value."""
    call.run()
    stored = call.block_scale
    above = decode_e4m3(stored).double() > call.real_scale() * (1 + _SLACK)
    call.rescale(torch.where(above & (stored > 0) & (stored < NAN_BYTE), stored - 1, stored))


@fault(
    category="scales", stages=_QUANTIZERS, needs="nvfp4", bugs=("F06", "F12", "F14", "F20"), killed_by="QUANT", effect="shift",
    unit="block",
)  # fmt: skip
def block_scale_power_of_two_up(call: QuantizeCall, _: Parameters) -> None:
    """The block scale is rounded up to a power of two, as E8M0 scales are."""
    mantissa, exponent = torch.frexp(call.real_scale())
    scale = torch.ldexp(torch.ones_like(mantissa), exponent - (mantissa == 0.5).to(torch.int32))
    _store(call, torch.where(mantissa == 0, mantissa, scale))


@fault(
    category="scales",
    stages=_QUANTIZERS,
    needs="nvfp4",
    bugs=("E03",),
    killed_by="QUANT",
    effect="shift",
    unit="block",
)
def block_scale_power_of_two_down(call: QuantizeCall, _: Parameters) -> None:
    """The block scale is cut to a power of two, so that the largest elements of the block saturate."""
    mantissa, exponent = torch.frexp(call.real_scale())
    _store(call, torch.where(mantissa == 0, mantissa, torch.ldexp(torch.ones_like(mantissa), exponent - 1)))


@fault(
    category="scales",
    stages=_QUANTIZERS,
    needs="nvfp4",
    bugs=("A33",),
    killed_by="QUANT",
    effect="none",
    unit="block",
)
def block_scale_of_32(call: QuantizeCall, _: Parameters) -> None:
    """One scale is computed for 32 elements and stored for both blocks of 16, as MXFP4 has it."""
    scale = call.real_scale()
    pairs = torch.cat((scale, scale[..., -1:]), -1)[..., : scale.shape[-1] // 2 * 2 + scale.shape[-1] % 2 * 2]
    larger = split(pairs, 2).amax(-1).repeat_interleave(2, -1)
    _store(call, larger[..., : scale.shape[-1]])


@fault(
    category="scales",
    stages=_QUANTIZERS,
    needs="nvfp4",
    bugs=("B15",),
    killed_by="QUANT",
    effect="shift",
    unit="block",
)
def block_scale_without_six(call: QuantizeCall, _: Parameters) -> None:
    """The block scale is amax instead of amax / 6: codes use a sixth of their range."""
    _store(call, call.real_scale() * 6)


@fault(
    category="scales", stages=_QUANTIZERS, needs="nvfp4", bugs=("A24", "B11", "E13"), killed_by="QUANT", effect="none",
    unit="block", random_data=False,
)  # fmt: skip
def subnormal_scales_flushed(call: QuantizeCall, _: Parameters) -> None:
    """Block scales below 2^-6, the E4M3 subnormals, are stored as zero."""
    call.run()
    stored = call.block_scale
    call.rescale(torch.where(stored < 8, torch.zeros_like(stored), stored))


@fault(
    category="scales", stages=_QUANTIZERS, needs="nvfp4", bugs=("B15",), killed_by="QUANT", effect="none", unit="block",
    random_data=False,
)  # fmt: skip
def block_scale_clamped_to_normal(call: QuantizeCall, _: Parameters) -> None:
    """The block scale is never below 2^-6, the smallest normal E4M3 value, nor zero for a block of zeros."""
    call.run()
    stored = call.block_scale
    call.rescale(stored.clamp(min=8))


@fault(
    category="scales", stages=_QUANTIZERS, needs="nvfp4", bugs=("B12", "E01", "E02"), killed_by="QUANT", effect="collapse",
    unit="block", random_data=False,
)  # fmt: skip
def zero_block_scale_nan(call: QuantizeCall, _: Parameters) -> None:
    """A block of zeros gets a NaN scale: 0 * infinity, without a guard."""
    call.run()
    stored = call.block_scale
    call.block_scale = torch.where(call.amax() == 0, torch.full_like(stored, NAN_BYTE), stored)


@fault(
    category="scales", stages=_QUANTIZERS, needs="nvfp4", bugs=("E04",), killed_by="QUANT", effect="collapse", unit="block",
    random_data=False,
)  # fmt: skip
def block_scale_not_saturated(call: QuantizeCall, _: Parameters) -> None:
    """A scale past 464 becomes NaN instead of 448: the cast to E4M3 does not saturate."""
    call.run()
    stored = call.block_scale
    call.block_scale = torch.where(call.real_scale() > 464, torch.full_like(stored, NAN_BYTE), stored)


@fault(
    category="scales",
    stages=_QUANTIZERS,
    needs="nvfp4",
    bugs=("E10",),
    killed_by="QUANT",
    effect="shift",
    unit="block",
)
def amax_of_half_block(call: QuantizeCall, _: Parameters) -> None:
    """The maximum is taken over the first 8 of 16 elements: the shuffle with the other lane is missing."""
    half = split(call.values.double().abs().nan_to_num(0.0), 16)[..., :8].amax(-1)
    _store(call, over(half * call.global_scale_enc.double().view(-1, 1, 1), 6))


@fault(
    category="scales",
    stages=_QUANTIZERS,
    needs="nvfp4",
    bugs=("E10",),
    killed_by="QUANT",
    effect="shift",
    unit="block",
)
def amax_of_neighbour_block(call: QuantizeCall, _: Parameters) -> None:
    """Each block is scaled with the maximum of the next block of its row."""
    _store(call, call.real_scale().roll(-1, -1))


@fault(
    category="scales", stages=_QUANTIZERS, needs="nvfp4", bugs=("A32",), killed_by="QUANT", effect="none", unit="block",
    random_data=False,
)  # fmt: skip
def nan_block_scale_zero(call: QuantizeCall, _: Parameters) -> None:
    """A block of nothing but NaN is stored with scale zero: the maximum skips NaN, and NaN becomes zero."""
    call.run()
    stored = call.block_scale
    call.block_scale = torch.where(call.amax().isnan(), torch.zeros_like(stored), stored)


@fault(
    category="scales",
    stages=_QUANTIZERS,
    needs="nvfp4",
    bugs=("C07",),
    killed_by="QUANT",
    effect="collapse",
    unit="block",
)
def scale_bytes_bleed(call: QuantizeCall, _: Parameters) -> None:
    """Four scales are packed into a word by shifts without a mask: the next scale's mantissa gets into each byte."""
    call.run()
    stored = call.block_scale
    in_word = torch.arange(stored.shape[-1], device=stored.device) % 4 < 3
    bled = torch.where(in_word, stored | (stored.roll(-1, -1) & 7), stored)
    call.block_scale = torch.where((stored > 0) & (bled < NAN_BYTE), bled, stored)


@fault(
    category="scales",
    stages=_QUANTIZERS,
    needs="nvfp4",
    bugs=("E14",),
    killed_by="QUANT",
    effect="none",
    unit="block",
)
def largest_block_scale_clamped(call: QuantizeCall, _: Parameters) -> None:
    """The largest block scale, 448, is stored as the E4M3 value below it, 416."""
    call.run()
    stored = call.block_scale
    call.rescale(torch.where(stored == MAX_BYTE, stored - 1, stored))
