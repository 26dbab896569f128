"""The candidate `sglang-loader`: SGLang's own preparation of NVFP4 experts for its CuteDSL path with DeepEP, on a CPU.

Read in sglang 0.5.23, under sglang/srt/layers: FusedMoE (moe/fused_moe_triton/layer.py), ModelOptNvFp4FusedMoEMethod
(quantization/modelopt_quant.py:2362), fused_experts_deepep_to_flashinfer_cutedsl_fp4 (moe/moe_runner/
flashinfer_cutedsl.py). Only the configuration is stated here, as SGLang's own tests state it, and the dispatcher, which
would need DeepEP, is a stand-in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from harness.candidates import sglang_cutedsl
from harness.candidates.engines.engine import Engine
from harness.candidates.engines.loader import EngineLoader, Recorder, Shard
from harness.candidates.engines.over_dispatchers import OverDispatchers
from harness.candidates.engines.sglang_dispatch import (
    DEEPEP,
    LOCATION,
    MOST_TOKENS,
    PLACING,
    World,
    chosen_slots,
    location_of,
)  # fmt: skip

if TYPE_CHECKING:
    from torch import Tensor

    from harness.candidates.protocol import Traits

_SRT = "sglang.srt"
_LAYER = f"{_SRT}.layers.moe.fused_moe_triton.layer"
QUANTIZATION = f"{_SRT}.layers.quantization.modelopt_quant"
COMPRESSED = f"{_SRT}.layers.quantization.compressed_tensors.compressed_tensors"
_CONTEXT = f"{_SRT}.runtime_context"
_UTILS = f"{_SRT}.layers.moe.utils"
TOPK = f"{_SRT}.layers.moe.topk"
_ENGINE = Engine("sglang", (_LAYER, QUANTIZATION, COMPRESSED, DEEPEP, TOPK, sglang_cutedsl.MODULE))


class SglangLoader(OverDispatchers, EngineLoader):
    """SGLang's loader, its top-k, its DeepEP dispatcher and its masked MoE."""

    name = "sglang-loader"
    engine = _ENGINE
    tested = (0, 5)
    activations: tuple[str, ...] = ("silu", "relu2")
    logger = f"{QUANTIZATION}:logger"
    called: tuple[str, ...] = (
        f"{_LAYER}:FusedMoE.make_expert_params_mapping",
        f"{_LAYER}:FusedMoE.weight_loader",
        f"{_LAYER}:create_moe_dispatcher",
        f"{QUANTIZATION}:ModelOptFp4Config",
        f"{QUANTIZATION}:ModelOptNvFp4FusedMoEMethod.create_weights",
        f"{QUANTIZATION}:ModelOptNvFp4FusedMoEMethod.process_weights_after_loading",
        f"{QUANTIZATION}:ModelOptNvFp4FusedMoEMethod.apply",
        f"{_CONTEXT}:get_context",
        f"{_CONTEXT}:get_flags",
        f"{_CONTEXT}:get_parallel",
        f"{_CONTEXT}:get_resources",
        f"{_CONTEXT}:override_platform",
        f"{LOCATION}:ExpertLocationMetadata._init_raw",
        f"{PLACING}:ExpertLocationDispatchInfo.init_new",
        f"{PLACING}:topk_ids_logical_to_physical",
        f"{_UTILS}:MoeRunnerBackend.FLASHINFER_CUTEDSL",
        f"{_UTILS}:MoeA2ABackend.DEEPEP",
        f"{DEEPEP}:DeepEPLLDispatchOutput",
        f"{DEEPEP}:DeepEPDispatcher.dispatch_a",
        f"{DEEPEP}:DeepEPDispatcher.dispatch_b",
        f"{DEEPEP}:DeepEPDispatcher.combine_a",
        f"{DEEPEP}:DeepEPDispatcher.combine_b",
        f"{DEEPEP}:DeepEPBuffer.get_deepep_buffer",
        f"{DEEPEP}:use_deepep",
        f"{TOPK}:fused_topk_torch_native",
        f"{sglang_cutedsl.MODULE}:{sglang_cutedsl.FUNCTION}",
    )

    path = ("MoeRunnerBackend.FLASHINFER_CUTEDSL", "MoeA2ABackend.DEEPEP")
    """Which kernels and which transport the layer is prepared for."""

    @property
    def traits(self) -> Traits:
        """Those of the kernels, and how many tokens SGLang lets a rank send."""
        return replace(super().traits, most_tokens=MOST_TOKENS)

    def _as_written(self, checkpoint: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the tensors as the checkpoint's format has them."""
        return checkpoint

    def _quantization(self) -> Any:
        """Return SGLang's configuration of the checkpoint's format."""
        return self.engine.made(
            f"{QUANTIZATION}:ModelOptFp4Config", is_checkpoint_nvfp4_serialized=True, group_size=16
        )

    def route_topk(self, logits: Tensor, topk: int, *, normalize: bool = True) -> tuple[Tensor, Tensor]:
        """Return ids and weights of SGLang's top-k in torch, the one that it uses where it has no kernel."""
        if not 1 <= topk <= logits.shape[-1]:
            raise ValueError(f"route_topk: topk must lie in [1, {logits.shape[-1]}], got {topk}")
        with self.engine.running(self.replaced):
            weights, ids = self.engine.made(
                f"{TOPK}:fused_topk_torch_native", logits, logits, topk, renormalize=normalize
            )
        return ids.long(), weights

    def place_topk(self, topk_idx: Tensor, places: Sequence[int], rank: int, ranks: int) -> dict[str, Tensor]:
        """Return the slots of a layer with experts that are there twice, by each way of SGLang's that is in torch."""
        shard, found = Shard(tuple(places), 64, 64, True, ranks, rank, 1, 0), {}
        for way in ("static", "dynamic"):
            with self.engine.running(self.replaced), self._configured(shard, placing=way):
                found[way] = chosen_slots(self.engine, topk_idx)
        return found

    @contextmanager
    def _world(
        self, hidden: int, ranks: int, experts: int, max_tokens: int, transport: str
    ) -> Iterator[World]:
        """Yield the dispatchers of all ranks, for as long as their configuration is stated."""
        shard = Shard(tuple(range(experts)), hidden, 64, True, ranks, 0, 1, 0)
        instead = {
            f"{DEEPEP}:use_deepep": True,
            f"{DEEPEP}:DeepEPBuffer.get_deepep_buffer": staticmethod(lambda group, *_: group),
        }
        with self.engine.running(instead | self.replaced), self._configured(shard, transport):
            yield World(self.engine, ranks=ranks, experts=experts, hidden=hidden, max_tokens=max_tokens)

    def _load(self, checkpoint: Mapping[str, Tensor], shard: Shard) -> dict[str, Tensor]:
        with self._configured(shard):
            layer = self._layer(shard)
            self._fill(layer, self._as_written(checkpoint), shard)
            layer.quant_method.process_weights_after_loading(layer)
            return self._handed_over(layer, shard)

    @contextmanager
    def _configured(
        self, shard: Shard, transport: str = "auto", placing: str | None = None
    ) -> Iterator[None]:
        """State which rank of how many this is, its path, what is sent and where to, and that the platform is a Blackwell."""
        get, ranks = self.engine.made, shard.ranks * shard.slices
        rank = {"moe_ep_rank": shard.rank, "moe_tp_rank": shard.slice, "tp_group": None}
        with ExitStack() as stack:
            runner, a2a = (self.engine.get(f"{_UTILS}:{name}") for name in self.path)
            published = get(f"{_CONTEXT}:get_context").override_server_args(
                moe_runner_backend=runner.value,
                moe_a2a_backend=a2a.value,
                deepep_dispatcher_output_dtype="auto" if transport == "nvfp4" else transport,
                tp_size=ranks,
                ep_size=shard.ranks,
                ep_dispatch_algorithm=placing,
            )
            stack.enter_context(published)
            flags = get(f"{_CONTEXT}:get_flags").moe
            stack.enter_context(flags.override(runner_backend=runner, a2a_backend=a2a))
            stack.enter_context(get(f"{_CONTEXT}:get_parallel").override(**rank))
            stack.enter_context(get(f"{_CONTEXT}:override_platform", is_blackwell=True))
            if shard.experts > shard.logical:
                resources = get(f"{_CONTEXT}:get_resources")
                stack.enter_context(
                    resources.override(expert_location_metadata=location_of(self.engine, shard))
                )
            yield

    def _layer(self, shard: Shard) -> Any:
        import torch

        stand_in = SimpleNamespace(set_quant_config=lambda _: None)
        with self.engine.running({f"{_LAYER}:create_moe_dispatcher": lambda *_, **__: stand_in}):
            return self.engine.made(
                f"{_LAYER}:FusedMoE",
                num_experts=shard.experts,
                hidden_size=shard.hidden,
                intermediate_size=shard.inter,
                layer_id=0,
                top_k=1,
                params_dtype=torch.bfloat16,
                quant_config=self._quantization(),
                prefix="model.layers.0.mlp.experts",
                activation="silu" if shard.gated else "relu2",
                is_gated=shard.gated,
            )

    def _fill(self, layer: Any, checkpoint: Mapping[str, Tensor], shard: Shard) -> None:
        """Hand over every tensor as the models' load_weights do (models/deepseek_v2.py, models/nemotron_h.py)."""
        first = ("gate_proj", "up_proj") if shard.gated else ("up_proj", "")
        mapping = self.engine.made(
            f"{_LAYER}:FusedMoE.make_expert_params_mapping",
            ckpt_gate_proj_name=first[0],
            ckpt_down_proj_name="down_proj",
            ckpt_up_proj_name=first[1],
            num_experts=shard.logical,
        )
        by_place = {weight_name: rest for *rest, weight_name in ((p, e, s, w) for p, w, e, s in mapping)}
        parameters = dict(layer.named_parameters())
        for name, tensor in checkpoint.items():
            place = name[: name.rfind(".") + 1]
            if place not in by_place:
                continue
            parameter_name, expert, part = by_place[place]
            parameter_name = name.replace(place, parameter_name)
            parameter = parameters.get(parameter_name.removeprefix("experts."))
            if parameter is not None:  # what no parameter takes is skipped, as the models do
                parameter.weight_loader(parameter, tensor, parameter_name, shard_id=part, expert_id=expert)

    def _handed_over(self, layer: Any, shard: Shard) -> dict[str, Tensor]:
        """Run the method and its runner on a token each, and return what the masked MoE would have been called with."""
        import torch

        tokens = torch.zeros(shard.local, 1, shard.hidden, dtype=torch.bfloat16)
        none = torch.zeros(1, 1)
        received = self.engine.made(
            f"{DEEPEP}:DeepEPLLDispatchOutput",
            tokens, None, none.long(), none, torch.ones(shard.local, dtype=torch.int32), 1,
        )  # fmt: skip
        recorder = Recorder()
        with self.engine.running({f"{sglang_cutedsl.MODULE}:{sglang_cutedsl.FUNCTION}": recorder}):
            layer.quant_method.apply(layer, received)
        return recorder.loaded(self.engine)

    def _moe(self) -> Any:
        return sglang_cutedsl.SglangCuteDsl()

    def _kernel_calls(self) -> dict[str, Any]:
        by_stage = {
            "quantize_grouped": self._quantize,
            "silu_mul_quantize_grouped": self._silu_mul_quantize,
            "masked_grouped_gemm": self._gemm,
        }
        return {
            f"{sglang_cutedsl.MODULE}:{name}": by_stage[stage] for name, stage in sglang_cutedsl.TAPS.items()
        }


class SglangOverCuteDsl(SglangLoader):
    """The same over FlashInfer's CuTe DSL kernels, interpreted (harness.candidates.flashinfer_cutedsl_cpu)."""

    name = "sglang-loader over flashinfer-cutedsl-cpu"

    def __init__(self) -> None:
        from harness.candidates.flashinfer_cutedsl_cpu import FlashInferCuteDslCpu

        super().__init__(FlashInferCuteDslCpu())
