"""Faults of loading: scales and weights that are wrong before the first token arrives.

Each is planted in load_experts, or in masked_moe of a candidate that has no load_experts: see LoadCall.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness.faults.fault import Parameters, fault
from harness.faults.layer_calls import LoadCall
from reference.e4m3 import decode_e4m3, encode_e4m3
from reference.layout import pad_scales
from reference.loading import tensor_name

_STAGES = ("load_experts", "masked_moe")


@fault(
    category="loading", stages=_STAGES, bugs=("B14",), killed_by="LOAD", effect="collapse", unit="expert",
)  # fmt: skip
def input_scale_omitted(call: LoadCall, _: Parameters) -> None:
    """The tokens' encode scale is 1; alphas are made as if it were applied."""
    call.run()
    if call.input_global_scale is not None:
        call.input_global_scale = torch.ones_like(call.input_global_scale)


@fault(
    category="loading", stages=_STAGES, bugs=("A20", "B17"), killed_by="LOAD", effect="collapse", unit="expert",
)  # fmt: skip
def input_scale_inverted(call: LoadCall, _: Parameters) -> None:
    """The checkpoint's input scale goes to the quantizer, which wants its reciprocal."""
    call.run()
    if call.input_global_scale is not None:
        call.input_global_scale = call.input_global_scale.reciprocal()


@fault(
    category="loading",
    stages=_STAGES,
    bugs=("B14", "A25"),
    killed_by="LOAD",
    effect="collapse",
    unit="expert",
)
def alpha_without_input_scale(call: LoadCall, _: Parameters) -> None:
    """The first alpha is weight_scale_2 alone, without the input scale."""
    call.run()
    if call.input_global_scale is not None:
        call.w1_alpha = call.w1_alpha * call.input_global_scale


@fault(
    category="loading", stages=_STAGES, bugs=("B01", "B02", "B18"), killed_by="LOAD", effect="shift", unit="expert",
    strengths=(2.0, 1.15),
    simulated="where only masked_moe is seen, the other ranks' scales are not: alphas are off by a drawn ratio of the two",
)  # fmt: skip
def local_input_scale(call: LoadCall, p: Parameters) -> None:
    """The input scale is the largest over this rank's experts instead of all; what was sent was encoded with the other."""
    call.run()
    factor = p.strength
    if call.checkpoint is not None and call.experts is not None and call.input_global_scale is not None:
        scales = [
            call.checkpoint[tensor_name(e, projection, "input_scale")]
            for e in call.experts
            for projection in ("gate", "up")
            if tensor_name(e, projection, "input_scale") in call.checkpoint
        ]
        factor = float(max(scales) * call.input_global_scale[0])
        call.input_global_scale = call.input_global_scale / factor
    call.w1_alpha = call.w1_alpha * factor


@fault(
    category="loading", stages=_STAGES, bugs=("B17", "C16", "A13"), killed_by="LOAD", effect="collapse",
)  # fmt: skip
def scales_not_swizzled(call: LoadCall, _: Parameters) -> None:
    """Block scales of the weights stay row by row where the kernel reads 128x4."""
    call.run()
    for name in ("w1", "w2"):
        linear: Tensor = getattr(call, f"{name}_block_scale")
        setattr(call, f"{name}_blockscale", pad_scales(linear, "128x4").view(torch.float8_e4m3fn))


@fault(
    category="loading", stages=_STAGES, bugs=("C09",), killed_by="LOAD", effect="collapse",
    same_as=("weight_nibbles_swapped",),
)  # fmt: skip
def nibbles_swapped_in_weights(call: LoadCall, _: Parameters) -> None:
    """The first element of each byte is in the high nibble."""
    call.run()
    call.w1, call.w2 = (w << 4 | w >> 4 for w in (call.w1, call.w2))


@fault(
    category="loading",
    stages=_STAGES,
    bugs=("B05", "B04"),
    killed_by="LOAD",
    effect="collapse",
    unit="expert",
)
def experts_rolled(call: LoadCall, _: Parameters) -> None:
    """Every expert has the weights and scales of the one before it."""
    call.run()
    call.each(lambda value: value.roll(1, 0))


