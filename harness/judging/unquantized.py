"""Judge what a stage hands to a GEMM that takes bfloat16 or float16 as it is: tokens bit for bit, activations within their range."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.judging.comparison import Comparison, altered_copies, compare
from harness.judging.quantize import QuantizerInput
from harness.problems.rows import Rows


def legal_values(given: QuantizerInput, values: Tensor, part: slice = slice(None)) -> Tensor:
    """Return which values are legal, `(rows, k)` bool.

    Args:
        given: what was to be stored.
        values: `(rows, k)`, what was stored in some of its rows.
        part: which rows.
    """
    magnitude = values.float().abs()
    same_sign = (values.signbit() == given.negative[part]) | (magnitude == 0)
    legal = (magnitude >= given.low[part]) & (magnitude <= given.high[part]) & same_sign
    if given.is_nan is not None:
        legal = torch.where(given.is_nan[part], values.isnan(), legal)
    return legal if given.maybe_nan is None else legal | (given.maybe_nan[part] & values.isnan())


def judge_unquantized(stage: str, given: QuantizerInput, stored: Tensor, rows: Rows) -> Comparison:
    """Judge values that were stored without being quantized.

    Args:
        stage: name for messages and the record.
        given: what was to be stored: a value each, or the range that float32 arithmetic leaves.
        stored: `(rows, k)` bfloat16 or float16.
        rows: where the rows come from.
    """
    if not len(rows):
        return Comparison(stage)
    low, high = given.low, given.high

    def accepts(values: Tensor, part: slice = slice(None)) -> Tensor:
        return legal_values(given, values, part)

    def show(r: int, c: int) -> str:
        sign = "-" if bool(given.negative[r, c]) else ""
        ends = [f"{sign}{float(end[r, c]):.8g}" for end in (low, high)]
        wanted = ends[0] if ends[0] == ends[1] else " to ".join(ends)
        if given.is_nan is not None and bool(given.is_nan[r, c]):
            wanted = "NaN"
        return f"= {float(stored[r, c]):.8g}, legal is {wanted}"

    several = int((low != high).sum())
    return compare(
        stage,
        accepts(stored),
        rows,
        judged={"one value": stored.numel() - several, "float32 arithmetic leaves several": several},
        altered=altered_copies(stored, accepts),
        show=show,
    )
