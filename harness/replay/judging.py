"""A captured stage call judged on its own input, by the rules' own judges."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from harness.candidates import layouts
from harness.candidates.protocol import ROUTED
from harness.diagnosis.cases.legality import Bounds, reachable
from harness.diagnosis.cases.observation import MASKED_GEMM, MASKED_MOE, Observed
from harness.diagnosis.cases.routed import legal_routed
from harness.judging.comparison import Comparison, altered_copies, compare, compare_equal
from harness.judging.gemm import judge_gemm
from harness.judging.predicted import Prediction
from harness.judging.quantize import QuantizerInput, judge_quantized
from harness.problems.rows import Rows
from harness.replay.captured import Captured
from harness.replay.fused import ways_of
from harness.replay.fused_layer import Way
from reference.bounds import Accumulator
from reference.legal import Arithmetic
from reference.matrix_units import Summation
from reference.nvfp4 import BLOCK

_UNITS = {10: "sm_100 mxf4nvf4"}
"""Major compute capability -> how FlashInfer's masked GEMM adds there: demanded of a call where it fits that call."""
_HUMMING = {"one pass": "sm_90 {}", "stream": "sm_90 {}; lanes 2; from 768; stream"}
"""How Humming's adds on compute capability 9."""


@dataclass(frozen=True)
class Judged:
    """How captured calls are judged.

    Attributes:
        bounds: arithmetic of the quantizers, accumulator of the GEMM.
        summation: of the GEMM on the captured device, where it is known.
        capability: major compute capability of that device, 0 for none.
        ways: in which a routed layer's kernel may compute; the first is that of `bounds`.
    """

    bounds: Bounds
    summation: Summation | None = None
    capability: int = 0
    ways: tuple[Way, ...] = ()

    def of(self, call: Captured) -> Judged:
        """Return what is known of one call's kernel."""
        if call.stage == ROUTED:
            ways = ways_of(call, self.bounds, self.capability)
            return replace(self, bounds=ways[0].bounds, ways=tuple(ways))
        one_pass = call.line["inputs"].get("one_pass")
        if one_pass is None:
            return self
        unit = "f8" if call.line["inputs"]["a_dtype"] == "float8e4m3" else "f16"
        return replace(
            self, summation=Summation.of(_HUMMING["one pass" if one_pass else "stream"].format(unit))
        )

    def likeliest(self, call: Observed) -> Observed:
        """Return a call as its kernel most likely computes it."""
        return self.ways[0].of(call) if self.ways else call

    @classmethod
    def on(cls, capability: list[int] | None, arithmetic: str) -> Judged:
        """Return what is known of a capture's device."""
        major = capability[0] if capability else 0
        unit = _UNITS.get(major)
        bounds = Bounds(Arithmetic(arithmetic), Accumulator())
        return cls(bounds, Summation.of(unit) if unit else None, major)


def judge_in_its_way(call: Observed, known: Judged) -> list[Comparison]:
    """Judge a call in the first way of its kernel that leaves nothing illegal; else in the likeliest.

    Args:
        call: of a quantizer, the GEMM or a whole layer.
        known: how, from Judged.of.
    """
    found = judge_call(known.likeliest(call), known)
    for way in known.ways[1:]:
        if not any(one.illegal for one in found):
            break
        other = judge_call(way.of(call), replace(known, bounds=way.bounds))
        if not any(one.illegal for one in other):
            return other
    return found


def judge_call(call: Observed, known: Judged) -> list[Comparison]:
    """Judge a call of a stage on what it was given.

    Args:
        call: of a quantizer, the GEMM or a whole layer.
        known: how.
    """
    if call.stage == MASKED_GEMM:
        return [_gemm(call, known)]
    if call.stage == MASKED_MOE:
        return [_layer(call, known.bounds)]
    if call.stage == ROUTED:
        return [_routed(call, known.bounds)]
    return _quantizer(call, known.bounds)


def judge_passed_on(layer: Observed, last: Observed) -> Comparison:
    """Judge that a layer returned what its last GEMM stored."""
    rows = Rows.valid(layer.arguments["masked_m"].tolist(), layer.output.shape[1], layer.output.device)
    stored = rows.take(last.output.permute(2, 0, 1))
    return compare_equal(
        "layer output", rows.take(layer.output), stored, rows, "the last GEMM stored something else"
    )


