"""The stages around the masked MoE, as mixins of the built-in candidates: routing, dispatch, combine, loading."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from reference.routing import Dispatched


class LayerStages:
    """The reference's own stages; see harness.candidates.protocol for shapes."""

    def route_topk(self, logits: Tensor, topk: int, *, normalize: bool = True) -> tuple[Tensor, Tensor]:
        """Return expert ids and weights, `(tokens, topk)` each, largest first."""
        from reference.routing import route_topk

        return route_topk(logits, topk, normalize=normalize)

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
        """Send every token to its experts, source ranks and their tokens in order."""
        from reference.routing import dispatch

        return dispatch(
            x, topk_idx, experts, max_tokens, transport=transport, global_scale_enc=global_scale_enc
        )

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
        from reference.routing import combine

        return combine(y, dispatched, topk_idx, topk_weights, transport=transport)

    def load_experts(self, checkpoint: Mapping[str, Tensor], experts: range) -> dict[str, Tensor]:
        """Return masked_moe's weight arguments."""
        from reference.loading import load_experts

        return load_experts(checkpoint, experts)


class PhysicalLayerStages(LayerStages):
    """What DeepEP's kernels do to bits and memory: rows in the order of arrival, float32 arithmetic, buffers not cleared."""

    def route_topk(self, logits: Tensor, topk: int, *, normalize: bool = True) -> tuple[Tensor, Tensor]:
        """Return ids and weights computed in float32, slots in no particular order (torch.topk with sorted=False)."""
        import torch

        if not 1 <= topk <= logits.shape[-1]:
            raise ValueError(f"route_topk: topk must lie in [1, {logits.shape[-1]}], got {topk}")
        weights, experts = torch.softmax(logits.float(), dim=-1).topk(topk, dim=-1)
        if normalize:
            weights = weights / weights.sum(-1, keepdim=True)
        return experts.flip(-1), weights.flip(-1)

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
        """Send every token to its experts; ranks arrive in any order, as do the tokens of a rank.

        The order is a function of the routing, so that two equal calls agree. Rows past the count hold NaN bytes.
        """
        import torch

        from reference.routing import Dispatched, dispatch

        plan = dispatch(x, topk_idx, experts, max_tokens)
        sent, scales = self._encode(torch.cat(x), transport, global_scale_enc)
        first = torch.tensor([0, *(len(tokens) for tokens in x)]).cumsum(0)
        received = []
        for ordered in plan:
            source = torch.full_like(ordered.source, -1)
            token = torch.zeros(source.shape[:2], dtype=torch.int64)
            for slot, rows in enumerate(ordered.masked_m.tolist()):
                arrived = ordered.source[slot, :rows][_arrival(ordered.source[slot, :rows, 0].tolist())]
                source[slot, :rows] = arrived
                token[slot, :rows] = first[arrived[:, 0]] + arrived[:, 1]
            filled = source[..., 0] >= 0
            received.append(
                Dispatched(
                    _receive(sent, token, filled),
                    ordered.masked_m,
                    source,
                    None if scales is None else _receive(scales, token, filled),
                )
            )
        return received

    def combine(
        self,
        y: list[Tensor],
        dispatched: list[Dispatched],
        topk_idx: list[Tensor],
        topk_weights: list[Tensor],
        *,
        transport: str = "bf16",
    ) -> list[Tensor]:
        """Bring the rows back and sum them with fused multiply-adds, as compiled kernels do."""
        from harness.emulation.logfmt import rows_by_kernel
        from reference.routing import combine

        if transport != "logfmt":
            return combine(y, dispatched, topk_idx, topk_weights, transport=transport, fused=True)
        rows = [rows_by_kernel(part) for part in y]
        summed = combine(rows, dispatched, topk_idx, topk_weights, fused=True)
        return [out.to(y[0].dtype) for out in summed]

    def _encode(
        self, tokens: Tensor, transport: str, global_scale_enc: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return what is sent, in the kernels' float32 arithmetic."""
        import torch

        from harness.emulation.quantize import quantize_kernel_order, simulated_rcp
        from reference import fp8_tokens
        from reference.e2m1 import pack_e2m1
        from reference.e4m3 import encode_e4m3
        from reference.routing import encode_tokens

        if transport == "fp8":
            amax = fp8_tokens.amax_of_channels(tokens).float()
            scale = amax * torch.tensor(1 / 448)
            grouped = tokens.float().view(*scale.shape, fp8_tokens.CHANNELS)
            values = encode_e4m3(grouped * (448 / amax).unsqueeze(-1))
            return values.view(torch.float8_e4m3fn).view(tokens.shape), scale
        if transport == "nvfp4" and global_scale_enc is not None and global_scale_enc.numel() == 1:
            codes, block_scale = quantize_kernel_order(
                tokens, global_scale_enc.reshape(1).expand(len(tokens)), rcp=simulated_rcp
            )
            return pack_e2m1(codes), block_scale
        return encode_tokens(tokens, transport, global_scale_enc)  # bf16, and what is refused


def _arrival(ranks: list[int]) -> list[int]:
    """Return the order in which rows arrive: the ranks in any order, each rank's tokens together, in any order."""
    rng = random.Random(str(ranks))
    present = sorted(set(ranks))
    rng.shuffle(present)
    order = []
    for rank in present:
        mine = [row for row, sender in enumerate(ranks) if sender == rank]
        rng.shuffle(mine)
        order += mine
    return order


def _receive(sent: Tensor, token: Tensor, filled: Tensor) -> Tensor:
    """Return a receive buffer `(local experts, capacity, width)`: the rows that arrived, NaN bytes elsewhere."""
    import torch

    from harness.emulation.memory import unwritten

    buffer = unwritten((*token.shape, sent.shape[-1]), sent.dtype)
    as_bytes = torch.uint8 if sent.dtype.itemsize == 1 else sent.dtype
    buffer.view(as_bytes)[filled] = sent.view(as_bytes)[token[filled]]
    return buffer


class KernelStages:
    """A candidate seen without the stages around the kernels: what somebody has who only wrote the kernels.

    A fault of loading that is planted in it goes into masked_moe, where it changes the weight arguments.

    Args:
        candidate: any candidate.
    """

    def __init__(self, candidate: Any) -> None:
        self._candidate = candidate

    def __getattr__(self, name: str) -> Any:
        from harness.candidates.protocol import LAYER_STAGES

        if name in LAYER_STAGES:
            raise AttributeError(f"{type(self._candidate).__name__} is seen without {name}")
        return getattr(self._candidate, name)
