"""Keeping a fault to a part of what a call returns: experts, rows or blocks, tokens, rows of weights.

The healthy and the faulty call have both run, the fault everywhere; `merge` puts into the healthy one what stays of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from harness.faults.calls import Call, GemmCall, MoeCall, QuantizeCall
from harness.faults.fault import Parameters
from harness.faults.layer_calls import (
    LOADED,
    CombineCall,
    DispatchCall,
    LoadCall,
    LoadedMoeCall,
    RouteCall,
)
from harness.faults.routed_call import RoutedCall
from harness.faults.scope import chosen_blocks, chosen_rows
from reference.routing import Dispatched


def merge(healthy: Call, faulty: Call, unit: str, parameters: Parameters) -> None:
    """Change what the healthy call returns to the faulty call's results in some places.

    Args:
        healthy: a call of a stage that has run.
        faulty: one of the same kind with the same arguments, in which the fault went wrong everywhere.
        unit: smallest part that the fault knows: "expert", "row" or "block".
        parameters: where the fault stays: see harness.faults.scope.
    """
    _MERGE[type(healthy)](healthy, faulty, unit, parameters)


def _valid(masked_m: Tensor, rows: int) -> Tensor:
    return torch.arange(rows, device=masked_m.device) < masked_m.unsqueeze(-1)


def _differs(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype == torch.float8_e4m3fn:
        a, b = a.view(torch.uint8), b.view(torch.uint8)
    return (a != b) & ~((a != a) & (b != b))  # noqa: PLR0124 - NaN differs from itself


def _where(chosen: Tensor, wrong: Tensor, right: Tensor) -> Tensor:
    """Take whole slices along the axes of `chosen` from one tensor or the other, any dtype."""
    as_bytes = torch.uint8 if right.dtype.itemsize == 1 else right.dtype
    shape = (*chosen.shape, *[1] * (right.ndim - chosen.ndim))
    return torch.where(chosen.view(shape), wrong.view(as_bytes), right.view(as_bytes)).view(right.dtype)


def _chosen(changed: Tensor, unit: str, parameters: Parameters) -> Tensor:
    """Return the rows `(experts, rows)` that a fault is kept to; whole experts where it knows nothing smaller."""
    rows = chosen_rows(changed, parameters)
    if unit == "expert" and not parameters.weakest:
        return changed & rows.any(-1, keepdim=True)
    return rows


def _merge_quantized(healthy: QuantizeCall, faulty: QuantizeCall, unit: str, parameters: Parameters) -> None:
    experts, rows, k = healthy.shape
    codes, wrong = healthy.codes, faulty.codes
    scale, wrong_scale = healthy.block_scale, faulty.block_scale
    by_block = _differs(codes, wrong).view(experts, rows, k // 16, 16).any(-1)
    block = max(healthy.form.block, 16)  # where elements have no scale, parts of 16 as well
    by_block = by_block.view(experts, rows, k // block, block // 16).any(-1)
    if scale.shape[-1]:
        by_block |= scale != wrong_scale
    by_block &= _valid(healthy.masked_m, rows).unsqueeze(-1)
    chosen = _chosen(by_block.any(-1), unit, parameters)
    blocks = (
        chosen_blocks(by_block, chosen, parameters) if unit == "block" else chosen.unsqueeze(-1) & by_block
    )
    if healthy.form.rows:  # with its scale a row is wrong as a whole
        by_block |= _differs(healthy.scales, faulty.scales)
        chosen = _chosen(by_block.any(-1) & _valid(healthy.masked_m, rows), unit, parameters)
        healthy.scales = torch.where(chosen.unsqueeze(-1), faulty.scales, healthy.scales)
        healthy.codes = torch.where(chosen.unsqueeze(-1), wrong, codes)
        return
    healthy.codes = torch.where(blocks.repeat_interleave(block, -1), wrong, codes)
    if scale.shape[-1]:
        healthy.block_scale = torch.where(blocks, wrong_scale, scale)


def _merge_gemm(healthy: GemmCall, faulty: GemmCall, unit: str, parameters: Parameters) -> None:
    right, wrong = healthy.product, faulty.product
    changed = _differs(right, wrong).any(-1) & _valid(healthy.masked_m, right.shape[1])
    chosen = _chosen(changed, unit, parameters)
    healthy.product = torch.where(chosen.unsqueeze(-1), wrong, right)


def _merge_moe(healthy: MoeCall, faulty: MoeCall, unit: str, parameters: Parameters) -> None:
    right, wrong = healthy.output, faulty.output
    changed = _differs(right, wrong).any(-1) & _valid(healthy.masked_m, right.shape[1])
    chosen = _chosen(changed, unit, parameters)
    healthy.output = torch.where(chosen.unsqueeze(-1), wrong, right)


def _merge_routes(healthy: RouteCall, faulty: RouteCall, _: str, parameters: Parameters) -> None:
    """Keep a fault to some tokens."""
    changed = (healthy.topk_idx != faulty.topk_idx) | _differs(healthy.topk_weights, faulty.topk_weights)
    chosen = chosen_rows(changed.any(-1).unsqueeze(0), parameters)[0]
    healthy.topk_idx = _where(chosen, faulty.topk_idx, healthy.topk_idx)
    healthy.topk_weights = _where(chosen, faulty.topk_weights, healthy.topk_weights)


def _merge_dispatched(healthy: DispatchCall, faulty: DispatchCall, unit: str, parameters: Parameters) -> None:
    """Keep a fault to some rows, or to some experts where it changes which rows there are."""
    merged = []
    changed = torch.cat([_changed_rows(h, f) for h, f in zip(healthy.received, faulty.received, strict=True)])
    if unit == "row":
        chosen = chosen_rows(changed, parameters)
    else:
        whole = chosen_rows(changed.any(-1, keepdim=True), parameters)
        chosen = whole.expand_as(changed)
    local = len(healthy.received[0].x)
    for rank, (right, wrong) in enumerate(zip(healthy.received, faulty.received, strict=True)):
        here = chosen[rank * local : (rank + 1) * local]
        scales = (
            None if right.scales is None or wrong.scales is None else _where(here, wrong.scales, right.scales)
        )
        counts = right.masked_m if unit == "row" else torch.where(here[:, 0], wrong.masked_m, right.masked_m)
        merged.append(
            Dispatched(
                _where(here, wrong.x, right.x), counts, _where(here, wrong.source, right.source), scales
            )
        )
    healthy.received = merged


def _changed_rows(right: Dispatched, wrong: Dispatched) -> Tensor:
    """Return which rows differ in what they hold or in whether they count, `(local experts, capacity)`."""
    row = torch.arange(right.x.shape[1], device=right.x.device)
    valid = row < right.masked_m.unsqueeze(-1)
    changed = valid != (row < wrong.masked_m.unsqueeze(-1))
    holds = _differs(right.x, wrong.x).any(-1) | (right.source != wrong.source).any(-1)
    if right.scales is not None and wrong.scales is not None:
        holds |= _differs(right.scales, wrong.scales).any(-1)
    return changed | (holds & valid)


def _merge_routed(healthy: RoutedCall, faulty: RoutedCall, _: str, parameters: Parameters) -> None:
    """Keep a fault to some tokens."""
    right, wrong = healthy.output, faulty.output
    chosen = chosen_rows(_differs(right, wrong).any(-1).unsqueeze(0), parameters)[0]
    healthy.output = _where(chosen, wrong, right)


def _merge_combined(healthy: CombineCall, faulty: CombineCall, _: str, parameters: Parameters) -> None:
    """Keep a fault to some tokens of some ranks."""
    most = max((len(out) for out in healthy.outputs), default=0)
    changed = torch.zeros((len(healthy.outputs), most), dtype=torch.bool)
    for rank, (right, wrong) in enumerate(zip(healthy.outputs, faulty.outputs, strict=True)):
        changed[rank, : len(right)] = _differs(right, wrong).any(-1).cpu()
    chosen = chosen_rows(changed, parameters)
    healthy.outputs = [
        _where(chosen[rank, : len(right)].to(right.device), wrong, right)
        for rank, (right, wrong) in enumerate(zip(healthy.outputs, faulty.outputs, strict=True))
    ]


def _merge_loaded(healthy: LoadCall, faulty: LoadCall, unit: str, parameters: Parameters) -> None:
    """Keep a fault to rows of the weights and their block scales, or to experts and all that belongs to them."""
    if unit == "row":
        _merge_weight_rows(healthy, faulty, parameters)
        return
    changed = torch.zeros(len(healthy.w1), dtype=torch.bool, device=healthy.w1.device)
    pairs = [(name, getattr(healthy, name), getattr(faulty, name)) for name in LOADED]
    for _, right, wrong in pairs:
        if right is not None:
            changed |= _differs(right, wrong).flatten(1).any(-1) if right.ndim > 1 else _differs(right, wrong)
    chosen = chosen_rows((changed & healthy.visible()).unsqueeze(-1), parameters)[:, 0]
    for name, right, wrong in pairs:
        if right is not None:
            setattr(healthy, name, _where(chosen, wrong, right))


def _merge_weight_rows(healthy: LoadCall, faulty: LoadCall, parameters: Parameters) -> None:
    parts = [
        (name, getattr(healthy, name), getattr(faulty, name), getattr(healthy, scale), getattr(faulty, scale))
        for name, scale in (("w1", "w1_block_scale"), ("w2", "w2_block_scale"))
    ]
    changed = torch.cat(
        [_differs(w, other).any(-1) | (s != other_s).any(-1) for _, w, other, s, other_s in parts], dim=1
    )
    changed &= healthy.visible().unsqueeze(-1)
    chosen = torch.split(chosen_rows(changed, parameters), [part[1].shape[1] for part in parts], dim=1)
    for (name, right, wrong, scale, wrong_scale), here in zip(parts, chosen, strict=True):
        setattr(healthy, name, _where(here, wrong, right))
        setattr(healthy, f"{name}_block_scale", _where(here, wrong_scale, scale))


_MERGE: dict[type[Call], Callable[[Any, Any, str, Parameters], None]] = {
    QuantizeCall: _merge_quantized,
    GemmCall: _merge_gemm,
    MoeCall: _merge_moe,
    RoutedCall: _merge_routed,
    RouteCall: _merge_routes,
    DispatchCall: _merge_dispatched,
    CombineCall: _merge_combined,
    LoadCall: _merge_loaded,
    LoadedMoeCall: _merge_loaded,
}
