"""A stand-in of DeepEP's low-latency buffers, of all ranks in one process, for an engine's own dispatcher over it.

It moves tokens as the reference does. What an engine asks it for (which type is sent, with which scale, for how many experts,
which ids and weights are combined by which handle) is what is judged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from harness.candidates.engines.engine import EngineChangedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from reference.routing import Dispatched

_LEFT_OUT = {"async_finish", "return_recv_hook", "round_scale", "use_ue8m0"}


class Ranks(ABC):
    """The buffers of all ranks, and an engine's dispatchers over them.

    Args:
        engine: whose dispatchers they are for.
        ranks, experts, max_tokens: of the layer.

    Attributes:
        operands: whether packed codes are returned as kernels take operands, `(rows, k / 2, experts)`: DeepEP's hybrid-ep.
    """

    operands = False

    def __init__(self, engine: str, *, ranks: int, experts: int, max_tokens: int) -> None:
        self.engine_name, self.ranks, self.experts, self.max_tokens = engine, ranks, experts, max_tokens
        self.sent: dict[int, tuple[Any, ...]] = {}
        self.received: list[Dispatched] = []
        self.buffers = [Buffer(self, rank) for rank in range(ranks)]

    @abstractmethod
    def dispatch(
        self, x: list[Tensor], topk_idx: list[Tensor], topk_weights: list[Tensor], scale: Tensor | None = None
    ) -> list[tuple[Any, ...]]:
        """Send every rank's tokens; return tokens, counts and scales as the dispatchers give them to the experts."""

    @abstractmethod
    def combine(
        self, y: list[Tensor], topk_idx: list[Tensor], topk_weights: list[Tensor], received: list[Dispatched]
    ) -> list[Tensor]:
        """Bring every rank's rows back through its dispatcher."""

    def exchange(self, transport: str, scale: Tensor | None) -> None:
        """Dispatch what all ranks sent, once they have."""
        from reference import routing

        if not self.received:
            each = [self.sent[rank] for rank in range(self.ranks)]
            x, ids = [one[0] for one in each], [one[1] for one in each]
            self.received = routing.dispatch(
                x, ids, self.experts, self.max_tokens, transport=transport, global_scale_enc=scale
            )

    def summed(self) -> list[Tensor]:
        """Combine what all ranks returned."""
        from reference import routing

        y, ids, weights = ([self.sent[rank][part] for rank in range(self.ranks)] for part in range(3))
        return routing.combine(y, self.received, ids, weights)


class Buffer:
    """One rank's deep_ep.Buffer, and its process group."""

    def __init__(self, world: Ranks, rank: int) -> None:
        self._world, self._rank = world, rank
        self.group_size = world.ranks

    def size(self) -> int:
        """Return the number of ranks."""
        return self.group_size

    def low_latency_dispatch(
        self,
        x: Tensor,
        topk_idx: Tensor,
        num_max_dispatch_tokens_per_rank: int,
        num_experts: int,
        *,
        use_fp8: bool = True,
        use_nvfp4: bool = False,
        x_global_scale: Tensor | None = None,
        **named: Any,
    ) -> tuple[Any, ...]:
        """Take a rank's tokens; the tensors that are returned are filled by the hook."""
        import torch

        world = self._world
        _known(world.engine_name, named)
        if (num_max_dispatch_tokens_per_rank, num_experts) != (world.max_tokens, world.experts):
            raise ValueError(
                f"low_latency_dispatch: {world.engine_name} asks for {num_max_dispatch_tokens_per_rank} tokens and {num_experts} "
                f"experts, the layer has {world.max_tokens} and {world.experts}"
            )
        world.sent[self._rank] = x, topk_idx
        transport = "nvfp4" if use_nvfp4 else "fp8" if use_fp8 else "bf16"
        shape = (num_experts // world.ranks, world.ranks * world.max_tokens)
        hidden = x.shape[1]
        widths: tuple[tuple[int, torch.dtype], ...] = {
            "bf16": ((hidden, torch.bfloat16),),
            "fp8": ((hidden, torch.float8_e4m3fn), (hidden // 128, torch.float32)),
            "nvfp4": ((hidden // 2, torch.uint8), (hidden // 16, torch.uint8)),
        }[transport]
        buffers = [torch.empty((*shape, width), dtype=dtype) for width, dtype in widths]
        counts = torch.empty(shape[0], dtype=torch.int32)

        def hook() -> None:
            world.exchange(transport, x_global_scale)
            got = world.received[self._rank]
            for buffer, value in zip((*buffers, counts), (got.x, got.scales, got.masked_m), strict=False):
                if value is not None:
                    buffer.view(value.dtype).copy_(value)
            counts.copy_(got.masked_m)

        first = buffers[0].permute(1, 2, 0) if use_nvfp4 and world.operands else buffers[0]
        rows: Any = first if len(buffers) == 1 else (first, *buffers[1:])
        return rows, counts, (self._rank, counts), None, hook

    def low_latency_combine(
        self,
        x: Tensor,
        topk_idx: Tensor,
        topk_weights: Tensor,
        handle: tuple[int, Tensor],
        *,
        out: Tensor | None = None,
        **named: Any,
    ) -> tuple[Tensor, None, Callable[[], None]]:
        """Take a rank's rows; the tensor that is returned is filled by the hook."""
        import torch

        _known(self._world.engine_name, named)
        if handle[0] != self._rank:
            raise ValueError(
                f"low_latency_combine: rank {self._rank} combines with the handle of {handle[0]}"
            )
        self._world.sent[self._rank] = x, topk_idx, topk_weights
        into = torch.empty(len(topk_idx), x.shape[-1], dtype=torch.bfloat16) if out is None else out

        def hook() -> None:
            into.copy_(self._world.summed()[self._rank])

        return into, None, hook


def _known(engine: str, named: dict[str, Any]) -> None:
    """Raise EngineChangedError for an argument that the stand-in does not know, unless it asks for nothing."""
    unknown = [name for name, value in named.items() if name not in _LEFT_OUT and value]
    if unknown:
        raise EngineChangedError(f"{engine} asks DeepEP for {', '.join(unknown)}")
