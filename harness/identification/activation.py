"""What silu_mul_quantize_grouped computes between its input and its codes, found through the stage itself.

Pairs of gate and up are chosen whose activation, computed in one way or in another, lies on two sides of a middle of two
codes. Coarse pairs tell what is rounded to which type: there the ways differ by so much that no free choice of an
exponential or of a quantizer's formula changes a code. Near pairs lie a few units of float32 from a rounding boundary and
show how far the exponential errs. Gates where exp(-gate) overflows, or nearly, show the order of operations.

The same is asked through a layer whose stages are hidden (harness.identification.layer): there `Activated` is a layer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from harness.candidates.protocol import Traits, traits_of
from harness.identification.activation_pairs import (
    ENCODE_SCALES,
    NAMES,
    ONE_GATE,
    PLAIN_GATE,
    Member,
    Pairs,
    coarse_pairs,
    members,
    near_pairs,
)
from harness.identification.quantizer_probe import Quantize
from harness.judging.contract import checked_quantized
from harness.records.finding import Finding
from reference import e4m3
from reference.nvfp4 import BLOCK

STAGE = "silu_mul_quantize_grouped"
EXACT, APPROXIMATE = "exact to a unit", "approximate, within the bound of __expf"

ALPHA = 1.3671875 + 2.0**-20
"""Not a value of bfloat16 or float16."""

_STEPS = 4  # units that +, / and * add to the error of an exponential
_QUANTIZER = 4  # units that a quantizer's formula adds where it is given float32
_CASTS = {False: "after alpha", True: "before alpha"}
_WRONG = 2.0**-6  # an activation further off is another function
_LARGEST_AT = (0, BLOCK // 2)
"""Elements that give a block its scale: two, for quantizers that pass over one of sixteen."""

Activated = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""gate and up `(experts, rows, 2n)` float32, encode scales `(experts,)` -> codes `(experts, rows, n)`, block scale bytes
`(experts, rows, n / 16)`, both uint8."""


@dataclass(frozen=True)
class Asked:
    """An activation that is followed by a quantizer, and what can be asked of it.

    Attributes:
        call: what is asked.
        stage: name for the findings.
        width: n must be a multiple of it.
        bits: significant bits of gate and up that it can be given.
        gemm1: types that gate and up may be rounded to before; of a stage, which is given bfloat16, that one.
        scaled: the same with gate and up given before they are multiplied by an alpha of ALPHA; None of a stage.
        lowest: the lowest gate of pairs whose activation is about 1.
        most: the largest up.
    """

    call: Activated
    stage: str = STAGE
    width: int = BLOCK
    bits: int = 8
    gemm1: tuple[torch.dtype, ...] = (torch.bfloat16,)
    scaled: Activated | None = None
    lowest: float = -80.0
    most: float = 2.0**125


def activation_findings(candidate: Any) -> list[Finding]:
    """Return what silu_mul_quantize_grouped computes before it quantizes: `find_activation` of the stage."""
    return find_activation(Asked(stage_call(candidate), width=traits_of(candidate).width_multiple))


def as_quantizer(candidate: Any) -> Quantize:
    """Return the stage's quantizer: silu_mul_quantize_grouped of gates of 128, whose activation is 128 * up exactly.

    The result quantizes x of 2^-119 and more in magnitude, zeros, infinities and NaN; masked_m is passed over, each row
    counts.
    """
    return quantizer_of(stage_call(candidate), traits_of(candidate).width_multiple)


