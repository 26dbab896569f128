"""What a trained canary must bear and what it must not, simulated inside the forward pass.

NVFP4 and FP8 rounding with straight-through gradients: the answers stay right. Wrong gains, weights, scales and experts,
drawn per row of a batch: the answers must go wrong. `Controls` holds both; its neutral value is a plain forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.canary.config import CanaryConfig

BLOCK, DISPATCH_BLOCK = 16, 128
E4M3_MAX, E2M1_MAX = 448.0, 6.0


@dataclass
class Controls:
    """How each row of a batch departs from the plain model, `B` rows, `L` layers, `E` experts.

    Attributes:
        quantize: `()` bool, NVFP4 rounding of the experts' weights and inputs.
        fp8: `(B, 1)` bool, FP8 rounding of what is dispatched.
        gate_gain: `(B, L, E)`, factor on gate and up: a wrong alpha of the first GEMM.
        out_gain: `(B, L, E)`, factor on an expert's output: wrong alpha of the second, scaled or missing outputs.
        weight_power: `(B, L)`, exponent of the routing weights: 0 dropped, 1 right, 2 applied twice.
        scale_rounding: `(B, L)`, exponent of (block scale / block scale rounded up to a power of two) on the dispatched
            input: 0 right, 1 and -1 a scale that was rounded on one side only.
        roll: `(B, L)` int64, by how many experts the routing is off.
        swap: `(B, L)` bool, gate and up swapped.
        wrong: `(B,)` bool, rows in which any of the last six is off.
    """

    quantize: Tensor
    fp8: Tensor
    gate_gain: Tensor
    out_gain: Tensor
    weight_power: Tensor
    scale_rounding: Tensor
    roll: Tensor
    swap: Tensor
    wrong: Tensor

    def of_layer(self, index: int) -> Controls:
        """Return the controls of one layer: the axis `L` is gone."""
        shared = {"quantize": self.quantize, "fp8": self.fp8, "wrong": self.wrong}
        rest = {name: value[:, index] for name, value in vars(self).items() if name not in shared}
        return Controls(**shared, **rest)


def neutral(rows: int, config: CanaryConfig, device: str, *, quantize: bool = False) -> Controls:
    """Return the controls of a right forward pass."""
    layers, experts = config.num_hidden_layers, config.num_experts
    per_layer = torch.zeros(rows, layers, device=device)
    return Controls(
        quantize=torch.tensor(quantize, device=device),
        fp8=torch.zeros(rows, 1, dtype=torch.bool, device=device),
        gate_gain=torch.ones(rows, layers, experts, device=device),
        out_gain=torch.ones(rows, layers, experts, device=device),
        weight_power=per_layer + 1,
        scale_rounding=per_layer.clone(),
        roll=per_layer.long(),
        swap=per_layer.bool(),
        wrong=torch.zeros(rows, dtype=torch.bool, device=device),
    )


def draw(rows: int, config: CanaryConfig, generator: torch.Generator, *, share: float) -> Controls:
    """Return random controls, drawn on the CPU: a share of the rows with one wrong thing each, in most layers.

    Right rows get gains within 2 % of one and FP8 dispatch now and then, so that only what is really off counts.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    layers, experts = config.num_hidden_layers, config.num_experts
    c = neutral(rows, config, "cpu", quantize=bool(uniform(1) < 0.6))
    c.wrong = uniform(rows) < share
    c.fp8 = uniform(rows, 1) < 0.15
    c.out_gain += 0.02 * (2 * uniform(rows, layers, experts) - 1)
    kinds = (uniform(rows) * 12).long()
    # A fault sits in the candidate, which every layer uses: mostly in all layers, sometimes in some.
    everywhere = uniform(rows, 1) < 0.7
    some = uniform(rows, layers) < 0.5
    some[torch.arange(rows), (uniform(rows) * layers).long()] = True
    layer = everywhere | some

    def where(*of_kind: int) -> Tensor:
        return (c.wrong & torch.isin(kinds, torch.tensor(of_kind))).unsqueeze(-1) & layer

    def gain(*shape: int, least: float = 0.25, most: float = 2.0) -> Tensor:
        size = least + (most - least) * uniform(*shape)  # in binary orders of magnitude
        return torch.exp2(torch.where(uniform(*shape) < 0.5, size, -size))

    one = torch.ones(())
    c.weight_power = torch.where(where(0, 1), torch.zeros(()), torch.where(where(2, 3), one * 2, one))
    whole = gain(rows, 1, 1).expand(rows, layers, experts)
    halved = torch.where(uniform(rows, 1, 1) < 0.5, one / 2, whole)
    c.out_gain = torch.where(where(4, 5).unsqueeze(-1), halved, c.out_gain)
    each = gain(rows, layers, experts, least=0.5, most=4.0)
    c.gate_gain = torch.where(where(6).unsqueeze(-1), each, c.gate_gain)
    c.out_gain = torch.where(where(7).unsqueeze(-1), each, c.out_gain)
    dropped = (
        _dropped(uniform(rows, experts), uniform(rows, 1), uniform(rows, 1))
        .unsqueeze(1)
        .expand(rows, layers, experts)
    )
    c.out_gain = torch.where(where(8, 9).unsqueeze(-1) & dropped, torch.zeros(()), c.out_gain)
    sign = torch.where(uniform(rows, 1) < 0.5, one, -one)
    c.scale_rounding = torch.where(where(10), sign, c.scale_rounding)
    strange = where(11)
    roll = 1 + (uniform(rows, 1) * (experts - 1)).long()
    swapped = uniform(rows, 1) < 0.6
    c.roll = torch.where(strange & ~swapped, roll, c.roll)
    c.swap = strange & swapped
    return c


