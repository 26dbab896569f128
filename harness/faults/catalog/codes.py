"""Faults of the E2M1 codes: rounding, range, sign, packing, and the table that they are decoded with."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from harness.faults.calls import GemmCall, QuantizeCall, split
from harness.faults.fault import PREPARED, Parameters, fault
from harness.faults.prepare_call import PrepareCall
from reference.e2m1 import MAGNITUDES, MIDPOINTS, encode_e2m1
from reference.nvfp4 import BLOCK

_QUANTIZERS = ("quantize_grouped", "silu_mul_quantize_grouped")
_GEMM = "masked_grouped_gemm"


def _swapped(codes: Tensor) -> Tensor:
    return split(codes, 2).flip(-1).flatten(-2)


def _magnitude(call: QuantizeCall) -> Tensor:
    """Return |x * gs / stored scale| before rounding, `(l, m, k)` float64; NaN and blocks of scale 0 give 0."""
    return call.real_codes(call.block_scale).abs().nan_to_num(0.0, posinf=0.0)


def _tied(call: QuantizeCall) -> Tensor:
    """Return the midpoint number (0 to 6) that an element lies on, -1 elsewhere, `(l, m, k)`."""
    at = _magnitude(call).unsqueeze(-1) == torch.tensor(MIDPOINTS, dtype=torch.float64, device=call.x.device)
    return torch.where(at.any(-1), at.int().argmax(-1), -1)


@fault(
    category="codes",
    stages=_QUANTIZERS,
    needs="nvfp4",
    bugs=("C09",),
    killed_by="QUANT",
    effect="collapse",
    unit="block",
)
def nibbles_swapped(call: QuantizeCall, _: Parameters) -> None:
    """The first of two elements is packed into the high half of the byte instead of the low one."""
    call.run()
    call.codes = _swapped(call.codes)


@fault(
    category="codes", stages=PREPARED, bugs=("C09",), same_as=("nibbles_swapped_in_weights",), killed_by="GEMM",
    effect="collapse",
)  # fmt: skip
def weight_nibbles_swapped(call: GemmCall | PrepareCall, _: Parameters) -> None:
    """The GEMM takes the high half of each byte of B for its first element."""
    call.b_codes = _swapped(call.b_codes)
    call.run()


@fault(
    category="codes", stages=_QUANTIZERS, needs="nvfp4", bugs=("E07", "E15"), killed_by="QUANT", effect="none", unit="block",
    random_data=False,
)  # fmt: skip
def ties_away_from_zero(call: QuantizeCall, _: Parameters) -> None:
    """A value halfway between two E2M1 codes goes to the larger one instead of the even one."""
    call.run()
    tied, codes = _tied(call), call.codes
    call.codes = torch.where(tied >= 0, (codes & 8) | (tied + 1).to(torch.uint8), codes)


@fault(
    category="codes", stages=_QUANTIZERS, needs="nvfp4", bugs=("E07",), killed_by="QUANT", effect="none", unit="block",
    random_data=False,
)  # fmt: skip
def ties_toward_zero(call: QuantizeCall, _: Parameters) -> None:
    """A value halfway between two E2M1 codes goes to the smaller one instead of the even one."""
    call.run()
    tied, codes = _tied(call), call.codes
    call.codes = torch.where(tied >= 0, (codes & 8) | tied.clamp(min=0).to(torch.uint8), codes)


@fault(
    category="codes",
    stages=_QUANTIZERS,
    needs="nvfp4",
    bugs=("E07",),
    killed_by="QUANT",
    effect="shift",
    unit="block",
)
def codes_truncated(call: QuantizeCall, _: Parameters) -> None:
    """A value is cut to the E2M1 code below it instead of rounded to the nearest."""
    call.run()
    steps = torch.tensor(MAGNITUDES, dtype=torch.float64, device=call.x.device)
    # the float32 quotient of a kernel may miss an exact code by a unit and must not lose a whole step for it
    below = torch.bucketize(_magnitude(call) * (1 + 1e-6), steps, right=True) - 1
    codes = call.codes
    call.codes = torch.where(below < (codes & 7), (codes & 8) | below.to(torch.uint8), codes)


@fault(
    category="codes",
    stages=_QUANTIZERS,
    needs="nvfp4",
    bugs=("E15",),
    killed_by="QUANT",
    effect="shift",
    unit="block",
)
def codes_by_exponent(call: QuantizeCall, _: Parameters) -> None:
    """Codes are computed from exponents: values below 1 are cut to halves, larger ones rounded on a logarithmic scale."""
    call.run()
    # between two codes of 1 and more lies their geometric mean
    larger = [(low * high) ** 0.5 for low, high in itertools.pairwise(MAGNITUDES[2:])]
    borders = torch.tensor([*MAGNITUDES[1:3], *larger], dtype=torch.float64, device=call.x.device)
    by_exponent = torch.bucketize(_magnitude(call) * (1 + 1e-6), borders, right=True)
    codes = call.codes
    # a block without a scale has the codes that it has
    live = (call.block_scale > 0).repeat_interleave(BLOCK, -1) & call.real_codes(call.block_scale).isfinite()
    call.codes = torch.where(live, (codes & 8) | by_exponent.to(torch.uint8), codes)


@fault(
    category="codes",
    stages=_QUANTIZERS,
    needs="nvfp4",
    bugs=("I06",),
    killed_by="QUANT",
    effect="none",
    unit="block",
)
def codes_rounded_through_bf16(call: QuantizeCall, _: Parameters) -> None:
    """The scaled value is rounded to bfloat16 before it is rounded to a code: two roundings instead of one."""
    call.run()
    scaled = call.real_codes(call.block_scale)
    codes = encode_e2m1(scaled.bfloat16().float(), nan="as_max")
    call.codes = torch.where(scaled.isfinite(), codes, call.codes)


@fault(
    category="codes",
    stages=_QUANTIZERS,
    needs="nvfp4",
    bugs=("F13",),
    killed_by="QUANT",
    effect="none",
    unit="block",
)
def codes_of_unrounded_scale(call: QuantizeCall, _: Parameters) -> None:
    """Codes are computed with the scale before it was rounded to E4M3, not with the one that is stored."""
    call.run()
    scaled = call.real_codes(call.real_scale())
    live = scaled.isfinite() & (call.block_scale > 0).repeat_interleave(BLOCK, -1)
    call.codes = torch.where(live, encode_e2m1(scaled, nan="as_max"), call.codes)


@fault(
    category="codes",
    stages=_QUANTIZERS,
    needs="nvfp4",
    bugs=("E03",),
    killed_by="QUANT",
    effect="shift",
    unit="block",
)
def codes_clamped_at_4(call: QuantizeCall, _: Parameters) -> None:
    """Magnitudes saturate at 4 instead of 6."""
    call.run()
    codes = call.codes
    call.codes = torch.where((codes & 7) == 7, codes - 1, codes)


@fault(
    category="codes", stages=_QUANTIZERS, needs="nvfp4", bugs=("E03",), killed_by="QUANT", effect="shift", unit="block",
    random_data=False,
)  # fmt: skip
def codes_wrap_past_6(call: QuantizeCall, _: Parameters) -> None:
    """A magnitude past 7 is not saturated: its code carries into the sign bit."""
    call.run()
    codes = call.codes
    past = call.real_codes(call.block_scale).abs() >= 7
    past &= (call.block_scale > 0).repeat_interleave(BLOCK, -1)
    call.codes = torch.where(past, (codes + 1) & 15, codes)


@fault(
    category="codes",
    stages=_QUANTIZERS,
    needs="nvfp4",
    bugs=("E07",),
    killed_by="QUANT",
    effect="none",
    unit="block",
)
def sign_of_zero_lost(call: QuantizeCall, _: Parameters) -> None:
    """A negative value that rounds to zero is stored as +0 instead of -0."""
    call.run()
    codes = call.codes
    call.codes = torch.where(codes == 8, torch.zeros_like(codes), codes)


@fault(
    category="codes",
    stages=_QUANTIZERS,
    needs="nvfp4",
    bugs=("C03",),
    killed_by="QUANT",
    effect="collapse",
    unit="block",
)
def sign_lost(call: QuantizeCall, _: Parameters) -> None:
    """Codes are stored without their sign."""
    call.run()
    call.codes = call.codes & 7


@fault(
    category="codes",
    stages=_QUANTIZERS,
    needs="nvfp4",
    bugs=("E05", "A24"),
    killed_by="QUANT",
    effect="collapse",
    unit="block",
)
def codes_all_zero(call: QuantizeCall, _: Parameters) -> None:
    """Every code is zero though the input is not: the conversion was compiled away."""
    call.run()
    call.codes = torch.zeros_like(call.codes)


@fault(category="codes", stages=_GEMM, bugs=("C03",), killed_by="GEMM", effect="collapse")
def weights_decoded_as_int4(call: GemmCall, _: Parameters) -> None:
    """The codes of B go through another lookup table: evenly spaced magnitudes 0 to 3.5 instead of E2M1's."""
    call.run()
    codes = call.b_codes
    value = (codes & 7).float() / 2
    value = torch.where(codes > 7, -value, value)
    b = value * call.weight_form.scales(call.b_block_scale).repeat_interleave(call.weight_form.block, -1)
    call.store(call.scaled(call.accumulate(call.a_values, b)))
