"""`humming-routed`: Humming's MoE layer (package humming-kernels) on Hopper: NVFP4 or MXFP4 weights, bfloat16 or FP8 tokens.

Both GEMMs are its kernels on weights that its own code prepared. What engines bring themselves, the order of the slots, the
activation and the sum of a token's rows, is torch's here (harness.candidates.slots).

Modes: weights, activations, the kind of GEMM, and how k is added. "indexed" reads each slot's token where it lies and writes
slot after slot; "grouped" takes rows in the order of their experts. Engines take the package's default, "stream". An
expert's factor of MXFP4 weights multiplies the scales of FP8 rows, so "indexed" gets each slot's token as a row of its own.
"""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from harness.candidates.humming_masked import HummingMasked, tile_rows
from harness.candidates.humming_moe import GROUPED, INDEXED
from harness.candidates.prepared import PreparedRouted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from harness.candidates.slots import Slots
    from harness.candidates.support import Support
    from harness.candidates.taps import RoutedTaps
    from harness.candidates.traits import Traits

_KINDS = {"indexed": INDEXED, "grouped": GROUPED}
_MODES = tuple(
    f"{formats}-{kind}" for formats in ("nvfp4-bf16", "mxfp4-bf16", "mxfp4-fp8") for kind in _KINDS
)
_MOST_INTER = 1024  # of the pool of shapes: a layer that is cut along its width needs kernels of more
_MOST_STREAMED = 512  # hidden and inter where k is split: the bound of more partial sums tells little apart
_TOPK = 8


