"""`vllm-emulation`: what vLLM computes of an NVFP4 layer where nothing has FP4: quantized values in bfloat16.

Modes: "torch" are its functions in torch, expert after expert; on a GPU it takes Triton kernels for two of them. "triton" is
the kernel of its fused MoE, which decodes the weights as it loads them. The order of the slots, the activation and the sum of a
token's rows are torch's here (harness.candidates.slots).

Weights are rounded to bfloat16 together with the expert's factor, tokens with their encode scale. So bits are as NVFP4 has them
under factors and encode scales that are powers of two, and problems hold no others.

Read in vllm 0.33; paths are under vllm/model_executor/layers:
    quantization/utils/nvfp4_emulation_utils.py    ref_nvfp4_quant_dequant, dequantize_to_dtype, run_nvfp4_emulations
    fused_moe/experts/nvfp4_emulation_moe.py       invoke_fused_moe_nvfp4_emulation_kernel
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from harness.candidates.support import Support, supported, unsupported
from harness.candidates.taps import RoutedTaps, TappedRouted
from harness.candidates.traits import VARIES, Traits

if TYPE_CHECKING:
    from torch import Tensor

    from harness.candidates.engines.engine import Engine
    from harness.candidates.slots import Slots

_LAYERS = "vllm.model_executor.layers"
_UTILS = f"{_LAYERS}.quantization.utils.nvfp4_emulation_utils"
QUANTIZE, DEQUANTIZE = f"{_UTILS}:ref_nvfp4_quant_dequant", f"{_UTILS}:dequantize_to_dtype"
KERNEL = f"{_LAYERS}.fused_moe.experts.nvfp4_emulation_moe:invoke_fused_moe_nvfp4_emulation_kernel"
CONFIG = f"{_LAYERS}.fused_moe.fused_moe:try_get_optimal_moe_config"
PARAMETERS = {
    QUANTIZE: ("x", "global_scale", "block_size"),
    DEQUANTIZE: ("tensor_fp4", "tensor_sf", "global_scale", "dtype", "block_size", "swizzle"),
    KERNEL: (
        "A", "B", "C", "B_scale", "act_global_scale", "w_global_scale", "topk_weights", "sorted_token_ids", "expert_ids",
        "num_tokens_post_padded", "mul_routed_weight", "top_k", "config", "compute_type",
    ),
    CONFIG: ("w1_shape", "w2_shape", "top_k", "dtype", "M", "block_shape"),
}  # fmt: skip
"""By function: every parameter that is passed to it, by keyword."""
_OF_TORCH = (QUANTIZE, DEQUANTIZE)
_BLOCK = 16
_K_MULTIPLE = {
    "torch": 64,
    "triton": _BLOCK,
}  # dequantize_to_dtype raises where a tile of block scales is not full

# Experts, hidden and inter where a Triton kernel is compiled for each n and k, a second or more.
_SHAPES = (
    (4, 128, 64), (1, 256, 128), (3, 64, 192), (8, 192, 256), (7, 112, 48), (2, 240, 16), (16, 128, 128), (5, 384, 208),
    (32, 64, 64), (2, 512, 384),
)  # fmt: skip


@dataclass(frozen=True)
class _Matrix:
    """Weights of one GEMM, as routed_moe has them, and the factor of each expert that decodes them."""

    codes: Tensor
    scale: Tensor
    factor: Tensor


class VllmEmulation(TappedRouted):
    """vLLM's emulation of an NVFP4 layer.

    Args:
        mode: "torch" or "triton".
        device: torch device type; None for a GPU where there is one, in the mode "torch".
    """

    name = "vllm-emulation"
    modes = ("torch", "triton")

    def __init__(self, mode: str = "torch", *, device: str | None = None) -> None:
        self.mode, self.name = mode, f"{type(self).name}:{mode}"
        self._device = device or ("cuda" if mode == "triton" else _device())
        self._ran: list[dict[str, str]] = []

    @property
    def traits(self) -> Traits:
        """What the package's code promises: sums of whatever multiplies bfloat16, in an order of its own."""
        return Traits(
            device=self._device,
            arithmetic="exact" if self._device == "cpu" else "fast",
            accumulator_chunk=1,
            summation=VARIES,
            k_multiple=_K_MULTIPLE[self.mode],
            n_multiple=_BLOCK,
            store_rows=1,
            out_dtypes=("bfloat16",),
            activations=("silu", "relu2"),
            place_invariant=False,
            reads_strides=True,
            keeps_sign_of_zero=False,
            finite_only=True,
            power_scales=True,
            final_sum="slots" if self.mode == "torch" else "slots; weight on rows",
            one_a2_scale=True,
            shapes=_SHAPES if self.mode == "triton" else (),
            cuda_graph=False,
            canary=False,
            far=False,
        )

    @property
    def asked(self) -> dict[str, str]:
        """What the package is asked for."""
        return {"arm": self.mode}

    def ran(self) -> list[dict[str, str]]:
        """Return what ran since the last call, with the tiles that the package chose."""
        found, self._ran = self._ran, []
        return found

    @cached_property
    def engine(self) -> Engine:
        """VLLM, as it is installed."""
        from harness.candidates.engines.engine import Engine

        modules = tuple(dict.fromkeys(target.partition(":")[0] for target in self._targets))
        return Engine("vllm", modules, on_gpu=self._device != "cpu")

    @property
    def _targets(self) -> tuple[str, ...]:
        return _OF_TORCH if self.mode == "torch" else tuple(PARAMETERS)

    @property
    def warning(self) -> str:
        """Which packages that vLLM imports are missing and were stubbed."""
        stubs = self.engine.stubs.names
        return f"stubbed, since they are not installed: {', '.join(sorted(stubs))}" if stubs else ""

    def support(self) -> Support:
        """Return whether vLLM is there and its functions are called as this harness calls them."""
        from harness.candidates.engines.engine import EngineChangedError

        if importlib.util.find_spec("vllm") is None:
            return unsupported("vllm is not installed; its emulation is read in 0.33: pip install vllm")
        if self._device != "cpu":
            import torch

            if not torch.cuda.is_available():
                return unsupported("needs a CUDA device, torch sees none")
        try:
            with self.engine.running():
                changed = self.engine.called_otherwise({name: PARAMETERS[name] for name in self._targets})
        except EngineChangedError as error:
            return unsupported(str(error))
        return unsupported(changed) if changed else supported()

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
        *,
        taps: list[RoutedTaps] | None = None,
    ) -> Tensor:
        """Return the layer's output `(tokens, k)` bfloat16; taps get what its GEMMs stored. Shapes: harness.candidates.protocol."""
        import torch

        from harness.candidates.slots import Slots, add_slots

        if topk_idx.numel() and not -1 <= int(topk_idx.min()) <= int(topk_idx.max()) < num_experts:
            raise ValueError(f"routed_moe: topk_idx must lie in [-1, {num_experts})")
        if out is None:
            out = torch.empty(len(topk_idx), w2.shape[1], dtype=torch.bfloat16, device=w2.device)
        if not len(topk_idx):
            return out
        one = torch.ones(1, device=w2.device)
        encode = one if input_global_scale is None else input_global_scale
        first = _Matrix(w1, w1_blockscale, w1_alpha * encode)
        second = _Matrix(w2, w2_blockscale, w2_alpha * a2_global_scale)
        slots = Slots(topk_idx.contiguous(), len(w1), local_expert_offset)
        weights = topk_weights.float().contiguous()
        with self.engine.running():
            x = self._tokens(hidden_states, encode, one)
            gate_up = self._multiplied(x, slots, first, None)
            hidden = _activated(gate_up, activation)
            hidden = torch.where(slots.there.view(-1, 1), hidden, 0)  # rows of no expert are not written
            hidden = self._quantized(hidden, a2_global_scale[:1])
            rows = self._multiplied(hidden, slots, second, weights)
        in_sum = weights if self.mode == "torch" else torch.ones_like(weights)
        add_slots(rows.view(*topk_idx.shape, -1), in_sum, slots.there, out)
        if taps is not None:
            taps.append(RoutedTaps(gate_up, rows))
        return out

    def _tokens(self, hidden_states: tuple[Tensor, Tensor | None], encode: Tensor, one: Tensor) -> Tensor:
        import torch

        x, scale = hidden_states
        if scale is None:
            return self._quantized(x.contiguous(), encode)
        decoded: Tensor = self.engine.get(DEQUANTIZE)(
            tensor_fp4=x.contiguous(), tensor_sf=scale.contiguous(), global_scale=one, dtype=torch.bfloat16,
            block_size=_BLOCK, swizzle=False,
        )  # fmt: skip
        return decoded

    def _quantized(self, x: Tensor, encode: Tensor) -> Tensor:
        quantized: Tensor = self.engine.get(QUANTIZE)(x=x, global_scale=encode, block_size=_BLOCK)
        return quantized

    def _multiplied(self, x: Tensor, slots: Slots, matrix: _Matrix, weights: Tensor | None) -> Tensor:
        """Return each slot's row times its expert's weights, `(slots, n)`; in Triton also times routing weights."""
        import torch

        number, n = slots.topk_idx.numel(), matrix.codes.shape[1]
        out = torch.empty(number, n, dtype=x.dtype, device=x.device)
        if self.mode == "triton":
            self._launch(x, slots, matrix, weights, out)
            return out
        self._note({"arm": "torch"})
        for expert in range(slots.experts):
            begin, end = (int(slots.offsets[expert + place]) for place in range(2))
            if begin == end:
                continue
            taken = slots.order[begin:end]
            decoded = self.engine.get(DEQUANTIZE)(
                tensor_fp4=matrix.codes[expert], tensor_sf=matrix.scale[expert], global_scale=matrix.factor[expert],
                dtype=x.dtype, block_size=_BLOCK, swizzle=True,
            )  # fmt: skip
            out[taken] = torch.matmul(x[taken // (number // len(x))], decoded.t())
        return out

    def _launch(self, x: Tensor, slots: Slots, matrix: _Matrix, weights: Tensor | None, out: Tensor) -> None:
        """Launch the Triton kernel, with the tiles that the package chooses."""
        from harness.candidates.fused_weights import Matrix

        codes, get = matrix.codes.contiguous(), self.engine.get
        linear = Matrix.of(codes, matrix.scale, _BLOCK).scale
        topk = slots.topk_idx.shape[1]
        tiles = get(CONFIG)(
            w1_shape=codes.size(), w2_shape=codes.size(), top_k=topk, dtype=None, M=len(slots.topk_idx), block_shape=None
        )  # fmt: skip
        sorted_ids, expert_ids, used = slots.aligned(tiles["BLOCK_SIZE_M"])
        get(KERNEL)(
            A=x, B=codes, C=out.view(len(x), -1, out.shape[1]), B_scale=linear, act_global_scale=None,
            w_global_scale=matrix.factor.contiguous(), topk_weights=weights, sorted_token_ids=sorted_ids,
            expert_ids=expert_ids, num_tokens_post_padded=used, mul_routed_weight=weights is not None,
            top_k=len(out) // len(x), config=tiles, compute_type=importlib.import_module("triton.language").bfloat16,
        )  # fmt: skip
        tile = " x ".join(str(tiles[f"BLOCK_SIZE_{name}"]) for name in "MNK")
        self._note({"arm": "triton", "tile": tile})

    def _note(self, ran: dict[str, str]) -> None:
        if ran not in self._ran:
            self._ran.append(ran)


def _activated(rows: Tensor, activation: str) -> Tensor:
    """Return the activation of the first GEMM's rows, computed in float32, rounded once."""
    import torch

    if activation == "relu2":
        return rows.float().relu().square().to(rows.dtype)
    gate, up = rows.float().chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(rows.dtype)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
