"""A call as comparable elements, the same for every stage: groups x rows x cells x elements of a cell.

A group is an expert (or a rank), a row a token of it. A cell of a quantizer's output is a block: 16 codes and their
scale byte; other outputs have one cell a row. Besides its output, a call has two more views: all the memory that a GEMM's
output lies in, and the bytes of its inputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.protocol import ROUTED
from harness.diagnosis.cases.around import elements_around
from harness.diagnosis.cases.observation import (
    INNER,
    MASKED_GEMM,
    MASKED_MOE,
    QUANTIZERS,
    Observed,
    bytes_of,
    tensors_in,
)
from reference.formats import NVFP4, Coded, Format
from reference.moe import valid_rows
from reference.nvfp4 import BLOCK

SCALE = BLOCK  # element 16 of a quantizer's cell is the scale byte


Forms = tuple[Format, Format]
_NVFP4: Forms = (NVFP4, NVFP4)


def elements(
    stage: str, arguments: dict[str, Any], output: Any, view: str = "output", forms: Forms = _NVFP4
) -> Tensor:
    """Return one view of a call of a stage as `(groups, rows, cells, elements)`.

    Args:
        stage: name of the stage.
        arguments: of the call, as they are after it.
        output: what the stage returned, or the GEMM's `out`.
        forms: formats of activations and weights.
        view: "output"; "memory" for all the memory that a GEMM's output lies in; "inputs" for the bytes of its inputs.
    """
    if view == "inputs":
        return input_bytes(arguments)
    if view == "memory":
        return memory_of(output)
    if stage in QUANTIZERS:
        return _blocks(layouts.loaded(forms[0], output), forms[0])
    if stage == MASKED_GEMM:
        product: Tensor = output.permute(2, 0, 1).unsqueeze(2)
        return product
    if stage in {MASKED_MOE, ROUTED}:
        layer: Tensor = (output if stage == MASKED_MOE else output.unsqueeze(0)).unsqueeze(2)
        return layer
    return elements_around(stage, output)[0]


def _blocks(coded: Coded, form: Format) -> Tensor:
    """Return what a quantizer stored: blocks and their scales, or whole rows of values."""
    if form.plain:
        return coded.codes.unsqueeze(2)
    if form != NVFP4:
        return form.dequantized(coded).float().unsqueeze(2)
    scale = coded.block_scale
    return torch.cat((coded.codes.view(*scale.shape, form.block), scale.unsqueeze(-1)), dim=-1)


def same(a: Tensor, b: Tensor) -> Tensor:
    """Return where two outputs agree bit for bit, NaN with NaN and 0 with -0."""
    equal = a == b
    return equal | (a.isnan() & b.isnan()) if a.dtype.is_floating_point else equal


def seen(call: Observed, view: str = "output") -> Tensor:
    """Return one view of what was observed, see `elements`."""
    arguments = call.arguments
    if view == "inputs":
        arguments = {name: call.changed.get(name, value) for name, value in tensors_in(arguments)}
    return elements(call.stage, arguments, call.output, view, call.forms)


def any_differ(calls: Sequence[Observed]) -> bool:
    """Return whether a call of a stage of the layer gave other bits when it was repeated: one of the same name and inputs."""
    first: dict[tuple[str, bytes], Tensor] = {}
    for call in calls:
        if call.stage in INNER:
            given = hashlib.sha256(input_bytes(call.arguments).numpy().tobytes()).digest()
            got = seen(call)[valid(call)]
            before = first.setdefault((call.name, given), got)
            if before.shape == got.shape and not bool(same(before, got).all()):
                return True
    return False


def memory_of(out: Tensor) -> Tensor:
    """Return all the memory that a tensor lies in, `(1, 1, 1, elements)`."""
    size = out.untyped_storage().nbytes() // out.element_size()
    return torch.as_strided(out, (1, 1, 1, size), (size, size, size, 1), 0)


def input_bytes(arguments: dict[str, Any]) -> Tensor:
    """Return the bytes of all inputs one after the other, `(1, 1, 1, bytes)`."""
    flat = [bytes_of(tensor) for name, tensor in tensors_in(arguments) if name != "out"]
    return torch.cat(flat).view(1, 1, 1, -1)


def valid(call: Observed) -> Tensor:
    """Return `(groups, rows)` bool: rows that count."""
    if call.stage == ROUTED:
        return torch.ones(1, len(call.output), dtype=torch.bool)
    if call.stage in QUANTIZERS:
        rows = call.arguments["x"].shape[1]
    elif call.stage == MASKED_GEMM:
        rows = call.arguments["out"].shape[0]
    elif call.stage != MASKED_MOE:
        return elements_around(call.stage, call.output)[1]
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


def decoded(packed: Tensor, scales: Any, form: Format = NVFP4) -> Tensor:
    """Return an operand's code x block scale, `(l, rows, k)` float32."""
    return form.values(layouts.loaded(form, (packed, scales)))


def decoded_weights(packed: Tensor, swizzled: Tensor, form: Format = NVFP4) -> Tensor:
    """Return masked_moe's weights as code x block scale, `(l, n, k)` float32."""
    return form.values(loaded_weights(packed, swizzled, form))


def loaded_weights(packed: Tensor, swizzled: Tensor, form: Format = NVFP4) -> Coded:
    """Return masked_moe's weights, `(l, n, k)`, linear."""
    return layouts.loaded(form, (packed.permute(1, 2, 0), layouts.as_mma(swizzled.view(torch.uint8))))
