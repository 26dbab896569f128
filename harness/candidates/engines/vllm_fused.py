"""vLLM's preparation of NVFP4 experts for FlashInfer's fused layers, on a CPU: TRT-LLM-gen's and CuTe DSL's.

Read in vllm 0.33, under vllm/model_executor/layers: prepare_static_weights_for_trtllm_fp4_moe and
prepare_nvfp4_moe_layer_for_flashinfer_cutedsl (quantization/utils/flashinfer_fp4_moe.py), TrtLlmNvFp4ExpertsModular and
FlashInferCuteDSLExperts (fused_moe/experts), MoEPrepareAndFinalizeNoDPEPModular (fused_moe/prepare_finalize). They run as
they are; what FlashInfer's function is called with is read back (harness.candidates.engines.fused_layers).
"""

from __future__ import annotations

from abc import abstractmethod
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from harness.candidates.engines import fused_layers
from harness.candidates.engines.vllm_dispatch import MOE
from harness.candidates.engines.vllm_loader import VllmLoader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from harness.candidates.engines.loader import Shard

_TRTLLM = f"{MOE}.experts.trtllm_nvfp4_moe"
_CUTEDSL = f"{MOE}.experts.flashinfer_cutedsl_moe"
_PREPARE = f"{MOE}.prepare_finalize.no_dp_ep:MoEPrepareAndFinalizeNoDPEPModular"
_QUANTIZE = f"{MOE}.utils:_nvfp4_quantize"
_WEIGHTS = "vllm.model_executor.layers.quantization.utils.flashinfer_fp4_moe"


class VllmFusedLoader(VllmLoader):
    """What both layers share: a token goes through vLLM's preparation of inputs and its experts, up to FlashInfer's function."""

    function: str
    """FlashInfer's function where the experts find it, "module:name"."""

    def _load(self, checkpoint: Mapping[str, Tensor], shard: Shard) -> dict[str, Tensor]:
        instead = {
            "flashinfer:nvfp4_block_scale_interleave": fused_layers.block_scale_interleave,
            "torch.accelerator:current_device_index": lambda: "cpu",
        }
        with self.engine.running(instead):
            return super()._load(checkpoint, shard)

    def _kernel(self, moe_quant_config: Any, moe_config: Any, experts_cls: Any, **_: Any) -> Any:
        experts = experts_cls(moe_config=moe_config, quant_config=moe_quant_config)
        return SimpleNamespace(fused_experts=experts)

    def _handed_over(self, layer: Any, shard: Shard) -> dict[str, Tensor]:
        import torch

        tokens = torch.zeros(
            1, layer.moe_config.hidden_dim, dtype=torch.bfloat16
        )  # padded, as vLLM's runner does
        chosen, of = torch.zeros(1, 1), self.engine.of
        experts = layer.quant_method.moe_kernel.fused_experts
        kept = fused_layers.FusedLayer()
        with self.engine.running({_QUANTIZE: kept.quantize, self.function: kept.run}):
            packed, block_scale, *_ = self.engine.made(_PREPARE).prepare(
                tokens,
                chosen,
                chosen.int(),
                shard.experts,
                layer.expert_map,
                False,
                of(experts, "quant_config"),
            )
            experts.apply(
                output=tokens, hidden_states=packed, w1=layer.w13_weight, w2=layer.w2_weight, topk_weights=chosen,
                topk_ids=chosen.int(), activation=layer.activation, global_num_experts=shard.experts,
                expert_map=layer.expert_map, a1q_scale=block_scale, a2_scale=None, workspace13=tokens, workspace2=tokens,
                expert_tokens_meta=None, apply_router_weight_on_input=False,
            )  # fmt: skip
        return self._read(kept, experts, shard)

    @abstractmethod
    def _read(self, kept: fused_layers.FusedLayer, experts: Any, shard: Shard) -> dict[str, Tensor]:
        """Return masked_moe's arguments of what FlashInfer's function was called with."""


class VllmTrtllmLoader(VllmFusedLoader):
    """vLLM's loader for TRT-LLM-gen's fused layer."""

    name = "vllm-loader for flashinfer_trtllm"
    experts = ("NvFp4MoeBackend.FLASHINFER_TRTLLM", f"{_TRTLLM}:TrtLlmNvFp4ExpertsModular")
    function = "flashinfer.fused_moe:trtllm_fp4_block_scale_routed_moe"
    called: tuple[str, ...] = (
        *VllmLoader.called,
        f"{_WEIGHTS}:prepare_static_weights_for_trtllm_fp4_moe",
        f"{_TRTLLM}:TrtLlmNvFp4ExpertsModular.apply",
        f"{_TRTLLM}:TrtLlmNvFp4ExpertsBase.process_weights_after_loading",
        f"{_PREPARE}.prepare",
        _QUANTIZE,
        "flashinfer:nvfp4_block_scale_interleave",
        "flashinfer.fused_moe:trtllm_fp4_block_scale_routed_moe",
        "flashinfer.fused_moe.core:get_w2_permute_indices_with_cache",
    )

    def _read(self, kept: fused_layers.FusedLayer, experts: Any, shard: Shard) -> dict[str, Tensor]:
        return fused_layers.of_trtllm(kept, self.engine.of(experts.quant_config, "a2_gscale"), shard)


class VllmCuteDslLoader(VllmFusedLoader):
    """vLLM's loader for CuTe DSL's fused layer."""

    name = "vllm-loader for flashinfer_cutedsl"
    experts = ("NvFp4MoeBackend.FLASHINFER_CUTEDSL", f"{_CUTEDSL}:FlashInferCuteDSLExperts")
    function = f"{_CUTEDSL}:flashinfer_cute_dsl_fused_moe_nvfp4"
    called: tuple[str, ...] = (
        *VllmLoader.called,
        f"{_WEIGHTS}:prepare_nvfp4_moe_layer_for_flashinfer_cutedsl",
        f"{_WEIGHTS}:interleave_linear_and_gate",
        f"{_CUTEDSL}:FlashInferCuteDSLExperts.apply",
        f"{_CUTEDSL}:FlashInferCuteDSLExperts.process_weights_after_loading",
        f"{_PREPARE}.prepare",
        _QUANTIZE,
        function,
        "flashinfer.cute_dsl.utils:convert_sf_to_mma_layout",
    )

    def _read(self, kept: fused_layers.FusedLayer, experts: Any, shard: Shard) -> dict[str, Tensor]:
        del experts
        return fused_layers.of_cutedsl(kept, shard)
