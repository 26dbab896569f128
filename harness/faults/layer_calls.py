"""Calls of the stages around the masked MoE, as a fault sees them.

A fault of loading changes what was loaded: after `run()` the weight arguments are attributes. The same function is planted
in `load_experts`, or, in a candidate that has none, in `masked_moe`, whose weight arguments it then changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.faults.calls import Call
from reference.e2m1 import pack_e2m1, unpack_e2m1
from reference.layout import swizzle_128x4, unswizzle_128x4
from reference.routing import Dispatched

LOADED = (
    "input_global_scale", "w1", "w1_blockscale", "w1_alpha", "w2", "a2_global_scale", "w2_blockscale", "w2_alpha",
)  # fmt: skip


class RouteCall(Call):
    """route_topk.

    Attributes:
        logits: `(tokens, experts)`; topk, normalize: as the stage takes them.
        topk_idx: `(tokens, topk)` int64, after run().
        topk_weights: `(tokens, topk)` float32, after run().
    """

    names = ("logits", "topk", "normalize")
    logits: Tensor
    topk: int
    normalize: bool = True
    topk_idx: Tensor
    topk_weights: Tensor

    def run(self) -> None:
        """Route."""
        self.topk_idx, self.topk_weights = self.function(self.logits, self.topk, normalize=self.normalize)

    def result(self) -> tuple[Tensor, Tensor]:
        """Return (topk_idx, topk_weights)."""
        return self.topk_idx, self.topk_weights


class DispatchCall(Call):
    """dispatch.

    Attributes:
        x, topk_idx: per rank; experts, max_tokens, transport, global_scale_enc: as the stage takes them.
        received: one `Dispatched` per rank, after run(); assign new ones to change.
    """

    names = ("x", "topk_idx", "experts", "max_tokens", "transport", "global_scale_enc")
    x: list[Tensor]
    topk_idx: list[Tensor]
    experts: int
    max_tokens: int
    transport: str = "bf16"
    global_scale_enc: Tensor | None = None
    received: list[Dispatched]

    def run(self) -> None:
        """Dispatch."""
        self.received = self.function(
            self.x,
            self.topk_idx,
            self.experts,
            self.max_tokens,
            transport=self.transport,
            global_scale_enc=self.global_scale_enc,
        )

    def result(self) -> list[Dispatched]:
        """Return what the ranks received."""
        return self.received

    def change(self, function: Callable[[Dispatched], Dispatched]) -> None:
        """Replace what every rank received by a function of it."""
        self.received = [function(got) for got in self.received]


class CombineCall(Call):
    """combine.

    Attributes:
        y, dispatched, topk_idx, topk_weights: per rank; transport: as the stage takes them.
        outputs: per rank `(tokens, hidden)`, after run().
    """

    names = ("y", "dispatched", "topk_idx", "topk_weights", "transport")
    y: list[Tensor]
    dispatched: list[Dispatched]
    topk_idx: list[Tensor]
    topk_weights: list[Tensor]
    transport: str = "bf16"
    outputs: list[Tensor]

    def run(self) -> None:
        """Combine."""
        # Only what is not usual is passed: a candidate of one transport need not take the argument.
        named = {} if self.transport == "bf16" else {"transport": self.transport}
        self.outputs = self.function(self.y, self.dispatched, self.topk_idx, self.topk_weights, **named)

    def result(self) -> list[Tensor]:
        """Return the ranks' outputs."""
        return self.outputs


