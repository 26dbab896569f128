"""Simulated races, stale buffers and wrong tactics: what needs a GPU, in a form that a CPU can show."""

from __future__ import annotations

import torch

from harness.faults.calls import GemmCall, QuantizeCall
from harness.faults.fault import Parameters, fault

_QUANTIZERS = ("quantize_grouped", "silu_mul_quantize_grouped")
_GEMM = "masked_grouped_gemm"
_TILE = 128
_OFTEN = (1.0, 0.5, 0.25)  # in how many of the calls
_CHANCE = "a missing fence or barrier is drawn by chance: in a share of the calls, at a random place"


def _valid_rows(call: GemmCall | QuantizeCall) -> list[tuple[int, int]]:
    return [(e, r) for e, count in enumerate(call.masked_m.tolist()) for r in range(count)]


@fault(
    category="races", stages=_GEMM, bugs=("F01", "F02", "G05", "G07", "F11"), killed_by="REPEAT", effect="shift",
    unit="call", strengths=_OFTEN, simulated=_CHANCE,
)  # fmt: skip
def row_overwritten_now_and_then(call: GemmCall, p: Parameters) -> None:
    """Now and then a third of one row's elements are overwritten with another row's: a stage is reloaded while it is read."""
    call.run()
    rows = _valid_rows(call)
    if len(rows) < 2 or p.random.random() >= p.strength:
        return
    (expert, row), (other, other_row) = p.random.sample(rows, 2)
    columns = p.random.sample(range(call.out.shape[1]), max(call.out.shape[1] // 3, 1))
    product = call.product.clone()
    product[expert, row, columns] = product[other, other_row, columns]
    call.product = product


@fault(
    category="races", stages=_GEMM, bugs=("F02", "F16", "G08", "F07"), killed_by="SHAPES", effect="shift",
    unit="call", strengths=(1.0, 0.5), simulated=_CHANCE,
)  # fmt: skip
def row_of_previous_call(call: GemmCall, p: Parameters) -> None:
    """Now and then a row of the output is still that of the previous call: it was read before it was written."""
    call.run()
    key = (tuple(call.out.shape), call.out.dtype)
    previous, p.state[key] = p.state.get(key), call.product.clone()
    rows = _valid_rows(call)
    if previous is None or not rows or p.random.random() >= p.strength:
        return
    expert, row = p.random.choice(rows)
    product = call.product.clone()
    product[expert, row] = previous[expert, row]
    call.product = product


@fault(
    category="races", stages=_QUANTIZERS, bugs=("A06", "G08", "A12"), killed_by="TOKENS", effect="shift",
    unit="call", strengths=(1.0, 0.5), simulated="the stream is simulated: in a share of the calls the consumer is early",
)  # fmt: skip
def quantized_before_the_input_arrived(call: QuantizeCall, p: Parameters) -> None:
    """The kernel runs on another stream than its producer and quantizes what the buffer held before."""
    key = (call.stage, tuple(call.x.shape))
    previous, p.state[key] = p.state.get(key), call.x.clone()
    if previous is not None and p.random.random() < p.strength:
        call.x = previous
    call.run()


@fault(
    category="races", stages=_GEMM, bugs=("G01", "G11", "E11", "G13"), killed_by="PAD-OUT", effect="collapse",
    unit="call", strengths=_OFTEN, simulated=_CHANCE,
)  # fmt: skip
def tile_now_and_then_missing(call: GemmCall, p: Parameters) -> None:
    """Now and then one tile of 128 rows x 64 columns is not written: the kernel ended before its store."""
    before = call.product.clone()
    call.run()
    rows = _valid_rows(call)
    if not rows or p.random.random() >= p.strength:
        return
    expert, row = p.random.choice(rows)
    column = p.random.randrange(-(-call.out.shape[1] // 64)) * 64
    part = slice(row // _TILE * _TILE, (row // _TILE + 1) * _TILE), slice(column, column + 64)
    product = call.product.clone()
    product[expert][part] = before[expert][part]
    call.product = product


@fault(
    category="races", stages=_GEMM, bugs=("F01", "G03"), killed_by="REPEAT", effect="none", unit="call",
    simulated="the order in which thread blocks arrive is drawn by chance",
)  # fmt: skip
def parts_added_as_they_arrive(call: GemmCall, p: Parameters) -> None:
    """Partial sums over k are added in the output's type in the order in which they arrive: bits change from call to call."""
    call.run()
    k = call.k
    cut = p.random.randrange(16, k, 16) if k > 16 else k
    a, b = call.a_values, call.b_values
    first = call.scaled(call.accumulate(a[..., :cut], b[..., :cut])).to(call.out.dtype)
    second = call.scaled(call.accumulate(a[..., cut:], b[..., cut:])).to(call.out.dtype)
    call.store(first + second)


@fault(
    category="races", stages=_GEMM, bugs=("A04", "F08", "F09"), same_as=("last_k_tile_missing", "k_tail_missing", "split_k_part_lost"), killed_by="SHAPES", effect="shift", unit="call",
    simulated="the compiled kernel's cache is a dictionary",
)  # fmt: skip
def k_of_first_shape(call: GemmCall, p: Parameters) -> None:
    """The launch of the first shape is reused for a later one that differs in k only: the rest of k is missing."""
    key = (tuple(call.out.shape), call.out.dtype)
    first = p.state.setdefault(key, call.k)
    codes = call.a_codes.clone()
    codes[..., first:] = 0
    call.a_codes = codes
    call.run()


@fault(
    category="races", stages=(*_QUANTIZERS, _GEMM), bugs=("A12", "F09", "G08"), same_as=("masked_m_of_previous_call",), killed_by="EXPERTS",
    effect="collapse", unit="call", simulated="capturing a CUDA graph is the first call, replaying it every later one",
)  # fmt: skip
def masked_m_captured(call: QuantizeCall | GemmCall, p: Parameters) -> None:
    """The counts of the first call with this shape are used for ever, as if captured in a graph by value."""
    rows = call.x.shape[1] if isinstance(call, QuantizeCall) else call.a.shape[0]
    width = call.x.shape[2] if isinstance(call, QuantizeCall) else call.a.shape[1]
    key = (call.stage, call.masked_m.numel(), rows, width)
    call.masked_m = p.state.setdefault(key, call.masked_m.clone())
    call.run()


@fault(
    category="races", stages=_GEMM, bugs=("G02", "G04", "G09"), killed_by="GEMM", effect="collapse",
    strengths=(32, 64, 128),
    simulated="the autotuner's choice is the number of valid rows: past it another tactic runs",
)  # fmt: skip
def tactic_of_many_rows_not_finite(call: GemmCall, p: Parameters) -> None:
    """The tactic for experts with more than so many rows (32, 64, 128) returns NaN; with fewer rows all is well."""
    call.run()
    many = (call.masked_m > p.strength).view(-1, 1, 1)
    call.store(torch.where(many, torch.nan, call.product))


@fault(
    category="races", stages=_GEMM, bugs=("G02", "G03", "G10", "G14"), killed_by="GEMM", effect="collapse",
    strengths=(32, 64, 128),
    simulated="the tactic's tile is a number of rows",
)  # fmt: skip
def later_row_tiles_zero(call: GemmCall, p: Parameters) -> None:
    """Only the first tile of rows (32, 64, 128) of each expert is computed; rows of later tiles are zero."""
    call.run()
    product = call.product.clone()
    product[:, p.strength :] = 0
    call.store(product)
