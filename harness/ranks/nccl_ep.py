"""NCCL EP's low-latency dispatch and combine as one rank calls them: nccl.ep of nccl-extensions, layout EXPERT_MAJOR.

The library says neither where a row came from nor in which order rows lie: an expert's rows take their places as they
arrive, those of several ranks among each other. So dispatch widens the tokens by channels that carry rank and token, cuts
them off what arrived, and puts the rows in order of rank and token. Combine needs the handle of a dispatch by the same
routes: it sends tags by it first, and hands the rows over in the order in which those arrived.

A group has the sizes of its calls, and is made anew where they change. All ranks have finished the call before by then,
since harness.ranks.worker compares sizes before every call.
Source: nccl-extensions 0.1.0, nccl/ep/group.py, handle.py and tensor.py; nccl_ep.h and device/ll_ep.cuh for limits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from harness.ranks.collectives import Sizes, call_once
from harness.ranks.nccl_ep_build import HIDDEN_SIZES, MOST_TOKENS, MOST_TOPK, STAGED, TRANSPORTS, find_version
from harness.ranks.spreading import distinct, not_empty, ranks_together, rows_at
from reference.routing import NO_EXPERT, Dispatched

TAG_CHANNELS = 1024
"""By which dispatch widens tokens: a multiple that leaves the unrolling of the kernels' loops as it is without them."""
WIDTH_MULTIPLE = 512
_MARK, _BASE, _TOKEN_DIGITS, _DIGITS = 448, 16, 3, 5
"""E4M3 holds all of them exactly by a scale of 1, which the mark, its largest number, brings about; and so does bfloat16."""


