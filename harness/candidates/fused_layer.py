"""What FlashInfer's fused layers have in common as candidates: routed_moe's arguments brought to what a kernel takes."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.candidates.cutedsl_support import path_traits
from harness.candidates.fused_support import fused_support, load_fused
from harness.candidates.fused_tactics import tactics_noted
from harness.candidates.fused_weights import Matrix
from harness.candidates.protocol import Traits

if TYPE_CHECKING:
    from torch import Tensor

    from harness.candidates.layouts import Pair
    from harness.candidates.support import Support
    from reference.activations import Activation

ATOMIC, ORDERED = "any; weight on rows; rounded each step", "slots"
_TOPK = 8  # of the models that these layers serve


@dataclass(frozen=True)
class LayerCall:
    """One call of a fused layer.

    Attributes:
        out: `(tokens, k)`, what is written.
        x: tokens as the kernel multiplies them.
        x_scale: their linear scales, or None.
        ids: `(tokens, topk)` int32.
        weights: `(tokens, topk)` float32.
        first, second: weights of both GEMMs, gate rows first.
        w1_alpha, w2_alpha: `(l,)` float32.
        input_scale: `(1,)` encode scale of the tokens, None where they came quantized.
        a2_scale: `(l,)` encode scales of the intermediate.
        num_experts: of all ranks.
        offset: global id of the first one here.
        way: the activation, None for relu2.
    """

    out: Tensor
    x: Tensor
    x_scale: Any
    ids: Tensor
    weights: Tensor
    first: Matrix
    second: Matrix
    w1_alpha: Tensor
    w2_alpha: Tensor
    input_scale: Tensor | None
    a2_scale: Tensor
    num_experts: int
    offset: int
    way: Activation | None


class FusedLayer:
    """What the three share.

    Args:
        activation: the one with a gate, with gate rows first in what routed_moe is given.
        fused_finalize: rows are added by atomic operations in the second GEMM's epilogue; else in the order of the slots.
        device: torch device type; another than "cuda" where the launch is replaced.
    """

    name: str
    function: str
    quantizer = "fp4_quantize"
    unrounded: tuple[str, ...] = ("gemm1", "hidden")
    formats = ("nvfp4", "nvfp4")
    block = 16

    def __init__(
        self, activation: str = "silu", *, fused_finalize: bool = True, device: str = "cuda"
    ) -> None:
        from reference.activations import Activation

        self.activation, self.fused_finalize, self.device = activation, fused_finalize, device
        self.way: Activation = Activation.of(activation)
        self._ran: list[dict[str, str]] = []

    @property
    def traits(self) -> Traits:
        """What the package's code promises: extents in tiles of 128, one encode scale of the intermediate."""
        activations, weights = self.formats
        return Traits(
            device=self.device,
            activation_format=activations,
            weight_format=weights,
            arithmetic=path_traits().arithmetic,
            k_multiple=128,
            n_multiple=128,
            activations=(self.activation, "relu2"),
            final_sum=ATOMIC if self.fused_finalize else ORDERED,
            unrounded=self.unrounded,
            one_a2_scale=True,
            most_topk=_TOPK,
        )

    @property
    def asked(self) -> dict[str, str]:
        """What the package is asked for; the tactic is its tuner's choice."""
        return {"function": self.function, "fused finalize": str(self.fused_finalize)}

    def ran(self) -> list[dict[str, str]]:
        """Return which tactics the package's tuner chose since the last call."""
        found, self._ran = self._ran, []
        return found

    def support(self) -> Support:
        """Return whether the layer can run here; the reason names the package, the device or the changed function."""
        functions = [self.function, *([self.quantizer] if self.quantizer else [])]
        return fused_support(self.name, functions)

    def routed_moe(
        self,
        hidden_states: tuple[Tensor, Tensor | None],
        topk_idx: Tensor,
        topk_weights: Tensor,
        input_global_scale: Tensor | None,
        w1: Tensor,
        w1_blockscale: Tensor,
        w1_alpha: Tensor,
        w2: Tensor,
        a2_global_scale: Tensor,
        w2_blockscale: Tensor,
        w2_alpha: Tensor,
        num_experts: int,
        local_expert_offset: int = 0,
        out: Tensor | None = None,
        activation: str = "silu",
    ) -> Tensor:
        """Return the layer's output `(tokens, k)` bfloat16. Shapes: harness.candidates.protocol.

        Raises:
            RuntimeError: the installed package has no such function (as `support()` says), or refuses the tensors.
            ValueError: another activation than the one that this candidate was made with, or relu2.
        """
        import torch

        if activation not in {self.activation, "relu2"}:
            raise ValueError(
                f"routed_moe: activation must be {self.activation!r} or 'relu2', got {activation!r}"
            )
        out = out if out is not None else torch.empty(
            len(topk_idx), w2.shape[1], dtype=torch.bfloat16, device=topk_idx.device
        )  # fmt: skip
        if not len(topk_idx):  # as engines do: no kernel is launched for nothing
            return out
        x, x_scale = self._quantized(hidden_states, input_global_scale)
        call = LayerCall(
            out, x, x_scale, topk_idx.int(), topk_weights.float(), Matrix.of(w1, w1_blockscale, self.block),
            Matrix.of(w2, w2_blockscale, self.block), w1_alpha, w2_alpha, input_global_scale, a2_global_scale,
            num_experts, local_expert_offset, None if activation == "relu2" else self.way,
        )  # fmt: skip
        with tactics_noted(self._ran):
            self._launch(call)
        return out

    def _quantized(
        self, hidden_states: tuple[Tensor, Tensor | None], input_global_scale: Tensor | None
    ) -> Pair:
        """Return NVFP4 tokens with linear block scales."""
        import torch

        x, scale = hidden_states
        if scale is not None:
            return x, scale
        packed, block_scale = load_fused("fp4_quantize")(x, input_global_scale, 16, False, False)
        return packed, block_scale.view(torch.float8_e4m3fn).reshape(len(x), x.shape[1] // 16)

    @abstractmethod
    def _launch(self, call: LayerCall) -> None:
        """Call the package's function, which writes into the call's `out`."""
