"""DeepEP's ElasticBuffer as one rank calls it: dispatch into one row for each token and expert, and combine.

The handle says where every row came from. An expert's rows take their places as they arrive, those of several ranks among
each other, so they are put in order of rank and token. Tokens of FP8 are encoded here, and moved by the library. Its combine
adds rows without weights, so it is called once for each slot, the rows of other slots zero, and the weighted sum is taken
here: where each row goes is the library's work, how they are added is not.
Source: DeepEP 2.x, deep_ep/buffers/elastic.py, csrc/elastic/buffer.hpp, impls/dispatch_copy_epilogue.cuh and combine.cuh.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from harness.ranks.collectives import Sizes, call_once
from harness.ranks.deepep_build import ELASTIC_HIDDEN_SIZES, ELASTIC_TRANSPORTS, MOST_TOKENS, find_elastic
from harness.ranks.messages import with_padding
from harness.ranks.spreading import distinct, not_empty, ranks_together, rows_at
from reference.routing import NO_EXPERT, Dispatched, encode_tokens

MOST_TOPK = 8
"""Of the one buffer of a process."""


class ElasticCollectives:
    """The collectives of one rank through deep_ep.ElasticBuffer, see harness.ranks.collectives.

    Raises:
        NoBuildError: deep_ep cannot be used here, or has no ElasticBuffer.
    """

    def __init__(self) -> None:
        find_elastic()
        import deep_ep

        self._ranks = dist.get_world_size()
        self._on_gpu = torch.cuda.is_available()
        self._device = torch.device("cuda", torch.cuda.current_device()) if self._on_gpu else "cpu"
        self._id_dtype = getattr(deep_ep, "topk_idx_t", torch.int64)
        self._buffer = deep_ep.ElasticBuffer(
            dist.group.WORLD,
            num_max_tokens_per_rank=MOST_TOKENS,
            hidden=max(ELASTIC_HIDDEN_SIZES),
            num_topk=MOST_TOPK,
            allow_multiple_reduction=False,
            explicitly_destroy=True,
        )
        call_once(self, ELASTIC_HIDDEN_SIZES[0])

    def dispatch(
        self, x: Tensor, topk_idx: Tensor, sizes: Sizes, global_scale_enc: Tensor | None
    ) -> Dispatched:
        """Send this rank's tokens to their experts."""
        self._check(sizes)
        x = not_empty(x.to(self._device), 0).contiguous()
        values, scales = encode_tokens(x, sizes.transport, global_scale_enc)
        tokens = values if scales is None else (values.view(torch.float8_e4m3fn), scales.contiguous())
        received, handle = self._send(tokens, self._routes(topk_idx), sizes)
        values, scales = (received, None) if scales is None else received
        counts, source, filled = self._layout(handle, sizes)
        rows = int(counts.sum())
        return ranks_together(
            Dispatched(
                with_padding(values[:rows], filled),
                counts,
                source,
                None if scales is None else with_padding(scales[:rows], filled),
            )
        )

    def combine(
        self, y: Tensor, source: Tensor, topk_idx: Tensor, topk_weights: Tensor, sizes: Sizes
    ) -> Tensor:
        """Bring rows back to their tokens."""
        self._check(sizes)
        ids = self._routes(topk_idx)
        weights = not_empty(topk_weights.to(self._device, torch.float32), 0)
        nothing = torch.zeros((len(ids), sizes.hidden), dtype=torch.bfloat16, device=self._device)
        received, handle = self._send(nothing, ids, sizes)
        _, wanted, filled = self._layout(handle, sizes)
        rows = rows_at(y.to(self._device), source.to(self._device), wanted, self._ranks)[filled]
        slots = self._metadata(handle)[:, 2:]
        total = torch.zeros_like(nothing, dtype=torch.float32)
        for slot in range(sizes.topk):
            of_slot = slots[:, slot][slots[:, slot] >= 0]
            part = torch.zeros_like(received)
            part[of_slot] = rows[of_slot]
            combined, _, event = self._buffer.combine(
                part, handle, async_with_compute_stream=_asynchronous(sizes)
            )
            self._finish(event, sizes)
            added = total + weights[:, slot, None] * combined.float()
            total = torch.where(ids[:, slot, None] == NO_EXPERT, total, added)
        return total.to(torch.bfloat16)[: len(topk_idx)]

    def _check(self, sizes: Sizes) -> None:
        """Refuse what the buffer was not made for. Raises ValueError."""
        if sizes.transport not in ELASTIC_TRANSPORTS:
            raise ValueError(
                f"ElasticBuffer is called with {', '.join(ELASTIC_TRANSPORTS)}, got {sizes.transport}"
            )
        if sizes.hidden not in ELASTIC_HIDDEN_SIZES:
            raise ValueError(
                f"ElasticBuffer is called with a hidden size of {ELASTIC_HIDDEN_SIZES}, got {sizes.hidden}"
            )
        if not 1 <= sizes.max_tokens <= MOST_TOKENS or not 1 <= sizes.topk <= MOST_TOPK:
            raise ValueError(
                f"the one ElasticBuffer of a process was made for 1 to {MOST_TOKENS} tokens of a rank and a top-k of 1 to "
                f"{MOST_TOPK}, got {sizes.max_tokens} and {sizes.topk}"
            )

    def _routes(self, topk_idx: Tensor) -> Tensor:
        return not_empty(distinct(topk_idx.to(self._device, self._id_dtype)), NO_EXPERT).contiguous()

    def _send(self, tokens: Any, ids: Tensor, sizes: Sizes) -> tuple[Any, Any]:
        received, _, _, handle, event = self._buffer.dispatch(
            tokens,
            topk_idx=ids,
            num_experts=sizes.experts,
            num_max_tokens_per_rank=MOST_TOKENS,  # kernels are compiled for it: always the same
            expert_alignment=1,
            async_with_compute_stream=_asynchronous(sizes),
            do_expand=True,
        )
        self._finish(event, sizes)
        return received, handle

    def _finish(self, event: Any, sizes: Sizes) -> None:
        if _asynchronous(sizes):
            event.current_stream_wait()
        if self._on_gpu:
            torch.cuda.synchronize()

    def _metadata(self, handle: Any) -> Tensor:
        """Return `(tokens received, 2 + topk)` int64: number of the token among all, another, and the row for each slot."""
        received: Tensor = handle.recv_src_metadata
        return received[: int(handle.psum_num_recv_tokens_per_scaleup_rank[-1])].long()

    def _layout(self, handle: Any, sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
        """Return counts, `(local, capacity, 2)` rank and token of the rows, and which of the rows are there."""
        ends = handle.psum_num_recv_tokens_per_expert[: sizes.experts // self._ranks].long()
        counts = ends.diff(prepend=ends.new_zeros(1))
        capacity = self._ranks * sizes.max_tokens
        filled = torch.arange(capacity, device=counts.device) < counts.unsqueeze(-1)
        metadata = self._metadata(handle)
        token, slot = (metadata[:, 2:] >= 0).nonzero(as_tuple=True)
        number = metadata[token, 0]
        flat = torch.full((int(counts.sum()), 2), -1, device=counts.device)
        flat[metadata[token, 2 + slot]] = torch.stack((number // MOST_TOKENS, number % MOST_TOKENS), dim=1)
        return counts.to(torch.int32), with_padding(flat, filled), filled


def _asynchronous(sizes: Sizes) -> bool:
    return sizes.style == "asynchronous"
