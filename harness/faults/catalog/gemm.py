"""Faults of the grouped GEMM: alpha, reduction over k, epilogue. Its operands and their scales: operands.py."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.faults.arithmetic import overflowing
from harness.faults.calls import GemmCall
from harness.faults.fault import PREPARED, Parameters, fault
from harness.faults.prepare_call import PrepareCall
from reference.nvfp4 import BLOCK

_GEMM = "masked_grouped_gemm"


@fault(
    category="gemm", stages=PREPARED, bugs=("B04",), same_as=("alphas_before_migration",), killed_by="GEMM",
    effect="shift", unit="expert",
)  # fmt: skip
def alpha_of_neighbour(call: GemmCall | PrepareCall, _: Parameters) -> None:
    """Each expert's product is multiplied by the next expert's alpha."""
    if call.alpha is not None:
        call.alpha = call.alpha.roll(-1)
    call.run()


@fault(category="gemm", stages=PREPARED, bugs=("B19", "B13"), killed_by="GEMM", effect="shift", unit="expert")
def alpha_of_expert_0(call: GemmCall | PrepareCall, _: Parameters) -> None:
    """Every expert's product is multiplied by expert 0's alpha."""
    if call.alpha is not None:
        call.alpha = call.alpha[:1].expand_as(call.alpha).contiguous()
    call.run()


@fault(category="gemm", stages=PREPARED, bugs=("B14", "A20"), killed_by="GEMM", effect="collapse")
def alpha_dropped(call: GemmCall | PrepareCall, _: Parameters) -> None:
    """The product is stored without alpha."""
    if call.alpha is not None:
        call.alpha = torch.ones_like(call.alpha)
    call.run()


@fault(category="gemm", stages=PREPARED, bugs=("A20",), killed_by="GEMM", effect="collapse")
def alpha_inverted(call: GemmCall | PrepareCall, _: Parameters) -> None:
    """The product is divided by alpha instead of multiplied with it."""
    if call.alpha is not None:
        call.alpha = call.alpha.reciprocal()
    call.run()


@fault(category="gemm", stages=PREPARED, bugs=("A25",), killed_by="GEMM", effect="collapse")
def alpha_twice(call: GemmCall | PrepareCall, _: Parameters) -> None:
    """The product is multiplied by alpha twice."""
    if call.alpha is not None:
        call.alpha = call.alpha.square()
    call.run()


@fault(category="gemm", stages=PREPARED, bugs=("A23",), killed_by="GEMM", effect="none")
def alpha_rounded_to_bf16(call: GemmCall | PrepareCall, _: Parameters) -> None:
    """Alpha passes through bfloat16 on its way to the kernel."""
    if call.alpha is not None:
        call.alpha = call.alpha.bfloat16().float()
    call.run()


@fault(
    category="gemm", stages=PREPARED, bugs=("E04",), killed_by="GEMM", effect="none", random_data=False,
    strengths=(512, 2**15),
)  # fmt: skip
def large_alpha_infinite(call: GemmCall | PrepareCall, p: Parameters) -> None:
    """Alpha passes through a format that ends before float32: from 512 on (2^15 where it is weakest) it is infinite."""
    if call.alpha is not None:
        call.alpha = overflowing(call.alpha, p.strength)
    call.run()


@fault(
    category="gemm",
    stages=PREPARED,
    bugs=("E13",),
    killed_by="GEMM",
    effect="none",
    random_data=False,
)
def subnormal_alpha_lost(call: GemmCall | PrepareCall, _: Parameters) -> None:
    """An alpha that is a float32 subnormal counts as zero."""
    if call.alpha is not None:
        smallest = torch.finfo(torch.float32).tiny
        call.alpha = torch.where(call.alpha.abs() < smallest, call.alpha * 0, call.alpha)
    call.run()


@fault(
    category="gemm", stages=_GEMM, bugs=("A20", "A25"), killed_by="GEMM", effect="shift",
    strengths=(2.0, 0.5, 1.1, 1.01),
)  # fmt: skip
def output_scaled(call: GemmCall, p: Parameters) -> None:
    """The product is off by a constant factor."""
    call.run()
    call.product = (call.product.float() * p.strength).to(call.out.dtype)


@fault(
    category="gemm", stages=_GEMM, bugs=("B08", "B09"), killed_by="GEMM", effect="shift",
    strengths=(1.35, 0.5, 1.05, 1.01),
)  # fmt: skip
def up_half_with_scale_of_gate(call: GemmCall, p: Parameters) -> None:
    """The second half of the columns (up) is scaled with the first half's weight scale: off by their ratio."""
    call.run()
    product = call.product.float()
    product[..., product.shape[-1] // 2 :] *= p.strength
    call.product = product.to(call.out.dtype)


@fault(category="gemm", stages=_GEMM, bugs=("E11", "G12"), killed_by="PAD-OUT", effect="collapse")
def rows_never_written(call: GemmCall, _: Parameters) -> None:
    """Valid rows of the output are never written: they keep what the buffer held."""
    before = call.product.clone()
    call.run()
    call.product = torch.where(call.valid(), before, call.product)


@fault(
    category="gemm", stages=_GEMM, bugs=("G04",), same_as=("k_tail_missing", "split_k_part_lost", "k_of_first_shape"), killed_by="GEMM", effect="collapse",
    strengths=(256, 128, 64, 16),
)  # fmt: skip
def last_k_tile_missing(call: GemmCall, p: Parameters) -> None:
    """The loop over k ends one tile (256 to 16 elements) early."""
    codes = call.a_codes.clone()
    codes[..., max(codes.shape[-1] - p.strength, 0) :] = 0
    call.a_codes = codes
    call.run()


@fault(
    category="gemm", stages=_GEMM, bugs=("F19", "C19"), same_as=("last_k_tile_missing", "split_k_part_lost", "k_of_first_shape"), killed_by="GEMM", effect="shift",
    strengths=(256, 128, 64),
)  # fmt: skip
def k_tail_missing(call: GemmCall, p: Parameters) -> None:
    """What is left of k after whole tiles of 256 (128, 64) elements is not multiplied."""
    codes = call.a_codes.clone()
    codes[..., codes.shape[-1] // p.strength * p.strength :] = 0
    call.a_codes = codes
    call.run()


@fault(category="gemm", stages=_GEMM, bugs=("B25",), killed_by="GEMM", effect="none")
def cast_before_alpha(call: GemmCall, _: Parameters) -> None:
    """The sum is rounded to the output's type before it is multiplied by alpha, and once more afterwards."""
    alpha = call.alpha
    if alpha is None:
        call.run()
        return
    call.alpha = torch.ones_like(alpha)
    call.run()
    call.store(call.product.float() * alpha.view(-1, 1, 1))


def _narrow(call: GemmCall, dtype: torch.dtype, chunk: int) -> Tensor:
    """Return the product with the running sum rounded to a narrow type after every chunk of k, float32."""
    a, b = call.a_values, call.b_values
    total = torch.zeros(a.shape[0], a.shape[1], b.shape[1], dtype=torch.float32, device=a.device)
    for start in range(0, a.shape[2], chunk):
        part = call.accumulate(a[..., start : start + chunk], b[..., start : start + chunk])
        total = (total.double() + part).to(dtype).float()
    return total


@fault(category="gemm", stages=_GEMM, bugs=("G15",), killed_by="GEMM", effect="none", strengths=(64, 128))
def accumulator_bf16(call: GemmCall, p: Parameters) -> None:
    """The running sum over k is kept in bfloat16 between chunks of 64 (128) products."""
    call.run()
    call.store(call.scaled(_narrow(call, torch.bfloat16, p.strength)))


@fault(category="gemm", stages=_GEMM, bugs=("G15",), killed_by="GEMM", effect="collapse", strengths=(64, 128))
def accumulator_fp16(call: GemmCall, p: Parameters) -> None:
    """The running sum over k is kept in float16, which ends at 65504."""
    call.run()
    call.store(call.scaled(_narrow(call, torch.float16, p.strength)))


@fault(
    category="gemm", stages=_GEMM, bugs=("F19", "C05", "C19"), killed_by="GEMM", effect="collapse",
    strengths=(128, 64, 8),
)  # fmt: skip
def last_columns_missing(call: GemmCall, p: Parameters) -> None:
    """The last tile of output columns (128 to 8) is zero: the tail of n is not computed."""
    call.run()
    product = call.product.clone()
    product[..., max(product.shape[-1] - p.strength, 0) :] = 0
    call.store(product)


@fault(category="gemm", stages=_GEMM, bugs=("I06",), killed_by="GEMM", effect="none")
def output_rounded_twice(call: GemmCall, _: Parameters) -> None:
    """The result is rounded to float16 before it is rounded to the output's type."""
    call.run()
    call.store(call.scaled(call.accumulate(call.a_values, call.b_values)).float().half())


@fault(category="gemm", stages=_GEMM, bugs=("E07",), killed_by="GEMM", effect="none")
def output_truncated(call: GemmCall, _: Parameters) -> None:
    """The result is cut to the output's type instead of rounded."""
    call.run()
    exact = call.scaled(call.accumulate(call.a_values, call.b_values)).float()
    stored = exact.to(call.out.dtype)
    toward_zero = torch.nextafter(stored, torch.zeros_like(stored))
    call.store(torch.where(stored.float().abs() > exact.abs(), toward_zero, stored))


@fault(category="gemm", stages=_GEMM, bugs=("G05",), killed_by="PAD-OUT", effect="collapse")
def accumulates_into_output(call: GemmCall, _: Parameters) -> None:
    """The product is added to what the output buffer held before."""
    before = call.product.clone()
    call.run()
    call.store(call.product.float() + before.float())


@fault(
    category="gemm",
    stages=_GEMM,
    bugs=("G03",),
    same_as=("last_k_tile_missing", "k_tail_missing", "k_of_first_shape"),
    killed_by="GEMM",
    effect="collapse",
    strengths=(2, 4, 8),
)
def split_k_part_lost(call: GemmCall, p: Parameters) -> None:
    """Of k split into 2 (4, 8) parts the last part's partial sum is lost, instead of added."""
    codes = call.a_codes.clone()
    blocks = codes.shape[-1] // BLOCK
    codes[..., (blocks - max(blocks // p.strength, 1)) * BLOCK :] = 0
    call.a_codes = codes
    call.run()


@fault(category="gemm", stages=_GEMM, bugs=("G10",), killed_by="GEMM", effect="collapse", strengths=(32, 8))
def output_tiles_transposed(call: GemmCall, p: Parameters) -> None:
    """Each square tile (32 x 32, 8 x 8) of the output is stored transposed."""
    call.run()
    size, product = p.strength, call.product
    rows, columns = (extent // size * size for extent in product.shape[1:])
    tiles = product[:, :rows, :columns].reshape(len(product), -1, size, columns // size, size)
    turned = product.clone()
    turned[:, :rows, :columns] = tiles.transpose(2, 4).flatten(3, 4).flatten(1, 2)
    call.store(turned)


@fault(
    category="gemm", stages=_GEMM, bugs=("G16",), killed_by="GEMM", effect="collapse", strengths=(32, 64, 128),
)  # fmt: skip
def second_half_of_tiles_zero(call: GemmCall, p: Parameters) -> None:
    """The second half of the rows of each tile of 128 (64, 32) rows is zero: half of the accumulator is not stored."""
    call.run()
    row = torch.arange(call.out.shape[0], device=call.out.device)
    lost = (row % p.strength >= p.strength // 2).view(1, -1, 1)
    call.store(call.product.masked_fill(lost, 0))


@fault(
    category="gemm", stages=_GEMM, bugs=("G11",), killed_by="GEMM", effect="collapse", strengths=(2, 4, 8),
    simulated="the GPU has 2 (4, 8) processors instead of 148, so that small problems have a second wave",
)  # fmt: skip
def second_wave_of_tiles_lost(call: GemmCall, p: Parameters) -> None:
    """Only the first wave of tiles is computed: the tiles of 128 x 64 after the first 2 (4, 8) stay zero."""
    call.run()
    product = call.product.clone()
    columns = range(0, product.shape[-1], 64)
    rows = [(e, r) for e, count in enumerate(call.masked_m.tolist()) for r in range(0, count, 128)]
    for expert, row, column in [(*place, column) for place in rows for column in columns][p.strength :]:
        product[expert, row : row + 128, column : column + 64] = 0
    call.store(product)