class HummingRouted(PreparedRouted):
    """Humming's MoE layer in one mode.

    Args:
        mode: one of `modes`.
    """

    name = "humming-routed"
    modes = (*_MODES, *(f"{each}-stream" for each in _MODES))

    def __init__(self, mode: str = _MODES[0]) -> None:
        self.name = f"{type(self).name}:{mode}"
        weights, activations, kind, *stream = mode.split("-")
        self.kind = _KINDS[kind]
        self.gemm = HummingMasked("-".join((weights, activations, *stream)))
        self._locks: Tensor | None = None

    @cached_property
    def traits(self) -> Traits:
        """Those of the masked GEMM in the same mode, of a layer that adds slot after slot in float32."""
        masked = self.gemm.traits
        most = _MOST_INTER if self.gemm.one_pass else _MOST_STREAMED
        shapes = tuple(
            (experts, hidden, inter)
            for experts, hidden, inter in masked.shapes
            if inter <= most and (self.gemm.one_pass or hidden <= most)
        )
        return replace(
            masked, hints=(), shapes=shapes, final_sum="slots", most_topk=_TOPK, cuda_graph=False, canary=False
        )  # fmt: skip

    @property
    def asked(self) -> dict[str, str]:
        """What the package is asked for."""
        return self.gemm.asked | {"kind": self.kind}

    def ran(self) -> list[dict[str, str]]:
        """Return the kernels that were launched since the last call, as their configurations name them."""
        return [kernel | {"kind": self.kind} for kernel in self.gemm.ran()]

    def support(self) -> Support:
        """Return whether the package and a GPU of compute capability 9.0 are there."""
        return self.gemm.support()

    def compile_ahead(self) -> None:
        """Begin to compile the kernels of every shape that is drawn, in parallel; a call that needs one waits for it."""
        from harness.candidates.humming_package import compile_kernels

        wanted = {
            (extents, extents[0] * tile_rows(extents, rows))
            for experts, hidden, inter in self.traits.shapes
            for extents in ((experts, 2 * inter, hidden), (experts, hidden, inter))
            for rows in (1, 1 << 20)
        }
        smallest = sorted(wanted, key=lambda each: math.prod(each[0]))
        gemm = self.gemm
        ahead = partial(
            compile_kernels, gemm.weights, gemm.activations, smallest, one_pass=gemm.one_pass, kind=self.kind
        )
        threading.Thread(target=ahead, name="compile ahead", daemon=True).start()

    def prepare(self, b: Tensor, b_scale: Tensor, alpha: Tensor | None) -> dict[str, Any]:
        """Return weights in the kernels' order. Shapes: harness.candidates.protocol."""
        return self.gemm.prepare(b, b_scale, alpha)

    def route_prepared(
        self,
        hidden_states: tuple[Tensor, Tensor | None],
        topk_idx: Tensor,
        topk_weights: Tensor,
        first: dict[str, Any],
        second: dict[str, Any],
        local_expert_offset: int,
        out: Tensor,
        activation: str,
    ) -> RoutedTaps:
        """Compute the layer into out; return what the GEMMs stored. Shapes: harness.candidates.protocol."""
        import torch

        from harness.candidates.slots import Slots, add_slots
        from harness.candidates.taps import RoutedTaps

        del activation  # the one that is declared
        topk = topk_idx.shape[1]
        slots = Slots(topk_idx.contiguous(), len(first["weight"]), local_expert_offset)
        x, scale = self._tokens(*hidden_states)
        if self.kind == GROUPED:
            x, scale = x[slots.order // topk], None if scale is None else scale[slots.order // topk]
        elif scale is not None:
            x, scale = x.repeat_interleave(topk, 0), scale.repeat_interleave(topk, 0)
        gate_up = self._multiplied(x, scale, slots, first)
        gate, up = gate_up.float().chunk(2, dim=-1)
        hidden = (torch.nn.functional.silu(gate) * up).to(gate_up.dtype)
        y, y_scale = self._tokens(hidden)
        rows = self._multiplied(y, y_scale, slots, second)
        gate_up, rows = self._by_slot(slots, gate_up), self._by_slot(slots, rows)
        add_slots(rows.view(len(topk_idx), topk, -1), topk_weights, slots.there, out)
        if scale is None or y_scale is None:
            return RoutedTaps(gate_up, rows)
        pairs = ((x, scale), (y, y_scale))
        operands = tuple((self._by_slot(slots, e), self._by_slot(slots, s.view(-1, 1))) for e, s in pairs)
        return RoutedTaps(gate_up, rows, operands)

    def _by_slot(self, slots: Slots, values: Tensor) -> Tensor:
        """Return rows, which a grouped GEMM has in the order of their experts, slot after slot."""
        import torch

        if self.kind != GROUPED:
            return values
        own = values.view(torch.uint8) if values.element_size() == 1 else values  # E4M3 has no index_copy_
        return torch.empty_like(own).index_copy_(0, slots.order, own).view(values.dtype)

    def _tokens(self, x: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return rows `(rows, k)` as the kernels multiply them, and their scales `(rows, 1)` where they have some."""
        import torch

        from harness.candidates.humming_package import quantized

        if self.gemm.activations != "fp8":
            return x.contiguous(), None
        return (
            quantized(x.contiguous()) if scale is None else (x.contiguous().view(torch.float8_e4m3fn), scale)
        )

    def _multiplied(
        self, x: Tensor, scale: Tensor | None, slots: Slots, prepared: Mapping[str, Any]
    ) -> Tensor:
        """Return each slot's row times its expert's weights, `(slots, n)`."""
        import torch

        from harness.candidates.humming_moe import launch
        from harness.candidates.humming_package import LOCKS, layer_dtype, tiling

        config, number = prepared["config"], slots.topk_idx.numel()
        out = torch.empty(number, config.shape_n, dtype=layer_dtype(self.gemm.activations), device=x.device)
        if scale is not None and "alpha" in prepared:
            expert = slots.expert.flatten()[slots.order] if self.kind == GROUPED else slots.expert.flatten()
            scale = scale.view(-1, 1) * prepared["alpha"][expert.clamp(max=slots.experts - 1)].view(-1, 1)
        if self._locks is None:
            self._locks = torch.zeros(LOCKS, dtype=torch.int32, device=x.device)
        one_pass = self.gemm.one_pass
        of_expert = tile_rows((slots.experts, out.shape[1], x.shape[1]), -(-number // slots.experts))
        tiles = tiling(config, slots.experts * of_expert, one_pass=one_pass, kind=self.kind)
        launch(
            prepared, x, slots, out, kind=self.kind, tiles=tiles, one_pass=one_pass, a_scale=scale, locks=self._locks
        )  # fmt: skip
        self.gemm.note(config, tiles)
        return out
