"""Ever larger slices of a captured call around its first illegal element."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.diagnosis.cases.legality import legal
from harness.diagnosis.cases.observation import MASKED_GEMM, QUANTIZERS, Observed
from harness.diagnosis.cases.views import valid
from harness.replay.judging import Judged
from reference.e2m1 import pack_e2m1
from reference.formats import NVFP4
from reference.nvfp4 import BLOCK

CUT = (*QUANTIZERS, MASKED_GEMM)
"""Stages that are cut."""
_SIZES = (8, 16, 64, 256, 1024, 4096)  # columns that are kept, the first that is enough


def slices(call: Observed, known: Judged) -> Iterator[tuple[Observed, str]]:
    """Yield slices with what each is, in words: one row of one expert, more and more columns."""
    if call.stage not in CUT or call.forms != (NVFP4, NVFP4):
        return
    wrong = (~legal(call, known.bounds)) & valid(call)[..., None, None]
    places = wrong.nonzero()
    if not len(places):
        return
    expert, row, cell, element = places[0].tolist()
    for size in _SIZES:
        if call.stage == MASKED_GEMM:
            n = call.output.shape[1]
            first = max(0, min(element - size // 2, n - size)) // 8 * 8
            columns = slice(first, min(n, first + size))
            yield _cut_gemm(call, expert, row, columns), _words(expert, row, columns, n)
            if columns == slice(0, n):
                return
        else:
            k = _width(call)
            blocks = max(1, size // BLOCK)
            first = max(0, min(cell - blocks // 2, k // BLOCK - blocks)) * BLOCK
            columns = slice(first, min(k, first + blocks * BLOCK))
            yield _cut_quantizer(call, expert, row, columns), _words(expert, row, columns, k)
            if columns == slice(0, k):
                return


def _words(expert: int, row: int, columns: slice, width: int) -> str:
    return f"expert {expert}, row {row}, columns {columns.start} to {columns.stop - 1} of {width:,}"


def _width(call: Observed) -> int:
    k = int(call.arguments["x"].shape[2])
    return k // 2 if call.stage == "silu_mul_quantize_grouped" else k


def _one(tensor: Tensor, expert: int) -> Tensor:
    flat = tensor.reshape(-1)
    return flat[expert : expert + 1].clone() if flat.numel() > 1 else flat.clone()


def _cut_quantizer(call: Observed, expert: int, row: int, columns: slice) -> Observed:
    a = call.arguments
    k = _width(call)
    x = a["x"][expert : expert + 1, row : row + 1]
    halves = [x[..., start : start + k][..., columns] for start in range(0, x.shape[2], k)]
    codes = layouts.codes_of(call.output[0])[expert : expert + 1, row : row + 1, columns]
    scale = layouts.block_scales_of(call.output[1], a["x"].shape[1], k // BLOCK)
    scale = scale[expert : expert + 1, row : row + 1, columns.start // BLOCK : columns.stop // BLOCK]
    arguments = {
        "x": torch.cat(halves, dim=-1), "masked_m": torch.tensor([1], dtype=torch.int32),
        "global_scale_enc": _one(a["global_scale_enc"], expert),
    }  # fmt: skip
    return Observed(
        call.stage, arguments, (layouts.operand(codes.contiguous()), layouts.scales(scale.contiguous()))
    )


def _cut_gemm(call: Observed, expert: int, row: int, columns: slice) -> Observed:
    a = call.arguments
    arguments: dict[str, Any] = {"masked_m": torch.tensor([1], dtype=torch.int32), "alpha": None}
    for side, rows in (("a", slice(row, row + 1)), ("b", columns)):
        codes = layouts.codes_of(a[side])
        scale = layouts.block_scales_of(a[f"{side}_scale"], codes.shape[1], codes.shape[2] // BLOCK)
        arguments[side] = pack_e2m1(codes[expert : expert + 1, rows].contiguous()).permute(1, 2, 0)
        arguments[f"{side}_scale"] = layouts.scales(scale[expert : expert + 1, rows].contiguous())
    if a.get("alpha") is not None:
        arguments["alpha"] = _one(a["alpha"], expert)
    out = call.output[row : row + 1, columns, expert : expert + 1].clone()
    out = out.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    arguments["out"] = torch.full_like(out, torch.nan)
    return Observed(call.stage, arguments, out)
