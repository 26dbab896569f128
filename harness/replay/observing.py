"""Captured calls as the diagnosis and the judging take them: the protocol's arguments and layouts, on the CPU."""

from __future__ import annotations

from typing import Any

import torch

from harness.candidates.taps import copied_scale
from harness.diagnosis.cases.observation import INNER, MASKED_GEMM, MASKED_MOE, QUANTIZERS, Observed
from harness.replay.reading import Captured

JUDGED = (*INNER, MASKED_MOE)


class NotJudgedError(Exception):
    """A call that cannot be judged: why, in one sentence."""


def observed(call: Captured) -> Observed:
    """Return a captured call as an observed one.

    Raises:
        NotJudgedError: its stage has no rule, or its arguments are none of the protocol.
    """
    if call.stage not in JUDGED:
        raise NotJudgedError(f"{call.function}: recorded, and no rule judges it yet")
    a, out = dict(call.inputs), call.outputs
    if call.stage in QUANTIZERS:
        return Observed(call.stage, a, (out["packed"], out["block_scale"]), changed=dict(call.changed))
    if call.stage == MASKED_GEMM:
        for side in "ab":
            a[f"{side}_scale"] = copied_scale(a[f"{side}_scale"], a[side])
        if a.get("alpha") is not None:
            a["alpha"] = a["alpha"].reshape(-1)
        return Observed(call.stage, a, out["out"], changed=dict(call.changed))
    return _layer(call.stage, a, out["out"])


def _layer(stage: str, a: dict[str, Any], out: torch.Tensor) -> Observed:
    x, scale = a["hidden_states"]
    if scale is not None and scale.ndim != 6:
        raise NotJudgedError("masked_moe with block scales of another layout than (32, 4, rm, 4, rk, l)")
    for name in ("w1_alpha", "w2_alpha", "a2_global_scale", "input_global_scale"):
        if a.get(name) is not None:
            a[name] = a[name].reshape(-1)
    return Observed(stage, {**a, "hidden_states": (x, scale)}, out)
