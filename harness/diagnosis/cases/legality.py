"""Which elements of a recorded call are legal: a stage's output on its own inputs, a whole layer's within what can be reached."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.diagnosis.cases.observation import MASKED_GEMM, QUANTIZERS, Observed
from harness.diagnosis.cases.views import SCALE, loaded_weights, seen, valid
from harness.judging.gemm import accept_other_orders, legal_rows
from harness.judging.predicted import Prediction
from harness.judging.quantize import CodeJudge, QuantizerInput, free_codes
from harness.judging.scaled import Scaled
from harness.judging.unquantized import legal_values
from reference import layer_range
from reference.bounds import Accumulator, LegalOutput
from reference.e4m3 import NAN_BYTE
from reference.formats import NVFP4
from reference.intervals import Interval
from reference.legal import Arithmetic, Range, legal_codes, legal_scales
from reference.matrix_units import Summation
from reference.nvfp4 import BLOCK
from reference.propagate import Added


@dataclass(frozen=True)
class Bounds:
    """How a call is judged: the candidate's declared and measured arithmetic.

    `second` and `rounded` are those of harness.judging.routed.Computed.
    """

    arithmetic: Arithmetic
    accumulator: Accumulator
    keeps_sign_of_zero: bool = True
    store_rows: int = 128
    unrounded: tuple[str, ...] = ()
    summation: Summation | None = None
    second: Accumulator | None = None
    rounded: tuple[str, ...] = ()


def legal(call: Observed, bounds: Bounds) -> Tensor:
    """Return which elements of an observed call are legal, `(groups, rows, cells, elements)`; padding rows are.

    For the stages that a layer is composed of; `legal_layer` is for the layer itself.
    """
    got, counted = seen(call), valid(call)
    result = torch.ones(got.shape, dtype=torch.bool)
    if not bool(counted.any()):
        return result
    if call.stage in QUANTIZERS:
        result[counted] = _legal_quantized(call, got[counted], counted, bounds)
    elif call.stage == MASKED_GEMM:
        result[counted] = _legal_product(call, got[counted], bounds)
    return result


def _legal_quantized(call: Observed, got: Tensor, counted: Tensor, bounds: Bounds) -> Tensor:
    given, gs = quantizer_input(call, counted, bounds)
    form = call.forms[0]
    if form.plain:
        return legal_values(given, got.squeeze(1)).unsqueeze(1)
    if form != NVFP4:
        judge = Scaled(form, given, gs, bounds.keeps_sign_of_zero)
        stored = layouts.loaded(form, call.output).map(lambda t: t[counted])
        return judge.legal(stored).unsqueeze(1)
    codes, scale = got[..., :SCALE].flatten(-2), got[..., SCALE]
    amax_low, amax_high = given.amax()
    scale_ok = legal_scales(amax_low, amax_high, gs, bounds.arithmetic).accepts(scale)
    if (half_nan := given.half_nan()) is not None:
        scale_ok |= half_nan & (scale == NAN_BYTE)
    code_ok = code_judge(given, scale, gs, bounds).accepts(codes)
    return torch.cat((code_ok.view(*scale.shape, BLOCK), scale_ok.unsqueeze(-1)), dim=-1)


def quantizer_input(call: Observed, counted: Tensor, bounds: Bounds) -> tuple[QuantizerInput, Tensor]:
    """Return what a quantizer read in its valid rows, and the encode scale of each, `(rows, 1)`."""
    dtype = torch.float32 if "hidden" in bounds.unrounded else call.forms[0].layer_dtype
    x = call.arguments["x"][counted]
    expert = counted.nonzero()[:, 0]
    gs = call.arguments["global_scale_enc"].reshape(-1)[expert].unsqueeze(-1)
    silu = call.stage == "silu_mul_quantize_grouped"
    return (QuantizerInput.activated(x, call.gated, dtype) if silu else QuantizerInput.known(x)), gs


def code_judge(given: QuantizerInput, scale: Tensor, gs: Tensor, bounds: Bounds) -> CodeJudge:
    """Return which codes are legal under stored block scales, `(rows, blocks)` uint8."""
    low = given.low.view(*scale.shape, BLOCK)
    high = low if given.high is given.low else given.high.view(*scale.shape, BLOCK)
    allowed = legal_codes(low, high, scale, gs, bounds.arithmetic)
    flat = Range(allowed.low.flatten(-2), allowed.high.flatten(-2))
    return CodeJudge(flat, given, free_codes(scale), bounds.keeps_sign_of_zero)


def _legal_product(call: Observed, got: Tensor, bounds: Bounds) -> Tensor:
    return legal_product(call, bounds).accepts(got.squeeze(1)).unsqueeze(1)


def legal_product(call: Observed, bounds: Bounds) -> LegalOutput:
    """Return the legal interval of every valid element of a GEMM, of which there must be one.

    Where another order of the same unit explains what was seen, that is the one legal value.
    """
    given, prediction = _product(call, bounds)
    allowed = legal_rows(*given, prediction=prediction)
    assert allowed is not None  # noqa: S101 - there is a valid row
    if prediction is None:
        return allowed
    got = seen(call)[valid(call)].squeeze(1)
    known = allowed.accepts(got)
    mask = known.clone()
    accept_other_orders(mask, got, given, prediction)
    other = mask & ~known
    low = torch.where(other, got.to(allowed.low.dtype), allowed.low)
    same = allowed.high is allowed.low
    high = low if same else torch.where(other, got.to(allowed.high.dtype), allowed.high)
    return replace(allowed, low=low, high=high)


def _product(call: Observed, bounds: Bounds) -> tuple[tuple[Any, ...], Prediction | None]:
    """Return what legal_rows takes for a GEMM, and the prediction where the candidate's summation is known."""
    a = call.arguments
    coded = [
        layouts.loaded(form, (a[name], a[f"{name}_scale"]))
        for name, form in zip("ab", call.forms, strict=True)
    ]
    dtype = torch.float64 if call.forms[0].scale == "float32" else torch.float32
    operands = [
        form.values(each, kind)
        for form, each, kind in zip(call.forms, coded, (dtype, torch.float32), strict=True)
    ]
    prediction = None
    summation = bounds.summation.at(operands[0].shape[2]) if bounds.summation else None
    # Which k are streamed depends on the shape, so where some are any may be.
    if summation is not None and bounds.summation is not None and not bounds.summation.streams:
        sides = operands[0], coded[0].block_scale, operands[1], coded[1].block_scale
        prediction = Prediction(summation, *sides, forms=call.forms)
    scaled_in = call.forms[0].block if call.forms[0].scale == "float32" else 0
    given = (
        *operands, a.get("alpha"), a["masked_m"].tolist(), a["out"].dtype, bounds.accumulator, coded[0].row_scale, scaled_in,
    )  # fmt: skip
    return given, prediction


