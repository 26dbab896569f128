"""The masked MoE, as real numbers with the declared roundings: grouped GEMM, activation, and the whole layer.

Everything here is an oracle: float64 inside, one rounding where the contract has one. Rows at or past `masked_m[e]`
are capacity padding; results hold NaN there, so that a comparison that forgets the mask fails.

Rules: GEMM-1 (value), ACT-1 (activation and its bfloat16 boundary), MOE-1 (composition).
Source: SGLang srt/layers/moe/flashinfer_cutedsl_moe.py, flashinfer_cutedsl_moe_masked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reference.activations import SILU, Activation
from reference.nvfp4 import decode_blocks, quantize_nvfp4


def valid_rows(masked_m: Tensor, capacity: int) -> Tensor:
    """Return which rows count: `(experts, capacity)` bool, True for rows below `masked_m[e]`.

    Args:
        masked_m: `(experts,)` integer, number of valid leading rows of each expert.
        capacity: rows per expert.

    Raises:
        ValueError: an entry is negative or above the capacity.
    """
    _counts(masked_m, capacity)
    return torch.arange(capacity, device=masked_m.device) < masked_m.unsqueeze(-1)


def _counts(masked_m: Tensor, capacity: int) -> list[int]:
    counts: list[int] = masked_m.tolist()
    if any(not 0 <= count <= capacity for count in counts):
        raise ValueError(f"valid_rows: masked_m must lie in [0, {capacity}], got {counts}")
    return counts


def masked_grouped_gemm(a: Tensor, b: Tensor, masked_m: Tensor, alpha: Tensor | None = None) -> Tensor:
    """Return alpha[e] * a[e] @ b[e].T for the valid rows, in float64.

    Args:
        a: `(experts, capacity, k)` floating point, dequantized; padding rows may hold anything.
        b: `(experts, n, k)` floating point, dequantized.
        masked_m: `(experts,)` integer.
        alpha: `(experts,)` floating point, or None for 1.

    Returns:
        `(experts, capacity, n)` float64, NaN in padding rows.

    Raises:
        ValueError: extents that do not fit.

    Rule: GEMM-1.
    """
    if a.ndim != 3 or b.ndim != 3 or a.shape[0] != b.shape[0] or a.shape[2] != b.shape[2]:
        raise ValueError(
            "masked_grouped_gemm: a must be (experts, capacity, k) and b (experts, n, k), "
            f"got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    out = a.new_full((a.shape[0], a.shape[1], b.shape[1]), torch.nan, dtype=torch.float64)
    for expert, rows in enumerate(masked_m.tolist()):
        torch.mm(a[expert, :rows].double(), b[expert].double().T, out=out[expert, :rows])
        if alpha is not None:
            out[expert, :rows] *= alpha[expert].double()
    return out


def silu_mul(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up in float64, not yet rounded.

    Args:
        gate_up: `(*, 2n)` floating point, the gate half first.

    Returns:
        `(*, n)` float64. silu(x) = x / (1 + exp(-x)).

    Rule: ACT-1.
    """
    return SILU.value(gate_up.double())


def relu2(x: Tensor) -> Tensor:
    """Return max(x, 0)^2 in float64, not yet rounded; `(*, n)` to `(*, n)`. Rule: ACT-1."""
    return Activation("relu2").value(x.double())


