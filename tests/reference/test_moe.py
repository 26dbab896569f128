"""The layer's oracle against loops over tokens, in fractions and in python floats."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from reference.moe import activate, masked_grouped_gemm, masked_moe, relu2, silu_mul, valid_rows
from reference.nvfp4 import decode_blocks, dequantize_nvfp4, global_scale_enc, quantize_nvfp4

EXPERTS, CAPACITY, K, N = 4, 5, 32, 32
MASKED_M = torch.tensor([3, 0, 5, 1], dtype=torch.int32)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_valid_rows_are_those_below_masked_m() -> None:
    """MASK: true for the leading rows, nothing else; entries outside of [0, capacity] are refused."""
    assert valid_rows(torch.tensor([0, 2, 3]), 3).tolist() == [[False] * 3, [True, True, False], [True] * 3]
    assert valid_rows(torch.tensor([], dtype=torch.int32), 3).shape == (0, 3)
    for bad in ([-1], [4]):
        with pytest.raises(ValueError, match=r"must lie in \[0, 3\]"):
            valid_rows(torch.tensor(bad), 3)


@pytest.mark.parametrize("alpha", [None, torch.tensor([0.5, 3.0, 0.125, -2.0])])
def test_masked_grouped_gemm_equals_fractions(alpha: Tensor | None) -> None:
    """GEMM-1: one dot product at a time, exactly; padding rows, which hold NaN, reach nothing."""
    tensor = quantize_nvfp4(random(EXPERTS, CAPACITY, K, seed=1).bfloat16(), torch.tensor(700.0))
    a = decode_blocks(tensor.codes, tensor.block_scale)
    a[~valid_rows(MASKED_M, CAPACITY)] = torch.nan
    b = random(EXPERTS, 3, K, seed=2).bfloat16().float()
    out = masked_grouped_gemm(a, b, MASKED_M, alpha)
    assert out.dtype == torch.float64
    assert torch.equal(out.isnan().all(-1), ~valid_rows(MASKED_M, CAPACITY))
    for expert, rows in enumerate(MASKED_M.tolist()):
        for row in range(rows):
            for column in range(3):
                terms = zip(a[expert, row].tolist(), b[expert, column].tolist(), strict=True)
                exact = sum((Fraction(x) * Fraction(y) for x, y in terms), Fraction(0))
                exact *= Fraction(1) if alpha is None else Fraction(float(alpha[expert]))
                assert Fraction(float(out[expert, row, column])) == exact


def test_activations_equal_python_floats() -> None:
    """ACT-1: gate first, then up; relu2 squares what is positive; both rounded to bfloat16 once."""
    x = torch.cat((random(50, 8, seed=3) * 6, torch.tensor([[0.0, -0.0, 90, -90, 1, 2, 3, -4]]))).bfloat16()
    gate, up = x[:, :4].double(), x[:, 4:].double()
    expected = [
        [g / (1 + math.exp(-g)) * u for g, u in zip(gates, ups, strict=True)]
        for gates, ups in zip(gate.tolist(), up.tolist(), strict=True)
    ]
    torch.testing.assert_close(silu_mul(x), torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0)
    assert torch.equal(activate(x, "silu"), silu_mul(x).bfloat16())
    squares = [[max(v, 0.0) ** 2 for v in row] for row in x.double().tolist()]
    assert relu2(x).tolist() == squares
    assert torch.equal(activate(x, "relu2"), torch.tensor(squares, dtype=torch.float64).bfloat16())
    with pytest.raises(ValueError, match="begins with silu, gelu, gelu_tanh, relu2, swigluoai, got 'tanh'"):
        activate(x, "tanh")


def layer(activation: str) -> dict[str, Tensor]:
    """Return the arguments of masked_moe, distinct scales per expert, NaN in padding rows."""
    n1 = 2 * N if activation == "silu" else N
    x = random(EXPERTS, CAPACITY, K, seed=4).bfloat16()
    x[~valid_rows(MASKED_M, CAPACITY)] = torch.nan
    w1, w2 = random(EXPERTS, n1, K, seed=5).bfloat16(), random(EXPERTS, K, N, seed=6).bfloat16()
    gs1, gs2 = global_scale_enc(w1.abs().amax((1, 2))), global_scale_enc(w2.abs().amax((1, 2)))
    q1, q2 = quantize_nvfp4(w1, gs1), quantize_nvfp4(w2, gs2)
    input_scale, a2_scale = torch.tensor([600.0, 700, 800, 900]), torch.tensor([9.0, 11, 13, 17])
    return {
        "hidden_states": x, "input_global_scale": input_scale,
        "w1": q1.codes, "w1_blockscale": q1.block_scale, "w1_alpha": 1 / (input_scale * gs1),
        "w2": q2.codes, "a2_global_scale": a2_scale, "w2_blockscale": q2.block_scale, "w2_alpha": 1 / (a2_scale * gs2),
        "masked_m": MASKED_M,
    }  # fmt: skip


def dot(a: Tensor, b: Tensor) -> float:
    return math.fsum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


def one_token(x: Tensor, expert: int, arguments: dict[str, Tensor], activation: str) -> Tensor:
    """Take one token through one expert, one dot product after the other, in bfloat16 between the stages."""
    at = {name: value[expert] for name, value in arguments.items() if name != "masked_m"}
    q = quantize_nvfp4(x, at["input_global_scale"])
    a = decode_blocks(q.codes, q.block_scale)
    w1, w2 = decode_blocks(at["w1"], at["w1_blockscale"]), decode_blocks(at["w2"], at["w2_blockscale"])
    gemm1 = (
        torch.tensor([dot(a, row) * float(at["w1_alpha"]) for row in w1], dtype=torch.float64)
        .bfloat16()
        .tolist()
    )
    if activation == "silu":
        hidden = [g / (1 + math.exp(-g)) * u for g, u in zip(gemm1[:N], gemm1[N:], strict=True)]
    else:
        hidden = [max(v, 0.0) ** 2 for v in gemm1]
    q2 = quantize_nvfp4(torch.tensor(hidden, dtype=torch.float64).bfloat16(), at["a2_global_scale"])
    a2 = decode_blocks(q2.codes, q2.block_scale)
    return torch.tensor([dot(a2, row) * float(at["w2_alpha"]) for row in w2], dtype=torch.float64).bfloat16()


@pytest.mark.parametrize("activation", ["silu", "relu2"])
def test_masked_moe_equals_a_loop_over_tokens(activation: str) -> None:
    """MOE-1: four stages, token by token; padding rows come out as NaN and leak nowhere."""
    arguments = layer(activation)
    out = masked_moe(**arguments, activation=activation)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out.isnan().all(-1), ~valid_rows(MASKED_M, CAPACITY))
    for expert, rows in enumerate(MASKED_M.tolist()):
        for row in range(rows):
            token = arguments["hidden_states"][expert, row]
            assert torch.equal(out[expert, row], one_token(token, expert, arguments, activation))


def test_a_quantized_pair_gives_the_same_layer() -> None:
    """MOE-1: quantizing outside with the same scales changes nothing."""
    arguments = layer("silu")
    expected = masked_moe(**arguments)
    x = arguments["hidden_states"].masked_fill(~valid_rows(MASKED_M, CAPACITY).unsqueeze(-1), 0)
    quantized = quantize_nvfp4(x, arguments["input_global_scale"])
    pair = {
        **arguments,
        "hidden_states": (quantized.codes, quantized.block_scale),
        "input_global_scale": None,
    }
    got = masked_moe(**pair)
    assert torch.equal(got.view(torch.int16), expected.view(torch.int16))


def test_the_layer_approximates_the_unquantized_one() -> None:
    """MOE-1: the scales point in the right direction: the result correlates with the layer in real numbers."""
    arguments = layer("silu")
    out = masked_moe(**arguments)
    x = arguments["hidden_states"].double()
    w = [
        dequantize_nvfp4(type(q)(q.codes, q.block_scale, q.global_scale_dec))
        for q in (
            quantize_nvfp4(random(EXPERTS, 2 * N, K, seed=5).bfloat16(), torch.tensor(500.0)),
            quantize_nvfp4(random(EXPERTS, K, N, seed=6).bfloat16(), torch.tensor(500.0)),
        )
    ]
    for expert, rows in enumerate(MASKED_M.tolist()):
        real = silu_mul(x[expert, :rows] @ w[0][expert].T) @ w[1][expert].T
        if rows:
            pair = torch.stack((real.flatten(), out[expert, :rows].double().flatten()))
            assert torch.corrcoef(pair)[0, 1] > 0.95
            assert 0.8 < float(pair[1].norm() / pair[0].norm()) < 1.25


def test_wrong_arguments_raise() -> None:
    """MOE-1, GEMM-1: which of the two inputs it is, and extents that do not fit."""
    arguments = layer("silu")
    with pytest.raises(ValueError, match="is needed when hidden_states is bfloat16"):
        masked_moe(**{**arguments, "input_global_scale": None})
    pair = (
        torch.zeros(EXPERTS, CAPACITY, K, dtype=torch.uint8),
        torch.zeros(EXPERTS, CAPACITY, 2, dtype=torch.uint8),
    )
    with pytest.raises(ValueError, match="must be None when hidden_states is a quantized pair"):
        masked_moe(**{**arguments, "hidden_states": pair})
    with pytest.raises(ValueError, match=r"got \(2, 3, 4\) and \(2, 3, 5\)"):
        masked_grouped_gemm(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5), torch.tensor([1, 1]))