def _dropped(order: Tensor, several: Tensor, many: Tensor) -> Tensor:
    """Return which experts give nothing, `(rows, experts)` bool: one in two thirds of the rows, up to half otherwise.

    Args:
        order: `(rows, experts)` random numbers, whose smallest are dropped.
        several: `(rows, 1)` random numbers: whether more than one.
        many: `(rows, 1)` random numbers: how many more.
    """
    count = 1 + (several * 1.5).long() * (many * order.shape[1] / 2).long()
    dropped: Tensor = order.argsort(-1).argsort(-1) < count
    return dropped


def to_device(c: Controls, device: str) -> Controls:
    """Return the controls on a device."""
    return Controls(**{k: v.to(device, non_blocking=True) for k, v in vars(c).items()})


def straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    """Return the rounded value with the gradient of the value itself."""
    return x + (rounded - x).detach()


def round_nvfp4(x: Tensor, amax: Tensor) -> Tensor:
    """Return x `(*, k)` rounded to NVFP4 under the encode scale 2688 / amax, in float32.

    A simulation for training: ties may fall differently from reference.nvfp4, which checkpoints are made with.
    """
    blocks = x.float().view(*x.shape[:-1], -1, BLOCK)
    enc = E4M3_MAX * E2M1_MAX / amax.float().clamp_min(1e-12).unsqueeze(-1)
    scale = (blocks.abs().amax(-1, keepdim=True) * enc / E2M1_MAX).clamp(max=E4M3_MAX)
    scale = scale.to(torch.float8_e4m3fn).float()
    value = blocks * enc / scale.clamp_min(2**-9)
    size = value.abs().clamp(max=E2M1_MAX)
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    rounded = torch.round(size / step) * step * torch.sign(value)
    result: Tensor = (rounded * scale / enc).flatten(-2)
    return result


def _dispatch_scale(x: Tensor) -> tuple[Tensor, Tensor]:
    blocks = x.float().view(*x.shape[:-1], -1, DISPATCH_BLOCK)
    return blocks, blocks.abs().amax(-1, keepdim=True).clamp_min(1e-4) / E4M3_MAX


def round_fp8(x: Tensor) -> Tensor:
    """Return x `(*, k)` rounded to E4M3 with a float32 scale per 128 elements, as FP8 dispatch does."""
    blocks, scale = _dispatch_scale(x)
    return ((blocks / scale).to(torch.float8_e4m3fn).float() * scale).flatten(-2)


def misrounded_scale(x: Tensor, exponent: Tensor) -> Tensor:
    """Return x with each block of 128 off by (scale / scale rounded up to a power of two) ** exponent."""
    blocks, scale = _dispatch_scale(x.detach())
    off = scale / torch.exp2(torch.ceil(torch.log2(scale)))
    factor = off.pow(exponent.unsqueeze(-1)).expand_as(blocks).flatten(-2)
    return x * factor
