"""Ever larger slices of a captured call around its first illegal element."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.fused_weights import Matrix
from harness.candidates.protocol import ROUTED
from harness.diagnosis.cases.legality import legal
from harness.diagnosis.cases.observation import MASKED_GEMM, QUANTIZERS, Observed
from harness.diagnosis.cases.routed import legal_routed
from harness.diagnosis.cases.views import valid
from harness.replay.judging import Judged
from reference.formats import NVFP4, Format
from reference.nvfp4 import BLOCK

CUT = (*QUANTIZERS, MASKED_GEMM, ROUTED)
"""Stages that are cut."""
_MOST_WEIGHTS = 1 << 18
"""Bytes of one expert's first matrix beyond which a routed layer, which needs all of it, makes too large a file."""
_SIZES = (8, 16, 64, 256, 1024, 4096)  # columns that are kept, the first that is enough


def slices(call: Observed, known: Judged) -> Iterator[tuple[Observed, str]]:
    """Yield slices with what each is, in words: one row of one expert, or one token, more and more columns."""
    if call.stage == ROUTED:
        yield from _of_routed(call, known)
        return
    if call.stage not in CUT or (call.stage in QUANTIZERS and call.forms != (NVFP4, NVFP4)):
        return
    wrong = (~legal(call, known.bounds)) & valid(call)[..., None, None]
    places = wrong.nonzero()
    if not len(places):
        return
    expert, row, cell, element = places[0].tolist()
    for size in _SIZES:
        if call.stage == MASKED_GEMM:
            n = call.output.shape[1]
            columns = _around(element, size, n)
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


def _around(element: int, size: int, n: int) -> slice:
    """Return so many columns, of n, that hold one; fewer at the end."""
    first = max(0, element // 8 * 8 - size // 16 * 8)
    return slice(first, min(n, first + size))


def _of_routed(call: Observed, known: Judged) -> Iterator[tuple[Observed, str]]:
    """Yield slices of a routed layer: a token with few experts here, these, more and more columns of the output."""
    if call.arguments["w1"][:1].nbytes > _MOST_WEIGHTS:
        return
    wrong = ~legal_routed(call, known.bounds).accepts(call.output)
    if not bool(wrong.any()):
        return
    experts = _places(call).ge(0).sum(-1).masked_fill(~wrong.any(-1), torch.iinfo(torch.int64).max)
    token = int(experts.argmin())
    column, n = int(wrong[token].nonzero()[0]), call.output.shape[1]
    for size in _SIZES:
        columns = _around(column, size, n)
        words = f"token {token}, columns {columns.start} to {columns.stop - 1} of {n:,}"
        yield _cut_routed(call, token, columns), words
        if columns == slice(0, n):
            return


def _places(call: Observed) -> Tensor:
    """Return the places of each token's experts on this rank, `(tokens, topk)` int64, -1 for none."""
    places = call.arguments["topk_idx"].long() - call.arguments["local_expert_offset"]
    return torch.where((places >= 0) & (places < len(call.arguments["w1"])), places, -1)


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
    for side, form, rows in zip("ab", call.forms, (slice(row, row + 1), columns), strict=True):
        arguments[side], arguments[f"{side}_scale"] = _cut_operand(
            form, (a[side], a[f"{side}_scale"]), expert, rows
        )
    if a.get("alpha") is not None:
        arguments["alpha"] = _one(a["alpha"], expert)
    out = call.output[row : row + 1, columns, expert : expert + 1].clone()
    out = out.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    arguments["out"] = torch.full_like(out, torch.nan)
    return replace(call, arguments=arguments, output=out, changed={}, pristine={})


def _cut_operand(form: Format, pair: layouts.Pair, expert: int, rows: slice) -> layouts.Pair:
    def cut(values: Tensor) -> Tensor:
        return values[expert : expert + 1, rows].contiguous()

    return layouts.stored(form, layouts.loaded(form, pair).map(cut))


def _cut_routed(call: Observed, token: int, columns: slice) -> Observed:
    a, form = call.arguments, call.forms[1]
    places = _places(call)[token : token + 1]
    there = places >= 0
    used = torch.unique(places[there])  # in rising order, as places in it are
    matrices = {"w1": slice(None), "w2": columns}
    arguments: dict[str, Any] = {
        name: value[token : token + 1] if name in ("topk_idx", "topk_weights") else value
        for name, value in a.items()
        if name not in matrices
    }
    for name, rows in matrices.items():
        matrix = Matrix.of(a[name], a[f"{name}_blockscale"], form.block)
        arguments[name] = matrix.codes[used][:, rows].contiguous()
        arguments[f"{name}_blockscale"] = layouts.weight_scales(
            form, matrix.scale[used][:, rows].contiguous()
        )
    arguments |= {name: a[name][used] for name in ("w1_alpha", "w2_alpha", "a2_global_scale")}
    arguments |= {
        "hidden_states": tuple(None if t is None else t[token : token + 1].clone() for t in a["hidden_states"]),
        "topk_idx": torch.where(there, torch.searchsorted(used, places.clamp(min=0)), -1),
        "num_experts": len(used), "local_expert_offset": 0,
    }  # fmt: skip
    if a.get("out") is not None:
        arguments["out"] = a["out"][token : token + 1, columns].clone()
    output = call.output[token : token + 1, columns].clone()
    return replace(call, arguments=arguments, output=output, changed={}, pristine={})
