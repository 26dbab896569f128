"""Kernels that are wrong for one seldom value each: the control with one line of a stage replaced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.eager import Eager

BF16_MOST, F16_MOST = 3.3895e38, 65504.0


@dataclass(frozen=True)
class SeldomFault:
    """One fault.

    Attributes:
        rule: that catches it.
        traps: one of which the failing problem names.
        stage: what is replaced: "x", "gate_up", "alpha", "a_scale", "b_scale", "logits", "topk_weights" or "y" before the
            stage, "out" after it, "codes" and
            "scale" of both quantizers, `(l, m, k)` and `(l, m, k / 16)`, after it.
        change: returns the replacement; of "codes" and "scale" from that and the quantizer's input, of "out" from that.
        only_in_layer: whether only masked_moe has it; the other stages are not there.
    """

    rule: str
    traps: tuple[str, ...]
    stage: str
    change: Callable[..., Tensor]
    only_in_layer: bool = False


class Seldom(Eager):
    """The control with a fault."""

    def __init__(self, fault: SeldomFault) -> None:
        super().__init__()
        self.fault = fault

    def _before(self, stage: str, value: Any) -> Any:
        return self.fault.change(value) if self.fault.stage == stage and value is not None else value

    def quantize_grouped(self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Any:
        packed, scales = super().quantize_grouped(self._before("x", x), masked_m, global_scale_enc)
        if self.fault.stage not in {"codes", "scale"}:
            return packed, scales
        codes = layouts.codes_of(packed)
        block_scale = layouts.block_scales_of(scales, codes.shape[1], codes.shape[2] // 16)
        if self.fault.stage == "codes":
            return layouts.operand(self.fault.change(codes, x)), scales
        return packed, layouts.scales(self.fault.change(block_scale, x))

    def silu_mul_quantize_grouped(self, gate_up: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Any:
        return super().silu_mul_quantize_grouped(self._before("gate_up", gate_up), masked_m, global_scale_enc)

    def route_topk(self, logits: Tensor, topk: int, *, normalize: bool = True) -> tuple[Tensor, Tensor]:
        return super().route_topk(self._before("logits", logits), topk, normalize=normalize)

    def combine(self, y: Any, dispatched: Any, topk_idx: Any, topk_weights: list[Tensor]) -> list[Tensor]:
        weights = [self._before("topk_weights", each) for each in topk_weights]
        return super().combine([self._before("y", each) for each in y], dispatched, topk_idx, weights)

    def masked_grouped_gemm(
        self,
        a: Tensor,
        a_scale: Tensor,
        b: Tensor,
        b_scale: Tensor,
        out: Tensor,
        masked_m: Tensor,
        alpha: Any,
    ) -> None:
        a_scale, b_scale = self._before("a_scale", a_scale), self._before("b_scale", b_scale)
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, self._before("alpha", alpha))
        if self.fault.stage == "out":
            for expert, rows in enumerate(masked_m.tolist()):
                out[:rows, :, expert] = self.fault.change(out[:rows, :, expert])


class OnlyLayer:
    """The same seen without its inner stages: what somebody has who fused the layer into one kernel."""

    def __init__(self, fault: SeldomFault) -> None:
        self._inside = Seldom(fault)
        self.traits = self._inside.traits

    def masked_moe(self, *positional: Any, **named: Any) -> Tensor:
        return self._inside.masked_moe(*positional, **named)


def candidate(fault: SeldomFault) -> Any:
    return OnlyLayer(fault) if fault.only_in_layer else Seldom(fault)


def where(condition: Callable[[Tensor], Tensor], value: float) -> Callable[[Tensor], Tensor]:
    """Return the change of every element that meets a condition into a value."""
    return lambda x: torch.where(condition(x), torch.full_like(x, value), x)


def bytes_where(old: int, new: int) -> Callable[[Tensor], Tensor]:
    """Return the change of one block-scale byte into another, all others kept."""

    def change(scale: Tensor) -> Tensor:
        as_bytes = scale.view(torch.uint8)
        return torch.where(as_bytes == old, torch.full_like(as_bytes, new), as_bytes).view(scale.dtype)

    return change


def gate(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a change of the gate half."""
    return lambda x: torch.cat((change(x.chunk(2, -1)[0]), x.chunk(2, -1)[1]), -1)


