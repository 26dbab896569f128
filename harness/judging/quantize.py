"""Judge a quantizer's scales and codes: the scale first, then the codes given the scale that was stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.judging.comparison import Comparison, altered_copies, compare
from harness.problems.rows import Rows
from reference import e2m1, e4m3
from reference.activations import Activation, float32_freedom
from reference.legal import Arithmetic, Range, legal_codes, legal_scales
from reference.nvfp4 import BLOCK
from reference.quantizer_formulas import CODES, SCALES

_ALL = slice(None)
_ONE_EXPONENT = 8  # in an E4M3 byte: half or double the value
_FAR, _FAR_OF_GELU, _CANCELLED = -87, -5, 4  # gates from which on the activation may be zero; units
_SAMPLED_ROWS = 16  # rows whose rounding errors go into the histogram


@dataclass(frozen=True)
class QuantizerInput:
    """What the quantizer read, row by row: an interval per element, a point where the input was observed.

    Attributes:
        low: `(rows, k)` float32, smallest magnitude; NaN elements are 0.
        high: `(rows, k)` float32, largest magnitude (the same object where known).
        negative: `(rows, k)` bool, sign bit.
        is_nan: `(rows, k)` bool, or None where there is no NaN.
        maybe_nan: `(rows, k)` bool, elements that float32 arithmetic may turn into NaN, or None.
    """

    low: Tensor
    high: Tensor
    negative: Tensor
    is_nan: Tensor | None
    maybe_nan: Tensor | None = None

    @classmethod
    def known(cls, x: Tensor) -> QuantizerInput:
        """Return the input `x`, `(rows, k)` floating point, as it is."""
        magnitude = x.float().abs()
        is_nan = magnitude.isnan()
        has_nan = bool(is_nan.any())
        magnitude = magnitude.masked_fill(is_nan, 0) if has_nan else magnitude
        return cls(magnitude, magnitude, x.signbit(), is_nan if has_nan else None)

    @classmethod
    def activated(cls, gemm1: Tensor, activation: str, dtype: torch.dtype = torch.bfloat16) -> QuantizerInput:
        """Return the activation, "silu" or another (reference.activations), of `(rows, 2n)` bfloat16, with what float32 arithmetic is free to do before it is rounded.

        `dtype` is what it is rounded to: bfloat16, or float32 for a kernel that quantizes the activation as it computed it.
        See docs/bounds.md, "Activation".
        """
        way = Activation.of(activation)
        value = way.value(gemm1.double())
        if not way.gated:
            return cls.known(value.to(dtype))
        gate, up = way.clamped(*way.split(gemm1.double()))
        gate = way.alpha * gate
        freedom = float32_freedom(way, gate)
        magnitude = value.abs()
        low, high = magnitude * (1 - freedom), magnitude * (1 + freedom)
        if way.kind != "silu":  # 1 + erf(x) and 1 + tanh(x) cancel, so that f(x) is off by units of x
            lost = (gate * (up + way.beta)).abs().nan_to_num(0.0, posinf=0.0) * (_CANCELLED * 2.0**-23)
            low, high = (low - lost).clamp(min=0), high + lost
        low, high = low.to(dtype).float(), high.to(dtype).float()
        far = _FAR if way.kind == "silu" else _FAR_OF_GELU
        vanishes = (gate < far) | (magnitude < 2.0**-126)  # exp overflows, or the product is subnormal
        low = low.masked_fill(vanishes, 0)
        is_nan = value.isnan()
        # Where exp overflows silu may be -0, and -0 * infinity is NaN.
        maybe_nan = (gate < far) & value.isinf()
        return cls(
            low.nan_to_num(0.0, posinf=torch.inf),
            high.nan_to_num(0.0, posinf=torch.inf),
            value.signbit(),
            is_nan if bool(is_nan.any()) else None,
            maybe_nan if bool(maybe_nan.any()) else None,
        )

    def half_nan(self) -> Tensor | None:
        """Return the blocks whose even or odd elements are all NaN, but not both, `(rows, blocks)`; None where there is none.

        FlashInfer compares the maxima of the two halves with `x > y ? x : y`, so that such a block's scale may be NaN.
        """
        if self.is_nan is None:
            return None
        halves = self.is_nan.view(*self.is_nan.shape[:-1], -1, BLOCK // 2, 2).all(-2)
        found = halves.any(-1) & ~halves.all(-1)
        return found if bool(found.any()) else None

    def amax(self) -> tuple[Tensor, Tensor]:
        """Return the smallest and largest block amax, `(rows, blocks)` float32, NaN for blocks of nothing but NaN."""
        low, high = (m.view(*m.shape[:-1], -1, BLOCK).amax(-1) for m in (self.low, self.high))
        if self.is_nan is not None:
            all_nan = self.is_nan.view(*self.is_nan.shape[:-1], -1, BLOCK).all(-1)
            low, high = low.masked_fill(all_nan, torch.nan), high.masked_fill(all_nan, torch.nan)
        return low, high


def judge_quantized(
    stage: str,
    given: QuantizerInput,
    codes: Tensor,
    block_scale: Tensor,
    global_scale_enc: Tensor,
    rows: Rows,
    arithmetic: Arithmetic,
    *,
    keeps_sign_of_zero: bool = True,
) -> list[Comparison]:
    """Judge scales and codes of the valid rows.

    Args:
        stage: name for messages and the record; ".scale" and ".codes" are added.
        given: what was quantized.
        codes: `(rows, k)` uint8, the candidate's codes.
        block_scale: `(rows, k / 16)` uint8, the candidate's scale bytes.
        global_scale_enc: `(experts,)` float32.
        rows: where the rows come from.
        arithmetic: how the candidate computes.
        keeps_sign_of_zero: whether the code of -0.0 must be 0b1000.

    Returns:
        Two comparisons: scales, codes.
    """
    per_row = global_scale_enc.reshape(-1)[rows.expert].unsqueeze(-1)
    amax_low, amax_high = given.amax()
    arithmetic = _scales_of_this_call(arithmetic, amax_low, amax_high, per_row, block_scale)
    scale_range = legal_scales(amax_low, amax_high, per_row, arithmetic)
    scales = _judge_scales(
        f"{stage}.scale", block_scale, scale_range, amax_high, per_row, rows, arithmetic, given.half_nan()
    )
    blocks = (*block_scale.shape, BLOCK)
    low = given.low.view(blocks)
    high = low if given.high is given.low else given.high.view(blocks)

    def judge_of(arithmetic: Arithmetic) -> CodeJudge:
        legal = legal_codes(low, high, block_scale, per_row, arithmetic)
        flat = Range(legal.low.view(codes.shape), legal.high.view(codes.shape))
        return CodeJudge(flat, given, free_codes(block_scale), keeps_sign_of_zero)

    judge = judge_of(arithmetic)
    for other in _other_codes(arithmetic) if not bool(judge.accepts(codes).all()) else ():
        if bool(judge_of(other).accepts(codes).all()):
            arithmetic, judge = other, judge_of(other)
            break
    return [
        scales,
        _judge_codes(f"{stage}.codes", judge, codes, block_scale, given, per_row, rows, arithmetic),
    ]


def _other_codes(arithmetic: Arithmetic) -> Iterator[Arithmetic]:
    """Yield the arithmetic with each other formula of the codes that a kernel may change to; none where none was found."""
    for name in CODES if arithmetic.codes else ():
        if name not in arithmetic.codes and arithmetic.computes(name):
            yield replace(arithmetic, codes=(name,))


def _other_scales(arithmetic: Arithmetic) -> Iterator[Arithmetic]:
    """Yield the same for the formulas of the block scales."""
    for name in SCALES if arithmetic.scales else ():
        if name not in arithmetic.scales and arithmetic.computes(name):
            yield replace(arithmetic, scales=(name,))


def _scales_of_this_call(
    arithmetic: Arithmetic, low: Tensor, high: Tensor, gs: Tensor, stored: Tensor
) -> Arithmetic:
    """Return the arithmetic, with another formula of the scales where that one gives every scale and the known one does not."""

    def gives_all(arithmetic: Arithmetic) -> bool:
        return bool(legal_scales(low, high, gs, arithmetic).accepts(stored).all())

    if not arithmetic.scales or gives_all(arithmetic):
        return arithmetic
    return next(filter(gives_all, _other_scales(arithmetic)), arithmetic)


def _judge_scales(
    stage: str,
    stored: Tensor,
    legal: Range,
    amax: Tensor,
    gs: Tensor,
    rows: Rows,
    arithmetic: Arithmetic,
    maybe_nan: Tensor | None,
) -> Comparison:
    ambiguous = int((legal.ambiguous() if maybe_nan is None else legal.ambiguous() | maybe_nan).sum())

    def accepts(stored: Tensor, part: slice = _ALL) -> Tensor:
        ok = legal.accepts(stored, part)
        return ok if maybe_nan is None else ok | (maybe_nan[part] & (stored == e4m3.NAN_BYTE))

    def show(r: int, c: int) -> str:
        low, high = int(legal.low[r, c]), int(legal.high[r, c])
        wanted = f"0x{low:02X}" if low == high else f"0x{low:02X} or 0x{high:02X}"
        real = float(amax[r, c].double() * gs[r, 0].double() / 6)
        return (
            f"= 0x{int(stored[r, c]):02X} ({float(e4m3.decode_e4m3(stored[r, c])):.6g}), legal is {wanted} "
            f"(amax {float(amax[r, c]):.6g} * encode scale {float(gs[r, 0]):.6g} / 6 = {real:.6g})"
        )

    return compare(
        stage,
        accepts(stored),
        replace(rows, column_name="block"),
        judged={
            f"one legal scale: {arithmetic.describe_scales()}": stored.numel() - ambiguous,
            f"two legal scales: {arithmetic.describe_scales()}": ambiguous,
        },
        altered=altered_copies(stored, accepts, halved=lambda part: _halved_scales(stored[part])),
        show=show,
    )


def _halved_scales(stored: Tensor) -> Tensor:
    return torch.where(stored >= 2 * _ONE_EXPONENT, stored - _ONE_EXPONENT, stored // 2)


def free_codes(block_scale: Tensor) -> Tensor | None:
    """Return which elements decode to zero or NaN whatever their code, or None where none does."""
    free = (block_scale == 0) | (block_scale == e4m3.NAN_BYTE)
    return free.repeat_interleave(BLOCK, -1) if bool(free.any()) else None


@dataclass(frozen=True)
class CodeJudge:
    """Legal codes of some rows, given the candidate's own block scales.

    Attributes:
        legal: smallest and largest legal magnitude code, `(rows, k)`.
        given: what was quantized.
        free: `(rows, k)` bool, elements whose code means nothing (`free_codes`), or None.
        keeps_sign_of_zero: whether the sign bit of a zero counts.
    """

    legal: Range
    given: QuantizerInput
    free: Tensor | None
    keeps_sign_of_zero: bool

    def accepts(self, codes: Tensor, rows: slice = _ALL) -> Tensor:
        """Return which codes `(rows, k)` uint8 are legal; `rows` says which rows they are."""
        magnitude = codes & 7
        sign_ok = (codes >= e2m1.SIGN_BIT) == self.given.negative[rows]
        if not self.keeps_sign_of_zero:
            sign_ok |= magnitude == 0
        ok = self.legal.accepts(magnitude, rows) & sign_ok
        if self.given.is_nan is not None:
            ok = torch.where(self.given.is_nan[rows], codes == e2m1.NAN_CODE, ok)
        if self.given.maybe_nan is not None:
            ok |= self.given.maybe_nan[rows] & (codes == e2m1.NAN_CODE)
        if self.free is not None:
            ok |= self.free[rows]
        return ok & (codes < 16)


def _judge_codes(
    stage: str,
    judge: CodeJudge,
    codes: Tensor,
    block_scale: Tensor,
    given: QuantizerInput,
    gs: Tensor,
    rows: Rows,
    arithmetic: Arithmetic,
) -> Comparison:
    free = 0 if judge.free is None else int(judge.free.sum())
    two = judge.legal.ambiguous()
    ambiguous = int((two & ~judge.free).sum()) if judge.free is not None else int(two.sum())
    halves = torch.tensor(
        [e2m1.MAGNITUDES.index(m) for m in (0, 0, 0.5, 0.5, 1, 1.5, 2, 3)], device=codes.device
    )
    table = torch.cat((halves, halves + e2m1.SIGN_BIT)).to(torch.uint8)

    def show(r: int, c: int) -> str:
        scale = float(e4m3.decode_e4m3(block_scale[r, c // BLOCK]))
        code, sign = int(codes[r, c]), "-" if bool(given.negative[r, c]) else "+"
        low, high = int(judge.legal.low[r, c]), int(judge.legal.high[r, c])
        legal = " or ".join(f"{sign}{e2m1.MAGNITUDES[m]:g}" for m in range(low, high + 1))
        if given.is_nan is not None and bool(given.is_nan[r, c]):
            return f"= code {code}, but the input is NaN, which is stored as code 7 (+6)"
        real = float(given.high[r, c].double() * gs[r, 0].double()) / scale if scale else float("inf")
        stored = f"{'-' if code & 8 else '+'}{e2m1.MAGNITUDES[code & 7]:g}"
        return (
            f"= {stored} (code {code}), legal is {legal} (x {sign}{float(given.high[r, c]):.6g} * encode scale "
            f"{float(gs[r, 0]):.6g} / stored block scale {scale:.6g} = {sign}{real:.6g})"
        )

    legal = judge.accepts(codes)
    ratio = _rounding_ratio(
        codes[:_SAMPLED_ROWS], block_scale[:_SAMPLED_ROWS], given, gs[:_SAMPLED_ROWS], legal[:_SAMPLED_ROWS]
    )
    return compare(
        stage,
        legal,
        rows,
        judged={
            f"one legal code: {arithmetic.describe_codes()}": codes.numel() - ambiguous - free,
            f"two legal codes, tie rule not observable here: {arithmetic.describe_codes()}": ambiguous,
            "any code: the stored scale is zero or NaN": free,
        },
        altered=altered_copies(codes, judge.accepts, halved=lambda part: table[codes[part].int() & 15]),
        show=show,
        ratio=ratio,
    )


def _rounding_ratio(
    codes: Tensor, block_scale: Tensor, given: QuantizerInput, gs: Tensor, legal: Tensor
) -> Tensor:
    """Return |y - code| over half a step on that side, y = x * gs / stored scale; 1 is a midpoint. Unsaturated only."""
    scale = e4m3.decode_e4m3(block_scale).double().repeat_interleave(BLOCK, -1)
    y = given.high[: len(codes)].double() * gs.double() / scale
    magnitude = (codes & 7).long()
    values = torch.tensor(e2m1.MAGNITUDES, dtype=torch.float64, device=codes.device)
    middle = torch.tensor((0.0, *e2m1.MIDPOINTS, 6.0), dtype=torch.float64, device=codes.device)
    below, above = values[magnitude] - middle[magnitude], middle[magnitude + 1] - values[magnitude]
    distance = y - values[magnitude]
    ratio = distance.abs() / torch.where(distance > 0, above, below)
    ratio = torch.where(legal, ratio.clamp(max=1.0), ratio)  # just past a midpoint may be legal all the same
    return ratio[(y < 6) & (y > 0) & (scale > 0)].nan_to_num(0.0)