def activate(gemm1: Tensor, activation: str, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return the activation rounded to bfloat16, the type in which kernels hand it to the second quantization, or another.

    The rounding passes through float32, the type that kernels compute it in.

    Args:
        gemm1: `(*, 2n)` for "silu" (gate first) and others with a gate, `(*, n)` for "relu2"; bfloat16.
        activation: as reference.activations writes it: "silu", "relu2", "silu; limit 10".
        dtype: of the layer.

    Returns:
        `(*, n)` of that type.

    Raises:
        ValueError: another activation.

    Rule: ACT-1.
    """
    return Activation.of(activation).value(gemm1.double()).to(dtype)


def masked_moe(
    hidden_states: Tensor | tuple[Tensor, Tensor],
    input_global_scale: Tensor | None,
    w1: Tensor,
    w1_blockscale: Tensor,
    w1_alpha: Tensor,
    w2: Tensor,
    a2_global_scale: Tensor,
    w2_blockscale: Tensor,
    w2_alpha: Tensor,
    masked_m: Tensor,
    activation: str = "silu",
) -> Tensor:
    """Return the masked MoE layer: quantize, GEMM, bf16, activation, bf16, quantize, GEMM, bf16.

    Args:
        hidden_states: `(experts, capacity, k)` bfloat16, or the quantized pair codes `(experts, capacity, k)` uint8 and
            block_scale `(experts, capacity, k / 16)` uint8.
        input_global_scale: `(experts,)` float32 encode scale of the input, None with a quantized pair.
        w1: `(experts, 2n, k)` codes, gate rows first (`(experts, n, k)` for relu2).
        w1_blockscale: one uint8 per 16 codes of w1.
        w1_alpha: `(experts,)` float32, 1 / (input encode scale * w1 encode scale).
        w2: `(experts, k, n)` codes.
        a2_global_scale: `(experts,)` float32 encode scale of the intermediate.
        w2_blockscale: one uint8 per 16 codes of w2.
        w2_alpha: `(experts,)` float32.
        masked_m: `(experts,)` integer.
        activation: "silu" or "relu2".

    Returns:
        `(experts, capacity, k)` bfloat16, NaN in padding rows. Routing weights are applied later, by `combine`.

    Raises:
        ValueError: an input scale with a quantized pair, or none with bfloat16 input; extents that do not fit.

    Rule: MOE-1.
    """
    if isinstance(hidden_states, tuple):
        if input_global_scale is not None:
            raise ValueError(
                "masked_moe: input_global_scale must be None when hidden_states is a quantized pair"
            )
        inputs: tuple[Tensor, ...] = hidden_states
    elif input_global_scale is None:
        raise ValueError("masked_moe: input_global_scale is needed when hidden_states is bfloat16")
    else:
        inputs = (hidden_states,)
    experts, capacity, k = inputs[0].shape
    if w1.shape[::2] != (experts, k) or w2.shape[:2] != (experts, k):
        raise ValueError(
            f"masked_moe: w1 must be ({experts}, 2n or n, {k}) and w2 ({experts}, {k}, n), "
            f"got {tuple(w1.shape)} and {tuple(w2.shape)}"
        )
    counts = _counts(masked_m, capacity)
    out = torch.full((experts, capacity, w2.shape[1]), torch.nan, dtype=torch.bfloat16, device=w2.device)
    scales = None if input_global_scale is None else input_global_scale.expand(experts)
    a2_scales = a2_global_scale.expand(experts)
    if w1.is_cuda:
        from reference.fast import moe

        done = moe.masked_moe(
            tuple(
                torch.cat([each[expert, :count] for expert, count in enumerate(counts)]) for each in inputs
            ),
            scales,
            (w1, w1_blockscale, w1_alpha),
            (w2, w2_blockscale, w2_alpha),
            a2_scales,
            counts,
            activation,
        )
        for here, part in zip(out, torch.split(done, counts), strict=True):
            here[: len(part)] = part
        return out
    for expert, count in enumerate(counts):
        if not count:
            continue
        rows = tuple(each[expert, :count] for each in inputs)
        codes, block_scale = rows if scales is None else _quantized(rows[0], scales[expert])
        gemm1 = _product(codes, block_scale, w1[expert], w1_blockscale[expert], w1_alpha[expert])
        intermediate = activate(gemm1, activation)
        codes, block_scale = _quantized(intermediate, a2_scales[expert])
        out[expert, :count] = _product(
            codes, block_scale, w2[expert], w2_blockscale[expert], w2_alpha[expert]
        )
    return out


def _quantized(x: Tensor, global_scale_enc: Tensor) -> tuple[Tensor, Tensor]:
    quantized = quantize_nvfp4(x, global_scale_enc)
    return quantized.codes, quantized.block_scale


def _product(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, alpha: Tensor) -> Tensor:
    """Return alpha * a @ b.T of one expert in bfloat16, from codes and block scales."""
    exact = torch.mm(decode_blocks(a, a_scale), decode_blocks(b, b_scale).T)
    return (exact * alpha.double()).bfloat16()
