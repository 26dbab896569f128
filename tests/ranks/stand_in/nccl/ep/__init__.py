"""A stand-in for NCCL EP on a CPU: the signatures, refusals and layouts of nccl.ep's low-latency calls, over gloo.

Only the kernels are replaced. As with them, the rows of an expert lie in another order in every call, those of several ranks
among each other, rows past the counts hold anything, and a staged call has written nothing before it is complete. What the
library asserts (the texts in libnccl_ep.so 0.2.0, EXPERT_MAJOR) is asserted here. STAND_IN names a build: "bare" lacks a call,
"other" is built for another NCCL, "uncompiled" finds no nvcc.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
import torch.distributed as dist
from deep_ep import by_kernel

from harness.ranks import gloo
from harness.ranks.collectives import Sizes
from harness.ranks.gloo import GlooCollectives
from nccl.core import Communicator

gloo.encode_tokens = by_kernel
_CALLS = itertools.count()
_BUILD = os.environ.get("STAND_IN", "right")


class Algorithm(IntEnum):
    LOW_LATENCY = 0
    HIGH_THROUGHPUT = 1


class Layout(IntEnum):
    UNSET = 0
    EXPERT_MAJOR = 1
    RANK_MAJOR = 2
    FLAT = 3


class PassDir(IntEnum):
    FWD = 0
    BWD = 1


class DispatchQuantizationRecipe(IntEnum):
    NONE = 0
    FWD = 1
    DS_FP8E3M4 = 2


class CombineQuantizationRecipe(IntEnum):
    NONE = 0
    NVFP4 = 1


@dataclass(kw_only=True)
class GroupConfig:
    algorithm: Algorithm = Algorithm.LOW_LATENCY
    num_experts: int = 0
    max_dispatch_tokens_per_rank: int = 0
    max_recv_tokens_per_rank: int = 0
    max_token_bytes: int = 0
    rdma_buffer_size: int = 0
    num_qp_per_rank: int = 0
    num_channels: int = 0
    max_num_sms: int = 0


@dataclass(kw_only=True)
class HandleConfig:
    dispatch_output_per_expert_alignment: int = 0


@dataclass(kw_only=True)
class DispatchConfig:
    send_only: int = 0
    round_scales: int = 0
    pass_direction: PassDir = PassDir.FWD
    quantization_recipe: DispatchQuantizationRecipe = DispatchQuantizationRecipe.NONE


@dataclass(kw_only=True)
class CombineConfig:
    send_only: int = 0
    pass_direction: PassDir = PassDir.FWD
    quantization_recipe: CombineQuantizationRecipe = CombineQuantizationRecipe.NONE


class Tensor:
    def __init__(
        self,
        buffer: Any,
        *,
        dtype: Any = None,
        shape: Any = None,
        window: Any = None,
        window_offset: Any = None,
    ) -> None:
        assert isinstance(buffer, torch.Tensor)
        assert buffer.numel(), "tensor data must not be null"
        assert buffer.is_contiguous()
        self.buffer = buffer


@dataclass(kw_only=True)
class LayoutInfo:
    expert_counters: Tensor | None = None
    src_rank_counters: Tensor | None = None
    expert_offsets: Tensor | None = None
    recv_total_counter: Tensor | None = None


@dataclass(kw_only=True)
class DispatchInputs:
    tokens: Tensor | None = None
    topk_weights: Tensor | None = None
    scales: Tensor | None = None


@dataclass(kw_only=True)
class DispatchOutputs:
    tokens: Tensor | None = None
    topk_weights: Tensor | None = None
    scales: Tensor | None = None
    topk_idx: Tensor | None = None


@dataclass(kw_only=True)
class CombineInputs:
    tokens: Tensor | None = None
    topk_weights: Tensor | None = None
    scales: Tensor | None = None


@dataclass(kw_only=True)
class CombineOutputs:
    tokens: Tensor | None = None
    topk_weights: Tensor | None = None


class Group:
    alive = 0

    def __init__(self, ptr: int) -> None:
        self.ptr, self.handles = ptr, 0

    @classmethod
    def create(cls, comm: Communicator, config: GroupConfig) -> Group:
        assert config.algorithm == Algorithm.LOW_LATENCY
        assert config.num_experts > 0
        assert config.num_experts % comm.ranks == 0
        assert config.max_dispatch_tokens_per_rank > 0
        assert config.max_token_bytes > 0
        assert config.max_token_bytes % 16 == 0
        Group.alive += 1
        assert Group.alive == 1, "buffers of several groups would not fit"
        group = cls(1)
        group.config, group.ranks = config, comm.ranks
        return group

    def create_handle(
        self,
        layout: Layout,
        topk_idx: Tensor,
        *,
        layout_info: LayoutInfo | None = None,
        config: HandleConfig | None = None,
        stream: int,
    ) -> Handle:
        assert self.ptr, "destroyed"
        assert layout == Layout.EXPERT_MAJOR
        assert layout_info is None, "LL mode: must be None"
        routes, experts = topk_idx.buffer, self.config.num_experts
        assert routes.dtype == torch.int64
        assert 1 <= len(routes) <= self.config.max_dispatch_tokens_per_rank
        assert 1 <= routes.shape[1] <= min(experts, 31), (
            "LL top-k must be in [1, min(num_experts, MAX_NUM_TOPK)]"
        )
        for ids in routes.tolist():
            sent = [expert for expert in ids if expert >= 0]
            assert len(set(sent)) == len(sent), "more rows than the output has places for"
        self.handles += 1
        handle = Handle(1)
        handle.group, handle.routes = self, routes
        return handle

    def destroy(self) -> None:
        assert not self.handles
        Group.alive -= 1
        self.ptr = 0


class Handle:
    def __init__(self, ptr: int) -> None:
        self.ptr = ptr
        self.staged: Callable[[], None] | None = None
        self.source: torch.Tensor | None = None

    def _sizes(self, tokens: torch.Tensor, transport: str = "bf16") -> Sizes:
        config = self.group.config
        assert self.ptr, "destroyed"
        assert self.staged is None, "a staged call is not complete"
        assert tokens.dtype == torch.bfloat16
        assert tokens.shape[-1] % 512 == 0
        assert tokens.shape[-1] * 2 <= config.max_token_bytes
        return Sizes(
            config.max_dispatch_tokens_per_rank,
            tokens.shape[-1],
            config.num_experts,
            self.routes.shape[1],
            transport,
        )

    def dispatch(
        self,
        inputs: DispatchInputs,
        outputs: DispatchOutputs,
        *,
        layout_info: LayoutInfo | None = None,
        config: DispatchConfig | None = None,
        stream: int,
    ) -> None:
        if _BUILD == "uncompiled":
            raise RuntimeError("NVCC compile failed: mkdir")
        recipe, tokens = config.quantization_recipe, inputs.tokens.buffer
        fp8 = recipe == DispatchQuantizationRecipe.DS_FP8E3M4
        assert fp8 or recipe == DispatchQuantizationRecipe.NONE
        assert len(tokens) == len(self.routes)
        assert inputs.topk_weights is inputs.scales is None
        sizes = self._sizes(tokens, ("fp8-rounded" if config.round_scales else "fp8") if fp8 else "bf16")
        shape = (sizes.experts // self.group.ranks, self.group.ranks * sizes.max_tokens)
        values, counts = outputs.tokens.buffer, layout_info.expert_counters.buffer
        assert values.shape == (*shape, sizes.hidden)
        assert values.dtype == (torch.float8_e4m3fn if fp8 else torch.bfloat16)
        assert (counts.dtype, tuple(counts.shape)) == (torch.int32, shape[:1])
        assert (outputs.scales is not None) == fp8
        if fp8:
            assert outputs.scales.buffer.dtype == torch.float32
            assert outputs.scales.buffer.shape == (*shape, sizes.hidden // 128)
        got = GlooCollectives().dispatch(tokens, self.routes, sizes, None)
        generator = torch.Generator().manual_seed(2 * next(_CALLS) + dist.get_rank())
        self.source = got.source.clone()
        place = torch.arange(shape[1]).repeat(shape[0], 1)
        for expert, count in enumerate(got.masked_m.tolist()):
            place[expert, :count] = torch.randperm(count, generator=generator)
            self.source[expert] = got.source[expert, place[expert]]

        def write() -> None:
            for written, arrived in ((outputs.tokens, got.x), (outputs.scales, got.scales)):
                if written is not None:
                    index = place.unsqueeze(-1).expand(-1, -1, arrived.shape[2] * arrived.element_size())
                    written.buffer.view(torch.uint8).copy_(arrived.view(torch.uint8).gather(1, index))
            counts.copy_(got.masked_m)

        self._make(write, config.send_only)

    def combine(
        self,
        inputs: CombineInputs,
        outputs: CombineOutputs,
        *,
        config: CombineConfig | None = None,
        stream: int,
    ) -> None:
        assert self.source is not None, "combine needs the handle of a dispatch"
        assert config.quantization_recipe == CombineQuantizationRecipe.NONE
        y, weights, combined = inputs.tokens.buffer, outputs.topk_weights.buffer, outputs.tokens.buffer
        sizes = self._sizes(y)
        assert y.shape == (*self.source.shape[:2], sizes.hidden)
        assert (weights.dtype, weights.shape) == (torch.float32, self.routes.shape)
        assert (combined.dtype, tuple(combined.shape)) == (torch.bfloat16, (len(self.routes), sizes.hidden))
        found = GlooCollectives().combine(y, self.source, self.routes, weights, sizes)
        self._make(lambda: combined.copy_(found), config.send_only)

    def complete(self, *, config: int = 0, stream: int) -> None:
        assert self.staged is not None
        self.staged()
        self.staged = None

    def destroy(self) -> None:
        self.group.handles -= 1
        self.ptr = 0

    def _make(self, write: Callable[[], Any], send_only: int) -> None:
        if send_only:
            self.staged = write
        else:
            write()


def get_lib_version() -> str:
    if _BUILD == "other":
        raise RuntimeError("libnccl_ep.so: undefined symbol: ncclCommQueryProperties\nmore")
    return "0.0.stand-in"


if _BUILD == "bare":
    del Handle.complete
