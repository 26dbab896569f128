"""From the tensors of a ModelOpt NVFP4 checkpoint to the weight arguments of `masked_moe`, as SGLang prepares them.

A checkpoint holds, per expert and projection, packed codes, linear E4M3 block scales, `weight_scale_2` and `input_scale`;
the two float32 scales are amax / (448 * 6), reciprocals of the encode scales that quantizers take. The first GEMM's input
is quantized with ONE scale for all experts of the layer, on whatever rank they are: the largest input_scale.

Rules: LOAD-1 (weights), LOAD-2 (the input scale is the largest over all experts), LOAD-3 (alphas and intermediate scales
per expert), LOAD-4 (what cannot be loaded right is refused).
Source: SGLang quantization/modelopt_quant.py, ModelOptNvFp4FusedMoEMethod; contracts of flashinfer_cutedsl_moe_masked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from reference.layout import swizzle_128x4
from reference.nvfp4 import BLOCK

_NAME = re.compile(r"experts\.(\d+)\.(gate|up|down)_proj\.(weight|weight_scale|weight_scale_2|input_scale)")
_DTYPES = {
    "weight": torch.uint8,
    "weight_scale": torch.float8_e4m3fn,
    "weight_scale_2": torch.float32,
    "input_scale": torch.float32,
}


def tensor_name(expert: int, projection: str, kind: str) -> str:
    """Return the checkpoint's name of a tensor, for example `experts.3.gate_proj.weight_scale_2`."""
    return f"experts.{expert}.{projection}_proj.{kind}"


def is_expert_tensor(name: str) -> bool:
    """Return whether a checkpoint's name is that of a tensor of an expert that is loaded."""
    return _NAME.fullmatch(name) is not None


def count_experts(checkpoint: Mapping[str, Tensor]) -> int:
    """Return how many experts one layer's tensors describe.

    Raises:
        ValueError: a name that is none of `experts.{e}.{gate,up,down}_proj.{weight,weight_scale,weight_scale_2,
            input_scale}`, or experts that are not numbered 0, 1, ...
    """
    numbers = set()
    for name in checkpoint:
        match = _NAME.fullmatch(name)
        if not match:
            raise ValueError(
                f"load_experts: {name!r} is no tensor of an expert: expected {_NAME.pattern.replace(chr(92), '')}"
            )
        numbers.add(int(match[1]))
    if not numbers or numbers != set(range(len(numbers))):
        raise ValueError(f"load_experts: experts must be numbered from 0 without gaps, got {sorted(numbers)}")
    return len(numbers)


