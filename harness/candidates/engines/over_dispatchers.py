"""dispatch and combine through an engine's own DeepEP dispatchers, one a rank, all in this process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from harness.candidates.engines.deepep_buffer import Ranks
    from reference.routing import Dispatched


class OverDispatchers(ABC):
    """Both stages of a layer; see harness.candidates.protocol for shapes. DeepEP itself is a stand-in."""

    @abstractmethod
    def _world(
        self, hidden: int, ranks: int, experts: int, max_tokens: int, transport: str
    ) -> AbstractContextManager[Ranks]:
        """Return the dispatchers of all ranks, for as long as their engine runs."""

    def dispatch(
        self,
        x: list[Tensor],
        topk_idx: list[Tensor],
        experts: int,
        max_tokens: int,
        *,
        transport: str = "bf16",
        global_scale_enc: Tensor | None = None,
    ) -> list[Dispatched]:
        """Send every token to its experts. Raises ValueError where the experts do not divide among the ranks."""
        import torch

        from reference.routing import Dispatched

        if len(x) == 0 or experts % len(x):
            raise ValueError(f"dispatch: experts must be a multiple of the ranks, got {experts} and {len(x)}")
        with self._world(x[0].shape[1], len(x), experts, max_tokens, transport) as world:
            weights = [torch.ones(ids.shape) for ids in topk_idx]
            given = world.dispatch(x, topk_idx, weights, global_scale_enc if transport == "nvfp4" else None)
            return [
                Dispatched(tokens, counts, got.source, scales)
                for (tokens, counts, scales), got in zip(given, world.received, strict=True)
            ]

    def combine(
        self,
        y: list[Tensor],
        dispatched: list[Dispatched],
        topk_idx: list[Tensor],
        topk_weights: list[Tensor],
        *,
        transport: str = "bf16",
    ) -> list[Tensor]:
        """Bring the rows back and sum them with their weights."""
        if transport != "bf16":
            raise NotImplementedError(f"combine: engines bring rows back by bf16, got {transport!r}")
        tokens = [rows.new_zeros(len(ids), rows.shape[-1]) for rows, ids in zip(y, topk_idx, strict=True)]
        experts, max_tokens = len(y) * len(y[0]), y[0].shape[1] // len(y)
        with self._world(y[0].shape[-1], len(y), experts, max_tokens, "bf16") as world:
            world.dispatch(tokens, topk_idx, topk_weights)
            return world.combine(y, topk_idx, topk_weights, dispatched)
