"""A stand-in for DeepEP on a CPU: the signatures and layouts of deep_ep.Buffer's low-latency calls, over gloo.

Only the kernels are replaced. As with them, rows of a source rank come in another order in every call, rows past the counts
hold anything, FP8 scales lie column by column and NVFP4 tensors are views of other layouts. STAND_IN names a build: "right" has
NVFP4, "upstream" has not, "fork" makes the two mistakes of SGLang's fork at 8c78562; another name is a mistake in LogFMT.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import torch
import torch.distributed as dist
from wrong_logfmt import WRONG

from deep_ep.elastic import ElasticBuffer as ElasticBuffer
from harness.candidates.layer_stages import PhysicalLayerStages
from harness.emulation.logfmt import decode_by_kernel, encode_by_kernel
from harness.ranks import gloo
from harness.ranks.collectives import Sizes
from harness.ranks.gloo import GlooCollectives
from reference.e2m1 import pack_e2m1
from reference.e4m3 import decode_e4m3, encode_e4m3
from reference.e8m0 import encode_e8m0
from reference.fp8_tokens import amax_of_channels, quantize_fp8_tokens
from reference.layout import swizzle_128x4

__version__ = "0.0.stand-in"
topk_idx_t = torch.int64
_BUILD = os.environ.get("STAND_IN", "right")
_CALLS = itertools.count()


class EventOverlap:
    def current_stream_wait(self) -> None:
        pass


class Buffer:
    made = 0

    def __init__(
        self,
        group: Any,
        num_nvl_bytes: int = 0,
        num_rdma_bytes: int = 0,
        low_latency_mode: bool = False,
        num_qps_per_rank: int = 24,
        allow_nvlink_for_low_latency_mode: bool = True,
        allow_mnnvl: bool = False,
        explicitly_destroy: bool = False,
    ) -> None:
        assert low_latency_mode
        assert explicitly_destroy
        Buffer.made += 1
        assert Buffer.made == 1, "NVSHMEM starts once in a process"
        self.ranks, self.bytes, self.qps = dist.get_world_size(group), num_rdma_bytes, num_qps_per_rank
        self.clean: tuple[int, int, int] | None = None
        self.open_hook = False

    @staticmethod
    def get_low_latency_rdma_size_hint(
        num_max_dispatch_tokens_per_rank: int, hidden: int, num_ranks: int, num_experts: int
    ) -> int:
        return 4 * num_max_dispatch_tokens_per_rank * (2 * hidden + 16) * num_experts

    def clean_low_latency_buffer(
        self, num_max_dispatch_tokens_per_rank: int, hidden: int, num_experts: int
    ) -> None:
        self.clean = (num_max_dispatch_tokens_per_rank, hidden, num_experts)

    def destroy(self) -> None:
        self.clean = None

    def _check(self, tokens: int, hidden: int, experts: int) -> None:
        assert self.clean == (tokens, hidden, experts), "the buffer holds what another size left"
        assert hidden in {2048, 2560, 4096, 5120, 6144, 7168, 8192}
        assert self.ranks * tokens % 4 == 0
        assert self.qps >= experts // self.ranks
        assert tokens <= 1024
        assert self.bytes >= self.get_low_latency_rdma_size_hint(tokens, hidden, self.ranks, experts)
        assert int(os.environ["NVSHMEM_QP_DEPTH"]) >= (tokens + 1) * 2
        assert not self.open_hook, "only one receive hook may be open"

    def _finish(self, asynchronous: bool, hook: bool) -> tuple[Any, Any]:
        assert not (asynchronous and hook)
        self.open_hook = hook
        return EventOverlap() if asynchronous else None, self._receive if hook else None

    def _receive(self) -> None:
        self.open_hook = False

    def _dispatch(self, x: Any, ids: Any, sizes: Sizes, scale: Any) -> tuple[Any, Any, tuple[Any, ...]]:
        assert x.dtype == torch.bfloat16
        assert x.is_contiguous()
        self._check(sizes.max_tokens, sizes.hidden, sizes.experts)
        got = GlooCollectives().dispatch(x, ids, sizes, scale)
        capacity = got.x.shape[1]
        generator = torch.Generator().manual_seed(next(_CALLS))
        src_info = torch.full(got.source.shape[:2], 77, dtype=torch.int32)
        layout_range = torch.zeros((len(got.x), self.ranks), dtype=torch.int64)
        values = got.x.view(torch.uint8).clone()
        scales = None if got.scales is None else got.scales.clone()
        for expert, count in enumerate(got.masked_m.tolist()):
            rank_of = got.source[expert, :count, 0]
            order = torch.argsort(rank_of * capacity + torch.randperm(count, generator=generator))
            values[expert, :count] = values[expert, :count][order]
            if scales is not None and got.scales is not None:
                scales[expert, :count] = got.scales[expert, :count][order]
            src_info[expert, :count] = got.source[expert, :count, 1][order].int()
            for rank in range(self.ranks):
                begin = int((rank_of < rank).sum())
                layout_range[expert, rank] = begin << 32 | int((rank_of == rank).sum())
        handle = (src_info, layout_range, sizes.max_tokens, sizes.hidden, sizes.experts)
        return (values.view(got.x.dtype), scales), got.masked_m, handle

    def _fork(
        self,
        x: Any,
        topk_idx: Any,
        num_max_dispatch_tokens_per_rank: int,
        num_experts: int,
        cumulative_local_expert_recv_stats: Any = None,
        dispatch_wait_recv_cost_stats: Any = None,
        use_fp8: bool = True,
        round_scale: bool = False,
        use_ue8m0: bool = False,
        use_nvfp4: bool = False,
        x_global_scale: Any = None,
        async_finish: bool = False,
        return_recv_hook: bool = False,
    ) -> Any:
        assert not (use_fp8 and use_nvfp4)
        assert round_scale or not use_ue8m0
        fp8 = "fp8-ue8m0" if use_ue8m0 else "fp8-rounded" if round_scale else "fp8"
        transport = fp8 if use_fp8 else "nvfp4" if use_nvfp4 else "bf16"
        sizes = Sizes(num_max_dispatch_tokens_per_rank, x.shape[1], num_experts, topk_idx.shape[1], transport)
        (values, scales), count, handle = self._dispatch(x, topk_idx, sizes, x_global_scale)
        event, hook = self._finish(async_finish, return_recv_hook)
        if transport == "bf16":
            return values, count, handle, event, hook
        if use_ue8m0:
            scales = scales.view(torch.int32)
        if use_fp8:
            columns = strided(scales) if _BUILD == "fork" else scales.transpose(1, 2).contiguous()
            columns = columns.transpose(1, 2)
            return (values, columns), count, handle, event, hook
        tiles = swizzle_128x4(scales, 0)
        local, rows, columns = tiles.shape
        tiles = tiles.view(local, rows // 128, columns // 4, 32, 4, 4).view(torch.float8_e4m3fn)
        nvfp4 = values.permute(1, 2, 0), tiles.permute(3, 4, 1, 5, 2, 0)
        return nvfp4, count, handle, event, hook

    def _upstream(
        self,
        x: Any,
        topk_idx: Any,
        num_max_dispatch_tokens_per_rank: int,
        num_experts: int,
        cumulative_local_expert_recv_stats: Any = None,
        dispatch_wait_recv_cost_stats: Any = None,
        use_fp8: bool = True,
        round_scale: bool = False,
        use_ue8m0: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
    ) -> Any:
        return self._fork(
            x, topk_idx, num_max_dispatch_tokens_per_rank, num_experts,
            use_fp8=use_fp8, round_scale=round_scale, use_ue8m0=use_ue8m0, async_finish=async_finish, return_recv_hook=return_recv_hook,
        )  # fmt: skip

    low_latency_dispatch = _upstream if _BUILD == "upstream" else _fork

    def low_latency_combine(
        self,
        x: Any,
        topk_idx: Any,
        topk_weights: Any,
        handle: tuple[Any, ...],
        use_logfmt: bool = False,
        zero_copy: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
        out: Any = None,
        combine_wait_recv_cost_stats: Any = None,
    ) -> Any:
        src_info, layout_range, tokens, hidden, experts = handle
        self._check(tokens, hidden, experts)
        source = torch.full((*src_info.shape, 2), -1)
        for expert, ranges in enumerate(layout_range.tolist()):
            for rank, packed in enumerate(ranges):
                rows = slice(packed >> 32, (packed >> 32) + (packed & 0xFFFFFFFF))
                source[expert, rows, 0] = rank
                source[expert, rows, 1] = src_info[expert, rows].long()
        y = self.buffer if zero_copy else x
        assert not (zero_copy and use_logfmt)
        transport = "logfmt" if use_logfmt else "bf16"
        sizes = Sizes(tokens, hidden, experts, topk_idx.shape[1], transport)
        combined = GlooCollectives().combine(y, source, topk_idx, topk_weights, sizes)
        return combined, *self._finish(async_finish, return_recv_hook)

    def get_next_low_latency_combine_buffer(self, handle: tuple[Any, ...]) -> Any:
        src_info, _, _, hidden, _ = handle
        self.buffer = torch.full((*src_info.shape, hidden), torch.nan, dtype=torch.bfloat16)
        return self.buffer


def strided(scales: Any) -> Any:
    """Scales as the fork writes them: an expert's begin where rows filled up to 128 would have them, in a tensor without."""
    local, capacity, columns = scales.shape
    memory = torch.rand(local * capacity * columns).view(scales.dtype)
    for expert in range(local):
        start = expert * columns * -(-capacity // 128) * 128
        written = scales[expert].T.reshape(-1)[: max(len(memory) - start, 0)]
        memory[start : start + len(written)] = written
    return memory.view(local, columns, capacity)


def by_kernel(x: Any, transport: str, scale: Any = None) -> Any:
    """Tokens in a kernel's arithmetic: approximate reciprocals, and a factor of FP8 that is a unit off here and there."""
    if not transport.startswith("fp8"):
        return PhysicalLayerStages()._encode(x, transport, scale)
    amax = amax_of_channels(x).float()
    scales = amax * torch.tensor(1 / 448)
    if transport != "fp8":
        _, scales = quantize_fp8_tokens(x, round_scale=True)
    factor = torch.nextafter(1 / scales, torch.where(amax.view(torch.int32) % 2 == 0, 0.0, torch.inf))
    values = encode_e4m3(x.float().view(*scales.shape, 128) * factor.unsqueeze(-1)).view(x.shape)
    return values.view(torch.float8_e4m3fn), encode_e8m0(scales) if transport == "fp8-ue8m0" else scales


def by_exponents(x: Any, transport: str, scale: Any = None) -> Any:
    """Tokens as the fork's senders encode them: halves below 1, powers of sqrt 2 above; no sign of zero."""
    values, scales = by_kernel(x, transport, scale)
    if transport != "nvfp4":
        return values, scales
    stored = decode_e4m3(scales).repeat_interleave(16, -1)
    real = torch.where(stored > 0, x.float() * (1 / (stored * (1 / scale))), 0.0)
    size = real.abs().double() * (1 + 1e-9)
    below, above = (size * 2).floor(), (size.clamp(min=1).log2() * 2).floor() + 2
    codes = torch.where(size < 1, below, above).clamp(max=7).to(torch.uint8)
    return pack_e2m1(codes | ((real < 0).to(torch.uint8) << 3)), scales


def back(rows: Any, transport: str) -> Any:
    """Rows of experts as a kernel sends them, with the mistake of this build."""
    wrong = WRONG.get(_BUILD, lambda coded: coded)
    return rows if transport == "bf16" else decode_by_kernel(wrong(encode_by_kernel(rows)))


gloo.returned_rows = back
gloo.encode_tokens = by_exponents if _BUILD == "fork" else by_kernel
