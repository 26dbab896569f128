"""FlashInfer's fused layers as candidates with routed_moe: CuTe DSL's, TRT-LLM-gen's and CUTLASS's. All need a Blackwell.

They call the installed package as engines do: weights are brought into the kernel's order, tokens quantized by the package's
own quantizer, and one function computes the layer.

Read in flashinfer-python 0.7.2.post1 and 0.7.4, fused_moe/core.py, fused_moe/cute_dsl/fused_moe.py and
quantization/fp4_quantization.py. Nothing heavy is imported at module level.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from harness.candidates.cutedsl_support import path_traits
from harness.candidates.fused_support import fused_support, load_fused
from harness.candidates.fused_weights import Matrix
from harness.candidates.protocol import Traits

if TYPE_CHECKING:
    from torch import Tensor

    from harness.candidates.layouts import Pair
    from harness.candidates.support import Support
    from reference.activations import Activation

ATOMIC, ORDERED = "any; weight on rows; rounded each step", "slots"
_TOPK = 8  # of the models that these layers serve
_CUTEDSL_TURN = 64
_MODES = {"w4a4": ("nvfp4", "nvfp4", 16), "w4a8": ("mxfp8_up", "mxfp4", 32), "w4a16": ("bf16", "nvfp4", 16)}
"""Of CuTe DSL's layer: formats of activations and weights, and elements of a block of the weights."""


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
        first, second = Matrix.of(w1, w1_blockscale, self.block), Matrix.of(w2, w2_blockscale, self.block)
        gated = activation != "relu2"
        x, x_scale = self._quantized(hidden_states, input_global_scale)
        self._launch(
            out, (x, x_scale), (topk_idx.int(), topk_weights.float()), (first, second), (w1_alpha, w2_alpha),
            (input_global_scale, a2_global_scale), (num_experts, local_expert_offset), self.way if gated else None,
        )  # fmt: skip
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
    def _launch(
        self,
        out: Tensor,
        tokens: Pair,
        routes: tuple[Tensor, Tensor],
        matrices: tuple[Matrix, Matrix],
        alphas: tuple[Tensor, Tensor],
        scales: tuple[Tensor | None, Tensor],
        place: tuple[int, int],
        way: Activation | None,
    ) -> None:
        """Call the package's function, which writes into `out`.

        Args:
            out: `(tokens, k)`.
            tokens: as the kernel multiplies them, and their linear scales.
            routes: ids int32 and weights float32.
            matrices: of both GEMMs.
            alphas: likewise, `(l,)`.
            scales: encode scales of tokens and intermediate.
            place: experts of all ranks, and the id of the first one here.
            way: the activation, None for relu2.
        """


