"""What a library offers to one rank, and the sizes that all ranks must agree on. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from reference.routing import Dispatched


LATE = "one rank late"
"""Style of a call that one of the ranks begins after the others: of every library."""


@dataclass(frozen=True)
class Sizes:
    """What every rank must say alike in one call: kernels that were told different sizes wait for each other for ever.

    Attributes:
        max_tokens: most tokens that a rank sends.
        hidden: elements of a token.
        experts: of all ranks, a multiple of their number.
        topk: slots of a token.
        transport: of reference.routing.TRANSPORTS, or of its COMBINE_TRANSPORTS where rows are brought back.
        style: how the call is made: "plain", or one of the library's own ways that must not change a result.
    """

    max_tokens: int
    hidden: int
    experts: int
    topk: int
    transport: str = "bf16"
    style: str = "plain"

    @property
    def as_message(self) -> dict[str, Any]:
        """The sizes as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        style = "" if self.style == "plain" else f", {self.style}"
        return (
            f"{self.transport}{style}, max_tokens {self.max_tokens}, hidden {self.hidden}, {self.experts} experts, "
            f"top-k {self.topk}"
        )


class Collectives(Protocol):
    """A library's dispatch and combine as one rank calls them; every rank makes the same calls in the same order."""

    def dispatch(
        self, x: Tensor, topk_idx: Tensor, sizes: Sizes, global_scale_enc: Tensor | None
    ) -> Dispatched:
        """Send this rank's tokens to their experts.

        Args:
            x: `(tokens, hidden)` bfloat16, at most max_tokens.
            topk_idx: `(tokens, topk)` int64 of all experts, -1 for none.
            sizes: the same on every rank.
            global_scale_enc: `(1,)` float32, the same on every rank, for "nvfp4"; else None.

        Returns:
            What this rank's experts received from all ranks, capacity ranks * max_tokens; row order is free within a
            source rank.

        Raises:
            ValueError: what the library does not take, with its limits.
        """

    def combine(
        self, y: Tensor, source: Tensor, topk_idx: Tensor, topk_weights: Tensor, sizes: Sizes
    ) -> Tensor:
        """Bring rows back to their tokens.

        Args:
            y: `(experts of this rank, capacity, hidden)` bfloat16.
            source: `(experts of this rank, capacity, 2)` int64, rank and token of each row, -1 in padding; rows of one
                rank lie together.
            topk_idx: `(tokens, topk)` int64 of this rank's tokens.
            topk_weights: `(tokens, topk)` float32.
            sizes: the same on every rank.

        Returns:
            `(tokens, hidden)` bfloat16: the float32 sum over slots of weight * row, rounded once; with transport "logfmt" of
            what that makes of the rows.

        Raises:
            ValueError: what the library does not take, with its limits.
        """


def call_once(collectives: Collectives, hidden: int) -> None:
    """Send one token of each rank to its own expert and back, on all ranks together.

    For libraries that compile or connect at their first call: what they lack is then the reason why the ranks do not start,
    and not a fault that is found in a problem. Raises whatever the library raises.
    """
    import torch
    import torch.distributed as dist

    sizes = Sizes(1, hidden, dist.get_world_size(), 1)
    ids = torch.tensor([[dist.get_rank()]])
    got = collectives.dispatch(torch.zeros((1, hidden), dtype=torch.bfloat16), ids, sizes, None)
    collectives.combine(got.x, got.source, ids, torch.ones(1, 1), sizes)
