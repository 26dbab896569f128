"""What the stages around the kernels returned, checked against the contract. Each raises ContractError."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.judging.contract import ContractError, checked, checked_list, described
from harness.problems.layer import LayerProblem
from reference import fp8_tokens
from reference.layout import padded_extents
from reference.routing import Dispatched

TILE = 128  # rows that block scales are swizzled by, and engines pad to
SCALES = ("input_global_scale", "w1_alpha", "a2_global_scale", "w2_alpha")


def checked_routes(result: Any, shape: tuple[int, int], device: str) -> tuple[Tensor, Tensor]:
    """Return what route_topk returned: ids int64 and weights float32, both of a shape `(tokens, topk)`."""
    if not isinstance(result, tuple) or tuple.__len__(result) != 2:
        raise ContractError(f"route_topk must return (topk_idx, topk_weights), got {described(result)}")
    ids, weights = tuple.__iter__(result)
    return (
        checked(ids, "route_topk", "topk_idx", shape, torch.int64, device),
        checked(weights, "route_topk", "topk_weights", shape, torch.float32, device),
    )


def checked_buffers(
    received: Any, layer: LayerProblem, transport: str, *, ranks: int, capacity: int, hidden: int
) -> list[Dispatched]:
    """Return what dispatch returned: one buffer set per rank, of the transport's shapes and dtypes.

    Args:
        received: what came back.
        layer: whose experts and device they are.
        transport: of reference.routing.TRANSPORTS.
        ranks: that the experts are spread over.
        capacity: rows of each expert.
        hidden: width of the tokens.
    """
    local = layer.experts // ranks
    width, dtype, scale_width, scale_dtype = {
        "bf16": (hidden, torch.bfloat16, 0, None),
        "fp8": (hidden, torch.float8_e4m3fn, hidden // fp8_tokens.CHANNELS, torch.float32),
        "fp8-rounded": (hidden, torch.float8_e4m3fn, hidden // fp8_tokens.CHANNELS, torch.float32),
        "fp8-ue8m0": (hidden, torch.float8_e4m3fn, hidden // fp8_tokens.CHANNELS, torch.uint8),
        "nvfp4": (hidden // 2, torch.uint8, hidden // 16, torch.uint8),
    }[transport]
    wanted: dict[str, tuple[tuple[int, ...], torch.dtype] | None] = {
        "x": ((local, capacity, width), dtype),
        "masked_m": ((local,), torch.int32),
        "source": ((local, capacity, 2), torch.int64),
        "scales": ((local, capacity, scale_width), scale_dtype) if scale_dtype else None,
    }
    found = checked_list(received, "what dispatch returns", ranks)
    for rank, got in enumerate(found):
        for name, expected in wanted.items():
            value, stage = getattr(got, name, None), f"dispatch ({transport}), rank {rank}"
            if expected is not None:
                shape, kind = expected
                checked(value, stage, name, shape, kind, layer.device)
            elif value is not None:
                raise ContractError(f"{stage}: {name} must be None, got {described(value)}")
        if bool((got.masked_m < 0).any() | (got.masked_m > capacity).any()):
            raise ContractError(
                f"dispatch ({transport}), rank {rank}: masked_m must lie in [0, {capacity}], got {got.masked_m.tolist()}"
            )
    return found


def checked_sources(received: Sequence[Dispatched], counts: Sequence[int]) -> None:
    """Raise ContractError where a row of dispatch's buffers is said to hold a token that does not exist.

    Args:
        received: of every rank.
        counts: tokens that each rank sent.
    """
    for rank, got in enumerate(received):
        held = got.source[got.source[..., 0] >= 0]
        known = held[:, 0] < len(counts)
        limits = torch.tensor([*counts, 0], device=held.device)[held[:, 0].clamp(max=len(counts))]
        wrong = ~known | (held[:, 1] < 0) | (held[:, 1] >= limits)
        if bool(wrong.any()):
            of, token = held[wrong][0].tolist()
            raise ContractError(
                f"dispatch, rank {rank}: source names token {token} of rank {of}, which does not exist"
            )


def checked_combined(got: Any, shapes: Sequence[tuple[int, int]], device: str) -> list[Tensor]:
    """Return what combine returned: each rank's tokens, `(tokens, hidden)` bfloat16."""
    found = checked_list(got, "what combine returns", len(shapes))
    return [
        checked(value, f"combine, rank {rank}", "", shape, torch.bfloat16, device)
        for rank, (value, shape) in enumerate(zip(found, shapes, strict=True))
    ]


def checked_loaded(
    loaded: Any, count: int, layer: LayerProblem, *, inter: int = 0, gated: bool = True
) -> dict[str, Tensor]:
    """Return what load_experts returned: masked_moe's weight arguments by name.

    Args:
        loaded: what came back.
        count: experts that were asked for.
        layer: whose extents and device they have.
        inter: of a slice of the layer; 0 for the whole.
        gated: whether w1 holds gate and up rows. Without gates, inter may be padded to whole tiles of rows; with them,
            w1_alpha may be `(count, 2)`, gate's and up's.
    """
    hidden, inter = layer.hidden, inter or layer.inter
    if not gated and isinstance(loaded, Mapping) and isinstance(w1 := loaded.get("w1"), Tensor):
        inter = max(inter, w1.shape[1]) if w1.ndim == 3 and w1.shape[1] % TILE == 0 else inter
    rows = 2 * inter if gated else inter
    wanted: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        **dict.fromkeys(SCALES, ((count,), torch.float32)),
        "w1": ((count, rows, hidden // 2), torch.uint8),
        "w1_blockscale": (
            (count, *padded_extents(rows, hidden // 16, "128x4")), torch.float8_e4m3fn,
        ),
        "w2": ((count, hidden, inter // 2), torch.uint8),
        "w2_blockscale": ((count, *padded_extents(hidden, inter // 16, "128x4")), torch.float8_e4m3fn),
    }  # fmt: skip
    if not isinstance(loaded, Mapping):
        raise ContractError(f"load_experts must return a dict, got {described(loaded)}")
    if gated and isinstance(alpha := loaded.get("w1_alpha"), Tensor) and alpha.ndim == 2:
        wanted["w1_alpha"] = ((count, 2), torch.float32)
    return {
        name: checked(loaded.get(name), "load_experts", name, shape, dtype, layer.device)
        for name, (shape, dtype) in wanted.items()
    }
