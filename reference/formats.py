"""Formats of a GEMM's operands as values: a new one is one line in FORMATS.

    value of an element = element(code) * block_scale        operand = values * row_scale, the factor of each row

A format says what an element is, how many of them share a stored scale, of which type that is, and whether each row (token)
has a float32 factor besides, which the epilogue multiplies with. What is left of an operand's scale, a factor of each
expert, is a part of alpha.

Source: NVFP4 and MXFP4 as in reference.nvfp4 and reference.mxfp4; bfloat16 and float16 activations as weight-only kernels
(W4A16: Marlin, Humming) take them; FP8 of 128 channels as in reference.fp8_tokens; MXFP8 and both roundings of E8M0 scales:
OCP Microscaling Formats (MX) v1.0, 6.3 (down), and cvt.rp.satfinite.ue8m0x2, as FlashInfer's mxfp8_quantize has it (up);
NVFP4 whose block scales are amax / 6 or amax / 4: Cook et al., "Four Over Six" (arXiv 2512.02010).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from reference import e2m1, e4m3, e8m0, fp8_tokens, mxfp4, nvfp4


@dataclass(frozen=True)
class Coded:
    """An operand as its format has it, linear: nothing is packed, and no scale swizzled.

    Attributes:
        codes: `(*, k)`, one element each: E2M1 codes or E4M3 bytes, uint8; bfloat16 and float16 as they are.
        block_scale: `(*, k / block)`: E4M3 or E8M0 bytes, uint8, or float32; `(*, 0)` where there are none.
        row_scale: `(*, 1)` float32, or None.
    """

    codes: Tensor
    block_scale: Tensor
    row_scale: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Coded:
        """Return it with every tensor changed: rows taken or moved, for example."""
        row_scale = None if self.row_scale is None else change(self.row_scale)
        return Coded(change(self.codes), change(self.block_scale), row_scale)


@dataclass(frozen=True)
class Format:
    """One format of an operand.

    Attributes:
        name: as traits name it.
        element: type of an element, a key of reference.matrix_units.FORMATS.
        block: elements along k that share a block scale; 0: there are none.
        scale: type of a block scale: "e4m3", "ue8m0", "float32", or "".
        rows: whether each row has a float32 factor.
        encoded: whether a quantizer takes an encode scale of each expert, global_scale_enc, which alpha takes back.
        rounding: of E8M0 scales: "floor", to floor(log2(amax)) - emax, or "ceil", such that no element saturates.
        divisors: of a block's largest magnitude, whose quotients may become its scale: the quantizer takes the one that
            leaves the smaller squared error, the first where they are equal.
    """

    name: str
    element: str
    block: int = 0
    scale: str = ""
    rows: bool = False
    encoded: bool = False
    rounding: str = "floor"
    divisors: tuple[float, ...] = ()

    @property
    def largest(self) -> float:
        """Largest element."""
        return {"e2m1": e2m1.MAX, "e4m3": e4m3.MAX}[self.element]

    @property
    def encode_range(self) -> float:
        """What an encode scale is divided by the largest magnitude to get."""
        if self.divisors:  # the quotient by the smallest one has to fit as well
            return self.largest * 256
        return self.largest * (e4m3.MAX if self.scale == "e4m3" else 1)

    @property
    def fp8(self) -> bool:
        """Whether an FP8 unit adds products of its elements over all of k: weights then have one power of two in common."""
        return self.element == "e4m3" and not self.block

    @property
    def swizzled(self) -> bool:
        """Whether block scales are bytes, which kernels take in 128x4 order; float32 scales lie row by row."""
        return self.scale in {"e4m3", "ue8m0"}

    @property
    def plain(self) -> bool:
        """Whether an operand is bfloat16 or float16 as it is: nothing is quantized."""
        return self.element in {"bfloat16", "float16"}

    @property
    def dtype(self) -> torch.dtype:
        """Type of an element as it is stored, uint8 for codes and bytes."""
        return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(self.element, torch.uint8)

    @property
    def layer_dtype(self) -> torch.dtype:
        """Type of the tokens, of what lies between the stages, and of the layer's output: bfloat16 but for float16."""
        return torch.float16 if self.dtype == torch.float16 else torch.bfloat16

    @property
    def nan_scale(self) -> int:
        """Byte of a block scale that is NaN."""
        return {"e4m3": e4m3.NAN_BYTE, "ue8m0": e8m0.NAN_BYTE}[self.scale]

    @property
    def largest_scale(self) -> int:
        """Byte of the largest block scale."""
        return self.nan_scale - 1

    @property
    def one_scale(self) -> int:
        """Byte of a block scale of 1."""
        return {"e4m3": 0x38, "ue8m0": e8m0.BIAS}[self.scale]

    def scales(self, block_scale: Tensor) -> Tensor:
        """Return decoded block scales, float32."""
        if self.scale == "e4m3":
            return e4m3.decode_e4m3(block_scale)
        return e8m0.decode_e8m0(block_scale) if self.scale == "ue8m0" else block_scale.float()

    def elements(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return what codes stand for, without any scale."""
        if self.plain:
            return codes.to(dtype)
        return (e2m1.decode_e2m1(codes) if self.element == "e2m1" else e4m3.decode_e4m3(codes)).to(dtype)

    def values(self, coded: Coded, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return elements times block scales, `(*, k)`, without the factors of the rows; exact in float64."""
        if self.block == nvfp4.BLOCK:
            return nvfp4.decode_blocks(coded.codes, coded.block_scale, dtype)
        elements = self.elements(coded.codes, dtype)
        if not self.block:
            return elements
        blocks = elements.reshape(*coded.block_scale.shape, self.block)
        return (blocks * self.scales(coded.block_scale).to(dtype).unsqueeze(-1)).flatten(-2)

    def dequantized(self, coded: Coded) -> Tensor:
        """Return values with the factors of the rows, `(*, k)` float64."""
        values = self.values(coded, torch.float64)
        return values if coded.row_scale is None else values * coded.row_scale.double()

    def quantize(self, x: Tensor, global_scale_enc: Tensor | None = None) -> Coded:
        """Return bfloat16 or float32 values in the format, by definition.

        Args:
            x: `(*, k)`.
            global_scale_enc: `()` or one for each index of the first axis, float32, of a format that is `encoded`.
        """
        return _QUANTIZED[self.name](x, global_scale_enc)

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes nearest to float64 values, each rounded once, ties to even, saturating."""
        if self.element == "e2m1":
            return e2m1.encode_e2m1(x, nan="as_max")
        return e4m3.round_to_byte(x.abs()) | (x.signbit().to(torch.uint8) << 7)

    def power_of_two(self, amax: Tensor) -> Tensor:
        """Return E8M0 bytes of the blocks with these largest magnitudes, float64."""
        if self.rounding == "ceil":
            return e8m0.encode_e8m0(amax / self.largest, rounding="ceil")
        return e8m0.encode_e8m0(amax * 2.0 ** -_EMAX[self.element])


E4M3_BINADES = 11
"""That block scales of MXFP4 weights may span where they are decoded to E4M3: it has 15 normal ones, E2M1 takes four."""
_EMAX = {"e2m1": 2, "e4m3": 8}  # exponent of the largest element


def multiplied_in(activations: Format, unit: str, of: Format) -> str:
    """Return the type that an operand of a unit without block scales has, a key of matrix_units.FORMATS.

    Args:
        activations: their format.
        unit: name of the unit, a key of matrix_units.UNITS for example.
        of: format of the operand itself: weights with powers of two are scaled into E4M3, which holds `E4M3_BINADES` of
            them.
    """
    if unit.endswith((" f8", "f8f6f4")):
        return "e4m3, scaled" if of.scale == "ue8m0" else "e4m3"
    return activations.element if activations.plain else "bfloat16"


def in_e4m3(block_scale: Tensor) -> Tensor:
    """Return E8M0 bytes `(experts, n, k/32)` of weights that E4M3 can hold: those too small raised to the smallest it can."""
    largest = block_scale.masked_fill(block_scale == e8m0.NAN_BYTE, 0).amax((-2, -1), keepdim=True)
    least = (largest.to(torch.int16) - E4M3_BINADES).clamp(min=0).to(torch.uint8)
    return torch.maximum(block_scale, least)


def _as(dtype: torch.dtype) -> Callable[[Tensor, Tensor | None], Coded]:
    return lambda x, _: Coded(x.to(dtype), x.new_zeros((*x.shape[:-1], 0), dtype=torch.uint8))


def _nvfp4(x: Tensor, global_scale_enc: Tensor | None) -> Coded:
    assert global_scale_enc is not None  # noqa: S101 - an encoded format
    quantized = nvfp4.quantize_nvfp4(x, global_scale_enc)
    return Coded(quantized.codes, quantized.block_scale)


def _mxfp4(x: Tensor, _: Tensor | None) -> Coded:
    quantized = mxfp4.quantize_mxfp4(x)
    return Coded(quantized.codes, quantized.block_scale)


def _four_over_six(x: Tensor, global_scale_enc: Tensor | None) -> Coded:
    assert global_scale_enc is not None  # noqa: S101 - an encoded format
    form = FORMATS["nvfp4_46"]
    gs = global_scale_enc.double().reshape(-1, *([1] * x.ndim))
    blocks = x.reshape(*x.shape[:-1], x.shape[-1] // form.block, form.block).double() * gs
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for divisor in form.divisors:
        byte = e4m3.round_to_byte(blocks.abs().amax(-1) / divisor)
        scale = form.scales(byte).double().unsqueeze(-1)
        codes = form.encode(torch.where(scale > 0, blocks / scale, blocks.sign() * e2m1.MAX))
        error = (form.elements(codes, torch.float64) * scale - blocks).square().sum(-1)
        if best is not None:
            kept = ~(error < best[2])
            codes = torch.where(kept.unsqueeze(-1), best[0], codes)
            byte, error = torch.where(kept, best[1], byte), torch.where(kept, best[2], error)
        best = codes, byte, error
    assert best is not None  # noqa: S101 - there are divisors
    return Coded(best[0].reshape(x.shape), best[1])


def _mx(name: str) -> Callable[[Tensor, Tensor | None], Coded]:
    """Return the quantizer of an MX format: zeros and 2^-127 for a block of zeros, a NaN scale where one is not finite."""

    def quantize(x: Tensor, _: Tensor | None) -> Coded:
        form = FORMATS[name]
        blocks = x.reshape(*x.shape[:-1], x.shape[-1] // form.block, form.block).double()
        amax = blocks.abs().amax(-1)
        byte = form.power_of_two(torch.where(amax.isfinite(), amax, torch.nan))
        scale = form.scales(byte).double().nan_to_num(1.0).unsqueeze(-1)
        return Coded(form.encode(blocks / scale).reshape(x.shape), byte)

    return quantize


def _fp8(x: Tensor, global_scale_enc: Tensor | None) -> Coded:
    assert global_scale_enc is not None  # noqa: S101 - an encoded format
    scale = global_scale_enc.double().reshape(-1, *([1] * (x.ndim - 1)))
    return Coded(
        FORMATS["fp8"].encode(x.double() * scale), x.new_zeros((*x.shape[:-1], 0), dtype=torch.uint8)
    )


def _fp8_token(x: Tensor, _: Tensor | None) -> Coded:
    scale = (x.double().abs().amax(-1, keepdim=True) / e4m3.MAX).float()
    divisor = torch.where(scale == 0, 1.0, scale.double())
    none = x.new_zeros((*x.shape[:-1], 0), dtype=torch.uint8)
    return Coded(FORMATS["fp8_token"].encode(x.double() / divisor), none, scale)


def _fp8_128(x: Tensor, _: Tensor | None) -> Coded:
    values, scale = fp8_tokens.quantize_fp8_tokens(x.float())
    return Coded(values.view(torch.uint8), scale)


_QUANTIZED: dict[str, Callable[[Tensor, Tensor | None], Coded]] = {
    "nvfp4": _nvfp4,
    "nvfp4_46": _four_over_six,
    "bf16": _as(torch.bfloat16),
    "fp16": _as(torch.float16),
    "mxfp4": _mxfp4,
    "mxfp4_up": _mx("mxfp4_up"),
    "mxfp8": _mx("mxfp8"),
    "mxfp8_up": _mx("mxfp8_up"),
    "fp8": _fp8,
    "fp8_token": _fp8_token,
    "fp8_128": _fp8_128,
}

FORMATS = {
    each.name: each
    for each in (
        Format("nvfp4", "e2m1", block=16, scale="e4m3", encoded=True),
        Format("nvfp4_46", "e2m1", block=16, scale="e4m3", encoded=True, divisors=(6.0, 4.0)),
        Format("bf16", "bfloat16"),
        Format("fp16", "float16"),
        Format("mxfp4", "e2m1", block=32, scale="ue8m0"),
        Format("mxfp4_up", "e2m1", block=32, scale="ue8m0", rounding="ceil"),
        Format("mxfp8", "e4m3", block=32, scale="ue8m0"),
        Format("mxfp8_up", "e4m3", block=32, scale="ue8m0", rounding="ceil"),
        Format("fp8", "e4m3", encoded=True),
        Format("fp8_token", "e4m3", rows=True),
        Format("fp8_128", "e4m3", block=128, scale="float32"),
    )
}
"""By the name that Traits.activation_format and Traits.weight_format have."""
NVFP4 = FORMATS["nvfp4"]
