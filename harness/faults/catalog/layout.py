"""Faults of layout: where block scales and operands lie in memory, and how far apart rows, tiles and experts are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.faults.calls import GemmCall, QuantizeCall
from harness.faults.fault import PREPARED, Parameters, fault
from harness.faults.prepare_call import PrepareCall
from reference.layout import pad_scales, padded_extents, swizzle_8x4

_QUANTIZERS = ("quantize_grouped", "silu_mul_quantize_grouped")
_GEMM = "masked_grouped_gemm"


@fault(
    category="layout",
    stages=_QUANTIZERS,
    needs="nvfp4",
    bugs=("B17", "C16"),
    killed_by="QUANT",
    effect="collapse",
)
def scales_linear(call: QuantizeCall, _: Parameters) -> None:
    """Block scales are published row by row to a reader of 128x4 tiles."""
    call.run()
    call.scales = layouts.as_mma(pad_scales(call.block_scale, "128x4", 0x7F))


@fault(
    category="layout", stages=_QUANTIZERS, needs="nvfp4", bugs=("A13",), killed_by="QUANT", effect="collapse"
)
def scales_8x4(call: QuantizeCall, _: Parameters) -> None:
    """Block scales are published in tiles of 8x4 to a reader of 128x4 tiles."""
    call.run()
    call.scales = layouts.as_mma(swizzle_8x4(pad_scales(call.block_scale, "128x4", 0x7F)))


@fault(
    category="layout",
    stages=_QUANTIZERS,
    needs="nvfp4",
    bugs=("B17", "C16"),
    killed_by="QUANT",
    effect="collapse",
)
def scales_swizzled_twice(call: QuantizeCall, _: Parameters) -> None:
    """Block scales that are in 128x4 order already are put into it once more."""
    from reference.layout import swizzle_128x4

    call.run()
    call.scales = layouts.as_mma(swizzle_128x4(layouts.swizzled_bytes(call.scales)))


@fault(
    category="layout",
    stages=_QUANTIZERS,
    needs="nvfp4",
    bugs=("A19", "C02"),
    killed_by="QUANT",
    effect="collapse",
)
def scale_row_pitch_unpadded(call: QuantizeCall, _: Parameters) -> None:
    """Tiles of 128x4 scales follow each other as if k/16 were not rounded up to 4: they overwrite each other."""
    call.run()
    bytes_ = call.block_scale
    experts, rows, columns = bytes_.shape
    place = _offsets(rows, columns, tiles_in_row=max(columns // 4, 1)).to(bytes_.device)
    memory = layouts.swizzled_bytes(call.scales).flatten(1)
    for row in range(0, rows, 128):  # later tiles over earlier ones, as a loop over rows has it
        part = slice(row, row + 128)
        memory.scatter_(1, place[part].flatten().expand(experts, -1), bytes_[:, part].flatten(1))
    call.scales = layouts.as_mma(memory.view(experts, *padded_extents(rows, columns, "128x4")))


def _offsets(rows: int, columns: int, *, tiles_in_row: int) -> Tensor:
    """Return the byte offset of each scale in 128x4 order, `(rows, columns)` int64."""
    row, column = torch.arange(rows).unsqueeze(-1), torch.arange(columns)
    tile = row // 128 * tiles_in_row + column // 4
    return tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + column % 4


def _read(call: GemmCall, index: Tensor) -> Tensor:
    """Return B's scales read at other byte offsets than the right ones, `(l, n, k/16)`; memory goes round at its end."""
    memory = layouts.swizzled_bytes(call.b_scale).flatten(1)
    rows, columns = index.shape
    index = (index % memory.shape[1]).flatten().to(memory.device).expand(memory.shape[0], -1)
    return memory.gather(1, index).view(-1, rows, columns)