class NcclEpCollectives:
    """The collectives of one rank through nccl.ep, see harness.ranks.collectives.

    Raises:
        NoBuildError: nccl.ep cannot be used here.
    """

    def __init__(self) -> None:
        find_version()
        from nccl import ep
        from nccl.ep.interop.torch import get_nccl_comm_from_group

        self._ep: Any = ep
        self._rank, self._ranks = dist.get_rank(), dist.get_world_size()
        self._on_gpu = torch.cuda.is_available()
        self._device = torch.device("cuda", torch.cuda.current_device()) if self._on_gpu else "cpu"
        self._comm = get_nccl_comm_from_group()
        self._group: Any = None
        self._grouped: tuple[int, int, int] | None = None
        call_once(self, HIDDEN_SIZES[0])

    def dispatch(
        self, x: Tensor, topk_idx: Tensor, sizes: Sizes, global_scale_enc: Tensor | None
    ) -> Dispatched:
        """Send this rank's tokens to their experts."""
        self._check(sizes)
        if global_scale_enc is not None:
            raise ValueError("dispatch: global_scale_enc belongs to nvfp4, which nccl.ep does not send")
        x = not_empty(x.to(self._device), 0)
        tokens = torch.cat((x, tags_of(self._rank, len(x), TAG_CHANNELS, self._device)), dim=1)
        with self._handle(topk_idx, sizes) as (handle, _):
            values, scales, counts = self._send(handle, tokens, sizes)
        block = sizes.hidden // 128  # the first whose channels are tags
        scale_of_tags = None if scales is None else scales[..., block]
        source = read_tags(values[..., sizes.hidden :], scale_of_tags, counts)
        values = values[..., : sizes.hidden].contiguous()
        scales = None if scales is None else scales[..., :block].contiguous()
        return ranks_together(Dispatched(values, counts, source, scales))

    def combine(
        self, y: Tensor, source: Tensor, topk_idx: Tensor, topk_weights: Tensor, sizes: Sizes
    ) -> Tensor:
        """Bring rows back to their tokens."""
        self._check(sizes)
        weights = not_empty(topk_weights.to(self._device, torch.float32), 0).contiguous()
        with self._handle(topk_idx, sizes) as (handle, ids):
            tags = tags_of(self._rank, len(ids), sizes.hidden, self._device)
            values, _, counts = self._send(handle, tags, replace(sizes, transport="bf16"))
            wanted = read_tags(values, None, counts)
            rows = rows_at(y.to(self._device), source.to(self._device), wanted, self._ranks)
            combined = torch.empty_like(tags)
            # Named, since a staged call reads them until it is complete.
            inputs = self._ep.CombineInputs(tokens=self._ep.Tensor(rows))
            outputs = self._ep.CombineOutputs(
                tokens=self._ep.Tensor(combined), topk_weights=self._ep.Tensor(weights)
            )
            config = self._ep.CombineConfig(send_only=int(sizes.style == STAGED))
            handle.combine(inputs, outputs, config=config, stream=self._stream())
            self._finish(handle, sizes)
        return combined[: len(topk_idx)]

    def _check(self, sizes: Sizes) -> None:
        """Refuse what the kernels do not take. Raises ValueError."""
        if sizes.transport not in TRANSPORTS:
            raise ValueError(
                f"nccl.ep has no {sizes.transport} dispatch that is called here: {', '.join(TRANSPORTS)}"
            )
        if sizes.hidden % WIDTH_MULTIPLE or not sizes.hidden:
            raise ValueError(
                f"nccl.ep takes a hidden size that is a multiple of {WIDTH_MULTIPLE}, got {sizes.hidden}"
            )
        if not 1 <= sizes.max_tokens <= MOST_TOKENS:
            raise ValueError(
                f"too many tokens or none: 1 to {MOST_TOKENS} of a rank are sent by nccl.ep, got {sizes.max_tokens}"
            )
        most = min(sizes.experts, MOST_TOPK)
        if not 1 <= sizes.topk <= most:
            raise ValueError(
                f"nccl.ep takes a top-k of 1 to {most} for {sizes.experts} experts, got {sizes.topk}"
            )

    @contextmanager
    def _handle(self, topk_idx: Tensor, sizes: Sizes) -> Iterator[tuple[Any, Tensor]]:
        """Yield a handle for these routes, and the routes as it has them: all ranks must enter together."""
        ids = not_empty(distinct(topk_idx.to(self._device, torch.int64)), NO_EXPERT).contiguous()
        routes = self._ep.Tensor(ids)  # the handle reads them until it is destroyed
        layout = self._ep.Layout.EXPERT_MAJOR
        handle = self._group_of(sizes).create_handle(layout, routes, stream=self._stream())
        try:
            yield handle, ids
        finally:
            handle.destroy()

    def _group_of(self, sizes: Sizes) -> Any:
        wanted = (sizes.max_tokens, sizes.hidden, sizes.experts)
        if self._grouped != wanted:
            if self._group is not None:
                self._group.destroy()
            config = self._ep.GroupConfig(
                algorithm=self._ep.Algorithm.LOW_LATENCY,
                num_experts=sizes.experts,
                max_dispatch_tokens_per_rank=sizes.max_tokens,
                max_token_bytes=2 * (sizes.hidden + TAG_CHANNELS),
            )
            self._group, self._grouped = self._ep.Group.create(self._comm, config), wanted
        return self._group

    def _send(self, handle: Any, tokens: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor | None, Tensor]:
        """Dispatch tokens; return what arrived, `(local, ranks * max_tokens, width)`, its scales and the counts."""
        ep, fp8 = self._ep, sizes.transport != "bf16"
        shape = (sizes.experts // self._ranks, self._ranks * sizes.max_tokens)
        width, dtype = tokens.shape[1], torch.float8_e4m3fn if fp8 else torch.bfloat16
        values = torch.empty((*shape, width), dtype=dtype, device=self._device)
        scales = torch.empty((*shape, width // 128), device=self._device) if fp8 else None
        counts = torch.empty(shape[:1], dtype=torch.int32, device=self._device)
        # Named, since a staged call reads them until it is complete.
        inputs = ep.DispatchInputs(tokens=ep.Tensor(tokens))
        outputs = ep.DispatchOutputs(
            tokens=ep.Tensor(values), scales=None if scales is None else ep.Tensor(scales)
        )
        layout = ep.LayoutInfo(expert_counters=ep.Tensor(counts))
        recipe = ep.DispatchQuantizationRecipe
        config = ep.DispatchConfig(
            send_only=int(sizes.style == STAGED),
            round_scales=int(sizes.transport == "fp8-rounded"),
            quantization_recipe=recipe.DS_FP8E3M4 if fp8 else recipe.NONE,
        )
        handle.dispatch(inputs, outputs, layout_info=layout, config=config, stream=self._stream())
        self._finish(handle, sizes)
        return values, scales, counts

    def _finish(self, handle: Any, sizes: Sizes) -> None:
        """Have everything arrived, whichever way the call was made."""
        if sizes.style == STAGED:
            handle.complete(stream=self._stream())
        if self._on_gpu:
            torch.cuda.synchronize()

    def _stream(self) -> int:
        return torch.cuda.current_stream().cuda_stream if self._on_gpu else 0


def tags_of(rank: int, tokens: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Return `(tokens, width)` bfloat16: the mark, the digits of rank and token, zeros."""
    number = rank * _BASE**_TOKEN_DIGITS + torch.arange(tokens, device=device)
    tags = torch.zeros((tokens, width), dtype=torch.bfloat16, device=device)
    tags[:, 0] = _MARK
    tags[:, 1 : 1 + _DIGITS] = (number.unsqueeze(-1) // _powers(device) % _BASE).bfloat16()
    return tags


def read_tags(tags: Tensor, scales: Tensor | None, counts: Tensor) -> Tensor:
    """Return the rank and the token of every row, `(local, capacity, 2)` int64, -1 where none can be read.

    Args:
        tags: `(local, capacity, 6 or more)` bfloat16 or float8_e4m3fn, from the mark on.
        scales: `(local, capacity)` float32 to multiply with, None for bfloat16.
        counts: `(local,)` rows that are there.
    """
    read = tags[..., : 1 + _DIGITS].float()
    if scales is not None:
        read = read * scales.unsqueeze(-1)
    digits = read[..., 1:].nan_to_num(-1.0).clamp(-1, _BASE).round().long()
    legible = (read[..., 0].round() == _MARK) & ((digits >= 0) & (digits < _BASE)).all(-1)
    legible &= torch.arange(tags.shape[1], device=tags.device) < counts.unsqueeze(-1)
    number = (digits * _powers(tags.device)).sum(-1)
    source = torch.stack((number // _BASE**_TOKEN_DIGITS, number % _BASE**_TOKEN_DIGITS), dim=-1)
    return torch.where(legible.unsqueeze(-1), source, -1)


def _powers(device: torch.device | str) -> Tensor:
    return _BASE ** torch.arange(_DIGITS - 1, -1, -1, device=device)
