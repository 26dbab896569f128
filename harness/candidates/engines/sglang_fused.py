"""SGLang's preparation of NVFP4 experts for FlashInfer's fused layers, on a CPU: TRT-LLM-gen's and CuTe DSL's (v2).

Read in sglang 0.5.23, under sglang/srt/layers: align_fp4_moe_weights_for_flashinfer_trtllm and the function that calls the
kernel (moe/moe_runner/flashinfer_trtllm.py), interleave_w13_halves, resolve_cutedsl_standard_scales and
ensure_cutedsl_wrapper (moe/moe_runner/flashinfer_cutedsl.py). Both run as they are; what FlashInfer's function is called
with is read back (harness.candidates.engines.fused_layers).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.candidates.engines import fused_layers
from harness.candidates.engines.sglang_loader import TOPK, SglangLoader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from harness.candidates.engines.loader import Shard
    from harness.candidates.protocol import Traits

_RUNNERS = "sglang.srt.layers.moe.moe_runner"
_TRTLLM, _CUTEDSL = f"{_RUNNERS}.flashinfer_trtllm", f"{_RUNNERS}.flashinfer_cutedsl"
_STANDARD = "sglang.srt.layers.moe.token_dispatcher.standard"
_FP4 = "sglang.srt.layers.quantization.fp4_utils"


class SglangFusedLoader(SglangLoader):
    """What both layers share: a token each goes through the method and its runner, up to FlashInfer's function."""

    quantizer: str
    """Where the runner finds FlashInfer's quantizer, "module:name"."""

    def _handed_over(self, layer: Any, shard: Shard) -> dict[str, Tensor]:
        import torch

        tokens = torch.zeros(1, shard.hidden, dtype=torch.bfloat16)
        chosen = torch.zeros(1, 1)
        topk = self.engine.made(f"{TOPK}:StandardTopKOutput", chosen, chosen.int(), chosen)
        received = self.engine.made(f"{_STANDARD}:StandardDispatchOutput", tokens, None, topk)
        kept = fused_layers.FusedLayer()
        with self.engine.running({self.quantizer: kept.quantize, **self._kernel(kept)}):
            layer.quant_method.apply(layer, received)
        return self._read(kept, layer, shard)

    @abstractmethod
    def _kernel(self, kept: fused_layers.FusedLayer) -> dict[str, Any]:
        """Return what stands in the place of FlashInfer's function."""

    @abstractmethod
    def _read(self, kept: fused_layers.FusedLayer, layer: Any, shard: Shard) -> dict[str, Tensor]:
        """Return masked_moe's arguments of what FlashInfer's function was called with."""


class SglangTrtllmLoader(SglangFusedLoader):
    """SGLang's loader for TRT-LLM-gen's fused layer."""

    name = "sglang-loader for flashinfer_trtllm"
    path = ("MoeRunnerBackend.FLASHINFER_TRTLLM_ROUTED", "MoeA2ABackend.NONE")
    quantizer = f"{_TRTLLM}:fp4_quantize"
    called: tuple[str, ...] = (
        *SglangLoader.called,
        f"{_TRTLLM}:align_fp4_moe_weights_for_flashinfer_trtllm",
        f"{_TRTLLM}:fused_experts_none_to_flashinfer_trtllm_fp4",
        f"{_TRTLLM}:fp4_quantize",
        f"{_STANDARD}:StandardDispatchOutput",
        "sglang.srt.layers.quantization.utils:prepare_static_weights_for_trtllm_fp4_moe",
        "flashinfer:nvfp4_block_scale_interleave",
        "flashinfer.fused_moe:trtllm_fp4_block_scale_routed_moe",
        "flashinfer.fused_moe.core:get_w2_permute_indices_with_cache",
    )

    @property
    def traits(self) -> Traits:
        """In tiles of 128 rows, which the kernel's shuffled block scales fill."""
        return replace(super().traits, k_multiple=128, n_multiple=128)

    def _load(self, checkpoint: Mapping[str, Tensor], shard: Shard) -> dict[str, Tensor]:
        interleave = {"flashinfer:nvfp4_block_scale_interleave": fused_layers.block_scale_interleave}
        with self.engine.running(interleave):
            return super()._load(checkpoint, shard)

    def _kernel(self, kept: fused_layers.FusedLayer) -> dict[str, Any]:
        return {"flashinfer.fused_moe:trtllm_fp4_block_scale_routed_moe": kept.run}

    def _read(self, kept: fused_layers.FusedLayer, layer: Any, shard: Shard) -> dict[str, Tensor]:
        return fused_layers.of_trtllm(kept, self.engine.of(layer, "w2_input_scale_quant"), shard)


class SglangCuteDslLoader(SglangFusedLoader):
    """SGLang's loader for CuTe DSL's fused layer, which it calls v2."""

    name = "sglang-loader for flashinfer_cutedsl v2"
    path = ("MoeRunnerBackend.FLASHINFER_CUTEDSL", "MoeA2ABackend.NONE")
    quantizer = f"{_FP4}:fp4_quantize"
    called: tuple[str, ...] = (
        *SglangLoader.called,
        f"{_CUTEDSL}:interleave_w13_halves",
        f"{_CUTEDSL}:resolve_cutedsl_standard_scales",
        f"{_CUTEDSL}:ensure_cutedsl_wrapper",
        f"{_CUTEDSL}:fused_experts_none_to_flashinfer_cutedsl_fp4",
        f"{_FP4}:fp4_quantize",
        f"{_STANDARD}:StandardDispatchOutput",
        "flashinfer:CuteDslMoEWrapper",
        "flashinfer.cute_dsl.utils:convert_sf_to_mma_layout",
    )

    def _kernel(self, kept: fused_layers.FusedLayer) -> dict[str, Any]:
        return {"flashinfer:CuteDslMoEWrapper": kept.made}

    def _read(self, kept: fused_layers.FusedLayer, layer: Any, shard: Shard) -> dict[str, Tensor]:
        del layer
        return fused_layers.of_cutedsl(kept, shard)
