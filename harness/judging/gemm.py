"""Judge a masked GEMM's output against the legal values of every element (reference.bounds).

Three things decide, the cheapest first: the grid certificate; the bound, where it leaves one value; the summation of the
candidate's GEMM, where it is known (harness.judging.predicted). Where it is not, an element may lie in an interval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from harness.judging.comparison import Comparison, altered_copies, compare
from harness.judging.finish import Finish
from harness.judging.order_here import inside_the_bound, not_known_here
from harness.judging.predicted import Prediction, explained
from harness.judging.stream import StreamedCall
from harness.problems.rows import Rows
from reference.bounds import Accumulator, LegalOutput, legal_gemm


def judge_gemm(
    stage: str,
    out: Tensor,
    a: Tensor,
    b: Tensor,
    alpha: Tensor | None,
    masked_m: list[int],
    accumulator: Accumulator,
    *,
    b_steps: Tensor | None = None,
    prediction: Prediction | None = None,
    row_scale: Tensor | None = None,
    scaled_in: int = 0,
) -> Comparison:
    """Judge the valid rows of a GEMM on the operands that it was really given.

    Args:
        stage: name for messages and the record.
        out: logical `(experts, capacity, n)`, the candidate's output.
        a: `(experts, capacity, k)` float32, the decoded operand: the candidate's own previous stage.
        b: `(experts, n, k)` float32, the decoded weights.
        alpha: `(experts,)` float32 or None.
        masked_m: valid rows of each expert.
        accumulator: how the candidate adds.
        b_steps: `(experts, n)`, `step_exponents(b)` where known.
        prediction: of the same operands, where the candidate's summation is known.
        row_scale: `(experts, capacity, 1)` float32, factors of the rows of a, or None.
        scaled_in: elements of k whose sum is multiplied by a float32 scale before it is added to the others; 0: none.
    """
    given = a, b, alpha, masked_m, out.dtype, accumulator, row_scale, scaled_in
    legal = legal_rows(*given, b_steps=b_steps, prediction=prediction)
    if legal is None:
        return Comparison(stage)
    rows = Rows.valid(masked_m, out.shape[1], out.device)
    got, wide, bit_equal = rows.take(out), _widened(legal), int(legal.bit_equal.sum())
    accepts, values = _acceptor(wide), got.float()
    judged = {f"bit equality: {accumulator.describe()}": bit_equal}
    mask = accepts(values, slice(None))
    by_interval = ~legal.bit_equal
    if prediction is None:
        # Where the certificate holds the float64 oracle is exact too; elsewhere the bound has room for its rounding.
        oracle = "" if legal.oracle_exact else "; float64 oracle itself rounded"
        judged[f"derived bound: {accumulator.describe()}{oracle}"] = got.numel() - bit_equal
    else:
        if prediction.summation.streams:  # also sums that are certain are rounded part by part
            judged, bit_equal = {}, 0
        judged |= _predicted(mask, got, given, prediction, got.numel() - bit_equal)
        by_interval = torch.zeros_like(legal.bit_equal)
    found = compare(
        stage,
        mask,
        rows,
        judged=judged,
        altered=altered_copies(values, accepts),
        show=_show(got, legal, streams=prediction is not None and prediction.summation.streams),
        ratio=_ratio(wide, values, mask, by_interval),
    )
    found.oracle = dict(legal.ways)
    return found


def _ratio(legal: LegalOutput, values: Tensor, mask: Tensor, by_interval: Tensor) -> Tensor | None:
    """Return error over bound: of all elements where one is illegal, else of those that an interval judged."""
    if not bool(mask.all()):
        return legal.ratio(values)
    return legal.ratio(values)[by_interval] if bool(by_interval.any()) else None


def _show(got: Tensor, legal: LegalOutput, *, streams: bool) -> Callable[[int, int], str]:
    """Return what a message says of an element: its value, the exact one, and what is legal."""

    def show(r: int, c: int) -> str:
        exact, value = float(legal.exact[r, c]), float(got[r, c])
        times = "" if exact == 0 or not abs(value / exact) < 1e6 else f", {value / exact:.6g} times it"
        cut = f"; no cuts of k into parts added in {str(got.dtype)[6:]} give its tile" if streams else ""
        return f"= {value:.8g}, exact result {exact:.8g}{times}; {_legal_there(legal, r, c)}{cut}"

    return show


def _predicted(
    mask: Tensor, got: Tensor, given: tuple[Any, ...], prediction: Prediction, of: int
) -> dict[str, int]:
    """Accept in `mask`, `(rows, n)`, what another order of the same unit explains; return how many elements each order judged."""
    summation = prediction.summation
    found = accept_other_orders(mask, got, given, prediction)
    streamed = f"parts added in {str(got.dtype).removeprefix('torch.')}, by some cuts of k"
    judged = {
        f"{streamed if name.endswith(' parts') else 'one value, added in another order'}: {name}": count
        for name, count in found.items()
    }
    unknown = 0 if summation.streams or prediction.again is None else _unknown(mask, got, given, prediction)
    if unknown:
        judged[f"derived bound, order not known at this shape: {given[5].describe()}"] = unknown
    left = max(0, of - found.total() - unknown)
    return {**judged, f"one value, predicted: {summation}": left}


def accept_other_orders(
    mask: Tensor, got: Tensor, given: tuple[Any, ...], prediction: Prediction
) -> Counter[str]:
    """Accept what another order of the same unit explains of the valid rows that are not as predicted.

    Args:
        mask: `(rows, n)` bool, which elements are legal by the known order; changed in place.
        got: `(rows, n)`, the candidate's output.
        given: what `legal_rows` takes, from `a` to `accumulator`.
        prediction: of the known order.

    Returns:
        How many elements each other order judged.
    """
    masked_m, found = given[3], Counter[str]()
    if prediction.summation.streams:
        streamed = StreamedCall(prediction, found)
        for search in (streamed.one_pass_or_few_parts, streamed.many_parts):
            for expert, rows in _rows(masked_m):
                bad = ~mask[rows]
                if bool(bad.any()):
                    search(bad, got[rows], expert, _finish(given, expert, got.dtype))
                mask[rows] = ~bad
    for expert, start, legal in () if bool(mask.all()) else _experts(*given):
        rows = slice(start, start + masked_m[expert])
        bad = ~mask[rows]
        for finish in _finish(given, expert, got.dtype).orders():
            if bool(bad.any()):
                found += explained(bad, got[rows], legal, prediction, expert, finish)
        mask[rows] = ~bad
    return found


def _finish(given: tuple[Any, ...], expert: int, dtype: torch.dtype) -> Finish:
    """Return what the epilogue makes of the float32 sums of an expert's valid rows."""
    alpha, masked_m, accumulator, row_scale = (given[i] for i in (2, 3, 5, 6))
    factor = None if row_scale is None else row_scale[expert, : masked_m[expert], 0]
    return Finish(accumulator.epilogue, _of(alpha, expert), dtype, factor)