@fault(
    category="loading", stages=_STAGES, bugs=("C13", "C14", "C15", "C01"), killed_by="LOAD", effect="shift",
    same_as=("gate_and_up_swapped", "weight_halves_swapped"),
)  # fmt: skip
def gate_up_swapped(call: LoadCall, _: Parameters) -> None:
    """Up rows come first in w1, with their block scales."""
    call.run()
    if call.gated:
        half = call.w1.shape[1] // 2
        scale = call.w1_block_scale.roll(half, 1)
        call.w1 = call.w1.roll(half, 1)
        call.w1_block_scale = scale


@fault(
    category="loading", stages=_STAGES, bugs=("B05", "C03"), killed_by="LOAD", effect="collapse",
)  # fmt: skip
def gate_up_interleaved(call: LoadCall, _: Parameters) -> None:
    """Gate and up rows alternate, as another kernel wants them."""
    call.run()
    if call.gated:
        half = call.w1.shape[1] // 2
        order = (
            torch.stack((torch.arange(half), torch.arange(half) + half), dim=1).flatten().to(call.w1.device)
        )
        scale = call.w1_block_scale[:, order]
        call.w1 = call.w1[:, order].contiguous()
        call.w1_block_scale = scale


@fault(
    category="loading",
    stages=_STAGES,
    bugs=("B21", "B23", "B24", "B20"),
    killed_by="LOAD",
    effect="collapse",
    unit="expert",
)
def scale_slots_zero(call: LoadCall, _: Parameters) -> None:
    """Scale slots are never written and hold zero: alphas are zero, and so are the experts' outputs."""
    call.run()
    call.w1_alpha, call.w2_alpha = torch.zeros_like(call.w1_alpha), torch.zeros_like(call.w2_alpha)


@fault(
    category="loading",
    stages=_STAGES,
    bugs=("B07", "B22"),
    killed_by="LOAD",
    effect="collapse",
    unit="expert",
)
def scale_slots_stale(call: LoadCall, _: Parameters) -> None:
    """Scale slots are never written and hold what was in that memory: alphas are other numbers, up to 2^10 off."""
    call.run()
    for name in ("w1_alpha", "w2_alpha"):
        alpha: Tensor = getattr(call, name)
        # An expert's slot holds the same number in every load, on whichever rank: memory does not change in between.
        exponent = [(10, -7, 8, -9, 9, -10, 7, -8)[n % 8] for n in call.numbers().tolist()]
        setattr(call, name, torch.ldexp(alpha, torch.tensor(exponent, device=alpha.device)))


@fault(
    category="loading", stages=_STAGES, bugs=("B04", "B06"), killed_by="LOAD", effect="collapse", unit="expert",
    same_as=("alpha_of_neighbour",),
)  # fmt: skip
def alphas_before_migration(call: LoadCall, _: Parameters) -> None:
    """Experts have moved one place, their alphas have not."""
    call.run()
    call.w1_alpha, call.w2_alpha = call.w1_alpha.roll(-1), call.w2_alpha.roll(-1)


@fault(category="loading", stages=_STAGES, bugs=("B16",), killed_by="LOAD", effect="collapse", unit="call")
def alphas_of_previous_load(call: LoadCall, p: Parameters) -> None:
    """Alphas are derived at the first load only: other weights get the first ones' alphas."""
    call.run()
    first = p.state.setdefault("alphas", (call.w1_alpha.clone(), call.w2_alpha.clone()))
    place = torch.arange(len(call.w1_alpha)) % len(first[0])
    call.w1_alpha, call.w2_alpha = (kept[place.to(kept.device)] for kept in first)


@fault(
    category="loading", stages=_STAGES, bugs=("B08", "B19"), killed_by="LOAD", effect="shift", unit="expert",
)  # fmt: skip
def intermediate_scale_shared(call: LoadCall, _: Parameters) -> None:
    """All experts quantize the intermediate with the smallest encode scale of all; alphas are per expert."""
    call.run()
    call.a2_global_scale = call.a2_global_scale.min().expand_as(call.a2_global_scale).contiguous()