class FlashInferFusedCuteDsl(FusedLayer):
    """`flashinfer-fused-cutedsl`: cute_dsl_fused_moe.

    Args:
        activation: as for every fused layer, and so fused_finalize, device.
        mode: its `quant_mode`: "w4a4" (NVFP4), "w4a8" (MXFP8 with MXFP4), "w4a16" (bfloat16 with NVFP4).
    """

    name = "flashinfer-fused-cutedsl"
    function = "cute_dsl_fused_moe"

    def __init__(self, activation: str = "silu", *, mode: str = "w4a4", **options: Any) -> None:
        super().__init__(activation, **options)
        self.mode = mode
        *formats, self.block = _MODES[mode]
        self.formats = (formats[0], formats[1])
        self.quantizer = {"w4a4": "fp4_quantize", "w4a8": "mxfp8_quantize", "w4a16": ""}[mode]
        self.name = type(self).name + ("" if mode == "w4a4" else f"-{mode}")

    def _quantized(
        self, hidden_states: tuple[Tensor, Tensor | None], input_global_scale: Tensor | None
    ) -> Pair:
        """Return tokens as the mode takes them, with linear block scales or none."""
        import torch

        if self.mode == "w4a4":
            return super()._quantized(hidden_states, input_global_scale)
        x, scale = hidden_states
        if self.mode == "w4a16":
            return x, None
        if scale is None:
            x, scale = load_fused("mxfp8_quantize")(x, False)
        return x.view(torch.float8_e4m3fn), scale.view(torch.uint8).reshape(len(x), x.shape[1] // 32)

    def _launch(
        self,
        out: Tensor,
        tokens: Pair,
        routes: tuple[Tensor, Tensor],
        matrices: tuple[Matrix, Matrix],
        alphas: tuple[Tensor, Tensor],
        scales: tuple[Tensor | None, Tensor],
        place: tuple[int, int],
        way: Activation | None,
    ) -> None:
        """Call cute_dsl_fused_moe; rows of up and gate take turns of 64."""
        import torch

        from harness.candidates import layouts

        kinds = load_fused("ActivationType")
        first, second = (
            matrices[0] if way is None else matrices[0].up_and_gate(way, _CUTEDSL_TURN),
            matrices[1],
        )
        e4m3 = self.mode != "w4a8"

        def in_tiles(matrix: Matrix) -> Tensor:
            found = layouts.as_mma(matrix.swizzled)
            return found if e4m3 else found.view(torch.uint8)

        numbers: dict[str, float] = {}
        if way is not None:
            numbers = {"swiglu_alpha": way.alpha, "swiglu_beta": way.beta}
            numbers |= {"swiglu_limit": way.limit} if way.limit else {}
        load_fused(self.function)(
            x=tokens[0],
            x_sf=tokens[1],
            token_selected_experts=routes[0],
            token_final_scales=routes[1],
            w1_weight=first.codes,
            w1_weight_sf=in_tiles(first),
            w1_alpha=alphas[0],
            fc2_input_scale=scales[1][:1] if self.mode == "w4a4" else None,
            w2_weight=second.codes,
            w2_weight_sf=in_tiles(second),
            w2_alpha=alphas[1],
            num_experts=place[0],
            top_k=routes[0].shape[1],
            num_local_experts=len(first.codes),
            local_expert_offset=place[1],
            output_dtype=out.dtype,
            use_fused_finalize=self.fused_finalize,
            moe_output=out,
            activation_type=int(kinds.Relu2 if way is None else kinds.Swiglu),
            quant_mode=self.mode,
            **numbers,
        )


class FlashInferFusedTrtllm(FusedLayer):
    """`flashinfer-fused-trtllm`: trtllm_fp4_block_scale_routed_moe, whose finalize kernel adds in the order of the slots."""

    name = "flashinfer-fused-trtllm"
    function = "trtllm_fp4_block_scale_routed_moe"

    def __init__(self, activation: str = "silu", *, device: str = "cuda") -> None:
        super().__init__(activation, fused_finalize=False, device=device)

    @property
    def traits(self) -> Traits:
        """As of every fused layer, with an encode scale of the intermediate for each expert."""
        from dataclasses import replace

        return replace(super().traits, one_a2_scale=False)

    def _launch(
        self,
        out: Tensor,
        tokens: Pair,
        routes: tuple[Tensor, Tensor],
        matrices: tuple[Matrix, Matrix],
        alphas: tuple[Tensor, Tensor],
        scales: tuple[Tensor | None, Tensor],
        place: tuple[int, int],
        way: Activation | None,
    ) -> None:
        """Call the function: rows of up and gate take turns, 32 rows are shuffled; limit and beta are of the accumulator."""
        import torch

        kinds = load_fused("ActivationType")
        first = (matrices[0] if way is None else matrices[0].up_and_gate(way, 1)).shuffled()
        second = matrices[1].shuffled()

        def in_tiles(matrix: Matrix) -> Tensor:
            return matrix.swizzled.reshape(matrix.scale.shape).view(torch.float8_e4m3fn)

        plain = way is None or (way.alpha == 1 and not way.beta and not way.limit)
        alpha = alphas[0]
        load_fused(self.function)(
            topk_ids=routes,
            routing_bias=None,
            hidden_states=tokens[0],
            hidden_states_scale=tokens[1],
            gemm1_weights=first.codes,
            gemm1_weights_scale=in_tiles(first),
            gemm1_bias=None,
            gemm1_alpha=None if plain or way is None else torch.full_like(alpha, way.alpha),
            gemm1_beta=None if plain or way is None else way.beta / alpha,
            gemm1_clamp_limit=None if way is None or not way.limit else way.limit / alpha,
            gemm2_weights=second.codes,
            gemm2_weights_scale=in_tiles(second),
            gemm2_bias=None,
            output1_scale_scalar=scales[1].clone() if way is None else alpha * scales[1],
            output1_scale_gate_scalar=alpha,
            output2_scale_scalar=alphas[1],
            num_experts=place[0],
            top_k=routes[0].shape[1],
            n_group=None,
            topk_group=None,
            intermediate_size=second.codes.shape[2] * 2,
            local_expert_offset=place[1],
            local_num_experts=len(first.codes),
            routed_scaling_factor=None,
            routing_method_type=load_fused("RoutingMethodType").TopK.value,
            do_finalize=True,
            activation_type=int(kinds.Relu2 if way is None else kinds.Swiglu),
            output=out,
        )


class FlashInferFusedCutlass(FusedLayer):
    """`flashinfer-fused-cutlass`: cutlass_fused_moe with NVFP4 operands."""

    name = "flashinfer-fused-cutlass"
    function = "cutlass_fused_moe"
    unrounded = ("hidden",)

    def _launch(
        self,
        out: Tensor,
        tokens: Pair,
        routes: tuple[Tensor, Tensor],
        matrices: tuple[Matrix, Matrix],
        alphas: tuple[Tensor, Tensor],
        scales: tuple[Tensor | None, Tensor],
        place: tuple[int, int],
        way: Activation | None,
    ) -> None:
        """Call cutlass_fused_moe: the up half lies first; weights are passed as int64, block scales as int32."""
        import torch

        kinds = load_fused("ActivationType")
        first, second = matrices[0] if way is None else matrices[0].up_and_gate(way), matrices[1]
        local, of_tokens = len(first.codes), scales[0]
        one = (
            torch.ones(1, device=out.device) if of_tokens is None else of_tokens
        )  # tokens are quantized already
        numbers = dict.fromkeys(("swiglu_alpha", "swiglu_beta", "swiglu_limit"))
        if way is not None and (way.alpha != 1 or way.beta or way.limit):
            values = {
                "swiglu_alpha": way.alpha,
                "swiglu_beta": way.beta,
                "swiglu_limit": way.limit or torch.inf,
            }
            numbers |= {name: torch.full_like(alphas[0], value) for name, value in values.items()}
        load_fused(self.function)(
            input=tokens[0],
            token_selected_experts=routes[0],
            token_final_scales=routes[1],
            fc1_expert_weights=first.codes.contiguous().view(torch.long),
            fc2_expert_weights=second.codes.contiguous().view(torch.long),
            output_dtype=out.dtype,
            quant_scales=[
                one,
                first.swizzled.view(torch.int32),
                alphas[0],
                scales[1][:1],
                second.swizzled.view(torch.int32),
                alphas[1],
            ],
            input_sf=tokens[1],
            ep_size=place[0] // local,
            ep_rank=place[1] // local,
            output=out,
            activation_type=kinds.Relu2 if way is None else kinds.Swiglu,
            swizzled_input_sf=False,
            use_fused_finalize=self.fused_finalize,
            **numbers,
        )


def cutedsl_w4a8() -> FlashInferFusedCuteDsl:
    """Return the candidate `flashinfer-fused-cutedsl-w4a8`."""
    return FlashInferFusedCuteDsl(mode="w4a8")


def cutedsl_w4a16() -> FlashInferFusedCuteDsl:
    """Return the candidate `flashinfer-fused-cutedsl-w4a16`."""
    return FlashInferFusedCuteDsl(mode="w4a16")