class LoadCall(Call):
    """load_experts.

    Attributes:
        checkpoint: the layer's tensors, None in a call of masked_moe.
        experts: range of this rank's experts, None in a call of masked_moe.
        input_global_scale and the other names of LOADED: masked_moe's weight arguments, after run(). input_global_scale is
            None where masked_moe gets a quantized pair.
        first: number of this rank's first expert; total: experts of the layer, as far as the call knows.
    """

    names: tuple[str, ...] = ("checkpoint", "experts")
    checkpoint: dict[str, Tensor] | None = None
    experts: range | None = None
    input_global_scale: Tensor | None
    w1: Tensor
    w1_blockscale: Tensor
    w1_alpha: Tensor
    w2: Tensor
    a2_global_scale: Tensor
    w2_blockscale: Tensor
    w2_alpha: Tensor

    def run(self) -> None:
        """Load; the weight arguments are there afterwards."""
        loaded = self.function(self.checkpoint, self.experts)
        self.others = {name: value for name, value in loaded.items() if name not in LOADED}
        for name in LOADED:
            setattr(self, name, loaded[name])

    def result(self) -> Any:
        """Return the weight arguments."""
        return {name: getattr(self, name) for name in LOADED} | self.others

    @property
    def first(self) -> int:
        """Number of this rank's first expert."""
        return self.experts.start if self.experts is not None else 0

    @property
    def total(self) -> int:
        """Experts of the layer; of this rank where the call does not know more."""
        if self.checkpoint is None:
            return len(self.w1)
        return len({name.split(".")[1] for name in self.checkpoint})

    def visible(self) -> Tensor:
        """Return the experts whose weights can be seen in what the call returns, `(l,)` bool."""
        return torch.ones(len(self.w1), dtype=torch.bool, device=self.w1.device)

    def numbers(self) -> Tensor:
        """Return the experts' numbers in the layer, `(l,)` int64."""
        return torch.arange(self.first, self.first + len(self.w1), device=self.w1.device)

    @property
    def gated(self) -> bool:
        """Whether w1 holds gate and up rows: it is then twice as high as w2 is wide."""
        return self.w1.shape[1] == self.w2.shape[2] * 4

    @property
    def w1_codes(self) -> Tensor:
        """`(l, rows, k)` uint8; assign to change."""
        return unpack_e2m1(self.w1)

    @w1_codes.setter
    def w1_codes(self, codes: Tensor) -> None:
        self.w1 = pack_e2m1(codes)

    @property
    def w2_codes(self) -> Tensor:
        """`(l, rows, k)` uint8; assign to change."""
        return unpack_e2m1(self.w2)

    @w2_codes.setter
    def w2_codes(self, codes: Tensor) -> None:
        self.w2 = pack_e2m1(codes)

    @property
    def w1_block_scale(self) -> Tensor:
        """`(l, rows, k/16)` uint8, linear; assign to change."""
        return linear_scales(self.w1, self.w1_blockscale)

    @w1_block_scale.setter
    def w1_block_scale(self, block_scale: Tensor) -> None:
        self.w1_blockscale = with_linear_scales(self.w1_blockscale, block_scale)

    @property
    def w2_block_scale(self) -> Tensor:
        """`(l, rows, k/16)` uint8, linear; assign to change."""
        return linear_scales(self.w2, self.w2_blockscale)

    @w2_block_scale.setter
    def w2_block_scale(self, block_scale: Tensor) -> None:
        self.w2_blockscale = with_linear_scales(self.w2_blockscale, block_scale)

    def each(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace every weight argument, all of which have the experts first, by a function of it."""
        for name in LOADED:
            value = getattr(self, name)
            if value is not None:
                as_bytes = value.view(torch.uint8) if value.dtype == torch.float8_e4m3fn else value
                setattr(self, name, function(as_bytes).contiguous().view(value.dtype))


class LoadedMoeCall(LoadCall):
    """masked_moe of a candidate without load_experts: its weight arguments are what was loaded.

    Attributes:
        output: `(l, m, k)` bfloat16, once result() was asked for.
    """

    names = (*LOADED, "masked_m")
    masked_m: Tensor

    def run(self) -> None:
        """Do nothing: the weights are loaded already."""

    def visible(self) -> Tensor:
        """Return the experts that have rows."""
        return self.masked_m > 0

    def result(self) -> Tensor:
        """Run the layer with the weight arguments as they are now; return its output."""
        output: Tensor = self.function(**self.arguments())
        return output


def linear_scales(packed: Tensor, swizzled: Tensor) -> Tensor:
    """Return the swizzled block scales of packed weights `(l, n, k/2)` in rows, `(l, n, k/16)` uint8."""
    _, rows, half = packed.shape
    return unswizzle_128x4(swizzled.view(torch.uint8), rows, half // 8)


def with_linear_scales(swizzled: Tensor, block_scale: Tensor) -> Tensor:
    """Return swizzled block scales that hold `block_scale`, `(l, n, k/16)` uint8; what fills tiles up stays as it was."""
    inside = swizzle_128x4(torch.ones_like(block_scale), 0).bool()
    new = torch.where(inside, swizzle_128x4(block_scale, 0), swizzled.view(torch.uint8))
    return new.view(torch.float8_e4m3fn)


def with_rows(
    got: Dispatched, order: Tensor, *, what: tuple[str, ...] = ("x", "scales", "source")
) -> Dispatched:
    """Return a copy whose rows are taken from others of the same expert.

    Args:
        got: what a rank received.
        order: `(local experts, capacity)` int64, the row that each row is taken from.
        what: parts that move; the others stay.
    """
    changed: dict[str, Tensor] = {}
    for name in what:
        value = getattr(got, name)
        if value is not None:
            as_bytes = value.view(torch.uint8) if value.dtype == torch.float8_e4m3fn else value
            moved = as_bytes.gather(1, order.unsqueeze(-1).expand(-1, -1, value.shape[-1]))
            changed[name] = moved.view(value.dtype)
    return replace(got, **changed)