def up(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a change of the up half."""
    return lambda x: torch.cat((x.chunk(2, -1)[0], change(x.chunk(2, -1)[1])), -1)


def nan_of(x: Tensor) -> Tensor:
    """Return how many elements of each block are NaN, `(l, m, k / 16)`."""
    return x.unflatten(-1, (-1, 16)).isnan().sum(-1)


def infinite_of(x: Tensor) -> Tensor:
    """Return how many elements of each block are infinite, `(l, m, k / 16)`."""
    return x.unflatten(-1, (-1, 16)).isinf().sum(-1)


def scale_where(condition: Callable[[Tensor], Tensor], value: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the change of the block scales of blocks whose input meets a condition."""
    return lambda scale, x: scale.masked_fill(condition(x), value)


def all_same_sign(x: Tensor) -> Tensor:
    blocks = x.unflatten(-1, (-1, 16))
    return blocks.isinf().any(-1) & (blocks == torch.inf).any(-1) & (blocks == -torch.inf).any(-1)


def of_four_or_more(same: Tensor) -> Tensor:
    """Return which tokens' logits are all the same, `(tokens, 1)`: of fewer experts they often are by chance."""
    return same.all(-1, keepdim=True) & (same.shape[-1] >= 4)


ALPHA = {
    "alpha_by_logarithm": (("alpha_negative",), where(lambda a: a < 0, torch.nan)),
    "alpha_magnitude": (("alpha_negative",), torch.abs),
    "alpha_clamped_at_zero": (("alpha_negative",), lambda a: a.clamp(min=0)),
    "alpha_zero_is_none": (("alpha_zero",), where(lambda a: a == 0, 1.0)),
    "alpha_zero_divides": (("alpha_zero",), where(lambda a: a == 0, torch.nan)),
    "alpha_zero_is_smallest": (("alpha_zero",), where(lambda a: a == 0, 2.0**-20)),
    "alpha_flushed": (("alpha_subnormal",), where(lambda a: a.abs() < 2.0**-126, 0.0)),
    "alpha_one_of_the_first_is_none": (("alpha_one",), lambda a: torch.ones_like(a) if a[0] == 1 else a),
    "alpha_one_of_the_last_is_none": (("alpha_one",), lambda a: torch.ones_like(a) if a[-1] == 1 else a),
    "alpha_one_of_any_is_none": (("alpha_one",), lambda a: torch.ones_like(a) if (a == 1).any() else a),
    "alpha_raised_to_normal": (("alpha_subnormal",), where(lambda a: (a != 0) & (a.abs() < 2.0**-126), 2.0**-126)),
    "alpha_nan_is_zero": (("alpha_specials",), where(torch.isnan, 0.0)),
    "alpha_nan_is_none": (("alpha_specials",), where(torch.isnan, 1.0)),
    "alpha_infinity_is_nan": (("alpha_specials",), where(torch.isinf, torch.nan)),
}  # fmt: skip
OUT = {
    "overflow_is_nan": where(torch.isinf, torch.nan),
    "overflow_saturates": lambda x: x.clamp(-torch.finfo(x.dtype).max, torch.finfo(x.dtype).max),
    "overflow_of_float16_saturates": lambda x: x.clamp(-F16_MOST, F16_MOST) if x.dtype == torch.float16 else x,
    "overflow_of_float16_is_nan": lambda x: torch.where(x.isinf(), torch.nan, x) if x.dtype == torch.float16 else x,
    "overflow_of_float32_is_nan": lambda x: torch.where(x.isinf(), torch.nan, x) if x.dtype == torch.float32 else x,
    "overflow_loses_its_sign": where(lambda x: x == -torch.inf, torch.inf),
    "overflow_below_saturates": lambda x: x.clamp(min=-torch.finfo(x.dtype).max),
}  # fmt: skip
X = {
    "tokens_through_float16": (("large", "small"), lambda x: x.half().to(x.dtype)),
    "tokens_beyond_float16_infinite": (("large",), where(lambda x: x.isfinite() & (x.abs() > F16_MOST), torch.inf)),
    "tokens_squared_for_amax": (("large",), where(lambda x: x.isfinite() & (x.abs() > 2.0**64), torch.inf)),
    "tokens_beyond_float16_saturate": (("large",), lambda x: torch.where(x.isfinite(), x.clamp(-65504, 65504), x)),
    "small_tokens_flushed": (("small",), where(lambda x: (x != 0) & (x.abs() < 2.0**-24), 0.0)),
    "squares_of_small_tokens_vanish": (("small",), where(lambda x: (x != 0) & (x.abs() < 2.0**-75), 0.0)),
}  # fmt: skip
SCALE = {
    "five_nan_empty_a_block": (("some_nan", "half_nan"), lambda x: (nan_of(x) >= 5) & (nan_of(x) < 16), 0),
    "two_nan_empty_a_block": (("some_nan",), lambda x: nan_of(x) == 2, 0),
    "seven_nan_empty_a_block": (("some_nan",), lambda x: nan_of(x) == 7, 0),
    "half_nan_is_nan": (("some_nan",), lambda x: (nan_of(x) >= 8) & (nan_of(x) < 15), 0x7F),
    "two_numbers_left_are_nan": (("some_nan",), lambda x: nan_of(x) == 14, 0x7F),
    "one_number_left_is_zero": (("half_nan",), lambda x: nan_of(x) == 15, 0),
    "even_nan_is_largest": (("half_nan",), lambda x: x[..., ::2].unflatten(-1, (-1, 8)).isnan().all(-1), 0x7E),
    "infinities_of_both_signs_are_nan": (("infinities",), all_same_sign, 0x7F),
    "infinity_beside_nan_is_nan": (("infinities",), lambda x: (infinite_of(x) > 0) & (nan_of(x) > 0), 0x7F),
    "only_infinities_are_nan": (("infinities",), lambda x: infinite_of(x) == 16, 0x7F),
}  # fmt: skip
GATE = {
    "gate_below_89_is_nan": gate(where(lambda g: (g < -89) & g.isfinite(), torch.nan)),
    "gate_above_88_is_nan": gate(where(lambda g: (g > 88.7) & g.isfinite(), torch.nan)),
    "gate_clamped_at_64": gate(lambda g: torch.where(g.isfinite(), g.clamp(max=64), g)),
    "gate_below_64_is_zero": gate(where(lambda g: (g < -64) & g.isfinite(), -0.0)),
    "gate_through_float16": gate(lambda g: torch.where(g.isfinite(), g.clamp(-65504, 65504), g)),
    "gate_zero_divides": gate(where(lambda g: g == 0, torch.nan)),
    "small_gate_flushed": gate(where(lambda g: g.abs() < 2.0**-24, 0.0)),
    "sign_of_gate_zero_lost": gate(where(lambda g: g == 0, 0.0)),
}
SPECIALS = {
    "gate_nan_is_zero": gate(where(torch.isnan, 0.0)),
    "gate_infinity_is_nan": gate(where(lambda g: g == torch.inf, torch.nan)),
    "gate_minus_infinity_is_zero": gate(where(lambda g: g == -torch.inf, -1e30)),
    "gate_infinity_is_largest": gate(where(lambda g: g == torch.inf, BF16_MOST)),
    "up_infinity_is_largest": up(lambda u: torch.where(u.isnan(), u, u.clamp(-BF16_MOST, BF16_MOST))),
    "up_minus_infinity_is_nan": up(where(lambda u: u == -torch.inf, torch.nan)),
    "up_nan_is_zero": up(where(torch.isnan, 0.0)),
}
LOGITS = {
    "softmax_overflows": (("logits_large",), where(lambda g: g > 88.72, torch.nan)),
    "softmax_underflows": (("logits_low",), lambda g: g.masked_fill((g < -104).all(-1, keepdim=True), torch.nan)),
    "logits_low_are_none": (("logits_low",), where(lambda g: g <= -999, 0.0)),
    "logits_clamped": (("logits_large", "logits_low"), lambda g: g.clamp(-88, 88)),
    "logits_through_bfloat16": (("logits_large", "logits_low"), lambda g: torch.where(g.abs() > 80, g.bfloat16().float(), g)),
    "logits_equal_divide_by_zero": (("logits_equal",), lambda g: g.masked_fill(of_four_or_more(g == g[:, :1]), torch.nan)),
    "logits_zero_are_none": (("logits_equal",), lambda g: g.masked_fill(of_four_or_more(g == 0), torch.nan)),
    "logits_negative_zero_is_smaller": (("logits_equal",), lambda g: g - 0.1 * ((g == 0) & g.signbit())),
    "logits_far_below_vanish": (("logits_spread",), lambda g: g.masked_fill(g < g.amax(-1, keepdim=True) - 50, -torch.inf)),
}  # fmt: skip
TOPK_WEIGHTS = {
    "topk_weights_divided_by_their_sum_of_zero": (("topk_zero",), lambda w: w.masked_fill(w.sum(-1, True) == 0, torch.nan)),
    "topk_weight_of_zero_is_missing": (("topk_zero",), where(lambda w: w == 0, 1.0)),
    "topk_weights_through_float16": (("topk_tiny",), lambda w: torch.where(w.abs() < 2.0**-24, 0.0, w)),
    "topk_weights_of_one_halved": (("topk_ties",), where(lambda w: w == 1, 0.5)),
    "topk_weights_above_one_clamped": (("topk_ties",), lambda w: w.clamp(max=1)),
    "topk_weights_that_tie_are_one_slot": (
        ("topk_ties",), lambda w: torch.cat((w[:, :1], torch.where(w[:, 1:] == w[:, :1], 0.0, w[:, 1:])), -1),
    ),
}  # fmt: skip
FAULTS = {
    **{name: SeldomFault("ROUTE", traps, "logits", change) for name, (traps, change) in LOGITS.items()},
    **{
        name: SeldomFault("COMBINE", traps, "topk_weights", change)
        for name, (traps, change) in TOPK_WEIGHTS.items()
    },
    **{name: SeldomFault("GEMM", traps, "alpha", change) for name, (traps, change) in ALPHA.items()},
    **{
        name: SeldomFault("GEMM", ("alpha_overflow", "alpha_specials"), "out", change)
        for name, change in OUT.items()
    },
    **{name: SeldomFault("QUANT", traps, "x", change) for name, (traps, change) in X.items()},
    **{
        name: SeldomFault("QUANT", t, "scale", scale_where(c, value)) for name, (t, c, value) in SCALE.items()
    },
    **{
        name: SeldomFault("ACT", ("gates", "large", "small"), "gate_up", change)
        for name, change in GATE.items()
    },
    **{name: SeldomFault("ACT", ("gate_specials",), "gate_up", change) for name, change in SPECIALS.items()},
    "zero_scale_of_b_is_hidden_bit": SeldomFault("GEMM", ("zero_scales",), "b_scale", bytes_where(0, 8)),
    "zero_scale_of_b_is_one": SeldomFault("GEMM", ("zero_scales",), "b_scale", bytes_where(0, 0x38)),
    "nan_scale_of_b_is_largest": SeldomFault("GEMM", ("nan_scales",), "b_scale", bytes_where(0x7F, 0x7E)),
    "nan_scale_of_b_is_zero": SeldomFault("GEMM", ("nan_scales",), "b_scale", bytes_where(0x7F, 0)),
    "outputs_clamped": SeldomFault(
        "COMBINE", ("output_specials",), "y", lambda y: y.clamp(-BF16_MOST, BF16_MOST)
    ),
    "outputs_nan_is_zero": SeldomFault("COMBINE", ("output_specials",), "y", where(torch.isnan, 0.0)),
    "outputs_infinity_is_nan": SeldomFault(
        "COMBINE", ("output_specials",), "y", where(torch.isinf, torch.nan)
    ),
    "layer_nan_scale_of_weights": SeldomFault(
        "MOE", ("nan_scales",), "b_scale", bytes_where(0x7F, 0x7E), only_in_layer=True
    ),
    "zero_scale_of_b_is_nan": SeldomFault("GEMM", ("zero_scales",), "b_scale", bytes_where(0, 0x7F)),
    "zero_scale_of_a_is_smallest": SeldomFault(
        "GEMM", ("zero_scales", "scale_underflow"), "a_scale", bytes_where(0, 1)
    ),
    "layer_alpha_magnitude": SeldomFault("MOE", ("alpha_negative",), "alpha", torch.abs, only_in_layer=True),
    "layer_alpha_zero_is_none": SeldomFault(
        "MOE", ("alpha_zero",), "alpha", where(lambda a: a == 0, 1.0), only_in_layer=True
    ),
    "layer_gate_below_89_is_nan": SeldomFault(
        "MOE",
        ("large", "nan", "inf"),
        "gate_up",
        gate(where(lambda g: g < -89, torch.nan)),
        only_in_layer=True,
    ),
    "layer_tokens_through_float16": SeldomFault(
        "MOE", ("large", "small"), "x", lambda x: x.half().to(x.dtype), only_in_layer=True
    ),
    "layer_zero_scale_of_weights": SeldomFault(
        "MOE", ("zero_scales", "scale_underflow"), "b_scale", bytes_where(0, 8), only_in_layer=True
    ),
}
