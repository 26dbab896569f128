"""Faults of prepare: weights that an engine puts into the kernel's order once, and every later call multiplies by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.faults.fault import Parameters, fault
from harness.faults.prepare_call import PrepareCall

_PREPARE = "prepare"


@fault(
    category="preparation", stages=_PREPARE, bugs=("B06",), killed_by="GEMM", effect="collapse", unit="expert",
)  # fmt: skip
def prepared_scales_of_neighbour(call: PrepareCall, _: Parameters) -> None:
    """The block scales that are prepared for an expert are the next one's."""
    call.b_block_scale = call.b_block_scale.roll(-1, 0)
    call.run()


@fault(
    category="preparation", stages=_PREPARE, bugs=("B05",), killed_by="GEMM", effect="collapse", unit="expert",
)  # fmt: skip
def prepared_experts_one_off(call: PrepareCall, _: Parameters) -> None:
    """An expert's place holds the weights, scales and alpha of the next one: the offset of local experts is off by one."""
    call.b_codes, call.b_block_scale = call.b_codes.roll(-1, 0), call.b_block_scale.roll(-1, 0)
    call.alpha = None if call.alpha is None else call.alpha.roll(-1, 0)
    call.run()


@fault(
    category="preparation", stages=_PREPARE, bugs=("B16",), killed_by="PREPARE", effect="collapse", unit="call",
)  # fmt: skip
def prepared_weights_stale(call: PrepareCall, p: Parameters) -> None:
    """Weights of these extents are prepared once in a process: later ones get those of the first."""
    call.run()
    key = tuple(sorted((name, tuple(value.shape)) for name, value in _tensors(call.prepared).items()))
    call.prepared = p.state.setdefault(key, call.prepared)


@fault(
    category="preparation", stages=_PREPARE, bugs=("B16",), killed_by="GEMM", effect="shift", unit="call",
)  # fmt: skip
def prepared_alpha_stale(call: PrepareCall, p: Parameters) -> None:
    """The alphas of the first weights with as many experts are kept for all that come later."""
    if call.alpha is not None:
        call.alpha = p.state.setdefault(len(call.alpha), call.alpha.clone())
    call.run()


@fault(
    category="preparation", stages=_PREPARE, bugs=("C13",), killed_by="GEMM", effect="collapse", unit="expert",
)  # fmt: skip
def prepared_up_before_gate(call: PrepareCall, _: Parameters) -> None:
    """Both halves of the rows change places, scales included: [gate, up] becomes [up, gate]."""
    half = call.b.shape[0] // 2
    call.b_codes, call.b_block_scale = call.b_codes.roll(half, 1), call.b_block_scale.roll(half, 1)
    call.run()


@fault(
    category="preparation", stages=_PREPARE, bugs=("B04",), killed_by="GEMM", effect="collapse", unit="expert",
)  # fmt: skip
def prepared_alpha_of_neighbour(call: PrepareCall, _: Parameters) -> None:
    """The alpha that is prepared for an expert is the next one's."""
    call.alpha = None if call.alpha is None else call.alpha.roll(-1, 0)
    call.run()


@fault(
    category="preparation", stages=_PREPARE, bugs=("I06",), killed_by="GEMM", effect="none", unit="expert",
)  # fmt: skip
def prepared_alpha_in_bfloat16(call: PrepareCall, _: Parameters) -> None:
    """Alphas are kept in the type of the layer's tokens, as factors of channels are."""
    call.alpha = None if call.alpha is None else call.alpha.bfloat16().float()
    call.run()


@fault(
    category="preparation", stages=_PREPARE, bugs=("C03", "C15"), killed_by="GEMM", effect="collapse", unit="expert",
)  # fmt: skip
def prepared_rows_of_scales_moved(call: PrepareCall, _: Parameters) -> None:
    """Block scales are put into the order of a kernel whose tiles begin 8 rows later; the codes are not."""
    call.b_block_scale = call.b_block_scale.roll(8, 1)
    call.run()


@fault(
    category="preparation", stages=_PREPARE, bugs=("C09",), killed_by="GEMM", effect="collapse", unit="expert",
)  # fmt: skip
def prepared_nibbles_swapped(call: PrepareCall, _: Parameters) -> None:
    """Repacking takes the first element of a byte from the high nibble."""
    call.b = call.b << 4 | call.b >> 4
    call.run()


@fault(
    category="preparation", stages=_PREPARE, bugs=("B20",), killed_by="GEMM", effect="collapse", unit="expert",
)  # fmt: skip
def prepared_expert_left_out(call: PrepareCall, _: Parameters) -> None:
    """The loop over experts ends one too early: the last one's part stays as it was allocated."""
    call.run()
    _change_last(call, lambda part: part.view(torch.uint8).zero_())


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
    _change_last(call, lambda part: part.view(torch.uint8).view(-1)[-1:].fill_(p.random.randrange(256)))


@fault(
    category="preparation", stages=_PREPARE, bugs=("B04",), killed_by="PREPARE", effect="shift", unit="call",
)  # fmt: skip
def prepared_in_place(call: PrepareCall, _: Parameters) -> None:
    """Weights are changed where they lie before they are repacked: preparing them again makes others."""
    call.run()
    call.b.bitwise_xor_(torch.full_like(call.b[:1, :1], 0x80))


def _tensors(prepared: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in prepared.items() if isinstance(value, Tensor)}


def _change_last(call: PrepareCall, change: Any) -> None:
    """Change the last expert's part of the largest prepared tensors: codes and scales."""
    for name in call.of_experts():
        if call.prepared[name].ndim > 1:
            made = call.prepared[name].clone()
            change(made[-1])
            call.prepared[name] = made
