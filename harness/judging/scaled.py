"""Judge a quantizer of MX formats or FP8: the scales first, then the elements given the scales that were stored."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from harness.judging.comparison import Comparison, altered_copies, compare
from harness.judging.quantize import QuantizerInput
from harness.problems.rows import Rows
from reference.e4m3 import round_to_byte
from reference.formats import Coded, Format
from reference.legal_scaled import Ends, in_blocks, legal_elements, legal_scales

_ALL = slice(None)


def judge_scaled(
    stage: str,
    given: QuantizerInput,
    stored: Coded,
    global_scale_enc: Tensor,
    rows: Rows,
    form: Format,
    *,
    keeps_sign_of_zero: bool = True,
) -> list[Comparison]:
    """Judge scales and elements of the valid rows.

    Args:
        stage: name for messages and the record; ".scale" and ".codes" are added.
        given: what was quantized.
        stored: `(rows, k)`.
        global_scale_enc: `(rows, 1)` float32, of a format with a scale of each expert.
        rows: where the rows come from; there is one.
        form: the format.
        keeps_sign_of_zero: whether the sign bit of a zero counts.

    Returns:
        Two comparisons, or that of the elements alone where no scale is stored.
    """
    judge = Scaled(form, given, global_scale_enc, keeps_sign_of_zero)
    scale, of_elements = judge.decoded_scales(stored), judge.spread_scales(stored)
    elements = _judge_elements(f"{stage}.codes", judge, stored, of_elements, rows)
    if scale is None:
        return [elements]
    return [_judge_scales(f"{stage}.scale", judge, stored, scale, rows), elements]


class Scaled:
    """What is legal of some rows in a format.

    Args:
        form: the format.
        given: what was quantized, `(rows, k)`.
        global_scale_enc: `(rows, 1)` float32, of a format with a scale of each expert.
        keeps_sign_of_zero: whether the sign bit of a zero counts.
    """

    def __init__(
        self, form: Format, given: QuantizerInput, global_scale_enc: Tensor, keeps_sign_of_zero: bool = True
    ) -> None:
        self.form, self.given, self.keeps_sign_of_zero = form, given, keeps_sign_of_zero
        self.encode = global_scale_enc.double()

    def decoded_scales(self, stored: Coded) -> Tensor | None:
        """Return the scales that were stored, `(rows, blocks)` float64; one block where a row has one scale."""
        if self.form.rows:
            assert stored.row_scale is not None  # noqa: S101 - a format with scales of rows
            return stored.row_scale.double()
        return self.form.scales(stored.block_scale).double() if self.form.scale else None

    def scale_ends(self) -> Ends:
        """Return the legal scales, `(rows, blocks)`."""
        amax = [self._blocks(end).amax(-1) for end in (self.given.low, self.given.high)]
        not_finite = amax[1].isinf()
        if self.given.is_nan is not None:
            not_finite |= self._blocks(self.given.is_nan).any(-1)
        low, high = (end.masked_fill(not_finite, torch.nan) for end in amax)
        return legal_scales(self.form, low, high, self.encode)

    def element_ends(self, scale: Tensor) -> Ends:
        """Return the legal magnitudes of elements, `(rows, k)`, given their scales."""
        usable = torch.where((scale > 0) & scale.isfinite(), scale, 1.0)
        return legal_elements(self.form, self.given.low, self.given.high, usable)

    def spread_scales(self, stored: Coded) -> Tensor:
        """Return what each stored element is multiplied with to get what was quantized, `(rows, k)` float64."""
        scale = self.decoded_scales(stored)
        if scale is None:
            return 1 / self.encode
        return self.spread(scale / self.encode if self.form.encoded else scale)

    def chosen_well(self, stored: Coded) -> Tensor:
        """Return which blocks have a scale that no other divisor's beats in squared error, `(rows, blocks)`.

        Errors that float32 arithmetic may take for each other are equal; so are all of an input that was not observed.
        """
        scale = self.decoded_scales(stored)
        assert scale is not None  # noqa: S101 - there are block scales
        if len(self.form.divisors) < 2 or self.given.high is not self.given.low:
            return torch.ones_like(scale, dtype=torch.bool)
        x = self._blocks(self.given.high.double()) * self.encode.unsqueeze(-1)
        here = self._error(x, scale)
        freedom = x.square().sum(-1) * 2.0**-20
        best = torch.full_like(here, torch.inf)
        for by in self.form.divisors:
            other = self.form.scales(round_to_byte(x.amax(-1) / by)).double()
            best = torch.minimum(best, self._error(x, other))
        return (here <= best + freedom) | ~here.isfinite()

    def _error(self, x: Tensor, scale: Tensor) -> Tensor:
        """Return the squared error of blocks `(rows, blocks, block)` of magnitudes under some scales."""
        usable = torch.where(scale > 0, scale, 1.0).unsqueeze(-1)
        values = self.form.elements(self.form.encode(x / usable), torch.float64) * usable
        return (torch.where(scale.unsqueeze(-1) > 0, values, 0.0) - x).square().sum(-1)

    def spread(self, scale: Tensor) -> Tensor:
        """Return scales `(rows, blocks)` for each of their elements."""
        return scale.repeat_interleave(self.given.low.shape[-1] // scale.shape[-1], -1)

    def accepts(self, codes: Tensor, ends: Ends, scale: Tensor, rows: slice = _ALL) -> Tensor:
        """Return which elements are legal, given their scales; under a scale of NaN, or of zero, all are."""
        value = self.form.elements(codes, torch.float64)
        magnitude = value.abs()
        sign = (codes >= (8 if self.form.element == "e2m1" else 0x80)) == self.given.negative[rows]
        if not self.keeps_sign_of_zero:
            sign |= magnitude == 0
        legal = (magnitude >= ends.low[rows]) & (magnitude <= ends.high[rows]) & sign
        return legal | ~(scale[rows].expand_as(legal) > 0)

    def legal(self, stored: Coded) -> Tensor:
        """Return which elements `(rows, k)` are legal, those under an illegal scale are not."""
        scale, of = self.decoded_scales(stored), self.spread_scales(stored)
        right = self.accepts(stored.codes, self.element_ends(of), of)
        return (
            right
            if scale is None
            else right & self.spread(self.accepts_scales(scale) & self.chosen_well(stored))
        )

    def accepts_scales(self, scale: Tensor, part: slice = _ALL) -> Tensor:
        """Return which decoded scales, `(rows, blocks)`, are legal."""
        ends = self.scale_ends()
        return torch.where(ends.high.isnan()[part], scale.isnan(), ends.hold(scale, part))

    def _blocks(self, values: Tensor) -> Tensor:
        return in_blocks(self.form, values)


def _judge_scales(stage: str, judge: Scaled, stored: Coded, scale: Tensor, rows: Rows) -> Comparison:
    """Judge decoded scales, `(rows, blocks)`."""
    ends, well = judge.scale_ends(), judge.chosen_well(stored)
    nan = ends.high.isnan()

    def accepts(values: Tensor, part: slice = _ALL) -> Tensor:
        inside = torch.where(nan[part], values.isnan(), ends.hold(values, part))
        return inside & (well[part] | (values != scale[part]))

    def show(r: int, c: int) -> str:
        low, high = float(ends.low[r, c]), float(ends.high[r, c])
        wanted = "NaN" if high != high else f"{low:.8g}" if low == high else f"{low:.8g} to {high:.8g}"  # noqa: PLR0124
        for other in ends.others:
            wanted += f" or {float(other.low[r, c]):.8g}, whichever leaves the smaller squared error"
        return f"= {float(scale[r, c]):.8g}, legal is {wanted}"

    single = int((ends.low == ends.high).sum())
    return compare(
        stage,
        accepts(scale),
        replace(rows, column_name="block"),
        judged={"one legal scale": single, "scales of a range": scale.numel() - single},
        altered=altered_copies(scale, accepts),
        show=show,
    )


def _judge_elements(stage: str, judge: Scaled, stored: Coded, scale: Tensor, rows: Rows) -> Comparison:
    """Judge elements, `(rows, k)`, given their scales."""
    codes, ends = stored.codes, judge.element_ends(scale)
    values = judge.form.elements(codes, torch.float64)

    def accepts(codes: Tensor, part: slice = _ALL) -> Tensor:
        return judge.accepts(codes, ends, scale, part)

    def show(r: int, c: int) -> str:
        sign = "-" if bool(judge.given.negative[r, c]) else ""
        low, high = (f"{sign}{float(end[r, c]):g}" for end in (ends.low, ends.high))
        wanted = low if low == high else f"{low} or {high}"
        of = float(scale.expand_as(codes)[r, c])
        return f"= {float(values[r, c]):g}, legal is {wanted} under the stored scale {of:.8g}"

    single = int((ends.low == ends.high).sum())
    return compare(
        stage,
        accepts(codes),
        rows,
        judged={"one legal code": single, "two legal codes": codes.numel() - single},
        altered=altered_copies(codes, accepts, halved=lambda part: judge.form.encode(values[part] / 2)),
        show=show,
    )
