"""FlashInfer's fused layers as candidates with routed_moe: CuTe DSL's, TRT-LLM-gen's and CUTLASS's. All need a Blackwell.

They call the installed package as engines do: weights are brought into the kernel's order, tokens quantized by the package's
own quantizer, and one function computes the layer.

Read in flashinfer-python 0.7.2.post1 and 0.7.4, fused_moe/core.py, fused_moe/cute_dsl/fused_moe.py and
quantization/fp4_quantization.py. Nothing heavy is imported at module level.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.candidates.fused_layer import FusedLayer, LayerCall
from harness.candidates.fused_support import load_fused

if TYPE_CHECKING:
    from torch import Tensor

    from harness.candidates.fused_weights import Matrix
    from harness.candidates.layouts import Pair
    from harness.candidates.protocol import Traits

_CUTEDSL_TURN = 64
_MODES = {"w4a4": ("nvfp4", "nvfp4", 16), "w4a8": ("mxfp8_up", "mxfp4", 32), "w4a16": ("bf16", "nvfp4", 16)}
"""Of CuTe DSL's layer: formats of activations and weights, and elements of a block of the weights."""
_SLOTS = "-slots"


class FlashInferFusedCuteDsl(FusedLayer):
    """`flashinfer-fused-cutedsl`: cute_dsl_fused_moe.

    Args:
        activation: as for every fused layer, and so fused_finalize, device.
        mode: its `quant_mode`: "w4a4" (NVFP4), "w4a8" (MXFP8 with MXFP4), "w4a16" (bfloat16 with NVFP4); with "-slots" behind
            it without use_fused_finalize.
    """

    name = "flashinfer-fused-cutedsl"
    function = "cute_dsl_fused_moe"
    modes = tuple(f"{mode}{order}" for mode in _MODES for order in ("", _SLOTS))

    def __init__(self, activation: str = "silu", *, mode: str = "w4a4", **options: Any) -> None:
        self.mode = mode.removesuffix(_SLOTS)
        if mode.endswith(_SLOTS):
            options["fused_finalize"] = False
        super().__init__(activation, **options)
        *formats, self.block = _MODES[self.mode]
        self.formats = (formats[0], formats[1])
        self.quantizer = {"w4a4": "fp4_quantize", "w4a8": "mxfp8_quantize", "w4a16": ""}[self.mode]
        self.name = type(self).name + ("" if mode == "w4a4" else f"-{mode}")
        if self.mode == "w4a16":
            self.unrounded = ("gemm1",)  # what the second GEMM multiplies is bfloat16

    @property
    def asked(self) -> dict[str, str]:
        """What the package is asked for."""
        return super().asked | {"quant_mode": self.mode}

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

    def _launch(self, call: LayerCall) -> None:
        """Call cute_dsl_fused_moe; rows of up and gate take turns of 64."""
        import torch

        from harness.candidates import layouts

        way, kinds = call.way, load_fused("ActivationType")
        first, second = (
            call.first if way is None else call.first.up_and_gate(way, _CUTEDSL_TURN),
            call.second,
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
            x=call.x,
            x_sf=call.x_scale,
            token_selected_experts=call.ids,
            token_final_scales=call.weights,
            w1_weight=first.codes,
            w1_weight_sf=in_tiles(first),
            w1_alpha=call.w1_alpha,
            fc2_input_scale=call.a2_scale[:1] if self.mode == "w4a4" else None,
            w2_weight=second.codes,
            w2_weight_sf=in_tiles(second),
            w2_alpha=call.w2_alpha,
            num_experts=call.num_experts,
            top_k=call.ids.shape[1],
            num_local_experts=len(first.codes),
            local_expert_offset=call.offset,
            output_dtype=call.out.dtype,
            use_fused_finalize=self.fused_finalize,
            moe_output=call.out,
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
        return replace(super().traits, one_a2_scale=False)

    def _launch(self, call: LayerCall) -> None:
        """Call the function: rows of up and gate take turns, 32 rows are shuffled; limit and beta are of the accumulator."""
        import torch

        way, kinds = call.way, load_fused("ActivationType")
        first = (call.first if way is None else call.first.up_and_gate(way, 1)).shuffled()
        second = call.second.shuffled()

        def in_tiles(matrix: Matrix) -> Tensor:
            return matrix.swizzled.reshape(matrix.scale.shape).view(torch.float8_e4m3fn)

        plain = way is None or (way.alpha == 1 and not way.beta and not way.limit)
        alpha = call.w1_alpha
        load_fused(self.function)(
            topk_ids=(call.ids, call.weights),
            routing_bias=None,
            hidden_states=call.x,
            hidden_states_scale=call.x_scale,
            gemm1_weights=first.codes,
            gemm1_weights_scale=in_tiles(first),
            gemm1_bias=None,
            gemm1_alpha=None if plain or way is None else torch.full_like(alpha, way.alpha),
            gemm1_beta=None if plain or way is None else way.beta / alpha,
            gemm1_clamp_limit=None if way is None or not way.limit else way.limit / alpha,
            gemm2_weights=second.codes,
            gemm2_weights_scale=in_tiles(second),
            gemm2_bias=None,
            output1_scale_scalar=call.a2_scale.clone() if way is None else alpha * call.a2_scale,
            output1_scale_gate_scalar=alpha,
            output2_scale_scalar=call.w2_alpha,
            num_experts=call.num_experts,
            top_k=call.ids.shape[1],
            n_group=None,
            topk_group=None,
            intermediate_size=second.codes.shape[2] * 2,
            local_expert_offset=call.offset,
            local_num_experts=len(first.codes),
            routed_scaling_factor=None,
            routing_method_type=load_fused("RoutingMethodType").TopK.value,
            do_finalize=True,
            activation_type=int(kinds.Relu2 if way is None else kinds.Swiglu),
            output=call.out,
        )


class FlashInferFusedCutlass(FusedLayer):
    """`flashinfer-fused-cutlass`: cutlass_fused_moe with NVFP4 operands.

    Args:
        activation: as for every fused layer, and so fused_finalize, device.
        mode: "atomic", or "slots" without use_fused_finalize.
    """

    name = "flashinfer-fused-cutlass"
    function = "cutlass_fused_moe"
    unrounded = ("hidden",)
    modes = ("atomic", "slots")

    def __init__(self, activation: str = "silu", *, mode: str = "", **options: Any) -> None:
        if mode:
            options["fused_finalize"] = mode != "slots"
        super().__init__(activation, **options)
        self.name = f"{type(self).name}:{mode}" if mode else type(self).name

    def _launch(self, call: LayerCall) -> None:
        """Call cutlass_fused_moe: the up half lies first; weights are passed as int64, block scales as int32."""
        import torch

        way, kinds = call.way, load_fused("ActivationType")
        first, second = call.first if way is None else call.first.up_and_gate(way), call.second
        local, of_tokens = len(first.codes), call.input_scale
        one = (
            torch.ones(1, device=call.out.device) if of_tokens is None else of_tokens
        )  # tokens are quantized already
        numbers = dict.fromkeys(("swiglu_alpha", "swiglu_beta", "swiglu_limit"))
        if way is not None and (way.alpha != 1 or way.beta or way.limit):
            values = {
                "swiglu_alpha": way.alpha,
                "swiglu_beta": way.beta,
                "swiglu_limit": way.limit or torch.inf,
            }
            numbers |= {name: torch.full_like(call.w1_alpha, value) for name, value in values.items()}
        load_fused(self.function)(
            input=call.x,
            token_selected_experts=call.ids,
            token_final_scales=call.weights,
            fc1_expert_weights=first.codes.contiguous().view(torch.long),
            fc2_expert_weights=second.codes.contiguous().view(torch.long),
            output_dtype=call.out.dtype,
            quant_scales=[
                one,
                first.swizzled.view(torch.int32),
                call.w1_alpha,
                call.a2_scale[:1],
                second.swizzled.view(torch.int32),
                call.w2_alpha,
            ],
            input_sf=call.x_scale,
            ep_size=call.num_experts // local,
            ep_rank=call.offset // local,
            output=call.out,
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
