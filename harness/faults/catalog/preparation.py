"""Faults of prepare: weights that an engine puts into the kernel's order once, and every later call multiplies by."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.faults.calls import GemmCall
from harness.faults.fault import PREPARED, Parameters, fault
from harness.faults.prepare_call import PrepareCall

_PREPARE = "prepare"


@fault(
    category="preparation", stages=PREPARED, bugs=("B16",), killed_by="EXPERTS", effect="collapse", unit="call",
)  # fmt: skip
def weights_of_first_preparation(call: GemmCall | PrepareCall, p: Parameters) -> None:
    """Weights of these extents are prepared once in a process: later ones get the order of the first, with its scales."""
    given = call.b.clone(memory_format=torch.preserve_format), call.b_scale
    call.b, call.b_scale = p.state.setdefault(tuple(call.b.shape), given)
    call.run()


@fault(
    category="preparation", stages=PREPARED, bugs=("B16",), killed_by="GEMM", effect="shift", unit="call",
)  # fmt: skip
def alphas_of_first_preparation(call: GemmCall | PrepareCall, p: Parameters) -> None:
    """The alphas of the first weights with as many experts are kept for all that come later."""
    if call.alpha is not None:
        call.alpha = p.state.setdefault(len(call.alpha), call.alpha.clone())
    call.run()


@fault(
    category="preparation", stages=PREPARED, bugs=("C13",), killed_by="GEMM", effect="collapse",
    same_as=("gate_up_swapped",),
)  # fmt: skip
def weight_halves_swapped(call: GemmCall | PrepareCall, _: Parameters) -> None:
    """Both halves of the rows change places, scales included: [gate, up] becomes [up, gate]."""
    half = call.b.shape[0] // 2
    call.b_codes, call.b_block_scale = call.b_codes.roll(half, 1), call.b_block_scale.roll(half, 1)
    call.run()


@fault(
    category="preparation", stages=PREPARED, bugs=("C03", "C15"), killed_by="GEMM", effect="collapse",
)  # fmt: skip
def weight_scale_rows_moved(call: GemmCall | PrepareCall, _: Parameters) -> None:
    """Block scales are put into the order of a kernel whose tiles begin 8 rows later; the codes are not."""
    call.b_block_scale = call.b_block_scale.roll(8, 1)
    call.run()


@fault(
    category="preparation", stages=PREPARED, bugs=("B20",), killed_by="GEMM", effect="shift", unit="call",
)  # fmt: skip
def last_expert_not_prepared(call: GemmCall | PrepareCall, _: Parameters) -> None:
    """The loop over experts ends one too early: the last one's weights are zeros, as they were allocated."""
    codes, block_scale = call.b_codes.clone(), call.b_block_scale.clone()
    codes[-1], block_scale[-1] = 0, 0
    call.b_codes, call.b_block_scale = codes, block_scale
    call.run()


@fault(
    category="preparation", stages=_PREPARE, bugs=("A02",), killed_by="PREPARE", effect="shift", unit="call",
)  # fmt: skip
def prepared_over_the_next_expert(call: PrepareCall, _: Parameters) -> None:
    """The tail of an expert's part is written past its end, over the head of the next one's."""
    call.run()
    names = call.of_experts()
    for name in names if call.experts > 1 else ():
        made: Tensor = call.prepared[name].clone()
        if made.ndim > 1 and made[0].numel():
            flat = made.view(torch.uint8).flatten(1) if made.element_size() > 1 else made.flatten(1)
            flat[1:, :8] = flat[:-1, -8:].clone()
            call.prepared[name] = made


@fault(
    category="preparation", stages=_PREPARE, bugs=("C04",), killed_by="PREPARE", effect="none", unit="call",
)  # fmt: skip
def prepared_from_memory_not_written(call: PrepareCall, p: Parameters) -> None:
    """One byte of the prepared scales is not written: it is whatever the memory held before."""
    call.run()
    for name in call.of_experts():
        if call.prepared[name].ndim > 1:
            made = call.prepared[name].clone()
            last = made[-1].reshape(-1)[-1:].clone()
            last.view(torch.uint8)[-1] = p.random.randrange(256)
            made[-1][(-1,) * (made.ndim - 1)] = last[0]
            call.prepared[name] = made


@fault(
    category="preparation", stages=_PREPARE, bugs=("B04",), killed_by="PREPARE", effect="shift", unit="call",
)  # fmt: skip
def prepared_in_place(call: PrepareCall, _: Parameters) -> None:
    """Weights are changed where they lie before they are repacked: preparing them again makes others."""
    call.run()
    call.b.bitwise_xor_(torch.full_like(call.b[:1, :1], 0x80))