@fault(
    category="loading", stages=_STAGES, bugs=("B08", "B09"), killed_by="LOAD", effect="shift",
    strengths=(2.0, 0.5, 1.5, 1.25),
    simulated="masked_moe takes no second alpha, so up's block scales carry the ratio of the two scales that was lost",
)  # fmt: skip
def alpha_of_gate_for_up(call: LoadCall, p: Parameters) -> None:
    """The up half is multiplied by the gate's weight_scale_2; its own differs by a factor."""
    call.run()
    if call.gated:
        scale = call.w1_block_scale
        half = call.w1.shape[1] // 2
        up = encode_e4m3(decode_e4m3(scale[:, half:]) * p.strength)
        call.w1_block_scale = torch.cat((scale[:, :half], up), dim=1)


@fault(category="loading", stages="load_experts", bugs=("B09",), killed_by="LOAD", effect="none", unit="call")
def up_scale_2_ignored(call: LoadCall, _: Parameters) -> None:
    """A checkpoint whose gate and up have different weight_scale_2 is loaded with the gate's, without an error."""
    if call.checkpoint is not None:
        gate = {
            n.replace(".gate_proj.", ".up_proj."): t
            for n, t in call.checkpoint.items()
            if n.endswith("gate_proj.weight_scale_2")
        }
        call.checkpoint = call.checkpoint | gate
    call.run()


@fault(
    category="loading", stages=_STAGES, bugs=("A24", "A25"), killed_by="LOAD", effect="collapse", unit="expert",
)  # fmt: skip
def weight_scale_2_in_block_scales(call: LoadCall, _: Parameters) -> None:
    """The scale weight_scale_2 is multiplied into the E4M3 block scales, where it underflows, and left out of w1_alpha."""
    call.run()
    if call.input_global_scale is None:
        return
    second = call.w1_alpha * call.input_global_scale
    call.w1_block_scale = encode_e4m3(decode_e4m3(call.w1_block_scale) * second.view(-1, 1, 1))
    call.w1_alpha = call.input_global_scale.reciprocal()


@fault(
    category="loading", stages=_STAGES, bugs=("B24", "C19"), killed_by="LOAD", effect="collapse", unit="expert",
    strengths=("leftovers", "zeros"),
)  # fmt: skip
def experts_never_written(call: LoadCall, p: Parameters) -> None:
    """The second half of the experts is never written: their weights are what was in that memory, or zeros."""
    call.run()
    missing = call.numbers() >= call.total // 2
    for name in ("w1", "w2"):
        codes: Tensor = getattr(call, name)
        scale: Tensor = getattr(call, f"{name}_block_scale")
        generator = torch.Generator().manual_seed(codes.shape[1])
        left = torch.zeros_like(codes)
        left_scale = torch.zeros_like(scale)
        if p.strength == "leftovers":
            left = torch.randint(0, 256, codes.shape[1:], generator=generator, dtype=torch.uint8).to(
                codes.device
            )
            left_scale = torch.randint(0, 0x7F, scale.shape[1:], generator=generator, dtype=torch.uint8).to(
                codes.device
            )
        setattr(call, name, torch.where(missing.view(-1, 1, 1), left, codes))
        setattr(call, f"{name}_block_scale", torch.where(missing.view(-1, 1, 1), left_scale, scale))


@fault(
    category="loading", stages=_STAGES, bugs=("B24", "D21"), killed_by="LOAD", effect="shift", unit="expert"
)
def one_expert_dropped(call: LoadCall, _: Parameters) -> None:
    """The layer's last expert has no weights: it adds nothing."""
    call.run()
    last = (call.numbers() == call.total - 1).view(-1, 1, 1)
    call.w2 = call.w2.masked_fill(last, 0)


@fault(
    category="loading", stages=_STAGES, bugs=("C19",), killed_by="LOAD", effect="shift", strengths=(0.25, 0.0),
)  # fmt: skip
def last_rows_missing(call: LoadCall, p: Parameters) -> None:
    """The last rows of a shard of w1 are missing: a quarter of them, or one."""
    call.run()
    rows = call.w1.shape[1]
    count = max(1, math.ceil(rows * p.strength))
    gone = torch.arange(rows, device=call.w1.device) >= rows - count
    call.w1 = call.w1.masked_fill(gone.view(1, -1, 1), 0)