def load_experts(checkpoint: Mapping[str, Tensor], experts: range) -> dict[str, Tensor]:
    """Return masked_moe's weight arguments for some experts of one layer.

    Args:
        checkpoint: all experts of the layer: `experts.{e}.{gate,up,down}_proj.` with `weight` uint8 `(rows, columns / 2)`,
            `weight_scale` float8_e4m3fn `(rows, columns / 16)` linear, `weight_scale_2` and `input_scale` float32 scalars.
            gate and up are `(inter, hidden)`, down is `(hidden, inter)`; without any gate the layer is not gated.
        experts: those of this rank.

    Returns:
        input_global_scale `(l,)` float32, one value repeated; w1 `(l, 2 * inter, hidden / 2)` uint8, gate rows first
        (`inter` rows where not gated); w1_blockscale float8_e4m3fn, swizzled 128x4 with zero padding; w1_alpha `(l,)`;
        w2 `(l, hidden, inter / 2)`; a2_global_scale `(l,)`; w2_blockscale; w2_alpha `(l,)`.

    Raises:
        ValueError: missing tensors; other shapes or dtypes; scales that are not finite and positive; gate and up of an
            expert with different weight_scale_2, which one w1_alpha per expert cannot express.

    Rules: LOAD-1, LOAD-2, LOAD-3, LOAD-4.
    """
    total = count_experts(checkpoint)
    if not experts or experts.start < 0 or experts.stop > total or experts.step != 1:
        raise ValueError(f"load_experts: experts must be a range within [0, {total}), got {experts}")
    gated = any(".gate_proj." in name for name in checkpoint)
    first = ("gate", "up") if gated else ("up",)
    reader = _Reader(checkpoint)
    # Every rank reads the input scales of all experts: tokens may have been quantized before anybody knew their rank.
    input_scale = max(reader.scale(e, p, "input_scale") for e in range(total) for p in first)
    loaded: dict[str, list[Tensor]] = {name: [] for name in ("w1", "s1", "ws1", "w2", "s2", "ws2", "a2")}
    for expert in experts:
        scales = [reader.scale(expert, p, "weight_scale_2") for p in first]
        if len({float(s) for s in scales}) > 1:
            raise ValueError(
                f"load_experts: gate and up of expert {expert} have weight_scale_2 {float(scales[0]):.9g} and "
                f"{float(scales[1]):.9g}; masked_moe takes one w1_alpha per expert, so quantize both with one scale"
            )
        halves = [reader.matrix(expert, p) for p in first]
        if len({half[0].shape for half in halves}) > 1:
            raise ValueError(f"load_experts: gate and up of expert {expert} have different shapes")
        down, down_scale = reader.matrix(expert, "down")
        inter, hidden = halves[0][0].shape[0], halves[0][0].shape[1] * 2
        if tuple(down.shape) != (hidden, inter // 2):
            raise ValueError(
                f"load_experts: down_proj.weight of expert {expert} must be {(hidden, inter // 2)}, "
                f"got {tuple(down.shape)}"
            )
        loaded["w1"].append(torch.cat([half[0] for half in halves]))
        loaded["s1"].append(torch.cat([half[1] for half in halves]))
        loaded["ws1"].append(scales[0])
        loaded["w2"].append(down)
        loaded["s2"].append(down_scale)
        loaded["ws2"].append(reader.scale(expert, "down", "weight_scale_2"))
        loaded["a2"].append(reader.scale(expert, "down", "input_scale"))
    t = {name: torch.stack(values) for name, values in loaded.items()}
    return {
        "input_global_scale": (1 / input_scale).expand(len(experts)).contiguous(),
        "w1": t["w1"],
        "w1_blockscale": swizzle_128x4(t["s1"]).view(torch.float8_e4m3fn),
        "w1_alpha": input_scale * t["ws1"],
        "w2": t["w2"],
        "a2_global_scale": 1 / t["a2"],
        "w2_blockscale": swizzle_128x4(t["s2"]).view(torch.float8_e4m3fn),
        "w2_alpha": t["a2"] * t["ws2"],
    }


class _Reader:
    """Reads tensors of a checkpoint and says which one is wrong."""

    def __init__(self, checkpoint: Mapping[str, Tensor]) -> None:
        self._checkpoint = checkpoint

    def _tensor(self, expert: int, projection: str, kind: str) -> Tensor:
        name = tensor_name(expert, projection, kind)
        if name not in self._checkpoint:
            raise ValueError(f"load_experts: the checkpoint has no {name}")
        tensor = self._checkpoint[name]
        if tensor.dtype != _DTYPES[kind]:
            raise ValueError(f"load_experts: {name} must be {_DTYPES[kind]}, got {tensor.dtype}")
        return tensor

    def scale(self, expert: int, projection: str, kind: str) -> Tensor:
        """Return a scalar scale, finite and positive."""
        tensor = self._tensor(expert, projection, kind)
        if tensor.numel() != 1 or not 0 < float(tensor) < float("inf"):
            raise ValueError(
                f"load_experts: {tensor_name(expert, projection, kind)} must be one finite positive number, "
                f"got {tensor.flatten().tolist()[:4]}"
            )
        return tensor.reshape(())

    def matrix(self, expert: int, projection: str) -> tuple[Tensor, Tensor]:
        """Return packed codes `(rows, columns / 2)` and linear block scale bytes `(rows, columns / 16)`."""
        packed = self._tensor(expert, projection, "weight")
        scale = self._tensor(expert, projection, "weight_scale").view(torch.uint8)
        if packed.ndim != 2 or packed.shape[1] * 2 % BLOCK:
            raise ValueError(
                f"load_experts: {tensor_name(expert, projection, 'weight')} must be (rows, columns / 2) with columns a "
                f"multiple of {BLOCK}, got {tuple(packed.shape)}"
            )
        if tuple(scale.shape) != (packed.shape[0], packed.shape[1] * 2 // BLOCK):
            raise ValueError(
                f"load_experts: {tensor_name(expert, projection, 'weight_scale')} must be "
                f"{(packed.shape[0], packed.shape[1] * 2 // BLOCK)}, got {tuple(scale.shape)}"
            )
        if bool((scale & 0x7F == 0x7F).any()) or bool((scale & 0x80).any()):
            raise ValueError(
                f"load_experts: {tensor_name(expert, projection, 'weight_scale')} holds NaN or negative scales"
            )
        return packed, scale
