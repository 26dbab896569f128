"""Faults of arithmetic that the catalog does not have, 90 of them: each is one function in an otherwise right stage.

Small errors are what a diagnosis is most easily wrong about: a code that is one too small is what truncation does, what a
rounded scale does, and what any other small error does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from harness.candidates import layouts
from harness.candidates.eager import Eager

Change = Callable[..., Any]


def cut(x: Tensor, bits: int) -> Tensor:
    """Cut float32 to so many bits of mantissa."""
    return (x.float().contiguous().view(torch.int32) & -(1 << (23 - bits))).view(torch.float32)


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).float()


class Activation(Eager):
    """ACT: `change(gate, up)` is what is rounded to bfloat16 and quantized."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change = change

    def silu_mul_quantize_grouped(self, gate_up: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Any:
        gate, up = gate_up.float().chunk(2, -1)
        return self.quantize_grouped(self.change(gate, up).bfloat16(), masked_m, global_scale_enc)


class Quantizer(Eager):
    """QUANT: `change(x)` is quantized instead of x."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change = change

    def quantize_grouped(self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Any:
        return super().quantize_grouped(self.change(x.float()).bfloat16(), masked_m, global_scale_enc)


class Stored(Eager):
    """QUANT: `change(codes, scale)` is what is stored, `(l, m, k)` and `(l, m, k/16)` uint8."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change = change

    def quantize_grouped(self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Any:
        packed, scales = super().quantize_grouped(x, masked_m, global_scale_enc)
        scale = layouts.block_scales_of(scales, x.shape[1], x.shape[2] // 16)
        codes, scale = self.change(layouts.codes_of(packed).clone(), scale.clone())
        return layouts.operand(codes), layouts.scales(scale, 0x7F)


class Product(Eager):
    """GEMM: `change(product)` is what is stored, `(l, m, n)` float32."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change = change

    def masked_grouped_gemm(
        self, a: Any, a_scale: Any, b: Any, b_scale: Any, out: Any, masked_m: Any, alpha: Any
    ) -> None:
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        out.copy_(self.change(out.permute(2, 0, 1).float().clone()).to(out.dtype).permute(1, 2, 0))


class Operands(Eager):
    """GEMM: `change(call)` may change the arguments, by their names."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change = change

    def masked_grouped_gemm(
        self, a: Any, a_scale: Any, b: Any, b_scale: Any, out: Any, masked_m: Any, alpha: Any
    ) -> None:
        given = {"a": a, "a_scale": a_scale, "b": b, "b_scale": b_scale, "alpha": alpha}
        super().masked_grouped_gemm(**given | self.change(given), out=out, masked_m=masked_m)


def _exp_off(bits: int, gate: Tensor, up: Tensor) -> Tensor:
    return gate / (1 + torch.exp(-gate) * (1 + 2.0**-bits)) * up


def _base_off(factor: float, gate: Tensor, up: Tensor) -> Tensor:
    return gate / (1 + torch.exp(-gate * factor)) * up


def _alpha(change: Change, given: dict[str, Any]) -> dict[str, Any]:
    return {"alpha": None if given["alpha"] is None else change(given["alpha"])}


def _scales(name: str, change: Change, given: dict[str, Any]) -> dict[str, Any]:
    rows, columns = given[name].shape[0], given[name].shape[1] // 8
    scale = layouts.block_scales_of(given[f"{name}_scale"], rows, columns)
    return {f"{name}_scale": layouts.scales(change(scale.clone()), 0x7F)}


def _codes(name: str, change: Change, given: dict[str, Any]) -> dict[str, Any]:
    return {name: layouts.operand(change(layouts.codes_of(given[name]).clone()))}


def _set(index: Any, value: Any, x: Tensor) -> Tensor:
    x[index] = value(x[index]) if callable(value) else value
    return x


def _stored_set(what: int, index: Any, value: Any, codes: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    pair = [codes, scale]
    pair[what] = _set(index, value, pair[what])
    return pair[0], pair[1]


def _where_code(code: int, other: int, codes: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where((codes & 7) == code, (codes & 8) | other, codes), scale


_MANTISSA = {"cut to 2 bits": 0xFE, "cut to 1 bit": 0xFC}
_E4M3, _E5M2 = torch.float8_e4m3fn, torch.float8_e5m2

ACTIVATIONS: dict[str, Change] = {
    **{f"exp off by 2^-{bits}": partial(_exp_off, bits) for bits in (3, 4, 5, 6, 7)},
    **{f"exponent x {factor}": partial(_base_off, factor) for factor in (0.9, 0.97, 0.99, 1.002, 1.01, 1.03, 1.1)},
    "sigmoid in bfloat16": lambda g, u: g * rounded(torch.sigmoid(g), torch.bfloat16) * u,
    **{f"sigmoid of {bits} bits": partial(lambda b, g, u: g * cut(torch.sigmoid(g), b) * u, bits) for bits in (3, 4, 5, 6)},
    **{f"up of {bits} bits": partial(lambda b, g, u: silu(g) * cut(u, b), bits) for bits in (2, 3, 4, 5)},
    **{f"gate of {bits} bits": partial(lambda b, g, u: silu(cut(g, b)) * u, bits) for bits in (2, 3, 4, 5)},
    "up in E4M3": lambda g, u: silu(g) * rounded(u, _E4M3),
    "gate in E4M3": lambda g, u: silu(rounded(g, _E4M3)) * u,
    "gate in E5M2": lambda g, u: silu(rounded(g, _E5M2)) * u,
    "silu in E4M3": lambda g, u: rounded(silu(g), _E4M3) * u,
    "hard swish": lambda g, u: g * (g + 3).clamp(0, 6) / 6 * u,
    "silu without its negative side": lambda g, u: silu(g).relu() * u,
    "quick gelu": lambda g, u: g * torch.sigmoid(1.702 * g) * u,
    "mish": lambda g, u: torch.nn.functional.mish(g) * u,
    "rational sigmoid": lambda g, u: g * (0.5 + 0.5 * (g / 2) / (1 + (g / 2).abs())) * u,
    "gate shifted": lambda g, u: silu(g + 0.02) * u,
    "up shifted": lambda g, u: silu(g) * (u + 0.02),
    "magnitude of up": lambda g, u: silu(g) * u.abs(),
}  # fmt: skip
INPUTS: dict[str, Change] = {
    **{f"input of {bits} bits": partial(cut, bits=bits) for bits in (2, 3, 4)},
    "input in E4M3": partial(rounded, dtype=_E4M3),
    "input shifted": lambda x: x + 0.02,
    "mean of the block taken off": lambda x: x - x.unflatten(-1, (-1, 16)).mean(-1).repeat_interleave(16, -1),
    "odd columns x 1.03": lambda x: _set((..., slice(1, None, 2)), lambda v: v * 1.03, x),
    "neighbour leaks": lambda x: x + 0.03 * x.roll(1, -1),
    "previous row leaks": lambda x: x + 0.03 * x.roll(1, -2),
    "square root of magnitudes": lambda x: x.sign() * x.abs().sqrt(),
    "cube": lambda x: x + 0.02 * x**3,
}
STORED: dict[str, Change] = {
    "1 stored as 1.5": partial(_where_code, 2, 3),
    "2 stored as 1.5": partial(_where_code, 4, 3),
    "3 stored as 4": partial(_where_code, 5, 6),
    "half stored as 1": partial(_where_code, 1, 2),
    "first element of a block zero": partial(_stored_set, 0, (..., slice(None, None, 16)), 0),
    "last element of a block doubled": partial(_stored_set, 0, (..., slice(15, None, 16)), lambda c: (c + 2).clamp(max=7)),
    "row 3 with the scales of row 2": lambda c, s: (c, _set((slice(None), 3), s[:, 2].clone(), s)),
    "every third block one scale higher": partial(_stored_set, 1, (..., slice(None, None, 3)), lambda s: (s + 1).clamp(max=0x7E)),
    **{f"scales {words}": partial(lambda m, c, s: (c, s & m), mask) for words, mask in _MANTISSA.items()},
    "even scales": lambda c, s: (c, torch.where(s % 2 == 1, s - 1, s)),
    "codes of blocks exchanged": lambda c, s: (c.unflatten(-1, (-1, 2, 16)).flip(-2).flatten(-3), s),
    "signs of odd rows flipped": partial(_stored_set, 0, (slice(None), slice(1, None, 2)), lambda c: c ^ 8),
}  # fmt: skip
PRODUCTS: dict[str, Change] = {
    **{f"output of {bits} bits": partial(cut, bits=bits) for bits in (2, 3, 4, 5)},
    "output in E5M2": partial(rounded, dtype=_E5M2),
    "row 5 zero": partial(_set, (slice(None), 5), 0.0),
    "row 5 NaN": partial(_set, (slice(None), 5), torch.nan),
    "every 7th row zero": partial(_set, (slice(None), slice(6, None, 7)), 0.0),
    "column 3 zero": partial(_set, (..., 3), 0.0),
    "columns 16 to 23 negative": partial(_set, (..., slice(16, 24)), lambda v: -v),
    "magnitudes": torch.abs,
    "relu": torch.relu,
    "small values flushed": lambda y: torch.where(y.abs() < 0.2, 0.0, y),
    "next column leaks": lambda y: y + 0.1 * y.roll(-1, -1),
    "next expert leaks": lambda y: y + 0.1 * y.roll(-1, 0).nan_to_num(0.0),
    "each row less": lambda y: y * (1 - 0.01 * torch.arange(y.shape[1]).view(1, -1, 1)),
    "a little more": lambda y: y + 0.01,
    "tanh": torch.tanh,
}
OPERANDS: dict[str, Change] = {
    "alpha in float16": partial(_alpha, lambda v: v.half().float()),
    "alpha in E5M2": partial(_alpha, lambda v: torch.ldexp(cut(torch.frexp(v).mantissa, 2), torch.frexp(v).exponent)),
    "alpha of 4 bits": partial(_alpha, partial(cut, bits=4)),
    "square root of alpha": partial(_alpha, torch.sqrt),
    "mean of alphas": partial(_alpha, lambda v: v.mean().expand_as(v).contiguous()),
    "odd scales of a one code up": partial(_scales, "a", lambda s: torch.where((s % 2 == 1) & (s < 0x7D), s + 1, s)),
    "scales of b of 2 bits": partial(_scales, "b", lambda s: torch.where(s < 0x7F, s & 0xFE, s)),
    "every third scale of a halved": partial(_scales, "a", partial(_set, (..., slice(None, None, 3)), lambda s: s - 8)),
    "every 7th element of a lost": partial(_codes, "a", partial(_set, (..., slice(6, None, 7)), 0)),
    "first block of b negative": partial(_codes, "b", partial(_set, (..., slice(0, 16)), lambda c: c ^ 8)),
    "6 of b read as 4": partial(_codes, "b", lambda c: torch.where((c & 7) == 7, c - 1, c)),
}  # fmt: skip

ARITHMETIC: dict[str, tuple[Callable[[], Any], str]] = {
    f"{rule}: {name}": (partial(kind, change), rule)
    for rule, kind, changes in (
        ("ACT", Activation, ACTIVATIONS),
        ("QUANT", Quantizer, INPUTS),
        ("QUANT", Stored, STORED),
        ("GEMM", Product, PRODUCTS),
        ("GEMM", Operands, OPERANDS),
    )
    for name, change in changes.items()
}