@fault(category="layout", stages=_GEMM, bugs=("B17", "C16"), killed_by="GEMM", effect="collapse")
def weight_scales_read_linear(call: GemmCall, _: Parameters) -> None:
    """The GEMM reads B's block scales row by row though they lie in 128x4 tiles."""
    rows, columns = call.b_block_scale.shape[1:]
    pitch = math.ceil(columns / 4) * 4
    call.b_block_scale = _read(call, torch.arange(rows).unsqueeze(-1) * pitch + torch.arange(columns))
    call.run()


@fault(category="layout", stages=_GEMM, bugs=("C03",), killed_by="GEMM", effect="collapse")
def weight_scale_rows_in_order(call: GemmCall, _: Parameters) -> None:
    """Within a 128x4 tile of B's scales, row r is looked for at 4 r: the order of 32 x 4 rows is forgotten."""
    rows, columns = call.b_block_scale.shape[1:]
    row, column = torch.arange(rows).unsqueeze(-1), torch.arange(columns)
    tile = row // 128 * math.ceil(columns / 4) + column // 4
    call.b_block_scale = _read(call, tile * 512 + row % 128 * 4 + column % 4)
    call.run()


@fault(category="layout", stages=_GEMM, bugs=("C08",), killed_by="GEMM", effect="collapse")
def weight_scale_tiles_transposed(call: GemmCall, _: Parameters) -> None:
    """Tiles of B's scales are taken column by column instead of row by row."""
    rows, columns = call.b_block_scale.shape[1:]
    row, column = torch.arange(rows).unsqueeze(-1), torch.arange(columns)
    tile = column // 4 * math.ceil(rows / 128) + row // 128
    inside = row % 32 * 16 + row % 128 // 32 * 4 + column % 4
    call.b_block_scale = _read(call, tile * 512 + inside)
    call.run()


