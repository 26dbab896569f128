"""Captured calls as the diagnosis and the judging take them: the protocol's arguments and layouts, on the CPU."""

from __future__ import annotations

from typing import Any

import torch

from harness.candidates.taps import copied_scale
from harness.capture.targets import MASKED_MOE_NAMES
from harness.diagnosis.cases.observation import INNER, MASKED_GEMM, MASKED_MOE, QUANTIZERS, Observed
from harness.replay.captured import Captured

JUDGED = (*INNER, MASKED_MOE)
_QUANTIZER = ("x", "masked_m", "global_scale_enc")
_GEMM = ("a", "a_scale", "b", "b_scale", "masked_m")


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
    needed = {**dict.fromkeys(QUANTIZERS, _QUANTIZER), MASKED_GEMM: _GEMM, MASKED_MOE: MASKED_MOE_NAMES}
    if missing := [name for name in needed[call.stage] if name not in a]:
        raise NotJudgedError(f"{call.function}: {', '.join(missing)} was not dumped")
    changed = dict(call.changed)
    if call.stage in QUANTIZERS:
        returned = (out["packed"], out["block_scale"]) if out else None
        return Observed(call.stage, a, returned, changed=changed)
    if call.stage == MASKED_GEMM:
        for side in "ab":
            a[f"{side}_scale"] = copied_scale(a[f"{side}_scale"], a[side])
        if a.get("alpha") is not None:
            a["alpha"] = a["alpha"].reshape(-1)
        a.setdefault("out", torch.full_like(out["out"], torch.nan) if out else None)
        return Observed(call.stage, a, out.get("out"), changed=changed)
    return _layer(call, a, out.get("out"))


def _layer(call: Captured, a: dict[str, Any], out: torch.Tensor | None) -> Observed:
    x, scale = a["hidden_states"]
    if scale is not None and scale.ndim != 6:
        raise NotJudgedError("masked_moe with block scales of another layout than (32, 4, rm, 4, rk, l)")
    if scale is not None and call.function.startswith("vllm."):
        x = x.permute(1, 2, 0)  # vLLM takes packed codes as (l, m, k/2)
    for name in ("w1_alpha", "w2_alpha", "a2_global_scale", "input_global_scale"):
        if a.get(name) is not None:
            a[name] = a[name].reshape(-1)
    return Observed(call.stage, {**a, "hidden_states": (x, scale)}, out)