def legal_layer(call: Observed, bounds: Bounds) -> Tensor:
    """Return which elements of a layer's output lie in what legal stages can reach, `(groups, rows, 1, elements)`."""
    result = torch.ones(call.output.shape, dtype=torch.bool)
    counted = valid(call)
    if bool(counted.any()):
        low, high = reachable(call, bounds)
        got = call.output[counted].double()
        nan = low.isnan() | high.isnan()
        result[counted] = torch.where(nan, got.isnan(), (got >= low) & (got <= high))
    return result.unsqueeze(2)


def reachable(call: Observed, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """Return the ends of what legal stages can reach in a layer's valid rows, `(rows, k)` float64; there must be one."""
    a = call.arguments
    x, x_scale = a["hidden_states"]
    form, of_weights = call.forms
    coded = [loaded_weights(a[name], a[f"{name}_blockscale"], of_weights) for name in ("w1", "w2")]
    (w1, w2), counted = (of_weights.values(each) for each in coded), valid(call)
    w1_scales, w2_scales = (of_weights.scales(each.block_scale) for each in coded)
    if x_scale is None and not form.plain:
        source, x_scales = x[counted].double(), None
    else:
        tokens = form.quantize(x) if x_scale is None else layouts.loaded(form, (x, x_scale))
        tokens = tokens.map(lambda t: t[counted])
        source = form.dequantized(tokens)
        x_scales = form.scales(tokens.block_scale) if form.swizzled or form.plain else None
    taken = x_scale is not None or form.plain
    input_scale = None if taken else a["input_global_scale"].reshape(-1)
    w1_alpha, a2_scale, w2_alpha = (a[n].reshape(-1) for n in ("w1_alpha", "a2_global_scale", "w2_alpha"))
    found = layer_range.masked_moe(
        Interval(source, source, x_scales),
        a["masked_m"].tolist(),
        w1,
        w2,
        (w1_alpha, input_scale, a2_scale, w2_alpha),
        a.get("activation", "silu"),
        bounds.arithmetic,
        Added(bounds.accumulator, bounds.summation, call.forms),
        bounds.unrounded,
        (w1_scales, w2_scales),
    )
    return found.low, found.high