def _unknown(mask: Tensor, got: Tensor, given: tuple[Any, ...], prediction: Prediction) -> int:
    """Accept in `mask` the tiles whose order is not known at this shape; return their elements that the bound leaves open."""
    masked_m = given[3]
    may_be = (
        inside_the_bound(~mask[start : start + len(legal.low)], legal, got[start : start + len(legal.low)])
        for _, start, legal in _experts(*given)
    )
    if bool(mask.all()) or prediction.again is None or not any(bool(tiles.any()) for tiles in may_be):
        return 0
    asked, out = prediction.again()
    there = asked.a, asked.b, *given[2:]
    probe = torch.cat([out[expert, :count] for expert, count in enumerate(masked_m)])
    legal = legal_rows(*there, prediction=asked)
    seen = legal.accepts(probe) if legal is not None else torch.ones_like(mask)
    accept_other_orders(seen, probe, there, asked)
    unknown = 0
    for (expert, start, here), (_, _, of_probe) in zip(_experts(*given), _experts(*there), strict=True):
        rows = slice(start, start + masked_m[expert])
        found = not_known_here(~mask[rows], here, got[rows], ~seen[rows], of_probe, probe[rows])
        mask[rows] |= found
        unknown += int((found & (here.low != here.high)).sum())
    return unknown


