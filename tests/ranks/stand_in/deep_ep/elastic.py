"""The ElasticBuffer of DeepEP 2.x on a CPU: its signatures and layouts over gloo, without weights in combine.

As with its kernels, the rows of an expert lie in another order in every call, those of several ranks among each other, and
tokens are numbered by the most that a rank may send.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from harness.ranks.collectives import Sizes
from harness.ranks.gloo import GlooCollectives

_CALLS = itertools.count()


class ElasticBuffer:
    made = 0

    def __init__(
        self,
        group: Any,
        num_bytes: int | None = None,
        num_cpu_bytes: int = 0,
        num_max_tokens_per_rank: int = 0,
        hidden: int = 0,
        num_topk: int = 0,
        use_fp8_dispatch: bool = False,
        deterministic: bool = False,
        allow_hybrid_mode: bool = True,
        allow_multiple_reduction: bool = True,
        prefer_overlap_with_compute: bool = True,
        sl_idx: int = 3,
        num_allocated_qps: int = 0,
        num_cpu_timeout_secs: int = 300,
        num_gpu_timeout_secs: int = 100,
        explicitly_destroy: bool = False,
    ) -> None:
        ElasticBuffer.made += 1
        assert ElasticBuffer.made == 1
        assert not allow_multiple_reduction, "rows would be added and rounded on their way"
        self.ranks, self.most = dist.get_world_size(group), (num_max_tokens_per_rank, hidden, num_topk)

    def dispatch(
        self,
        x: Any,
        topk_idx: Any = None,
        topk_weights: Any = None,
        cumulative_local_expert_recv_stats: Any = None,
        num_experts: int | None = None,
        num_max_tokens_per_rank: int | None = None,
        expert_alignment: int | None = None,
        num_sms: int = 0,
        num_qps: int = 0,
        previous_event: Any = None,
        previous_event_before_epilogue: Any = None,
        async_with_compute_stream: bool = False,
        allocate_on_comm_stream: bool = False,
        handle: Any = None,
        do_handle_copy: bool = True,
        do_cpu_sync: bool | None = None,
        do_expand: bool = False,
        do_zero_padding: bool = False,
        use_tma_aligned_col_major_sf: bool = False,
    ) -> Any:
        x, scales = x if isinstance(x, tuple) else (x, None)
        self._check(x, topk_idx, num_max_tokens_per_rank)
        assert do_expand
        assert expert_alignment == 1
        assert x.dtype == (torch.bfloat16 if scales is None else torch.float8_e4m3fn)
        assert x.is_contiguous()
        assert scales is None or (scales.dtype, scales.shape) == (torch.float32, (len(x), x.shape[1] // 128))
        parts = [part.contiguous().view(torch.uint8) for part in (x, scales) if part is not None]
        payload = torch.cat(parts, dim=1).view(torch.bfloat16)
        tokens = torch.tensor(len(x))
        dist.all_reduce(tokens, dist.ReduceOp.MAX)
        sizes = Sizes(int(tokens), payload.shape[1], num_experts, topk_idx.shape[1])
        got = GlooCollectives().dispatch(payload, topk_idx, sizes, None)
        generator = torch.Generator().manual_seed(2 * next(_CALLS) + dist.get_rank())
        orders = [torch.randperm(count, generator=generator) for count in got.masked_m.tolist()]
        rows = torch.cat([got.x[expert][order] for expert, order in enumerate(orders)]).view(torch.uint8)
        source = torch.cat([got.source[expert][order] for expert, order in enumerate(orders)])
        handle = SimpleNamespace(
            topk_idx=topk_idx.clone(),
            sizes=sizes,
            source=source,
            counts=got.masked_m,
            psum_num_recv_tokens_per_expert=got.masked_m.cumsum(0).int(),
        )
        self._number(handle, num_max_tokens_per_rank, generator)
        width = x.shape[1] * x.element_size()
        received = rows[:, :width].contiguous().view(x.dtype)
        if scales is not None:
            received = received, rows[:, width:].contiguous().view(torch.float32)
        return received, None, None, handle, _Event(async_with_compute_stream)

    def _number(self, handle: Any, most: int, generator: Any) -> None:
        """Lay out the handle's metadata: a row for each token that came, those of a rank together, in any order."""
        routes: list[Any] = [None] * self.ranks
        dist.all_gather_object(routes, handle.topk_idx.tolist())
        number = handle.source[:, 0] * most + handle.source[:, 1]
        came = number.unique()
        came = came[((came // most) * len(came) + torch.randperm(len(came), generator=generator)).argsort()]
        local, topk = len(handle.counts), handle.topk_idx.shape[1]
        expert = dist.get_rank() * local + torch.arange(local).repeat_interleave(handle.counts)
        place = {pair: row for row, pair in enumerate(zip(number.tolist(), expert.tolist(), strict=True))}
        metadata = torch.full((len(came), 2 + topk), -1, dtype=torch.int32)
        for row, one in enumerate(came.tolist()):
            slots = [place.get((one, expert), -1) for expert in routes[one // most][one % most]]
            metadata[row] = torch.tensor([one, 0, *slots])
        counts = torch.bincount(came // most, minlength=self.ranks)
        handle.recv_src_metadata, handle.psum_num_recv_tokens_per_scaleup_rank = (
            metadata,
            counts.cumsum(0).int(),
        )

    def combine(
        self,
        x: Any,
        handle: Any,
        topk_weights: Any = None,
        bias: Any = None,
        num_sms: int = 0,
        num_qps: int = 0,
        previous_event: Any = None,
        previous_event_before_epilogue: Any = None,
        async_with_compute_stream: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> Any:
        assert topk_weights is None, "weights are carried, not applied"
        assert (x.dtype, len(x)) == (torch.bfloat16, len(handle.source))
        capacity = self.ranks * handle.sizes.max_tokens
        y = torch.full((len(handle.counts), capacity, x.shape[1]), torch.nan, dtype=torch.bfloat16)
        source = torch.full((*y.shape[:2], 2), -1)
        filled = torch.arange(capacity) < handle.counts.unsqueeze(-1)
        y[filled], source[filled] = x, handle.source
        ones = torch.ones(handle.topk_idx.shape)
        sizes = Sizes(handle.sizes.max_tokens, x.shape[1], handle.sizes.experts, handle.sizes.topk)
        combined = GlooCollectives().combine(y, source, handle.topk_idx, ones, sizes)
        return combined, None, _Event(async_with_compute_stream)

    def _check(self, x: Any, ids: Any, tokens: int | None) -> None:
        most, hidden, topk = self.most
        assert tokens is not None
        assert 1 <= len(x) <= tokens <= most
        assert x.shape[1] <= hidden
        assert x.shape[1] % 256 == 0
        assert ids.shape[1] <= topk
        assert ids.dtype == torch.int64


class _Event:
    def __init__(self, valid: bool) -> None:
        self.valid = valid

    def current_stream_wait(self) -> None:
        assert self.valid
