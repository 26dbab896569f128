"""Slots of tokens brought to the order of their experts, and a token's rows added: what a routed layer does around its GEMMs.

In torch, without waiting for the device: every shape depends on the number of tokens alone. What engines have kernels for
(moe_align_block_size, moe_permute, moe_sum).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Slots:
    """The slots of all tokens, of which some name an expert of this rank.

    Attributes:
        topk_idx: `(tokens, topk)` integer, global ids, -1 for none.
        experts: on this rank.
        offset: global id of the first of them.
    """

    topk_idx: Tensor
    experts: int
    offset: int = 0

    @cached_property
    def there(self) -> Tensor:
        """`(tokens, topk)` bool: the slots that count."""
        return self.expert < self.experts

    @cached_property
    def order(self) -> Tensor:
        """`(slots,)` int64: slots expert after expert, those that count for nothing last."""
        return self.expert.flatten().argsort(stable=True)

    @cached_property
    def counts(self) -> Tensor:
        """`(experts,)` int64: slots of each."""
        import torch

        numbers = torch.arange(self.experts, device=self.topk_idx.device)
        return (self.expert.view(-1, 1) == numbers).sum(0)

    @property
    def offsets(self) -> Tensor:
        """`(experts + 1,)` int32: where each expert's slots begin in `order`, and where the last one's end."""
        import torch

        return torch.cat((self.counts.new_zeros(1), self.counts.cumsum(0))).int()

    def aligned(self, block: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return slots in blocks that belong to one expert each, the last block of each filled up.

        Args:
            block: slots of a block.

        Returns:
            Slots `(padded,)` int32, the number of all slots where there is none; the expert of each block, int32; and how many
            of `padded` are used, `(1,)` int32.
        """
        import torch

        number, device = self.topk_idx.numel(), self.topk_idx.device
        padded = -(-(number + self.experts * (block - 1)) // block) * block
        filled = (self.counts + block - 1) // block * block
        ends = filled.cumsum(0)
        expert = self.expert.flatten()[self.order]
        known = expert.clamp(max=self.experts - 1)
        within = torch.arange(number, device=device) - self.offsets[:-1].long()[known]
        place = torch.where(expert < self.experts, (ends - filled)[known] + within, padded)
        slots = torch.full((padded + 1,), number, dtype=torch.int32, device=device)
        slots[place] = self.order.int()  # those that count for nothing fall behind the end
        starts = torch.arange(0, padded, block, device=device)
        of_block = torch.searchsorted(ends, starts, right=True).clamp(max=self.experts - 1)
        return slots[:padded].contiguous(), of_block.int(), ends[-1:].int()

    @cached_property
    def expert(self) -> Tensor:
        """`(tokens, topk)` int64: number of the expert on this rank, `experts` where there is none."""
        local = self.topk_idx.long() - self.offset
        here = (local >= 0) & (local < self.experts) & (self.topk_idx >= 0)
        return local.masked_fill(~here, self.experts)


def add_slots(rows: Tensor, weights: Tensor, there: Tensor, out: Tensor) -> None:
    """Write each token's sum of weight times row into out: slot after slot, in float32, rounded once.

    Args:
        rows: `(tokens, topk, k)`; what lies in slots that do not count is not looked at.
        weights: `(tokens, topk)` float32.
        there: `(tokens, topk)` bool, the slots that count.
        out: `(tokens, k)`.
    """
    import torch

    total = torch.zeros(out.shape, dtype=torch.float32, device=out.device)
    for slot in range(rows.shape[1]):
        added = total + weights[:, slot, None] * rows[:, slot].float()
        total = torch.where(there[:, slot, None], added, total)
    out.copy_(total)
