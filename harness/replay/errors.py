"""How far what a call returned is off the exact result of what it was given: for people, and for no verdict."""

from __future__ import annotations

import math

from torch import Tensor

from harness.diagnosis.cases.observation import MASKED_GEMM, MASKED_MOE, QUANTIZERS, Observed
from harness.diagnosis.cases.views import decoded, decoded_weights
from reference.activations import Activation

_ROWS = 16  # of each expert: enough for a figure


def relative_error(call: Observed) -> float | None:
    """Return the root mean square of a call's error relative to the exact result, over the first valid rows of each expert.

    None where nothing is to be measured, or where it is not finite.
    """
    measure = {MASKED_GEMM: _gemm, MASKED_MOE: _layer}.get(call.stage)
    if call.stage in QUANTIZERS:
        measure = _quantizer
    if measure is None:
        return None
    wrong = size = 0.0
    for expert, count in enumerate(call.arguments["masked_m"].tolist()):
        if count > 0:
            got, exact = measure(call, expert, slice(0, min(count, _ROWS)))
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


def _quantizer(call: Observed, expert: int, rows: slice) -> tuple[Tensor, Tensor]:
    a = call.arguments
    exact = a["x"][expert, rows].float()
    if call.stage == "silu_mul_quantize_grouped":
        exact = Activation.of(call.gated).value(exact)
    packed, scales = (one[..., expert : expert + 1] for one in call.output)
    return decoded(packed, scales)[0, rows] / _of(a["global_scale_enc"], expert), exact


def _gemm(call: Observed, expert: int, rows: slice) -> tuple[Tensor, Tensor]:
    a = call.arguments
    one = slice(expert, expert + 1)
    left, right = (decoded(a[side][..., one], a[f"{side}_scale"][..., one])[0] for side in "ab")
    exact = left[rows] @ right.T
    if a.get("alpha") is not None:
        exact = exact * _of(a["alpha"], expert)
    return call.output[rows, :, expert], exact


def _layer(call: Observed, expert: int, rows: slice) -> tuple[Tensor, Tensor]:
    a = call.arguments
    one = slice(expert, expert + 1)
    x, scale = a["hidden_states"]
    if scale is None:
        tokens = x[expert, rows].float() * _of(a["input_global_scale"], expert)
    else:
        tokens = decoded(x[..., one], scale[..., one])[0, rows]
    first, second = (decoded_weights(a[name][one], a[f"{name}_blockscale"][one])[0] for name in ("w1", "w2"))
    inner = Activation.of(a.get("activation", "silu")).value(tokens @ first.T * _of(a["w1_alpha"], expert))
    exact = inner * _of(a["a2_global_scale"], expert) @ second.T * _of(a["w2_alpha"], expert)
    return call.output[expert, rows], exact
