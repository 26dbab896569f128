"""Faults of masked_m, of padding rows and padding scales, and of the borders between experts."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.faults.calls import GemmCall, QuantizeCall
from harness.faults.fault import Parameters, fault
from reference.e4m3 import round_to_byte

_QUANTIZERS = ("quantize_grouped", "silu_mul_quantize_grouped")
_GEMM = "masked_grouped_gemm"
_TILE = 128


@fault(category="masking", stages=_QUANTIZERS, bugs=("D16", "C19"), killed_by="QUANT", effect="shift")
def masked_m_minus_1(call: QuantizeCall, _: Parameters) -> None:
    """The last valid row of each expert is left out."""
    call.masked_m = (call.masked_m - 1).clamp(min=0)
    call.run()


@fault(
    category="masking",
    stages=_QUANTIZERS,
    bugs=("D16",),
    killed_by="QUANT",
    effect="collapse",
    unit="expert",
)
def masked_m_of_neighbour(call: QuantizeCall, _: Parameters) -> None:
    """Each expert has as many valid rows as the next expert should have."""
    call.masked_m = call.masked_m.roll(-1).contiguous()
    call.run()


@fault(
    category="masking", stages=(*_QUANTIZERS, _GEMM), bugs=("F08",), same_as=("masked_m_captured",), killed_by="EXPERTS",
    effect="collapse", unit="call",
)  # fmt: skip
def masked_m_of_previous_call(call: QuantizeCall | GemmCall, p: Parameters) -> None:
    """The counts are those of the previous call with as many experts: the buffer is read before it is updated."""
    key = (call.stage, call.masked_m.numel())
    previous = p.state.get(key, call.masked_m)
    p.state[key] = call.masked_m.clone()
    rows = call.x.shape[1] if isinstance(call, QuantizeCall) else call.a.shape[0]
    call.masked_m = previous.clamp(max=rows)
    call.run()


@fault(
    category="masking", stages=_GEMM, bugs=("A05",), killed_by="WRITES", effect="none", unit="call",
    strengths=(128, 1),
)  # fmt: skip
def stores_past_the_last_tile(call: GemmCall, p: Parameters) -> None:
    """Rows are stored past the last tile that holds a valid one (a tile more, a row more)."""
    counts = torch.where(call.masked_m > 0, call.masked_m, 0)
    end = (counts + _TILE - 1) // _TILE * _TILE + p.strength
    call.masked_m, counts = end.clamp(max=call.out.shape[0]).to(counts.dtype), call.masked_m
    call.run()
    call.masked_m = counts


@fault(category="masking", stages=_GEMM, bugs=("A05",), killed_by="WRITES", effect="none", unit="call")
def empty_expert_written(call: GemmCall, _: Parameters) -> None:
    """An expert without tokens gets a tile of the expert before it."""
    call.run()
    product, empty = call.product.clone(), call.masked_m == 0
    before = product.roll(1, 0)
    product[empty, :_TILE] = before[empty, :_TILE]
    call.product = product


@fault(category="masking", stages=_GEMM, bugs=("F19",), killed_by="WRITES", effect="shift", unit="call")
def stores_before_the_output(call: GemmCall, _: Parameters) -> None:
    """A store of one row reaches beyond the output buffer, into the memory in front of it or behind it."""
    call.run()
    start, columns, size = call.out.storage_offset(), call.out.shape[1], call.out.numel()
    memory = torch.as_strided(
        call.out, (call.out.untyped_storage().nbytes() // call.out.element_size(),), (1,), 0
    )
    row = call.product[0, :1].flatten()
    memory[max(start - columns, 0) : start] = row[: min(columns, start)]
    behind = memory[start + size : start + size + columns]
    behind.copy_(row[: behind.numel()])


@fault(
    category="masking", stages=_QUANTIZERS, bugs=("A01",), killed_by="PAD-ROWS", effect="shift", needs="nvfp4"
)
def padding_row_reaches_scales(call: QuantizeCall, _: Parameters) -> None:
    """The last valid row is scaled with the maximum of itself and of the padding row behind it."""
    call.run()
    scale = call.real_scale()
    behind = torch.cat((scale[:, 1:], scale[:, -1:]), 1)
    last = torch.zeros_like(scale, dtype=torch.bool)
    counts = call.masked_m.long()
    experts = (counts > 0).nonzero().flatten()
    last[experts, counts[experts] - 1] = True
    larger = torch.fmax(scale, behind)
    byte = round_to_byte(larger.nan_to_num(0.0, posinf=448.0))
    call.rescale(torch.where(last & (behind > scale), byte, call.block_scale))


def _with_scales_behind(call: GemmCall, *, rows: bool) -> Tensor:
    """Return A's scales with those of each expert's last row (or the last column) replaced by the ones behind it."""
    scale = call.a_block_scale
    _, count, columns = scale.shape
    wide = layouts.block_scales_of(
        call.a_scale, -(-count // 128) * 128, -(-columns // 4) * 4
    )  # padding included
    if not rows:
        moved = scale.clone()
        if wide.shape[2] > columns:
            moved[..., -1] = wide[:, :count, columns]
        return moved
    moved = scale.clone()
    for expert, valid in enumerate(call.masked_m.tolist()):
        if 0 < valid < wide.shape[1]:
            moved[expert, valid - 1] = wide[expert, valid, :columns]
    return moved


@fault(
    category="masking", stages=_GEMM, bugs=("A14", "A15", "E12"), killed_by="PAD-ROWS", effect="collapse",
    needs="block scales",
)  # fmt: skip
def padding_scales_reach_last_row(call: GemmCall, _: Parameters) -> None:
    """The last valid row is decoded with the block scales of the padding row behind it."""
    call.a_block_scale = _with_scales_behind(call, rows=True)
    call.run()


@fault(
    category="masking", stages=_GEMM, bugs=("A16", "C04", "C06"), killed_by="PAD-SCALES", effect="collapse",
    needs="block scales",
)  # fmt: skip
def padding_scales_reach_last_block(call: GemmCall, _: Parameters) -> None:
    """Where k/16 is not a multiple of 4, the last block is decoded with the padding column behind it."""
    call.a_block_scale = _with_scales_behind(call, rows=False)
    call.run()


@fault(
    category="masking", stages=_GEMM, bugs=("C06", "A15", "A16"), killed_by="PAD-SCALES", effect="collapse",
    random_data=False,
)  # fmt: skip
def padding_blocks_multiplied(call: GemmCall, _: Parameters) -> None:
    """Padding columns enter the product as 0 x scale: NaN if the padding scale is NaN."""
    call.run()
    columns = call.k // call.weight_form.block
    padded = layouts.block_scales_of(call.b_scale, call.b.shape[0], -(-columns // 4) * 4)[..., columns:]
    nan = call.weight_form.scales(padded).isnan().any(-1).unsqueeze(1)
    call.store(torch.where(nan, torch.nan, call.product))


@fault(
    category="masking", stages=_GEMM, bugs=("E08", "A01"), killed_by="PAD-ROWS", effect="collapse",
    random_data=False,
)  # fmt: skip
def padding_rows_times_zero(call: GemmCall, _: Parameters) -> None:
    """Padding rows of a tile are multiplied by zero instead of skipped: their NaN reaches the valid rows."""
    call.run()
    rows = call.a.shape[0]
    wide = -(-rows // _TILE) * _TILE
    nan = torch.zeros(call.a.shape[2], wide, dtype=torch.bool, device=call.a.device)
    nan[:, :rows] = call.a_values.isnan().any(-1)
    tiles = nan.view(-1, wide // _TILE, _TILE).any(-1, keepdim=True)
    in_tile = tiles.expand(-1, -1, _TILE).flatten(1)[:, :rows].unsqueeze(-1)
    call.store(torch.where(in_tile, torch.nan, call.product))


@fault(
    category="masking", stages=_GEMM, bugs=("A02", "A04"), killed_by="ISOLATION", effect="collapse",
    random_data=False,
)  # fmt: skip
def nan_crosses_experts(call: GemmCall, _: Parameters) -> None:
    """A NaN of one expert reaches the next expert with tokens: they share an accumulator that is zeroed by x 0."""
    call.run()
    product, counts = call.product.clone(), call.masked_m.tolist()
    active = [expert for expert, count in enumerate(counts) if count]
    for before, expert in itertools.pairwise(active):
        nan = call.product[before, : counts[before]].isnan().any(0)
        product[expert, :, nan] = torch.nan
    call.store(product)


@fault(
    category="masking",
    stages=_QUANTIZERS,
    bugs=("A17",),
    killed_by="QUANT",
    effect="collapse",
    unit="expert",
)
def expert_pitch_without_padding(call: QuantizeCall, _: Parameters) -> None:
    """Experts are taken to follow each other without capacity padding: expert e starts where e-1's rows end."""
    counts = call.masked_m.long()
    start = torch.cumsum(counts, 0) - counts
    flat = call.x.flatten(0, 1)
    rows = start.unsqueeze(-1) + torch.arange(call.x.shape[1], device=flat.device)
    call.x = flat[rows.clamp(max=len(flat) - 1)]
    call.run()


@fault(
    category="masking",
    stages=_QUANTIZERS,
    bugs=("A12",),
    killed_by="INPUTS",
    effect="none",
    unit="call",
)
def padding_zeroed_in_place(call: QuantizeCall, _: Parameters) -> None:
    """The quantizer clears the padding rows of its input in place."""
    call.x.masked_fill_(~call.valid(), 0)
    call.run()


@fault(
    category="masking", stages=_GEMM, bugs=("B16", "B04"), killed_by="INPUTS", effect="collapse", unit="call"
)
def alpha_folded_in_place(call: GemmCall, _: Parameters) -> None:
    """The caller's alpha is rescaled in place on every call: preparing the weights is not idempotent."""
    call.run()
    if call.alpha is not None:
        call.alpha.mul_(0.5)
