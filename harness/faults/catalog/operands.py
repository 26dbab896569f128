"""Faults of what the grouped GEMM multiplies: the wrong expert's, row's or operand's codes and scales, small scales."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harness.faults.calls import GemmCall, split
from harness.faults.fault import PREPARED, Parameters, fault
from harness.faults.prepare_call import PrepareCall
from reference.e2m1 import decode_e2m1
from reference.e4m3 import decode_e4m3
from reference.nvfp4 import BLOCK

_GEMM = "masked_grouped_gemm"


@fault(category="gemm", stages=PREPARED, bugs=("B05",), killed_by="GEMM", effect="collapse", unit="expert")
def weights_of_neighbour_expert(call: GemmCall | PrepareCall, _: Parameters) -> None:
    """Each expert's tokens are multiplied with the next expert's weights, scales included."""
    call.b_codes, call.b_block_scale = call.b_codes.roll(-1, 0), call.b_block_scale.roll(-1, 0)
    call.run()


@fault(category="gemm", stages=PREPARED, bugs=("B06",), killed_by="GEMM", effect="collapse", unit="expert")
def weight_scales_of_neighbour_expert(call: GemmCall | PrepareCall, _: Parameters) -> None:
    """The weights moved with their expert, their block scales stayed: they are the next expert's."""
    call.b_block_scale = call.b_block_scale.roll(-1, 0)
    call.run()


@fault(category="gemm", stages=PREPARED, bugs=("A17",), killed_by="GEMM", effect="collapse", unit="expert")
def weights_of_expert_0(call: GemmCall | PrepareCall, _: Parameters) -> None:
    """Every expert's tokens are multiplied with expert 0's weights."""
    call.b_codes = call.b_codes[:1].expand_as(call.b_codes)
    call.b_block_scale = call.b_block_scale[:1].expand_as(call.b_block_scale)
    call.run()


@fault(category="gemm", stages=_GEMM, bugs=("A04",), killed_by="GEMM", effect="collapse", unit="expert")
def weights_by_place_among_active_experts(call: GemmCall, _: Parameters) -> None:
    """Weights are looked up by an expert's place among those with tokens: wrong past an expert without any."""
    active = [expert for expert, count in enumerate(call.masked_m.tolist()) if count]
    taken = list(range(call.masked_m.numel()))
    for place, expert in enumerate(active):
        taken[expert] = place
    call.b_codes, call.b_block_scale = call.b_codes[taken], call.b_block_scale[taken]
    call.run()


@fault(
    category="gemm", stages=_GEMM, bugs=("C10",), killed_by="GEMM", effect="collapse", needs="block scales"
)
def scales_of_operands_exchanged(call: GemmCall, _: Parameters) -> None:
    """B is decoded with the block scales of A: arguments in the wrong order."""
    a, b = call.a_block_scale, call.b_block_scale
    columns = torch.arange(b.shape[1], device=b.device) % a.shape[1]
    # rows of A past masked_m hold no scales: the columns go round within the valid rows
    count = call.masked_m.long().clamp(min=1).unsqueeze(-1)
    rows = (columns % count).unsqueeze(-1).expand_as(b)
    call.b_block_scale = a.gather(1, rows)
    call.run()


@fault(
    category="gemm", stages=_GEMM, bugs=("B14",), killed_by="GEMM", effect="collapse", needs="block scales"
)
def activation_scales_all_one(call: GemmCall, _: Parameters) -> None:
    """The block scales of A are not applied: each is 1."""
    scale = call.a_block_scale
    call.a_block_scale = torch.full_like(scale, call.form.one_scale)
    call.run()


@fault(category="gemm", stages=PREPARED, bugs=("B24",), killed_by="GEMM", effect="collapse")
def weight_scales_all_one(call: GemmCall | PrepareCall, _: Parameters) -> None:
    """The block scales of B are not applied: each is 1."""
    call.b_block_scale = torch.full_like(call.b_block_scale, call.weight_form.one_scale)
    call.run()


@fault(
    category="gemm",
    stages=_GEMM,
    bugs=("A24",),
    killed_by="GEMM",
    effect="shift",
    random_data=False,
    needs="nvfp4",
)
def subnormal_scales_decoded_as_normal(call: GemmCall, _: Parameters) -> None:
    """The GEMM gives E4M3 scales below 2^-6 an implicit leading one: up to 4.5 times too large."""
    _run_with_small_scales(call, lambda byte: (8 + byte) * 2.0**-10)


@fault(
    category="gemm", stages=_GEMM, bugs=("B11", "E09", "E13"), killed_by="GEMM", effect="shift",
    random_data=False, needs="nvfp4",
)  # fmt: skip
def small_scales_lost_by_gemm(call: GemmCall, _: Parameters) -> None:
    """The GEMM reads E4M3 scales below 2^-6, the subnormals, as zero."""
    _run_with_small_scales(call, torch.zeros_like)


def _run_with_small_scales(call: GemmCall, decode: Callable[[Tensor], Tensor]) -> None:
    """Run with the scale bytes 1 to 7 of both operands decoded in another way; the rest of the GEMM is the candidate's."""
    call.run()

    def values(codes: Tensor, byte: Tensor) -> tuple[Tensor, Tensor]:
        small = (byte > 0) & (byte < 8)
        scale = torch.where(small, decode(byte.float()), decode_e4m3(byte))
        return decode_e2m1(codes) * scale.repeat_interleave(BLOCK, -1), small

    a, small_a = values(call.a_codes, call.a_block_scale)
    b, small_b = values(call.b_codes, call.b_block_scale)
    touched = small_a.any(-1).unsqueeze(-1) | small_b.any(-1).unsqueeze(1)
    if bool((touched & call.valid()).any()):
        wrong = call.scaled(call.accumulate(a, b)).to(call.out.dtype)
        call.store(torch.where(touched, wrong, call.product))


@fault(category="gemm", stages=PREPARED, bugs=("C03", "C15"), killed_by="GEMM", effect="collapse")
def weights_read_interleaved(call: GemmCall | PrepareCall, _: Parameters) -> None:
    """B is read as if its blocks were interleaved in pairs along k, its scales are not."""
    codes = split(call.b_codes, BLOCK)
    blocks = codes.shape[2]
    even = blocks // 2 * 2
    half = even // 2
    order = [*(i // 2 + half * (i % 2) for i in range(even)), *range(even, blocks)]
    call.b_codes = codes[:, :, order].flatten(2)
    call.run()


@fault(category="gemm", stages=PREPARED, bugs=("C13",), killed_by="GEMM", effect="collapse")
def weight_scale_halves_swapped(call: GemmCall | PrepareCall, _: Parameters) -> None:
    """The two halves of B's rows (gate and up) are paired with each other's block scales."""
    scale = call.b_block_scale
    call.b_block_scale = scale.roll(scale.shape[1] // 2, 1)
    call.run()
