"""A recorded call as plain tensors for a script: its arguments, and what is legal in every valid element, as the judge has it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.candidates.protocol import ROUTED
from harness.diagnosis.cases.legality import Bounds, code_judge, legal_product, quantizer_input, reachable
from harness.diagnosis.cases.observation import MASKED_GEMM, MASKED_MOE, Observed
from harness.diagnosis.cases.routed import legal_routed
from harness.diagnosis.cases.views import untouchable
from harness.faults.mutant import CALLS
from harness.reproduction import plain
from reference.e4m3 import NAN_BYTE
from reference.legal import legal_scales
from reference.moe import valid_rows

_MOST_SCALES = 8  # legal scales of one block whose codes are listed; there are one or two


def plain_call(call: Observed, bounds: Bounds) -> dict[str, Any]:
    """Return a call without what is legal: stage, arguments and hints, the valid rows and the shape of its output."""
    names = CALLS[call.stage].names
    arguments = {name: value for name, value in call.arguments.items() if name in names}
    shape = _shape(call)
    counts = torch.tensor([shape[1]]) if call.stage == ROUTED else arguments["masked_m"]
    expert, row = valid_rows(counts, shape[1]).nonzero().unbind(1)
    found: dict[str, Any] = {
        "stage": call.stage,
        "hints": {name: value for name, value in call.arguments.items() if name not in names},
        "shape": shape,
        "rows": (expert, row),
        "checks": [],
        "needed": False,
    }
    if call.stage == MASKED_GEMM:
        found["keep"] = untouchable(call, bounds.store_rows).flatten()
        arguments = {"alpha": None, **arguments, "out": _with_memory(arguments["out"])}
    return found | {"arguments": arguments}


def judged_call(call: Observed, bounds: Bounds) -> dict[str, Any]:
    """Return a call with what is legal, and what is to be checked: its output, and whatever else was wrong with it."""
    found = plain_call(call, bounds)
    found |= {"legal": _legal(call, found, bounds), "checks": ["output"], "needed": True}
    if call.changed:
        found["checks"].append("inputs")
    if (
        call.stage == MASKED_GEMM
        and isinstance(call.output, Tensor)
        and plain.written_outside(found, call.output)
    ):
        found["checks"].append("memory")
    return found


def is_wrong(call: Observed, entry: dict[str, Any]) -> bool:
    """Return whether the script would find something wrong with what the call gave when it was recorded."""
    if len(entry["checks"]) > 1 or plain.broken_contract(entry, call.output):
        return True
    return bool(plain.wrong_elements(entry, call.output))


def _shape(call: Observed) -> tuple[int, int, int]:
    """Return experts, rows and columns of what the stage quantizes or returns."""
    a = call.arguments
    if call.stage == MASKED_GEMM:
        rows, columns, experts = a["out"].shape
        return experts, rows, columns
    if call.stage == ROUTED:
        return 1, len(a["topk_idx"]), a["w2"].shape[1]
    if call.stage == MASKED_MOE:
        experts, k = a["w2"].shape[:2]
        x, x_scale = a["hidden_states"]
        return experts, x.shape[0 if x_scale is not None else 1], k
    experts, rows, k = a["x"].shape
    return experts, rows, k // 2 if call.stage == "silu_mul_quantize_grouped" else k


def _with_memory(out: Tensor) -> dict[str, Any]:
    """Return an output with all the memory that it lies in, so that writing beside it is seen."""
    memory = torch.empty(0, dtype=out.dtype).set_(out.untyped_storage())
    return {
        "memory": memory.clone(),
        "size": tuple(out.shape),
        "stride": tuple(out.stride()),
        "offset": int(out.storage_offset()),
    }


def _legal(call: Observed, entry: dict[str, Any], bounds: Bounds) -> dict[str, Tensor]:
    if not len(entry["rows"][0]):
        nothing = torch.zeros(0, entry["shape"][2])
        blocks = torch.zeros(0, entry["shape"][2] // 16, dtype=torch.uint8)
        codes, scales = nothing.int().unsqueeze(0), blocks.unsqueeze(0)
        values = {"low": nothing, "high": nothing}
        return values | {"scale_low": blocks, "scale_high": blocks, "scales": scales, "codes": codes}
    if call.stage == MASKED_GEMM:
        allowed = legal_product(call, bounds)
        nan = allowed.exact.isnan()  # the ends of such an element mean nothing
        ends = (end.double().masked_fill(nan, torch.nan) for end in (allowed.low, allowed.high))
        found = {**dict(zip(("low", "high"), ends, strict=True)), "exact": allowed.exact}
        return found if allowed.undecided is None else found | {"undecided": allowed.undecided}
    if call.stage == ROUTED:
        allowed_tokens = legal_routed(call, bounds)
        return {"low": allowed_tokens.low, "high": allowed_tokens.high}
    if call.stage == MASKED_MOE:
        low, high = reachable(call, bounds)
        return {"low": low, "high": high}
    return _legal_quantized(call, entry, bounds)


def _legal_quantized(call: Observed, entry: dict[str, Any], bounds: Bounds) -> dict[str, Tensor]:
    counted = valid_rows(call.arguments["masked_m"], entry["shape"][1])
    given, gs = quantizer_input(call, counted, bounds)
    allowed = legal_scales(*given.amax(), gs, bounds.arithmetic)
    more = min(int((allowed.high - allowed.low).max()), _MOST_SCALES - 1)
    scales = [torch.minimum(allowed.low + step, allowed.high) for step in range(more + 1)]
    half_nan = given.half_nan()
    if half_nan is not None:
        scales.append(allowed.low.masked_fill(half_nan, NAN_BYTE))
    if call.output is not None and not plain.broken_contract(entry, call.output):
        scales.append(
            plain.valid_elements(entry, call.output)["scale"]
        )  # the wrong one, so that its codes are named
    masks = []
    for scale in scales:
        judge = code_judge(given, scale, gs, bounds)
        bits = [
            judge.accepts(torch.full_like(given.low, code, dtype=torch.uint8)).int() << code
            for code in range(16)
        ]
        masks.append(torch.stack(bits).sum(0, dtype=torch.int32))
    found = {
        "scale_low": allowed.low,
        "scale_high": allowed.high,
        "scales": torch.stack(scales),
        "codes": torch.stack(masks),
    }
    return found if half_nan is None else found | {"half_nan": half_nan}
