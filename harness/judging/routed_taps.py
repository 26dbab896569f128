"""A routed layer judged GEMM by GEMM, where the candidate hands out what each of them stored.

As one opaque layer it is judged by ranges that widen from GEMM to GEMM: where partial sums are rounded to the output's type
they hold x1.1. Each GEMM on what the last one stored is a range of one GEMM, and the final sum of known rows is one value.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.candidates.taps import RoutedTaps
from harness.judging.comparison import Comparison
from harness.judging.context import Context
from harness.judging.contract import checked
from harness.judging.routed import (
    LegalRouted,
    call,
    checked_output,
    compare_range,
    computed,
    experts_of,
    judge,
    matrices_of,
    summed,
)
from harness.problems.rows import Rows
from reference.intervals import Interval
from reference.routed import Routes, routes_of


class _Stored(LegalRouted):
    """What a GEMM may store: where infinite and finite operands meet, anything."""

    def accepts(self, out: Tensor, rows: slice = slice(None)) -> Tensor:
        """Return which elements are legal."""
        return super().accepts(out, rows) | Interval(self.low[rows], self.high[rows]).anything()


def tapped(ctx: Context, given: dict[str, Any]) -> tuple[Tensor, RoutedTaps | None]:
    """Call routed_moe with keyword arguments; return what it returns, and what its GEMMs stored where it tells."""
    layer = getattr(ctx.calls, "routed_moe_tapped", None)
    if layer is None:
        return call(ctx, given), None
    out, taps = layer(**given)
    return checked_output(ctx, out, given), taps


def judge_tapped(
    ctx: Context,
    returned: tuple[Tensor, RoutedTaps | None],
    given: dict[str, Any],
    name: str = "routed layer",
) -> list[Comparison]:
    """Judge what `tapped` returned for a call.

    Args:
        ctx: the problem.
        returned: output and taps.
        given: keyword arguments of the call.
        name: of the comparisons.
    """
    out, taps = returned
    routes = routes_of(given["topk_idx"], len(given["w1"]), given["local_expert_offset"])
    if taps is None or not len(routes.token):
        return [judge(ctx, out, given, name)]
    return _judge(ctx, out, given, routes, taps, name)


def _judge(
    ctx: Context, out: Tensor, given: dict[str, Any], routes: Routes, taps: RoutedTaps, name: str
) -> list[Comparison]:
    """Judge what each GEMM stored on what the one before it did, and the sum of the second one's rows."""
    how = computed(ctx)
    experts, tokens = experts_of(given, how, routes, matrices_of(ctx))
    widths = ctx.problem.hidden, 2 * given["w2"].shape[2]
    gate_up, rows = _of_routes(ctx, taps, routes, given["w1"].shape[1])
    where = Rows(routes.expert, routes.place, len(given["w1"]), max(routes.most, 1))
    every, found = routes.token.new_tensor(range(len(rows))), []
    about = [f"token {t}, slot {s}" for t, s in zip(routes.token.tolist(), routes.slot.tolist(), strict=True)]

    def compared(what: str, got: Tensor, legal: Interval) -> None:
        allowed = _Stored(legal.low, legal.high)
        found.append(compare_range(ctx, f"{name}, {what}", got, allowed, where, every, about.__getitem__))

    operands = [
        experts.quantized_tokens(tokens),
        experts.quantized_hidden(Interval(gate_up.double(), gate_up.double())),
    ]
    factors: list[Tensor | None] = [None, None]
    for number, (codes, scale) in enumerate(_operands_of(ctx, taps, routes, widths)):
        compared(("tokens in FP8", "activation in FP8")[number], codes * scale.double(), operands[number])
        operands[number], factors[number] = Interval(codes, codes, codes.new_zeros((len(codes), 0))), scale
    compared("first GEMM", gate_up, experts.first(operands[0], factors[0]))
    compared("second GEMM", rows, experts.second(operands[1], factors[1]))
    served = routes.there.any(-1).nonzero().flatten()
    ids = given["topk_idx"].tolist()
    total = summed(given, how, routes, rows, rows)
    tokens_of = ctx.routed.token_rows()
    return [
        *found,
        compare_range(ctx, name, out, total, tokens_of, served, lambda row: f"experts {ids[row]}"),
    ]


def _operands_of(
    ctx: Context, taps: RoutedTaps, routes: Routes, widths: tuple[int, int]
) -> list[tuple[Tensor, Tensor]]:
    """Return what both GEMMs multiplied, float64 `(rows, k)` and factors `(rows, 1)`, expert after expert, where it is told."""
    found = []
    for (codes, scale), width in zip(taps.operands, widths, strict=False):
        elements = _at(ctx, codes, routes, width, torch.float8_e4m3fn)
        found.append((elements.double(), _at(ctx, scale, routes, 1, torch.float32)))
    return found


def _of_routes(ctx: Context, taps: RoutedTaps, routes: Routes, columns: int) -> tuple[Tensor, Tensor]:
    """Return the stored rows of the slots that count, expert after expert."""
    dtype = ctx.routed.layer_dtype
    return _at(ctx, taps.gate_up, routes, columns, dtype), _at(
        ctx, taps.rows, routes, ctx.problem.hidden, dtype
    )


def _at(ctx: Context, stored: Tensor, routes: Routes, width: int, dtype: torch.dtype) -> Tensor:
    """Return the rows of the slots that count. Raises ContractError where a tap is none of `(slots, width)` of its type."""
    slots = routes.there.numel()
    checked(stored, "routed_moe_tapped", "", (slots, width), dtype, ctx.traits.device, f"(slots, {width})")
    return stored[routes.token * routes.there.shape[1] + routes.slot]