def legal_rows(
    a: Tensor,
    b: Tensor,
    alpha: Tensor | None,
    masked_m: list[int],
    dtype: torch.dtype,
    accumulator: Accumulator,
    row_scale: Tensor | None = None,
    scaled_in: int = 0,
    *,
    b_steps: Tensor | None = None,
    prediction: Prediction | None = None,
) -> LegalOutput | None:
    """Return the legal outputs of all valid rows, experts one after the other; None where there is no valid row."""
    parts = [
        legal
        for _, _, legal in _experts(
            a, b, alpha, masked_m, dtype, accumulator, row_scale, scaled_in, b_steps, prediction
        )
    ]
    if not parts:
        return None
    low, exact, bit_equal = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("low", "exact", "bit_equal")
    )
    high = low if all(part.high is part.low for part in parts) else torch.cat([part.high for part in parts])
    undecided = None
    if any(part.undecided is not None for part in parts):
        undecided = torch.cat(
            [torch.zeros_like(p.bit_equal) if p.undecided is None else p.undecided for p in parts]
        )
    ways = sum((part.ways for part in parts), Counter())
    return LegalOutput(low, high, exact, bit_equal, all(part.oracle_exact for part in parts), undecided, ways)


def _legal_there(legal: LegalOutput, r: int, c: int) -> str:
    """Return what is legal in an element, in words."""
    if legal.undecided is not None and bool(legal.undecided[r, c]):
        return "legal are NaN and either infinity"
    if bool(legal.exact[r, c].isnan()):
        return "the only legal value is NaN"
    low, high = float(legal.low[r, c]), float(legal.high[r, c])
    return f"the only legal value is {low:.8g}" if low == high else f"legal are {low:.8g} to {high:.8g}"


def _experts(
    a: Tensor,
    b: Tensor,
    alpha: Tensor | None,
    masked_m: list[int],
    dtype: torch.dtype,
    accumulator: Accumulator,
    row_scale: Tensor | None = None,
    scaled_in: int = 0,
    b_steps: Tensor | None = None,
    prediction: Prediction | None = None,
) -> Iterator[tuple[int, int, LegalOutput]]:
    """Yield each expert that has rows, where they begin among all valid rows, and what is legal in them."""
    for expert, rows in _rows(masked_m):
        count = masked_m[expert]
        steps = None if b_steps is None else b_steps[expert]
        predict = None if prediction is None else prediction.of_expert(expert, count)
        yield (
            expert,
            rows.start,
            legal_gemm(
                a[expert, :count],
                b[expert],
                _of(alpha, expert),
                dtype,
                accumulator,
                b_steps=steps,
                predict=predict,
                within_float64=prediction is not None and prediction.within_float64,
                rounded_once=prediction is not None and prediction.summation.rounds_once(a.shape[-1]),
                row_scale=None if row_scale is None else row_scale[expert, :count],
                scaled_in=scaled_in,
            ),
        )


def _rows(masked_m: list[int]) -> Iterator[tuple[int, slice]]:
    """Yield each expert that has rows, and where they lie among all valid rows."""
    for expert, end in enumerate(accumulate(masked_m)):
        if masked_m[expert]:
            yield expert, slice(end - masked_m[expert], end)


def _of(alpha: Tensor | None, expert: int) -> Tensor | None:
    return None if alpha is None else alpha.reshape(-1)[expert]


def _widened(legal: LegalOutput) -> LegalOutput:
    """Return it in float32, which holds every value of the narrower types and compares several times faster than they do."""
    low = legal.low.float()
    high = low if legal.high is legal.low else legal.high.float()
    return replace(legal, low=low, high=high)


def _acceptor(legal: LegalOutput) -> Callable[[Tensor, slice], Tensor]:
    """Return LegalOutput.accepts for a slice of the rows, without its test for NaN where no exact result is NaN."""
    expect_nan = legal.exact.isnan() if bool(legal.exact.isnan().any()) else None
    undecided = legal.undecided

    def accepts(out: Tensor, rows: slice) -> Tensor:
        if legal.low is legal.high:
            inside = out == legal.low[rows]
        else:
            inside = (out >= legal.low[rows]) & (out <= legal.high[rows])
        legal_too = inside if expect_nan is None else torch.where(expect_nan[rows], out.isnan(), inside)
        return legal_too if undecided is None else torch.where(undecided[rows], ~out.isfinite(), legal_too)

    return accepts