@fault(category="layout", stages=_GEMM, bugs=("C05", "C02"), killed_by="GEMM", effect="collapse")
def weight_scale_pitch_unpadded(call: GemmCall, _: Parameters) -> None:
    """The GEMM steps through B's scale tiles as if k/16 were not rounded up to 4; rows past 127 get others' scales."""
    rows, columns = call.b_block_scale.shape[1:]
    call.b_block_scale = _read(call, _offsets(rows, columns, tiles_in_row=max(columns // 4, 1)))
    call.run()


@fault(category="layout", stages=_GEMM, bugs=("A17",), killed_by="GEMM", effect="collapse")
def weight_scales_one_tile_off(call: GemmCall, _: Parameters) -> None:
    """B's block scales are read one 128x4 tile too far."""
    rows, columns = call.b_block_scale.shape[1:]
    offsets = _offsets(rows, columns, tiles_in_row=math.ceil(columns / 4))
    call.b_block_scale = _read(call, offsets + 512)
    call.run()


@fault(
    category="layout", stages=_GEMM, bugs=("C17", "C18"), killed_by="GEMM", effect="collapse", unit="expert"
)
def expert_scale_stride_unpadded(call: GemmCall, _: Parameters) -> None:
    """B's scales of expert e are looked for at e * n * k/16 bytes, but each expert's are padded to whole tiles."""
    experts, rows, columns = call.b_block_scale.shape
    memory = layouts.swizzled_bytes(call.b_scale).flatten()
    place = _offsets(rows, columns, tiles_in_row=math.ceil(columns / 4)).to(memory.device)
    start = torch.arange(experts, device=memory.device).view(-1, 1, 1) * rows * columns
    call.b_block_scale = memory[(start + place) % memory.numel()]
    call.run()


@fault(category="layout", stages=_GEMM, bugs=("A33",), killed_by="GEMM", effect="collapse")
def scale_covers_32(call: GemmCall, _: Parameters) -> None:
    """The GEMM applies each block scale of B to 32 elements instead of 16."""
    scale = call.b_block_scale
    call.b_block_scale = scale.repeat_interleave(2, -1)[..., : scale.shape[-1]]
    call.run()


@fault(category="layout", stages=PREPARED, bugs=("C08", "A16"), killed_by="GEMM", effect="collapse")
def weight_scale_of_neighbour_block(call: GemmCall | PrepareCall, _: Parameters) -> None:
    """Each block of B is decoded with the scale of the next block of its row."""
    call.b_block_scale = call.b_block_scale.roll(-1, -1)
    call.run()


@fault(category="layout", stages=PREPARED, bugs=("C05",), killed_by="GEMM", effect="collapse")
def weight_scale_of_neighbour_row(call: GemmCall | PrepareCall, _: Parameters) -> None:
    """Each row of B is decoded with the scales of the next row."""
    call.b_block_scale = call.b_block_scale.roll(-1, 1)
    call.run()


@fault(category="layout", stages=_GEMM, bugs=("A08", "A09"), killed_by="GEMM", effect="collapse")
def packed_pitch_halved(call: GemmCall, _: Parameters) -> None:
    """Rows of B are taken to be k/4 bytes long: the bytes of packed codes are counted as elements, and halved again."""
    codes = call.b_codes
    flat = codes.flatten(1)
    row = torch.arange(codes.shape[1], device=flat.device).unsqueeze(-1) * (codes.shape[2] // 2)
    call.b_codes = flat[:, row + torch.arange(codes.shape[2], device=flat.device)]
    call.run()


@fault(
    category="layout", stages=(*_QUANTIZERS, _GEMM), bugs=("A26", "A28", "A29", "A30", "A31", "A32"),
    killed_by="QUANT", effect="collapse", strengths=(0.5, 0.75, 0.95),
    simulated="offsets wrap at this part of the operand instead of at 2^31 elements, which do not fit into a test",
)  # fmt: skip
def row_offset_wraps(call: QuantizeCall | GemmCall, p: Parameters) -> None:
    """Rows past the range of a 32-bit offset are read from the beginning of the operand."""
    whole = call.x if isinstance(call, QuantizeCall) else call.a_codes
    rows = whole.flatten(0, 1)
    # relative to the last valid row, so that what wraps is always something that counts
    last = int((torch.arange(1, len(rows) + 1, device=rows.device) * call.valid().flatten()).amax())
    limit = max(int(last * p.strength), 1)
    wrapped = rows[torch.arange(len(rows), device=rows.device) % limit].view(whole.shape)
    if isinstance(call, QuantizeCall):
        call.x = wrapped
    else:
        call.a_codes = wrapped
    call.run()


@fault(category="layout", stages=_GEMM, bugs=("A02",), killed_by="LAYOUT-OUT", effect="collapse", unit="call")
def output_strides_ignored(call: GemmCall, _: Parameters) -> None:
    """The output is written as if experts were outermost, whatever its strides say: experts clobber each other."""
    rows, columns, experts = call.out.shape
    call.out = torch.as_strided(call.out, (experts, rows, columns), (rows * columns, columns, 1)).permute(
        1, 2, 0
    )
    call.run()


@fault(category="layout", stages=_GEMM, bugs=("A02",), killed_by="LAYOUT-IN", effect="collapse", unit="call")
def operand_strides_ignored(call: GemmCall, _: Parameters) -> None:
    """A and its scales are read as if experts were outermost, whatever their strides say."""
    rows, half_k, experts = call.a.shape
    call.a = torch.as_strided(call.a, (experts, rows, half_k), (rows * half_k, half_k, 1)).permute(1, 2, 0)
    if call.a_scale is None:
        call.run()
        return
    inner = call.a_scale.permute(5, 2, 4, 0, 1, 3)
    strides = [math.prod(inner.shape[i + 1 :]) for i in range(6)]
    memory = torch.as_strided(call.a_scale, tuple(inner.shape), strides)
    call.a_scale = memory.permute(3, 4, 1, 5, 2, 0)
    call.run()
