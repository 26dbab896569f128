"""The candidate `vllm-loader`: vLLM's own preparation of NVFP4 experts for its batched CuteDSL experts, on a CPU.

Read in vllm 0.33, under vllm/model_executor/layers: RoutedExperts (fused_moe/routed_experts.py), ModelOptNvFp4FusedMoE
(quantization/modelopt.py:840), prepare_nvfp4_moe_layer_for_fi_or_cutlass (quantization/utils/flashinfer_fp4_moe.py:335),
FlashInferCuteDSLBatchedExperts (fused_moe/experts/flashinfer_cutedsl_batched_moe.py). The choice of the backend, which
asks for a GPU, and the kernel object, which would need DeepEP, are made here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from harness.candidates import vllm_cutedsl
from harness.candidates.engines.checkpoints import COMPRESSED_CONFIG, compressed_tensors
from harness.candidates.engines.engine import Engine
from harness.candidates.engines.loader import EngineLoader, Recorder, Shard
from harness.candidates.engines.over_dispatchers import OverDispatchers
from harness.candidates.engines.vllm_dispatch import DEEPEP, DISPATCHER, MOE, REDUCE, World

if TYPE_CHECKING:
    from torch import Tensor


_LAYERS = "vllm.model_executor.layers"
_CONFIG = f"{MOE}.config"
_EXPERTS = f"{MOE}.routed_experts"
_ORACLE = f"{MOE}.oracle.nvfp4"
_QUANTIZATION = f"{_LAYERS}.quantization.modelopt"
_COMPRESSED = f"{_LAYERS}.quantization.compressed_tensors.compressed_tensors"
_COMPRESSED_METHOD = (
    f"{_LAYERS}.quantization.compressed_tensors.compressed_tensors_moe.compressed_tensors_moe_w4a4_nvfp4"
)
_MAP = f"{MOE}.expert_map_manager"
_BATCHED = vllm_cutedsl.MODULES[0]
_ROUTER = f"{MOE}.router.grouped_topk_router"
_PARALLEL = "vllm.distributed.parallel_state"
_ENGINE = Engine("vllm", (f"{MOE}.layer", _QUANTIZATION, _COMPRESSED, _BATCHED, _ROUTER, DEEPEP))
_TOKENS = 64  # that a rank may dispatch; nothing is dispatched here


class VllmLoader(OverDispatchers, EngineLoader):
    """vLLM's loader, its top-k, its DeepEP dispatcher and its masked MoE."""

    name = "vllm-loader"
    engine = _ENGINE
    tested = (0, 33)
    activations: tuple[str, ...] = ("silu",)
    logger = f"{_QUANTIZATION}:logger"
    called: tuple[str, ...] = (
        f"{_EXPERTS}:RoutedExperts.load_weights",
        f"{_EXPERTS}:RoutedExperts.weight_loader",
        f"{_QUANTIZATION}:ModelOptNvFp4Config",
        f"{_QUANTIZATION}:ModelOptNvFp4FusedMoE.create_weights",
        f"{_QUANTIZATION}:ModelOptNvFp4FusedMoE.process_weights_after_loading",
        f"{_QUANTIZATION}:select_nvfp4_moe_backend",
        f"{_QUANTIZATION}:make_nvfp4_moe_kernel",
        f"{_ORACLE}:NvFp4MoeBackend.FLASHINFER_CUTEDSL_BATCHED",
        f"{_BATCHED}:FlashInferCuteDSLBatchedExperts.apply",
        f"{_BATCHED}:{vllm_cutedsl.FUNCTION}",
        f"{_CONFIG}:FusedMoEConfig",
        f"{_CONFIG}:FusedMoEParallelConfig",
        f"{_MAP}:ExpertMapManager.map_global_to_local",
        f"{_ROUTER}:grouped_topk",
        f"{_PARALLEL}:_TP",
        f"{DISPATCHER}.prepare_async",
        f"{DISPATCHER}.finalize_async",
        f"{DISPATCHER}.SUPPORTED_HIDDEN_SIZES",
        REDUCE,
        "vllm.config:VllmConfig",
        "vllm.config:set_current_vllm_config",
    )

    method = _QUANTIZATION
    """Module of the quantization method."""

    experts = ("NvFp4MoeBackend.FLASHINFER_CUTEDSL_BATCHED", f"{_BATCHED}:FlashInferCuteDSLBatchedExperts")
    """Which kernels the layer is prepared for: vLLM's name of them, and the class that calls them."""

    def _as_written(self, checkpoint: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the tensors as the checkpoint's format has them."""
        return checkpoint

    def _quantization(self) -> Any:
        """Return vLLM's configuration of the checkpoint's format."""
        return self.engine.made(f"{_QUANTIZATION}:ModelOptNvFp4Config", "NVFP4", True, None, [], 16)

    def route_topk(self, logits: Tensor, topk: int, *, normalize: bool = True) -> tuple[Tensor, Tensor]:
        """Return ids and weights of vLLM's grouped top-k in torch, with one group that holds all experts."""
        import torch

        if not 1 <= topk <= logits.shape[-1]:
            raise ValueError(f"route_topk: topk must lie in [1, {logits.shape[-1]}], got {topk}")
        if not len(logits):  # vLLM never routes no tokens
            return torch.zeros(0, topk, dtype=torch.int64), torch.zeros(0, topk)
        with self.engine.running(self.replaced):
            weights, ids = self.engine.made(
                f"{_ROUTER}:grouped_topk", logits, logits, topk, normalize, num_expert_group=1, topk_group=1
            )
        return ids.long(), weights

    @contextmanager
    def _world(
        self, hidden: int, ranks: int, experts: int, max_tokens: int, transport: str
    ) -> Iterator[World]:
        """Yield the dispatchers of all ranks, for a width that DeepEP's kernels need not have been compiled for."""
        instead = {
            f"{DISPATCHER}.SUPPORTED_HIDDEN_SIZES": [hidden],
            "vllm.envs:VLLM_DEEPEPLL_NVFP4_DISPATCH": transport == "nvfp4",
        }
        with self.engine.running(instead | self.replaced):
            yield World(self.engine, transport, ranks=ranks, experts=experts, max_tokens=max_tokens)

    def _load(self, checkpoint: Mapping[str, Tensor], shard: Shard) -> dict[str, Tensor]:
        get = self.engine.get
        checkpoint = self._as_written(checkpoint)
        chosen = get(f"{_ORACLE}:{self.experts[0]}"), get(self.experts[1])
        instead: dict[str, Any] = {
            f"{self.method}:select_nvfp4_moe_backend": lambda **_: chosen,
            f"{self.method}:make_nvfp4_moe_kernel": self._kernel,
            f"{_PARALLEL}:_TP": SimpleNamespace(rank_in_group=shard.slice, world_size=shard.slices),
        }
        if shard.experts > shard.logical:
            # With load balancing the largest input scale is reduced over the ranks; each of them has read all already.
            instead[f"{_PARALLEL}:get_ep_group"] = lambda: SimpleNamespace(device_group=None)
            instead["torch.distributed:all_reduce"] = lambda *_, **__: None
        on_cpu = self.engine.made("vllm.config:DeviceConfig", device="cpu")
        config = self.engine.made("vllm.config:VllmConfig", device_config=on_cpu)
        with self.engine.running(instead), get("vllm.config:set_current_vllm_config")(config):
            layer = self._layer(shard)
            # A name is "experts." and what the checkpoint calls it; a model's loader hands over what follows.
            found = ((name.removeprefix("experts."), tensor) for name, tensor in checkpoint.items())
            for _ in layer.load_weights(found):
                pass
            layer.quant_method.process_weights_after_loading(layer)
            return self._handed_over(layer, shard)

    def _kernel(self, moe_quant_config: Any, moe_config: Any, experts_cls: Any, **_: Any) -> Any:
        """Return what vLLM's method calls its kernel, with the real experts and without a transport."""
        experts = experts_cls(
            moe_config=moe_config, quant_config=moe_quant_config, max_num_tokens=_TOKENS, num_dispatchers=1
        )
        return SimpleNamespace(fused_experts=experts)

    def _layer(self, shard: Shard) -> Any:
        import torch

        made, redundant = self.engine.made, shard.experts - shard.logical
        initial = self.engine.made(
            "vllm.distributed.eplb.eplb_state:EplbState.build_initial_global_physical_to_logical_map",
            shard.logical, redundant,
        )  # fmt: skip
        if list(initial) != list(shard.places):
            raise ValueError(
                f"load_redundant: vllm loads into its own places {list(initial)} only, got {shard.places}"
            )
        parallel = made(
            f"{_CONFIG}:FusedMoEParallelConfig",
            tp_size=shard.slices, tp_rank=shard.slice, ep_size=shard.ranks, ep_rank=shard.rank,
            dp_size=shard.ranks, dp_rank=shard.rank, pcp_size=1, pcp_rank=0, sp_size=1,
            use_ep=shard.ranks > 1, all2all_backend="allgather_reducescatter", enable_eplb=redundant > 0,
        )  # fmt: skip
        experts = made(
            f"{_MAP}:ExpertMapManager",
            max_num_batched_tokens=_TOKENS, top_k=1, global_num_experts=shard.experts, num_redundant_experts=redundant,
            num_expert_group=None, moe_parallel_config=parallel, placement_strategy="linear", enable_eplb=redundant > 0,
        )  # fmt: skip
        config = made(
            f"{_CONFIG}:FusedMoEConfig",
            num_experts=shard.experts, num_logical_experts=shard.logical,
            num_local_experts=experts.local_num_experts, experts_per_token=1,
            hidden_dim=shard.hidden, intermediate_size=shard.inter,
            activation=self.engine.get(f"{MOE}.activation:MoEActivation.SILU"),
            routing_method=self.engine.get(f"{_CONFIG}:RoutingMethodType.Default"),
            moe_parallel_config=parallel, device="cpu", in_dtype=torch.bfloat16, max_num_tokens=_TOKENS,
        )  # fmt: skip
        quantization = self._quantization()
        return made(
            f"{_EXPERTS}:RoutedExperts",
            "experts", torch.bfloat16, config, quantization, expert_map_manager=experts,
        )  # fmt: skip

    def _handed_over(self, layer: Any, shard: Shard) -> dict[str, Tensor]:
        """Run the experts on a token each, and return what the masked MoE would have been called with."""
        import torch

        tokens = torch.zeros(shard.local, 1, shard.hidden, dtype=torch.bfloat16)
        counts = torch.ones(shard.local, dtype=torch.int32)
        none = torch.zeros(1, 1)
        recorder = Recorder()
        with self.engine.running({f"{_BATCHED}:{vllm_cutedsl.FUNCTION}": recorder}):
            layer.quant_method.moe_kernel.fused_experts.apply(
                output=tokens, hidden_states=tokens, w1=layer.w13_weight, w2=layer.w2_weight, topk_weights=none,
                topk_ids=none.int(), activation=layer.activation, global_num_experts=shard.experts,
                expert_map=layer.expert_map, a1q_scale=None, a2_scale=None, workspace13=tokens, workspace2=tokens,
                expert_tokens_meta=SimpleNamespace(expert_num_tokens=counts), apply_router_weight_on_input=False,
            )  # fmt: skip
        return recorder.loaded(self.engine)

    def _moe(self) -> Any:
        return vllm_cutedsl.VllmCuteDsl()

    def _kernel_calls(self) -> dict[str, Any]:
        by_stage = {
            "quantize_grouped": self._quantize,
            "silu_mul_quantize_grouped": self._silu_mul_quantize,
            "masked_grouped_gemm": self._gemm,
        }
        return {f"{_BATCHED}:{name}": by_stage[stage] for name, stage in vllm_cutedsl.TAPS.items()}


class VllmCompressedLoader(VllmLoader):
    """The same of a checkpoint that compressed-tensors wrote."""

    name = "vllm-loader of compressed-tensors"
    method = _COMPRESSED_METHOD
    logger = f"{_COMPRESSED_METHOD}:logger"
    called: tuple[str, ...] = (
        *(each for each in VllmLoader.called if not each.startswith(_QUANTIZATION)),
        f"{_COMPRESSED}:CompressedTensorsConfig.from_config",
        f"{_COMPRESSED_METHOD}:CompressedTensorsW4A4Nvfp4MoEMethod.create_weights",
        f"{_COMPRESSED_METHOD}:CompressedTensorsW4A4Nvfp4MoEMethod.process_weights_after_loading",
        f"{_COMPRESSED_METHOD}:select_nvfp4_moe_backend",
        f"{_COMPRESSED_METHOD}:make_nvfp4_moe_kernel",
    )

    load_redundant = None  # type: ignore[assignment]  # it would need the other ranks' input scales

    def _as_written(self, checkpoint: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return compressed_tensors(checkpoint)

    def _quantization(self) -> Any:
        return self.engine.made(f"{_COMPRESSED}:CompressedTensorsConfig.from_config", COMPRESSED_CONFIG)


class VllmOverCuteDsl(VllmLoader):
    """The same over FlashInfer's CuTe DSL kernels, interpreted (harness.candidates.flashinfer_cutedsl_cpu)."""

    name = "vllm-loader over flashinfer-cutedsl-cpu"

    def __init__(self) -> None:
        from harness.candidates.flashinfer_cutedsl_cpu import FlashInferCuteDslCpu

        super().__init__(FlashInferCuteDslCpu())