def _rows(call: Observed, capacity: int) -> Rows:
    return Rows.valid(call.arguments["masked_m"].tolist(), capacity, call.arguments["masked_m"].device)


def _quantizer(call: Observed, bounds: Bounds) -> list[Comparison]:
    a = call.arguments
    x, (packed, scales) = a["x"], call.output
    silu = call.stage == "silu_mul_quantize_grouped"
    k, rows = x.shape[2] // 2 if silu else x.shape[2], _rows(call, x.shape[1])
    if not len(rows):
        return [Comparison(call.stage)]
    taken = rows.take(x)
    given = QuantizerInput.activated(taken, "silu", torch.bfloat16) if silu else QuantizerInput.known(taken)
    codes = layouts.codes_of(packed)
    stored = layouts.block_scales_of(scales, x.shape[1], k // BLOCK)
    gs = (
        a["global_scale_enc"].reshape(-1).expand(len(x))
        if a["global_scale_enc"].numel() == 1
        else a["global_scale_enc"]
    )
    return judge_quantized(
        call.stage,
        given,
        rows.take(codes),
        rows.take(stored),
        gs.reshape(-1).float(),
        rows,
        bounds.arithmetic,
    )


def _gemm(call: Observed, known: Judged) -> Comparison:
    a = call.arguments
    out = call.output.permute(2, 0, 1)
    masked_m = a["masked_m"].tolist()
    rows = _rows(call, out.shape[1])
    left, right = (
        layouts.loaded(form, (a[side], a[f"{side}_scale"]))
        for form, side in zip(call.forms, "ab", strict=True)
    )
    values = torch.zeros(left.codes.shape, dtype=torch.float32, device=out.device)  # padding holds anything
    values[rows.expert, rows.row] = call.forms[0].values(left.map(rows.take))
    weights = call.forms[1].values(right)
    alpha = None if a.get("alpha") is None else a["alpha"].float()
    given = call.stage, out, values, weights, alpha, masked_m, known.bounds.accumulator
    if known.summation is not None and (summation := known.summation.at(values.shape[2])) is not None:
        sides = values, left.block_scale, weights, right.block_scale
        prediction = Prediction(summation, *sides, forms=call.forms)
        found = judge_gemm(*given, prediction=prediction, row_scale=left.row_scale)
        if not found.illegal:
            return found
    return judge_gemm(*given, row_scale=left.row_scale)


def _layer(call: Observed, bounds: Bounds) -> Comparison:
    """Judge a layer of which no stage was captured, within what legal stages can reach."""
    rows = _rows(call, call.output.shape[1])
    if not len(rows):
        return Comparison(call.stage)
    low, high = reachable(call, bounds)
    got = rows.take(call.output)
    nan = low.isnan() | high.isnan()

    def accepts(values: torch.Tensor, part: slice = slice(None)) -> torch.Tensor:
        inside = (values >= low[part]) & (values <= high[part])
        return torch.where(nan[part], values.isnan(), inside)

    return compare(
        call.stage, accepts(got.double()), rows,
        judged={"interval propagated through the layer": got.numel()},
        altered=altered_copies(got, accepts),
        show=lambda r, c: (
            f"= {float(got[r, c]):.6g}, legal stages reach {float(low[r, c]):.6g} to {float(high[r, c]):.6g}"
        ),
    )  # fmt: skip


def _routed(call: Observed, bounds: Bounds) -> Comparison:
    """Judge a routed layer within what legal rows, added in a legal order, can come to."""
    out = call.output
    token = torch.arange(len(out), device=out.device)
    rows = Rows(torch.zeros_like(token), token, 1, len(out), expert_name="layer", row_name="token")
    if not len(rows):
        return Comparison(call.stage)
    allowed = legal_routed(call, bounds)
    low, high = allowed.low, allowed.high
    return compare(
        call.stage,
        allowed.accepts(out),
        rows,
        judged={f"legal rows; final sum {call.final_sum}": out.numel()},
        altered=altered_copies(out, allowed.accepts),
        show=lambda r, c: (
            f"= {float(out[r, c]):.8g}, legal are {float(low[r, c]):.8g} to {float(high[r, c]):.8g} "
            f"(experts {call.arguments['topk_idx'][r].tolist()})"
        ),
    )
