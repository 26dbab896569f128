"""What a quantizing dispatch or combine may carry: which of it is legal, whichever way the sender's arithmetic rounds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.diagnosis.cases.legality import Bounds, code_judge
from harness.judging.quantize import QuantizerInput
from reference import fp8_tokens
from reference.e2m1 import unpack_e2m1
from reference.e4m3 import decode_e4m3
from reference.legal import legal_scales
from reference.legal_combine import legal_logfmt_combine
from reference.nvfp4 import BLOCK

_SOURCE = 2  # columns, source rank and token


def taken_for(arguments: dict[str, Any], coded: Tensor, elements: Tensor, right: Tensor) -> Tensor:
    """Return elements in which legal values are the right model's, in rows that hold the same token as its own.

    Args:
        arguments: of dispatch, or of combine, whose rows are always the same token.
        coded: which elements are a legal coding (`legal_transported`).
        elements: seen, as there.
        right: the model's.
    """
    if elements.shape != right.shape:
        return elements
    if "x" not in arguments:
        return torch.where(coded, right, elements)
    width = _width(arguments)
    source = slice(width, width + _SOURCE)
    same_token = (elements[..., source] == right[..., source]).all(-1, keepdim=True)
    return torch.where(coded & same_token, right, elements)


def same_scales(arguments: dict[str, Any], elements: Tensor, others: Tensor) -> Tensor:
    """Return which elements are float32 scales, of dispatch by "fp8", that differ by no more than those of two senders may.

    Args:
        arguments: of dispatch.
        elements: as `legal_transported` has them, of some experts and rows.
        others: of the same ones, of another sender.
    """
    found = torch.zeros(elements.shape, dtype=torch.bool)
    if arguments.get("transport") == "fp8":
        scales = slice(_width(arguments) + _SOURCE, -1)
        one, other = elements[..., scales], others[..., scales]
        found[..., scales] = (one - other).abs() <= 2 * fp8_tokens.SCALE_FREEDOM * other.abs()
    return found


def _width(arguments: dict[str, Any]) -> int:
    hidden: int = arguments["x"][0].shape[1]
    return hidden // 2 if arguments.get("transport") == "nvfp4" else hidden


def legal_transported(arguments: dict[str, Any], elements: Tensor, bounds: Bounds) -> Tensor:
    """Return which values and scales are a legal coding of the token that their row says it holds.

    Args:
        arguments: of dispatch.
        elements: `(experts, rows, 1, elements)` float64, as harness.diagnosis.cases.around has them: values, source rank and
            token, scales, count.
        bounds: how the candidate computes.

    Returns:
        A mask of that shape; False for source, counts and padding, and everywhere where dispatch quantizes nothing.
    """
    found = torch.zeros(elements.shape, dtype=torch.bool)
    transport, x = arguments.get("transport", "bf16"), arguments["x"]
    if transport == "bf16":
        return found
    width = _width(arguments)
    source = elements[:, :, 0, width : width + _SOURCE].long()
    counts = torch.tensor([len(tokens) for tokens in x])
    rank, token = source.unbind(-1)
    row = torch.arange(elements.shape[1])
    there = row < elements[:, :, 0, -1].amax(1, keepdim=True)
    there &= (rank >= 0) & (rank < len(x))
    there &= (token >= 0) & (token < counts[rank.clamp(0, len(x) - 1)])
    if not bool(there.any()):
        return found
    sent = torch.cat(x)[(counts.cumsum(0) - counts)[rank[there]] + token[there]]
    values = elements[:, :, 0, :width][there].to(torch.uint8)
    scales = elements[:, :, 0, width + _SOURCE : -1][there]
    if transport == "nvfp4":
        legal = _legal_nvfp4(sent, values, scales, arguments["global_scale_enc"], bounds)
    else:
        legal = _legal_fp8(sent, values, scales, transport)
    of_rows = torch.zeros((len(sent), elements.shape[-1]), dtype=torch.bool)
    of_rows[:, :width], of_rows[:, width + _SOURCE : -1] = legal
    found[:, :, 0][there] = of_rows
    return found


def combined_between(arguments: dict[str, Any], elements: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the ends of what outputs of a combine by "logfmt" may be, None of another transport, whose outputs have one value.

    Args:
        arguments: of combine.
        elements: `(ranks, tokens, 1, hidden)` float64, as harness.diagnosis.cases.around has them.

    Returns:
        Two tensors of that shape, NaN in rows that no rank has.
    """
    if arguments.get("transport", "bf16") == "bf16":
        return None
    names = ("y", "dispatched", "topk_idx", "topk_weights")
    low, high = (torch.full_like(elements, torch.nan) for _ in range(2))
    for rank, ends in enumerate(legal_logfmt_combine(*(arguments[name] for name in names))):
        for whole, end in zip((low, high), ends, strict=True):
            whole[rank, : len(end), 0] = end.double()
    return low, high


def _legal_fp8(sent: Tensor, values: Tensor, scales: Tensor, transport: str) -> tuple[Tensor, Tensor]:
    stored, rounded = scales, transport != "fp8"
    low, high = fp8_tokens.legal_scales(sent, round_scale=rounded)
    scale_ok = (stored == low) | (stored == high) if rounded else (stored >= low) & (stored <= high)
    decoded = decode_e4m3(values).double()
    value_ok = torch.zeros(values.shape, dtype=torch.bool)
    for right in (low, high):  # where the stored scale is wrong, the values are those of a right one
        least, most = fp8_tokens.legal_fp8_values(sent, torch.where(scale_ok, stored, right).float())
        value_ok |= (decoded >= least) & (decoded <= most)
    return value_ok, scale_ok


def _legal_nvfp4(
    sent: Tensor, values: Tensor, scales: Tensor, global_scale_enc: Tensor, bounds: Bounds
) -> tuple[Tensor, Tensor]:
    given, stored = QuantizerInput.known(sent), scales.to(torch.uint8)
    gs = global_scale_enc.reshape(1, 1).expand(len(sent), 1)
    scale_ok = legal_scales(*given.amax(), gs, bounds.arithmetic).accepts(stored)
    code_ok = code_judge(given, stored, gs, bounds).accepts(unpack_e2m1(values))
    whole = code_ok.view(*stored.shape, BLOCK) & scale_ok.unsqueeze(-1)
    return whole.view(len(sent), -1, 2).all(-1), scale_ok
