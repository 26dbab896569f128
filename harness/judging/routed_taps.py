"""A routed layer judged GEMM by GEMM, where the candidate hands out what each of them stored.

As one opaque layer it is judged by ranges that widen from GEMM to GEMM: where partial sums are rounded to the output's type
they hold x1.1. Each GEMM on what the last one stored is a range of one GEMM, and the final sum of known rows is one value.
"""

from __future__ import annotations

from typing import Any

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
    gate_up, rows = _of_routes(ctx, taps, routes, given["w1"].shape[1])
    where = Rows(routes.expert, routes.place, len(given["w1"]), max(routes.most, 1))
    found = []
    for gemm, got, legal in (
        ("first", gate_up, experts.gate_up(tokens)),
        ("second", rows, experts.rows(Interval(gate_up.double(), gate_up.double()))),
    ):
        about = [
            f"token {t}, slot {s}" for t, s in zip(routes.token.tolist(), routes.slot.tolist(), strict=True)
        ]
        allowed, all_rows = _Stored(legal.low, legal.high), routes.token.new_tensor(range(len(got)))
        found.append(
            compare_range(ctx, f"{name}, {gemm} GEMM", got, allowed, where, all_rows, about.__getitem__)
        )
    served = routes.there.any(-1).nonzero().flatten()
    ids = given["topk_idx"].tolist()
    total = summed(given, how, routes, rows, rows)
    tokens_of = ctx.routed.token_rows()
    return [
        *found,
        compare_range(ctx, name, out, total, tokens_of, served, lambda row: f"experts {ids[row]}"),
    ]


def _of_routes(ctx: Context, taps: RoutedTaps, routes: Routes, columns: int) -> tuple[Tensor, Tensor]:
    """Return the stored rows of the slots that count, expert after expert."""
    slots = routes.there.numel()
    dtype, device = ctx.routed.layer_dtype, ctx.traits.device
    at = routes.token * routes.there.shape[1] + routes.slot
    return tuple(  # type: ignore[return-value]
        checked(stored, "routed_moe_tapped", name, (slots, width), dtype, device, f"(slots, {width})")[at]
        for name, stored, width in (
            ("gate_up", taps.gate_up, columns),
            ("rows", taps.rows, ctx.problem.hidden),
        )
    )