def quantizer_of(call: Activated, width: int) -> Quantize:
    """Return the quantizer behind an activation, as `as_quantizer` does. Blocks are asked in rows of `width`."""

    def quantize(x: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> tuple[Tensor, Tensor]:
        del masked_m
        flat = x.float().flatten(1) / ONE_GATE
        filled = torch.nn.functional.pad(flat, (0, -flat.shape[1] % width))
        up = filled.view(len(x), -1, width)
        codes, scales = call(torch.cat((torch.full_like(up, ONE_GATE), up), -1), global_scale_enc)
        codes, scales = codes.flatten(1)[:, : flat.shape[1]], scales.flatten(1)[:, : flat.shape[1] // BLOCK]
        return codes.reshape(x.shape), scales.reshape(*x.shape[:-1], -1)

    return quantize


def stage_call(candidate: Any) -> Activated:
    """Return a candidate's silu_mul_quantize_grouped as a function of gate and up, whatever its multiples and limits."""
    traits = traits_of(candidate)

    def call(gate_up: Tensor, global_scale_enc: Tensor) -> tuple[Tensor, Tensor]:
        experts, rows, both = gate_up.shape
        x = gate_up.to(
            traits.device, torch.bfloat16, copy=True
        )  # what a candidate writes to is asked of others
        x = torch.nn.functional.pad(x, (0, 0, 0, -rows % traits.m_multiple))
        masked_m = torch.full((experts,), rows, dtype=torch.int32, device=traits.device)
        result = candidate.silu_mul_quantize_grouped(
            x, masked_m, global_scale_enc.to(traits.device, copy=True)
        )
        shape = torch.Size((experts, x.shape[1], both // 2))
        got = checked_quantized(result, shape, STAGE, traits.device)
        return got.codes[:, :rows].cpu(), got.block_scale[:, :rows].cpu()

    return in_allowed_experts(call, traits)


def in_allowed_experts(call: Activated, traits: Traits, most: int = 1 << 16) -> Activated:
    """Return a call of any number of experts, made of calls with as many as a candidate takes, about `most` at a time."""

    def of_any(gate_up: Tensor, global_scale_enc: Tensor) -> tuple[Tensor, Tensor]:
        experts = len(gate_up)
        at_once = traits.at_most_experts(max(min(experts, most), traits.min_experts))
        whole = -(-experts // at_once) * at_once
        index = torch.arange(whole).clamp(max=experts - 1)  # the last one fills up
        parts = [call(gate_up[part], global_scale_enc[part]) for part in index.view(-1, at_once)]
        codes, scales = (torch.cat(part)[:experts] for part in zip(*parts, strict=True))
        return codes, scales

    return of_any


def find_activation(asked: Asked) -> list[Finding]:
    """Return what was found about "gemm1" and "cast" (where asked), "silu", "hidden", "exponential", "order of operations".

    Found "" where nothing known gives every code.
    """
    ways = members(asked.gemm1)
    alpha = ALPHA if asked.scaled else 1.0
    pairs, codes = coarse_pairs(ways, asked.bits, max(asked.lowest, -4.0), alpha)
    got, usable = _ask(asked, pairs)
    right = ((got & 7) == codes) & ~_wrong_sign(pairs, got)
    fitting = [way for way, ok in zip(ways, right | ~usable, strict=True) if bool(ok.all())]
    if not bool(usable.float().mean() > 0.5):
        return _types(asked, [], "no block had the scale that it was made for")
    plain = pairs.gate == PLAIN_GATE
    if not bool((right[0] | ~usable)[plain].all()):
        return _types(asked, [], "the quantizer behind it does not round to nearest")
    evidence = f"{int((usable & ~plain).sum())} codes that tell roundings apart"
    if not fitting:
        return [*_types(asked, [], evidence), *_another_function(asked, pairs, got, usable)]
    return [
        *_types(asked, fitting, evidence),
        *(_exponential(asked, fitting[0]) + _order(asked) if _is_float32(fitting[0]) else ()),
    ]


def _is_float32(way: Member) -> bool:
    """Return whether nothing on the way is rounded so that an exponential's error, or an order, would not be seen."""
    return way.silu == torch.float32 and way.hidden != torch.float16


def _types(asked: Asked, fitting: Sequence[Member], evidence: str) -> list[Finding]:
    """Return the types of what fits, one finding a value; free ones are float32 and bfloat16, of silu float32 alone."""
    found = []
    if len(asked.gemm1) > 1:
        when = list(dict.fromkeys(_CASTS[way.before_alpha] for way in fitting)) or [""]
        found.append(Finding(asked.stage, "cast", when[0], tuple(when[1:]), evidence, _CASTS[False]))
    free = {"gemm1": (torch.bfloat16, torch.float32), "hidden": (torch.bfloat16, torch.float32)}
    for point in ("gemm1", "silu", "hidden"):
        if point == "gemm1" and len(asked.gemm1) == 1:
            continue
        types = list(dict.fromkeys(getattr(way, point) for way in fitting))
        fixed = "float32" if point == "silu" else ""
        if types and not any(dtype in free.get(point, (torch.float32,)) for dtype in types):
            fixed = fixed or "bfloat16"
        names = [NAMES[dtype] for dtype in types] or [""]
        found.append(Finding(asked.stage, point, names[0], tuple(names[1:]), evidence, fixed))
    return found


def _another_function(asked: Asked, pairs: Pairs, got: Tensor, usable: Tensor) -> list[Finding]:
    """Return how far an activation is from silu(gate) * up that no way to round explains, where it is near it at all."""
    real, off = pairs.real().abs(), []
    for hidden in (torch.bfloat16, torch.float32):
        low, high = pairs.cells(got, hidden)
        off.append(torch.maximum(low / real - 1, 1 - high / real).clamp(min=0)[usable])
    least = min(off, key=lambda each: float(each.max()))
    largest = float(least.max())
    if not 0 < largest < _WRONG or bool(_wrong_sign(pairs, got)[usable].any()):
        return [Finding(asked.stage, "exponential", "", evidence="no function known gives these codes")]
    evidence = f"{int((least > 0).sum())} of {len(least)} codes show it"
    return [_worse(asked, f"off by 2^{math.floor(math.log2(largest))} and more", evidence)]


def _wrong_sign(pairs: Pairs, got: Tensor) -> Tensor:
    """Return which codes have the wrong sign; zeros have any."""
    return ((got >= 8) != (pairs.gate * pairs.up < 0)) & ((got & 7) != 0)


def _worse(asked: Asked, found: str, evidence: str) -> Finding:
    return Finding(asked.stage, "exponential", found, (), evidence, APPROXIMATE)


def _exponential(asked: Asked, way: Member) -> list[Finding]:
    """Return how far the exponential errs: a lower bound from codes on the wrong side of a boundary."""
    near = near_pairs(way.hidden, asked.lowest)
    got, usable = _ask(asked, near.pairs)
    is_above, units = (got & 7) >= near.above, near.units()
    off = torch.where(is_above == (units > 0), 0, units.abs())
    known = usable & (((got & 7) == near.above) | ((got & 7) == near.above - 1))
    gate = near.pairs.gate
    steps = _STEPS + (_QUANTIZER if way.hidden == torch.float32 else 0)
    bound = (2 + 1.173 * gate.abs()) * torch.sigmoid(-gate) + steps
    beyond = (~known & usable) | (off > bound)
    evidence = f"{int(known.sum())} activations within 64 units of float32 of a rounding boundary"
    if bool(beyond.any()):
        most = int((off / bound).argmax())
        shown = f"at gate {float(gate[most]):g} by {float(off[most]):.0f} units, where {float(bound[most]):.0f} are legal"
        return [_worse(asked, "off by more than the bound of __expf", f"{evidence}; {shown}")]
    largest = float(off.max()) if len(off) else 0.0
    if largest > steps:
        return [Finding(asked.stage, "exponential", APPROXIMATE, (), f"{evidence}, {largest:.0f} units off")]
    return [Finding(asked.stage, "exponential", EXACT, (APPROXIMATE,), evidence)]


_FIRST_SILU = "gate / (1 + exp(-gate)) * up"
_SIGMOID = "gate * (1 / (1 + exp(-gate))) * up"
_FLUSHED = "gate * (1 / (1 + exp(-gate))) * up, subnormals flushed"
_FAST = "__fdividef(gate, 1 + exp(-gate)) * up"
_UP_FIRST = "gate * up / (1 + exp(-gate))"
_WIDE = "in a range wider than that of float32"


def _order(asked: Asked) -> list[Finding]:
    """Return the order of operations, as far as a value that vanishes or overflows on the way shows it."""
    # exp(96) is beyond float32; 1 / (1 + exp(88)) is subnormal; -60 * 2^125 is infinite, silu(-60) * 2^125 is not.
    gates = torch.tensor((-96.0, -88.0, -60.0), dtype=torch.float64)
    up = torch.full_like(gates, asked.most)
    real = (gates * torch.sigmoid(gates) * up).abs()
    pair = torch.cat([x.float().view(-1, 1, 1).expand(-1, 1, asked.width) for x in (gates, up)], -1)
    codes, scales = asked.call(pair, (6 / real).float())
    stored = (
        e4m3.decode_e4m3(scales[:, 0, 0]).double()
        * torch.tensor((0, 0.5, 1, 1.5, 2, 3, 4, 6))[codes[:, 0, 0].long() & 7]
        / 6
    )
    overflown, subnormal, first = (
        "lost" if v == 0 else "kept" if 0.8 < v < 1.25 else "other" for v in stored.tolist()
    )
    says_first = asked.most * 60 > torch.finfo(torch.float32).max
    evidence = "gates of -60, -88 and -96 with a large up"
    if says_first and first == "other":
        return [Finding(asked.stage, "order of operations", _UP_FIRST, (), evidence)]
    if "other" in (overflown, subnormal) or first == "lost":
        return [Finding(asked.stage, "order of operations", "", evidence=evidence)]
    more = () if says_first else (_UP_FIRST,)
    if overflown == "kept":
        return [Finding(asked.stage, "order of operations", _WIDE, (), evidence)]
    if subnormal == "lost":
        return [Finding(asked.stage, "order of operations", _FLUSHED, (_FAST,), evidence)]
    return [Finding(asked.stage, "order of operations", _FIRST_SILU, (_SIGMOID, *more), evidence)]


def _ask(asked: Asked, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Return the code of each pair, and whether its block has the scale that it was made for."""
    place, rows = _laid_out(pairs, asked.width)
    call = asked.call if pairs.alpha == 1 or asked.scaled is None else asked.scaled
    codes, block_scale = (x.flatten(1) for x in call(rows, torch.tensor(ENCODE_SCALES)))
    stored = e4m3.decode_e4m3(block_scale[pairs.expert, place // BLOCK])
    return codes[pairs.expert, place], stored.double() == pairs.scale


@lru_cache(maxsize=16)
def _laid_out(pairs: Pairs, width: int) -> tuple[Tensor, Tensor]:
    """Return where each pair stands in its expert, and gate and up of all, `(experts, rows, 2 * width)`, which nobody writes to."""
    place = _places(pairs)
    block = place // BLOCK
    columns = -(-(int(block.max()) + 1) * BLOCK // width) * width
    gate = torch.full((len(ENCODE_SCALES), columns), ONE_GATE)
    up = torch.zeros(len(ENCODE_SCALES), columns)
    scales = torch.tensor(ENCODE_SCALES)
    largest = 6 * pairs.scale / scales[pairs.expert].double() / (ONE_GATE * pairs.alpha**2)
    if pairs.alpha != 1:
        largest *= 1 + 2.0**-7  # its roundings may lower it
    largest = next_bfloat16(largest)
    for offset in _LARGEST_AT:
        up[pairs.expert, block * BLOCK + offset] = largest.float()
    gate[pairs.expert, place], up[pairs.expert, place] = pairs.gate.float(), pairs.up.float()
    return place, torch.cat([x.view(len(scales), -1, width) for x in (gate, up)], -1)


def next_bfloat16(x: Tensor) -> Tensor:
    """Return the next value of bfloat16 that is not below, float64: a block scale that is cut is then the same."""
    step = torch.exp2(torch.frexp(x)[1].double() - 8)
    return (x / step).ceil() * step


def _places(pairs: Pairs) -> Tensor:
    """Return where each pair stands in the row of its expert: pairs of one block scale share blocks."""
    free = [at for at in range(BLOCK) if at not in _LARGEST_AT]
    used: Counter[tuple[int, float]] = Counter()
    blocks: Counter[int] = Counter()
    current: dict[tuple[int, float], int] = {}
    places = []
    for kind in zip(pairs.expert.tolist(), pairs.scale.tolist(), strict=True):
        at = used[kind] % len(free)
        if at == 0:
            current[kind] = blocks[kind[0]]
            blocks[kind[0]] += 1
        used[kind] += 1
        places.append(current[kind] * BLOCK + free[at])
    return torch.tensor(places)
