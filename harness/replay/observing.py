"""Captured calls as the diagnosis and the judging take them: the protocol's arguments and layouts, on the CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from harness.candidates import layouts
from harness.candidates.protocol import ROUTED
from harness.candidates.taps import copied_scale
from harness.capture.targets import MASKED_MOE_NAMES
from harness.diagnosis.cases.observation import INNER, MASKED_GEMM, MASKED_MOE, QUANTIZERS, Observed
from harness.replay.captured import Captured, NotJudgedError
from harness.replay.fused import observed_fused
from reference.formats import FORMATS

_HUMMING_A = {"bfloat16": "bf16", "float16": "fp16", "float8e4m3": "fp8_token"}
_HUMMING_B = {("float4e2m1", "float8e4m3"): "nvfp4", ("float4e2m1", "float8e8m0"): "mxfp4"}
JUDGED = (*INNER, MASKED_MOE)
_QUANTIZER = ("x", "masked_m", "global_scale_enc")
_GEMM = ("a", "a_scale", "b", "b_scale", "masked_m")


def observed(call: Captured, device: str = "cpu") -> Observed:
    """Return a captured call as an observed one, its tensors on a device.

    Raises:
        NotJudgedError: its stage has no rule, or its arguments are none of the protocol.
    """
    if call.stage == ROUTED:
        found = observed_fused(call)
        return replace(found, arguments=_moved(found.arguments, device), output=found.output.to(device))
    if call.stage not in JUDGED:
        raise NotJudgedError(f"{call.function}: recorded, and no rule judges it yet")
    a, out, changed = (_moved(values, device) for values in (call.inputs, call.outputs, call.changed))
    needed = {**dict.fromkeys(QUANTIZERS, _QUANTIZER), MASKED_GEMM: _GEMM, MASKED_MOE: MASKED_MOE_NAMES}
    if missing := [name for name in needed[call.stage] if name not in a]:
        raise NotJudgedError(f"{call.function}: {', '.join(missing)} was not dumped")
    if call.stage in QUANTIZERS:
        returned = (out["packed"], out["block_scale"]) if out else None
        return Observed(call.stage, a, returned, changed=changed)
    if call.stage == MASKED_GEMM and call.function.startswith("humming."):
        return _humming(call, a, out.get("out"), changed)
    if call.stage == MASKED_GEMM:
        for side in "ab":
            a[f"{side}_scale"] = copied_scale(a[f"{side}_scale"], a[side])
        if a.get("alpha") is not None:
            a["alpha"] = a["alpha"].reshape(-1)
        a.setdefault("out", torch.full_like(out["out"], torch.nan) if out else None)
        return Observed(call.stage, a, out.get("out"), changed=changed)
    return _layer(call, a, out.get("out"))


def _moved(values: dict[str, Any], device: str) -> dict[str, Any]:
    def moved(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(moved(one) for one in value)
        return value.to(device) if isinstance(value, torch.Tensor) else value

    return {name: moved(value) for name, value in values.items()}


def _humming(
    call: Captured, a: dict[str, Any], out: torch.Tensor | None, changed: dict[str, Any]
) -> Observed:
    """Return a masked GEMM whose weights were stored as they are in a checkpoint."""
    names = tuple(a.pop(name) for name in ("a_dtype", "b_dtype", "bs_dtype"))
    activations, weights = _HUMMING_A.get(names[0]), _HUMMING_B.get(names[1:])
    if activations is None or weights is None:
        raise NotJudgedError(f"{call.function} of {' x '.join(names)}: a format that no rule judges")
    plain = FORMATS[activations].plain
    if plain == (a["a"].element_size() == 1) or plain == (a["a_scale"] is not None):
        raise NotJudgedError(
            f"{call.function} with {a['a'].dtype} tokens quantizes them itself: its GEMM is not seen alone"
        )
    experts = len(a["masked_m"])
    if a.get("alpha") is not None and a["alpha"].numel() != experts:
        raise NotJudgedError(f"{call.function} with a factor of each channel, {tuple(a['alpha'].shape)}")
    a.pop("one_pass")
    a["a"] = a["a"] if plain else a["a"].view(torch.uint8)
    scale = layouts.scales(a["b_scale"].view(torch.uint8))
    a["b"], a["b_scale"] = a["b"].permute(1, 2, 0), scale if weights == "nvfp4" else scale.view(torch.uint8)
    return Observed(call.stage, a, out, changed=changed, forms=(FORMATS[activations], FORMATS[weights]))


def _layer(call: Captured, a: dict[str, Any], out: torch.Tensor | None) -> Observed:
    x, scale = a["hidden_states"]
    if scale is not None and scale.ndim != 6:
        raise NotJudgedError("masked_moe with block scales of another layout than (32, 4, rm, 4, rk, l)")
    if scale is not None and call.function.startswith("vllm."):
        x = x.permute(1, 2, 0)  # vLLM takes packed codes as (l, m, k/2)
    for name in ("w1_alpha", "w2_alpha", "a2_global_scale", "input_global_scale"):
        if a.get(name) is not None:
            a[name] = a[name].reshape(-1)
    forms = a.pop("formats", None)
    found = Observed(call.stage, {**a, "hidden_states": (x, scale)}, out)
    return found if forms is None else replace(found, forms=(FORMATS[forms[0]], FORMATS[forms[1]]))
