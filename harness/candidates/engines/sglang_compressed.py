"""SGLang's preparation of NVFP4 experts that compressed-tensors wrote, for FlashInfer's CUTLASS kernel, on a CPU.

Read in sglang 0.5.23: CompressedTensorsW4A4Nvfp4MoE (srt/layers/quantization/compressed_tensors/schemes).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from harness.candidates.engines.checkpoints import COMPRESSED_CONFIG, compressed_tensors
from harness.candidates.engines.sglang_loader import COMPRESSED, QUANTIZATION, SglangLoader

if TYPE_CHECKING:
    from torch import Tensor

    from harness.candidates.engines.loader import Shard

_METHOD = f"{COMPRESSED.rpartition('.')[0]}.schemes.compressed_tensors_w4a4_nvfp4_moe"


class SglangCompressedLoader(SglangLoader):
    """The same of a checkpoint that compressed-tensors wrote, which SGLang prepares for FlashInfer's CUTLASS kernel.

    That kernel takes up before gate: what it would be called with is brought into masked_moe's order.
    """

    name = "sglang-loader of compressed-tensors"
    activations: tuple[str, ...] = ("silu",)
    path = ("MoeRunnerBackend.FLASHINFER_CUTLASS", "MoeA2ABackend.NONE")
    logger = f"{_METHOD}:logger"
    called: tuple[str, ...] = (
        *(each for each in SglangLoader.called if not each.startswith(QUANTIZATION)),
        f"{COMPRESSED}:CompressedTensorsConfig.from_config",
        f"{_METHOD}:CompressedTensorsW4A4Nvfp4MoE.create_weights",
        f"{_METHOD}:CompressedTensorsW4A4Nvfp4MoE.process_weights_after_loading",
        f"{_METHOD}:CompressedTensorsW4A4Nvfp4MoE.apply_weights",
    )

    def _as_written(self, checkpoint: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return compressed_tensors(checkpoint)

    def _quantization(self) -> Any:
        return self.engine.made(f"{COMPRESSED}:CompressedTensorsConfig.from_config", COMPRESSED_CONFIG)

    def _handed_over(self, layer: Any, shard: Shard) -> dict[str, Tensor]:
        import torch

        from reference.layout import swizzle_128x4, unswizzle_128x4

        given: list[Any] = []
        runner = SimpleNamespace(run=lambda _tokens, quant_info: given.append(quant_info))
        of = self.engine.of
        of(layer, "scheme").runner = runner
        tokens = torch.zeros(1, shard.hidden, dtype=torch.bfloat16)
        layer.scheme.apply_weights(layer, SimpleNamespace(hidden_states=tokens))
        input_scale, s1, w1_alpha, a2_scale, s2, w2_alpha = of(given[0], "quant_scales")
        w1, w2 = of(given[0], "w13_weight").data, of(given[0], "w2_weight").data
        half = w1.shape[1] // 2
        linear = unswizzle_128x4(s1.view(torch.uint8), w1.shape[1], w1.shape[2] // 8)
        return {
            "input_global_scale": input_scale,
            "w1": w1.roll(half, 1),
            "w1_blockscale": swizzle_128x4(linear.roll(half, 1)).view(torch.float8_e4m3fn),
            "w1_alpha": w1_alpha,
            "w2": w2,
            "a2_global_scale": a2_scale,
            "w2_blockscale": s2,
            "w2_alpha": w2_alpha,
        }
