"""The traps that are written into a problem's tensors: what each is called, is made of, and asks for. No torch here.

A new one is a line in `TRAPS` and the function of its block of 16 values. Those that follow from a problem's extents are
`SHAPE_TRAPS` of harness.problems.problem.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from harness.verdict import unknown_name

if TYPE_CHECKING:
    from torch import Tensor

    from harness.candidates.protocol import Traits
    from harness.problems.block_draw import BlockDraw

Block = Callable[["BlockDraw", int], "Tensor"]
Place = Literal[
    "quantized",
    "quantizer",
    "gate",
    "alpha",
    "gemm alpha",
    "weights",
    "logits",
    "topk weights",
    "expert outputs",
]
_BEYOND_FLOAT16 = frozenset({"large", "small", "subnormal", "gates"})
_OF_E4M3_WEIGHTS = frozenset({"subnormal_scales", "zero_scales"})  # E8M0 has neither
BLOCKS_PER_TRAP = 4  # of a trap that is written into blocks of its own


@dataclass(frozen=True)
class Trap:
    """One trap, written relative to the expert's encode scale, so that it is what it is called whatever the scale.

    Attributes:
        name: as it stands in a problem's string.
        sentence: what it is, for `harness list`.
        block: makes one block, `(16,)` float64 in units of 1 / global_scale_enc, from what it draws and the block's
            number in the trap; None where ProblemTensors makes the trap, before the encode scales are known.
        where: what its blocks fill: "blocks" (BLOCKS_PER_TRAP in any valid rows), "row" (one valid row) or "expert" (all
            rows of one expert, each the same, padding too).
        finite: whether inputs with it stay finite.
        ties: whether it needs exact ties: all encode scales of the problem are then powers of two.
        stretches: whether magnitudes then lie so far apart that fewer dot products are exact.
        scaled: whether the block is in those units; else its values are stored as they are.
        into: what it is written into: "quantized" (what a quantizer reads, tokens and intermediate), "quantizer" (the same, of
            a quantizer that is judged by itself), "gate" (gate and up of the activation: its block is `(2, 16)`, gates as they are and ups in those units), "alpha" (of every GEMM),
            "gemm alpha" (of a single GEMM, not of a layer), "weights", or, of the stages around the layer, "logits",
            "topk weights" and "expert outputs" (harness.problems.layer). All but the first are drawn only for rules that name the place.
        blocks: how many it fills where it fills blocks.
        subnormal: whether it holds numbers below the smallest normal one.
    """

    name: str
    sentence: str
    block: Block | None
    where: Literal["blocks", "row", "expert"] = "blocks"
    finite: bool = True
    ties: bool = False
    stretches: bool = False
    scaled: bool = True
    into: Place = "quantized"
    blocks: int = BLOCKS_PER_TRAP
    subnormal: bool = False

    def in_contract(self, traits: Traits) -> bool:
        """Return whether a candidate with these traits has to take it."""
        narrow = traits.activation_format == "fp16" and self.name in _BEYOND_FLOAT16
        scales = "mxfp4" in traits.weight_format and self.name in _OF_E4M3_WEIGHTS
        unclear = traits.activation_format.startswith(
            ("fp8", "nvfp4_")
        )  # what a scale of such a row is, nobody fixes
        unclear |= traits.gated != "silu"  # whether a clamp keeps NaN, and what 1 + erf does far out
        if not self.finite and self.into != "gemm alpha" and unclear:
            return False
        unclear_scale = self.name == "small" and max(traits.least_scale, traits.most_alpha) > 0
        unclear_scale |= traits.power_scales and self.into in IN_ALPHA
        taken = (self.finite or not traits.finite_only) and (not self.subnormal or traits.keeps_subnormals)
        return taken and not narrow and not scales and not unclear_scale


def _e2m1_ties(draw: BlockDraw, _: int) -> Tensor:
    from reference.e2m1 import MIDPOINTS

    return draw.shuffled([6.0, *MIDPOINTS, *MIDPOINTS, 6.0]) * draw.sign * draw.step


def _e4m3_ties(draw: BlockDraw, _: int) -> Tensor:
    # halfway between the E4M3 values (8 + n) / 8 and (9 + n) / 8
    amax = 6 * (17 + 2 * draw.number(8)) / 16
    values = draw.uniform() * amax * 0.9
    values[draw.place()] = amax
    return values * draw.sign * draw.step


def _scale_underflow(draw: BlockDraw, number: int) -> Tensor:
    # 2^-10 is the midpoint between scale 0 and the smallest subnormal scale
    amax = 6 * 2.0**-10 * (0.5, 1.0, 1.0078125, 1.5)[number]
    return draw.ramp(0, 1) * draw.sign * amax


def _scale_saturation(draw: BlockDraw, number: int) -> Tensor:
    return draw.ramp(0.01, 1) * draw.sign * 6 * (449, 464, 600, 4480)[number]


def _zeros(draw: BlockDraw, _: int) -> Tensor:
    return draw.filled(0.0)


def _subnormal_scale(draw: BlockDraw, _: int) -> Tensor:
    values = draw.uniform() * 2 - 1
    return values / values.abs().amax() * 6 * (1 + draw.number(7)) * 2.0**-9


def _subnormal(draw: BlockDraw, number: int) -> Tensor:
    # 2^-133 is the smallest bfloat16 subnormal; multiples of 2^-128 can be halved five times.
    return draw.sign * draw.ramp(0, 15) * (2.0**-133, 2.0**-128)[number % 2]


def _negative_zero(draw: BlockDraw, _: int) -> Tensor:
    return draw.ramp(-6, 6).masked_fill(draw.sign > 0, -0.0)


def _nan(draw: BlockDraw, number: int) -> Tensor:
    values = draw.normal() * draw.step
    if number == 0:
        return draw.filled(math.nan)
    values[draw.place()] = math.nan
    return values


def _inf(draw: BlockDraw, _: int) -> Tensor:
    values = draw.normal() * draw.step
    values[draw.place()] = math.inf * float(draw.sign[0])
    return values


_SOME = (2, 14, 8, 5, 3, 12, 4, 10, 6, 7, 9, 11, 13)  # NaN elements, of a block with a number in either half


def _with_nan(draw: BlockDraw, places: list[int]) -> Tensor:
    values, marked = (
        draw.normal() * draw.step,
        draw.filled(math.nan).copysign(draw.sign),
    )  # NaN of either sign
    values[places] = marked[places]
    return values


def _some_nan(draw: BlockDraw, number: int) -> Tensor:
    kept = {2 * draw.number(8), 2 * draw.number(8) + 1}
    places = [int(place) for place in draw.shuffled(range(16)) if int(place) not in kept]
    return _with_nan(draw, places[: _SOME[number]])


def _half_nan(draw: BlockDraw, number: int) -> Tensor:
    half, more = number % 2, (0, 3, 7)[number // 2]
    others = [int(place) for place in draw.shuffled(range(16)) if int(place) % 2 != half]
    return _with_nan(draw, [*range(half, 16, 2), *others[:more]])


def _infinities(draw: BlockDraw, number: int) -> Tensor:
    values = draw.normal() * draw.step
    single = draw.filled(0.0)
    single[draw.place()] = (math.inf, -math.inf)[number % 2]
    both = draw.shuffled([math.inf, -math.inf] + [0.0] * 14)
    beside_nan = draw.shuffled([math.inf, math.nan] + [0.0] * 14)
    added = (single, single, both, draw.filled(math.inf) * draw.sign, beside_nan)[number]
    return added.where(~added.isfinite(), values)


def _gates(draw: BlockDraw, number: int) -> Tensor:
    from harness.problems.gate_values import gates

    return gates(draw, number)


def _gate_specials(draw: BlockDraw, number: int) -> Tensor:
    from harness.problems.gate_values import special

    return special(draw, number)


TRAPS = {
    trap.name: trap
    for trap in (
        Trap("e2m1_ties", "values on every midpoint between two E2M1 codes", _e2m1_ties, ties=True),
        Trap("e4m3_ties", "block maxima on midpoints between two E4M3 scales", _e4m3_ties, ties=True),
        Trap("scale_underflow", "blocks whose scale rounds to zero, or just does not", _scale_underflow, stretches=True, subnormal=True),
        Trap("scale_saturation", "blocks whose scale exceeds 448", _scale_saturation, stretches=True),
        Trap("zero_block", "blocks of zeros", _zeros),
        Trap("zero_row", "rows of zeros", _zeros, where="row"),
        Trap("zero_expert", "an expert whose rows are all zero", _zeros, where="expert"),
        Trap("subnormal_scales", "a row of tokens, and rows of the weights, whose block scales are all E4M3 subnormals", _subnormal_scale, where="row", subnormal=True),
        Trap("subnormal", "bfloat16 subnormals", _subnormal, stretches=True, scaled=False, subnormal=True),
        Trap("negative_zero", "elements of -0.0", _negative_zero),
        Trap("nan", "single NaN elements and a block of nothing but NaN", _nan, finite=False, stretches=True),
        Trap("inf", "infinite elements", _inf, finite=False, stretches=True),
        Trap("outlier_block", "a block 100 times larger than its row", None, stretches=True, subnormal=True),
        Trap("magnitude_spread", "experts whose magnitudes differ 100-fold", None),
        Trap("some_nan", "blocks with 2 to 14 NaN elements and a number among the even and the odd ones", _some_nan, finite=False, stretches=True, blocks=13),
        Trap("half_nan", "blocks whose even or odd elements are all NaN, 8 to 15 of them", _half_nan, finite=False, into="quantizer", stretches=True, blocks=6),
        Trap("infinities", "blocks of infinities only, of both signs, or beside NaN", _infinities, finite=False, stretches=True, blocks=5),
        Trap("large", "experts whose tokens and intermediate go beyond 65,504, float16's largest number, and whose gates go beyond +-88.7", None, stretches=True),
        Trap("small", "experts whose tokens and intermediate are below 2^-14, float16's smallest normal number", None, stretches=True),
        Trap("gates", "gates around and beyond +-64 and +-88.7, and gates of either zero", _gates, into="gate", stretches=True),
        Trap("gate_specials", "gates and ups that are infinite or NaN, or whose product overflows", _gate_specials, finite=False, into="gate", stretches=True, blocks=16),
        Trap("alpha_negative", "alphas below zero", None, into="alpha"),
        Trap("alpha_zero", "an alpha of zero", None, into="alpha"),
        Trap("alpha_subnormal", "alphas that are float32 subnormals", None, into="gemm alpha", stretches=True, subnormal=True),
        Trap("alpha_overflow", "alphas that take results beyond the output type's largest number: infinity", None, finite=False, into="gemm alpha", stretches=True),
        Trap("zero_scales", "weights with block scales of zero over codes that are not", None, into="weights"),
        Trap("alpha_one", "alphas of exactly one, the first and the last, beside others", None, into="gemm alpha"),
        Trap("logits_large", "tokens whose logits lie around 90, 200 and 1,000: exp overflows beyond 88.72", None, into="logits"),
        Trap("logits_low", "tokens whose logits lie around -90, -110, -200 and -1,000: exp underflows", None, into="logits"),
        Trap("logits_equal", "tokens whose logits are all equal, zero, or zeros of either sign", None, into="logits"),
        Trap("logits_spread", "tokens whose logits lie up to 80 apart", None, into="logits"),
        Trap("topk_zero", "tokens whose routing weights are zero, all or but one", None, into="topk weights"),
        Trap("topk_tiny", "routing weights of 2^-40 to 2^-90", None, into="topk weights"),
        Trap("topk_ties", "tokens whose routing weights are all equal: below one, one, or above it", None, into="topk weights"),
        Trap("alpha_specials", "alphas that are NaN or infinite, beside others", None, finite=False, into="gemm alpha", stretches=True),
        Trap("nan_scales", "rows of the weights with one block scale of NaN", None, finite=False, into="weights", stretches=True),
        Trap("output_specials", "experts' outputs with infinite and NaN elements, which are to be combined", None, finite=False, into="expert outputs"),
    )
}  # fmt: skip
"""By name, in the order in which they are drawn and written: another order draws and writes other problems."""
IN_ALPHA = ("alpha", "gemm alpha")
IN_ROUTES = ("logits", "topk weights", "expert outputs")


def find_trap(name: str) -> Trap:
    """Return the trap of that name.

    Raises:
        UsageError: no such trap; the message gives the nearest name.
    """
    if name not in TRAPS:
        raise unknown_name("trap", name, TRAPS)
    return TRAPS[name]
