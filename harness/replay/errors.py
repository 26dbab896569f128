"""How far what a call returned is off the exact result of what it was given: for people, and for no verdict."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.protocol import ROUTED
from harness.diagnosis.cases.observation import MASKED_GEMM, MASKED_MOE, QUANTIZERS, Observed
from harness.diagnosis.cases.views import decoded_weights
from harness.judging.routed import coded_tokens
from reference.activations import Activation
from reference.final_sum import FinalSum
from reference.formats import Format
from reference.routed import routes_of

_EXPERTS, _ROWS, _TOKENS = 4, 16, 2  # enough for a figure


def relative_error(call: Observed) -> float | None:
    """Return the root mean square of a call's error relative to the exact result, over a few rows of a few experts.

    None where nothing is to be measured, or where it is not finite.
    """
    if call.stage == ROUTED:
        return relative_distance(*_routed(call))
    measure = {MASKED_GEMM: _gemm, MASKED_MOE: _layer}.get(call.stage)
    if call.stage in QUANTIZERS:
        measure = _quantizer
    if measure is None:
        return None
    wrong = size = 0.0
    counts = call.arguments["masked_m"].tolist()
    busy = [expert for expert, count in enumerate(counts) if count > 0]
    for expert in busy[:: max(1, len(busy) // _EXPERTS)][:_EXPERTS]:
        got, exact = measure(call, expert, slice(0, min(counts[expert], _ROWS)))
        wrong += float((got.double() - exact.double()).square().sum())
        size += float(exact.double().square().sum())
    found = math.sqrt(wrong / size) if size > 0 and wrong >= 0 else math.nan
    return found if math.isfinite(found) else None


def relative_distance(got: Tensor, before: Tensor) -> float | None:
    """Return the root mean square of got - before relative to before; None where it is not finite."""
    size = float(before.double().square().sum())
    wrong = float((got.double() - before.double()).square().sum())
    found = math.sqrt(wrong / size) if size > 0 and wrong >= 0 else 0.0 if wrong == 0 else math.nan
    return found if math.isfinite(found) else None


def _of(values: Tensor, expert: int) -> Tensor:
    """Return an expert's factor of one for all, or one for each."""
    flat = values.reshape(-1).float()
    return flat[expert if len(flat) > 1 else 0]


def _values(form: Format, packed: Tensor, scale: Any) -> Tensor:
    coded = layouts.loaded(form, (packed, scale))
    values = form.values(coded)
    return values if coded.row_scale is None else values * coded.row_scale


def _quantizer(call: Observed, expert: int, rows: slice) -> tuple[Tensor, Tensor]:
    a = call.arguments
    exact = a["x"][expert, rows].float()
    if call.stage == "silu_mul_quantize_grouped":
        exact = Activation.of(call.gated).value(exact)
    packed, scales = (one[..., expert : expert + 1] for one in call.output)
    return _values(call.forms[0], packed, scales)[0, rows] / _of(a["global_scale_enc"], expert), exact


def _gemm(call: Observed, expert: int, rows: slice) -> tuple[Tensor, Tensor]:
    a = call.arguments
    one = slice(expert, expert + 1)
    scale = a["a_scale"]
    if call.forms[0].rows:
        scale = scale[one]
    elif scale is not None:
        scale = scale[..., one]
    left = _values(call.forms[0], a["a"][..., one], scale)[0, rows]
    exact = left @ _values(call.forms[1], a["b"][..., one], a["b_scale"][..., one])[0].T
    if a.get("alpha") is not None:
        exact = exact * _of(a["alpha"], expert)
    return call.output[rows, :, expert], exact


def _layer(call: Observed, expert: int, rows: slice) -> tuple[Tensor, Tensor]:
    a = call.arguments
    one = slice(expert, expert + 1)
    x, scale = a["hidden_states"]
    if scale is not None:
        tokens = _values(call.forms[0], x[..., one], scale[..., one])[0, rows]
    else:
        tokens = x[expert, rows].float() * (
            _of(a["input_global_scale"], expert) if call.forms[0].encoded else 1
        )
    weights = [
        decoded_weights(a[name][one], a[f"{name}_blockscale"][one], call.forms[1])[0] for name in ("w1", "w2")
    ]
    inner = Activation.of(a.get("activation", "silu")).value(
        tokens @ weights[0].T * _of(a["w1_alpha"], expert)
    )
    inner = inner * _of(a["a2_global_scale"], expert) if call.forms[0].encoded else inner
    return call.output[expert, rows], inner @ weights[1].T * _of(a["w2_alpha"], expert)


def _routed(call: Observed) -> tuple[Tensor, Tensor]:
    """Return a few tokens' outputs and the exact ones, in float32."""
    a, form = call.arguments, call.forms[0]
    few = slice(0, _TOKENS)
    x, scale = a["hidden_states"]
    x = x[few]
    if scale is None:
        tokens = x.float() * (_of(a["input_global_scale"], 0) if form.encoded else 1)
    else:
        coded = coded_tokens(form, x, scale[few])
        tokens = form.values(coded) * (1 if coded.row_scale is None else coded.row_scale)
    routes = routes_of(a["topk_idx"][few], len(a["w1"]), a["local_expert_offset"])
    exact = torch.zeros(len(tokens), call.output.shape[1], device=tokens.device)
    way = Activation.of(a.get("activation", "silu"))
    for expert, token, slot in zip(
        routes.expert.tolist(), routes.token.tolist(), routes.slot.tolist(), strict=True
    ):
        one = slice(expert, expert + 1)
        w1, w2 = (
            decoded_weights(a[name][one], a[f"{name}_blockscale"][one], call.forms[1])[0]
            for name in ("w1", "w2")
        )
        inner = way.value(w1 @ tokens[token] * _of(a["w1_alpha"], expert))
        inner = inner * _of(a["a2_global_scale"], expert) if form.encoded else inner
        exact[token] += a["topk_weights"][token, slot] * (w2 @ inner * _of(a["w2_alpha"], expert))
    return call.output[few], exact * FinalSum.of(call.final_sum).times
