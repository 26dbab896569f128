"""Dispatch and combine over torch.distributed's gloo: what low-latency kernels do, with plain messages on the CPU.

The sender encodes its tokens with the reference's own encoders. Rows arrive rank by rank, this rank's own first, as they
may with kernels: their order is free.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from harness.ranks.collectives import Sizes
from reference.routing import NO_EXPERT, Dispatched, encode_tokens, returned_rows


class GlooCollectives:
    """The collectives of one rank over the default process group, see harness.ranks.collectives."""

    def __init__(self) -> None:
        self._rank, self._ranks = dist.get_rank(), dist.get_world_size()

    def dispatch(
        self, x: Tensor, topk_idx: Tensor, sizes: Sizes, global_scale_enc: Tensor | None
    ) -> Dispatched:
        """Send this rank's tokens to their experts."""
        local, capacity = sizes.experts // self._ranks, self._ranks * sizes.max_tokens
        values, scales = encode_tokens(x, sizes.transport, global_scale_enc)
        token, slot = (topk_idx != NO_EXPERT).nonzero(as_tuple=True)
        expert = topk_idx[token, slot]
        order = expert.argsort(stable=True)
        expert, token = expert[order], token[order]
        counts = torch.bincount(expert // local, minlength=self._ranks)
        numbers = torch.stack((expert % local, token), dim=1)
        slots, arrived = self._exchange(numbers, counts)
        sources = torch.arange(self._ranks).repeat_interleave(arrived)
        place, row = self._rows(slots[:, 0], sources, local)
        source = torch.full((local, capacity, 2), -1)
        source[place, row] = torch.stack((sources, slots[:, 1]), dim=1)
        return Dispatched(
            self._received(values[token], counts, (place, row), (local, capacity)),
            torch.bincount(place, minlength=local).to(torch.int32),
            source,
            None
            if scales is None
            else self._received(scales[token], counts, (place, row), (local, capacity)),
        )

    def combine(
        self, y: Tensor, source: Tensor, topk_idx: Tensor, topk_weights: Tensor, sizes: Sizes
    ) -> Tensor:
        """Bring rows back to their tokens, and sum them in order of the slots."""
        expert, row = (source[..., 0] >= 0).nonzero(as_tuple=True)
        back = source[expert, row]
        order = back[:, 0].argsort(stable=True)
        expert, row, back = expert[order], row[order], back[order]
        counts = torch.bincount(back[:, 0], minlength=self._ranks)
        numbers = torch.stack((expert + self._rank * len(y), back[:, 1]), dim=1)
        slots, _ = self._exchange(numbers, counts)
        sent = returned_rows(y[expert, row].contiguous(), sizes.transport)
        rows, _ = self._exchange(sent.view(torch.uint8), counts)
        rows = torch.cat((rows.view(sent.dtype), torch.full((1, sizes.hidden), torch.nan, dtype=sent.dtype)))
        place = torch.full((sizes.experts, len(topk_idx)), -1)  # the last row: it never arrived
        place[slots[:, 0], slots[:, 1]] = torch.arange(len(slots))
        total = torch.zeros((len(topk_idx), sizes.hidden))
        for slot in range(topk_idx.shape[1]):
            ids = topk_idx[:, slot]
            found = rows[place[ids.clamp(min=0), torch.arange(len(ids))]].float()
            added = total + topk_weights[:, slot, None] * found
            total = torch.where(ids[:, None] == NO_EXPERT, total, added)
        return total.to(y.dtype)

    def _exchange(self, sent: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Send each rank its rows, which lie in order of the ranks; return what came, likewise, and how many rows of each."""
        arriving = torch.empty_like(counts)
        dist.all_to_all_single(arriving, counts)
        received = torch.empty((int(arriving.sum()), *sent.shape[1:]), dtype=sent.dtype)
        dist.all_to_all_single(received, sent.contiguous(), arriving.tolist(), counts.tolist())
        return received, arriving

    def _rows(self, expert: Tensor, sources: Tensor, local: int) -> tuple[Tensor, Tensor]:
        """Return the expert and the row of everything that came: this rank's own first, then the next ranks'."""
        turn = (sources - self._rank) % self._ranks
        order = (expert * self._ranks + turn).argsort(stable=True)
        counts = torch.bincount(expert, minlength=local)
        first = (counts.cumsum(0) - counts).repeat_interleave(counts)
        row = torch.empty_like(expert)
        row[order] = torch.arange(len(expert)) - first
        return expert, row

    def _received(
        self, sent: Tensor, counts: Tensor, place: tuple[Tensor, Tensor], shape: tuple[int, int]
    ) -> Tensor:
        """Return a receive buffer `(local experts, capacity, width)` with what came; other rows hold bytes of 0xFF: NaN."""
        rows, _ = self._exchange(sent.contiguous().view(torch.uint8), counts)
        buffer = torch.full((*shape, rows.shape[1]), 0xFF, dtype=torch.uint8)
        buffer[place] = rows
        return buffer.view(sent.dtype)
