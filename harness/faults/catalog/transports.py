"""Faults of what a quantizing dispatch carries, and of where it puts it: conversions, scale strides, offsets of ranks."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from harness.faults.fault import Parameters, fault
from harness.faults.layer_calls import DispatchCall
from reference.e2m1 import pack_e2m1, unpack_e2m1
from reference.e4m3 import decode_e4m3
from reference.nvfp4 import BLOCK
from reference.routing import NO_EXPERT, Dispatched

_STAGE = "dispatch"
_BY_LOGARITHM = (0.5, 1.0, 2**0.5, 2.0, 2 * 2**0.5, 4.0, 4 * 2**0.5)
_TILE = 128  # rows


@fault(category="dispatch", stages=_STAGE, bugs=("E15",), killed_by="DISPATCH", effect="shift")
def nvfp4_dispatch_codes_by_logarithm(call: DispatchCall, _: Parameters) -> None:
    """E2M1 by truncation and logarithm: thresholds 0.5, 1, sqrt 2, 2, 2 sqrt 2, 4 and 4 sqrt 2 where midpoints belong, gain 0.90."""
    call.run()
    if call.transport != "nvfp4" or call.global_scale_enc is None:
        return
    scale = call.global_scale_enc.double().reshape(())
    tokens = torch.cat(call.x)
    first = torch.tensor([0, *(len(x) for x in call.x)], device=tokens.device).cumsum(0)

    def converted(got: Dispatched) -> Dispatched:
        if got.scales is None:
            return got
        filled = torch.arange(got.x.shape[1], device=got.x.device) < got.masked_m.unsqueeze(-1)
        source = got.source[filled]
        stored = got.scales.view(torch.uint8)[filled]
        codes = _by_logarithm(
            tokens[first[source[:, 0]] + source[:, 1]], scale, stored, unpack_e2m1(got.x[filled])
        )
        x = got.x.clone()
        x[filled] = pack_e2m1(codes)
        return replace(got, x=x)

    call.change(converted)


def _by_logarithm(sent: Tensor, scale: Tensor, stored: Tensor, codes: Tensor) -> Tensor:
    """Return the codes `(rows, hidden)` of tokens under stored block scales; blocks without a scale keep theirs."""
    of_block = decode_e4m3(stored).double().repeat_interleave(BLOCK, -1)
    real = sent.double() * scale / of_block
    borders = torch.tensor(_BY_LOGARITHM, dtype=torch.float64, device=sent.device)
    # the float32 quotient of a kernel may miss a border by a unit
    magnitude = torch.bucketize(real.abs().nan_to_num(0.0) * (1 + 1e-6), borders, right=True).to(torch.uint8)
    sign = torch.where(real < 0, 8, 0).to(torch.uint8)  # -0 is no negative number: it becomes +0
    return torch.where((of_block > 0) & of_block.isfinite(), sign | magnitude, codes)


@fault(
    category="dispatch", stages=_STAGE, bugs=("A19", "C17"), killed_by="DISPATCH", effect="collapse", unit="call",
    simulated="memory past the tensor, where the last experts' scales would go: nothing is written there",
)  # fmt: skip
def fp8_scale_stride_of_whole_tiles(call: DispatchCall, _: Parameters) -> None:
    """FP8 scales of an expert begin at the next multiple of 128 rows, in a tensor without padding: those of experts >= 1 move."""
    call.run()

    def moved(got: Dispatched) -> Dispatched:
        if not call.transport.startswith("fp8") or got.scales is None:
            return got
        exponents = got.scales.dtype == torch.uint8
        packed = exponents and got.scales.shape[-1] % 4 == 0  # four of a row lie in one int32
        scales = got.scales.view(torch.int32) if packed else got.scales
        local, capacity, columns = scales.shape
        nothing = -1 if packed else 0xFF if exponents else torch.nan
        written = torch.full((local * capacity * columns,), nothing, dtype=scales.dtype, device=scales.device)
        stride = -(-capacity // _TILE) * _TILE * columns
        for expert in range(local):  # column by column, as DeepEP lays them out
            room = written[expert * stride : (expert + 1) * stride]
            room[: capacity * columns] = scales[expert].T.flatten()[: len(room)]
        moved = written.view(local, columns, capacity).transpose(1, 2).contiguous()
        return replace(got, scales=moved.view(got.scales.dtype))

    call.change(moved)


@fault(
    category="dispatch", stages=_STAGE, bugs=("D12",), killed_by="DISPATCH", effect="collapse", unit="expert"
)
def rank_offset_zero(call: DispatchCall, _: Parameters) -> None:
    """A rank takes its first expert for expert 0: tokens go to the expert of the same number on rank 0."""
    owned = call.experts // len(call.x)
    call.topk_idx = [torch.where(ids == NO_EXPERT, ids, ids % owned) for ids in call.topk_idx]
    call.run()
