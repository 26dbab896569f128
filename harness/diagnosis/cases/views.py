"""An output as comparable elements, the same for every stage: groups x rows x cells x elements of a cell.

A group is an expert (or a rank), a row a token of it. A cell of a quantizer's output is a block: 16 codes and their
scale byte; other outputs have one cell a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.diagnosis.cases.around import layer_elements
from harness.diagnosis.cases.observation import MASKED_GEMM, MASKED_MOE, QUANTIZERS, Observed, tensors_in
from harness.judging.gemm import legal_rows
from harness.judging.quantize import CodeJudge, QuantizerInput, free_codes
from reference.bounds import Accumulator
from reference.legal import Arithmetic, Range, legal_codes, legal_scales
from reference.moe import valid_rows
from reference.nvfp4 import BLOCK, decode_blocks

SCALE = BLOCK  # element 16 of a quantizer's cell is the scale byte


@dataclass(frozen=True)
class Bounds:
    """How a call is judged: the candidate's declared and measured arithmetic."""

    arithmetic: Arithmetic
    accumulator: Accumulator
    keeps_sign_of_zero: bool = True
    store_rows: int = 128


def elements(stage: str, arguments: dict[str, Any], output: Any) -> Tensor:
    """Return the output of a stage as `(groups, rows, cells, elements)`."""
    if stage in QUANTIZERS:
        x = arguments["x"]
        rows = x.shape[1]
        k = x.shape[2] // 2 if stage == "silu_mul_quantize_grouped" else x.shape[2]
        codes = layouts.codes_of(output[0]).view(-1, rows, k // BLOCK, BLOCK)
        scale = layouts.block_scales_of(output[1], rows, k // BLOCK)
        return torch.cat((codes, scale.unsqueeze(-1)), dim=-1)
    if stage == MASKED_GEMM:
        product: Tensor = output.permute(2, 0, 1).unsqueeze(2)
        return product
    if stage == MASKED_MOE:
        layer: Tensor = output.unsqueeze(2)
        return layer
    return layer_elements(stage, output)[0]


def seen(call: Observed, view: str = "output") -> Tensor:
    """Return what was observed, as elements.

    Args:
        call: the call.
        view: "output"; "memory" for all the memory that a GEMM's output lies in; "inputs" for the bytes of its inputs.
    """
    if view == "inputs":
        arguments = {n: call.changed.get(n, v) for n, v in tensors_in(call.arguments)}
        return input_bytes(arguments)
    return memory_of(call.output) if view == "memory" else elements(call.stage, call.arguments, call.output)


def memory_of(out: Tensor) -> Tensor:
    """Return all the memory that a tensor lies in, `(1, 1, 1, elements)`."""
    size = out.untyped_storage().nbytes() // out.element_size()
    return torch.as_strided(out, (1, 1, 1, size), (size, size, size, 1), 0)


def input_bytes(arguments: dict[str, Any]) -> Tensor:
    """Return the bytes of all inputs one after the other, `(1, 1, 1, bytes)`."""
    flat = [t.contiguous().reshape(-1).view(torch.uint8) for n, t in tensors_in(arguments) if n != "out"]
    return torch.cat(flat).view(1, 1, 1, -1)


def valid(call: Observed) -> Tensor:
    """Return `(groups, rows)` bool: rows that count."""
    if call.stage in QUANTIZERS:
        rows = call.arguments["x"].shape[1]
    elif call.stage == MASKED_GEMM:
        rows = call.arguments["out"].shape[0]
    elif call.stage != MASKED_MOE:
        return layer_elements(call.stage, call.output)[1]
    else:
        rows = call.output.shape[1]
    return valid_rows(call.arguments["masked_m"], rows)


def untouchable(call: Observed, store_rows: int) -> Tensor:
    """Return which elements of a GEMM's memory lie outside whole tiles of valid rows, `(1, 1, 1, elements)` bool."""
    out = call.arguments["out"]
    inside = torch.zeros(memory_of(out).numel(), dtype=torch.bool)
    marks = torch.as_strided(inside, out.shape, out.stride(), out.storage_offset())
    for expert, count in enumerate(call.arguments["masked_m"].tolist()):
        marks[: -(-count // store_rows) * store_rows, :, expert] = True
    return ~inside.view(1, 1, 1, -1)


def legal(call: Observed, bounds: Bounds) -> Tensor:
    """Return which elements of an observed call are legal, `(groups, rows, cells, elements)`; padding rows are.

    Not for masked_moe: what an opaque layer may return is judged by harness.rules.layer.
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
    x = call.arguments["x"][counted]
    expert = counted.nonzero()[:, 0]
    gs = call.arguments["global_scale_enc"].reshape(-1)[expert].unsqueeze(-1)
    silu = call.stage == "silu_mul_quantize_grouped"
    given = QuantizerInput.activated(x, "silu") if silu else QuantizerInput.known(x)
    codes, scale = got[..., :SCALE].flatten(-2), got[..., SCALE]
    amax_low, amax_high = given.amax()
    scale_ok = legal_scales(amax_low, amax_high, gs, bounds.arithmetic).accepts(scale)
    low = given.low.view(*scale.shape, BLOCK)
    high = low if given.high is given.low else given.high.view(*scale.shape, BLOCK)
    allowed = legal_codes(low, high, scale, gs, bounds.arithmetic)
    flat = Range(allowed.low.view(codes.shape), allowed.high.view(codes.shape))
    code_ok = CodeJudge(flat, given, free_codes(scale), bounds.keeps_sign_of_zero).accepts(codes)
    return torch.cat((code_ok.view(*scale.shape, BLOCK), scale_ok.unsqueeze(-1)), dim=-1)


def decoded(packed: Tensor, scales: Tensor) -> Tensor:
    """Return an operand's code x block scale, `(l, rows, k)` float32."""
    codes = layouts.codes_of(packed)
    return decode_blocks(
        codes, layouts.block_scales_of(scales, codes.shape[1], codes.shape[2] // BLOCK), torch.float32
    )


def decoded_weights(packed: Tensor, swizzled: Tensor) -> Tensor:
    """Return masked_moe's weights as code x block scale, `(l, n, k)` float32."""
    return decoded(packed.permute(1, 2, 0), layouts.as_mma(swizzled.view(torch.uint8)))


def _legal_product(call: Observed, got: Tensor, bounds: Bounds) -> Tensor:
    a = call.arguments
    operands = decoded(a["a"], a["a_scale"]), decoded(a["b"], a["b_scale"])
    dtype = a["out"].dtype
    allowed = legal_rows(*operands, a.get("alpha"), a["masked_m"].tolist(), dtype, bounds.accumulator)
    assert allowed is not None  # noqa: S101 - there is a valid row
    return allowed.accepts(got.squeeze(1)).unsqueeze(1)
