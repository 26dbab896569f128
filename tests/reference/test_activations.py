"""Activations as values: what each text stands for, where gate and up lie, and what float32 may be off."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from harness.judging.quantize import QuantizerInput
from reference.activations import SILU, Activation
from reference.moe import activate
from reference.propagate import Interval, activated

TEXTS = (
    "silu", "silu; limit 10", "swigluoai", "swigluoai; limit 3; interleave 1", "gelu", "gelu_tanh", "silu; up first",
    "silu; interleave 8", "silu; up first; interleave 16; limit 2",
)  # fmt: skip
texts = pytest.mark.parametrize("text", TEXTS)


def gates(n: int = 64) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    gate, up = torch.randn(2, 50, n, generator=draw, dtype=torch.float64) * 5
    return gate.bfloat16().double(), up.bfloat16().double()


def test_a_text_stands_for_an_activation() -> None:
    assert Activation.of("silu") == SILU
    assert Activation.of("swigluoai") == Activation.of("silu; alpha 1.702; beta 1; limit 7")
    assert Activation.of("swigluoai; limit 10").limit == 10
    assert not Activation.of("relu2").gated


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("swish", "an activation begins with silu, gelu, gelu_tanh, relu2, swigluoai, got 'swish'"),
        ("silu; limit", "options of an activation are"),
        ("silu; limit -1", "options of an activation are"),
        ("silu; interleave 12", "interleave 1|8|16|32|64"),
        ("gelu; alpha 2", "alpha belongs to silu"),
        ("relu2; up first", "relu2 has no options"),
    ],
)
def test_what_is_no_activation_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why.replace("|", r"\|")):
        Activation.of(text)


def test_the_formulas_are_those_of_the_models() -> None:
    """ACT-2: gpt-oss and DeepSeek-V4, written out."""
    gate, up = gates()
    x = torch.stack((gate, up), dim=-1).flatten(-2)
    g, u = gate.clamp(max=7), up.clamp(-7, 7)
    assert torch.allclose(
        Activation.of("swigluoai; interleave 1").value(x), g / (1 + (-1.702 * g).exp()) * (u + 1)
    )
    limited = gate.clamp(max=10) / (1 + (-gate.clamp(max=10)).exp()) * up.clamp(-10, 10)
    assert torch.allclose(Activation.of("silu; limit 10").value(torch.cat((gate, up), -1)), limited)
    gelu = gate / 2 * (1 + torch.erf(gate / math.sqrt(2))) * up
    assert torch.allclose(Activation.of("gelu; up first").value(torch.cat((up, gate), -1)), gelu)


@texts
def test_columns_are_split_as_they_were_joined(text: str) -> None:
    way, (gate, up) = Activation.of(text), gates()
    columns = way.joined(gate, up)
    assert all(map(torch.equal, way.split(columns), (gate, up)))
    assert torch.equal(columns.sort().values, torch.cat((gate, up), -1).sort().values)


def test_interleaved_columns_alternate() -> None:
    columns = Activation.of("silu; interleave 8").joined(torch.zeros(16), torch.ones(16)).tolist()
    assert columns == ([0.0] * 8 + [1.0] * 8) * 2


@texts
def test_the_minimum_is_where_the_function_turns(text: str) -> None:
    way = Activation.of(text)
    at, least = way.minimum()
    x = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    values = way.of_gate(x)
    assert float(values.min()) >= least - 1e-12
    assert abs(float(way.of_gate(torch.tensor(at, dtype=torch.float64))) - least) < 1e-12
    assert (values[x < at].diff() <= 1e-14).all()
    assert (values[x > at].diff() > 0).all()


@texts
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_arithmetic_lies_in_the_range(text: str, dtype: torch.dtype) -> None:
    """ACT-1: values in float32 and in float64 are legal, and one alone but far below zero."""
    way = Activation.of(text)
    x = way.joined(*gates()).to(dtype)
    given = QuantizerInput.activated(x, text, dtype)
    for value in (way.value(x.float()), activate(x, text, dtype)):
        magnitude = value.to(dtype).float().abs()
        assert ((magnitude >= given.low) & (magnitude <= given.high)).all()
    near = way.split(x)[0] > -3
    assert float((given.low == given.high)[near].double().mean()) > 0.9


@texts
def test_a_propagated_range_holds_every_value_between(text: str) -> None:
    """MOE-2."""
    way, (gate, up) = Activation.of(text), gates()
    x, width = way.joined(gate, up), torch.rand(50, 128, generator=torch.Generator().manual_seed(2))
    low, high = x - width, x + width * 0.7
    found = activated(Interval(low, high), way, torch.float32)
    for share in (0.0, 0.3, 0.6, 1.0):
        value = way.value(low + (high - low) * share).float().double()
        assert ((value >= found.low) & (value <= found.high)).all()


@texts
def test_a_gate_that_is_rounded_lies_in_the_wider_range(text: str) -> None:
    """MOE-2: kernels that round f(gate) to bfloat16 before they multiply with up; without it some lie outside."""
    way, (gate, up) = Activation.of(text), (half.bfloat16().double() for half in gates())
    x = way.joined(gate, up)
    gate, up = way.clamped(*way.split(x))
    up = up + way.beta
    value = (way.of_gate(gate).float().bfloat16().float() * up.float()).bfloat16().double()
    narrow, wide = (
        activated(Interval(x, x), way, torch.bfloat16, rounded=kinds) for kinds in ((), ("gate",))
    )
    assert bool(((value >= wide.low) & (value <= wide.high)).all())
    assert bool(((value < narrow.low) | (value > narrow.high)).any())
