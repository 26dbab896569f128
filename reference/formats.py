"""Formats of a GEMM's operands as values: a new one is one line in FORMATS.

    value of an element = element(code) * block_scale        operand = values * row_scale, the factor of each row

A format says what an element is, how many of them share a stored scale, of which type that is, and whether each row (token)
has a float32 factor besides, which the epilogue multiplies with. What is left of an operand's scale, a factor of each
expert, is a part of alpha.

Source: NVFP4 and MXFP4 as in reference.nvfp4 and reference.mxfp4; bfloat16 and float16 activations as weight-only kernels
(W4A16: Marlin, Humming) take them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from reference import e2m1, e4m3, e8m0, mxfp4, nvfp4


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
    """

    name: str
    element: str
    block: int = 0
    scale: str = ""
    rows: bool = False
    encoded: bool = False

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
        """Return elements times block scales, `(*, k)`, without the factors of the rows."""
        if self.block == nvfp4.BLOCK:
            return nvfp4.decode_blocks(coded.codes, coded.block_scale, dtype)
        elements = self.elements(coded.codes, dtype)
        if not self.block:
            return elements
        blocks = elements.reshape(*coded.block_scale.shape, self.block)
        return (blocks * self.scales(coded.block_scale).to(dtype).unsqueeze(-1)).flatten(-2)

    def quantize(self, x: Tensor, global_scale_enc: Tensor | None = None) -> Coded:
        """Return bfloat16 or float32 values in the format, by definition.

        Args:
            x: `(*, k)`.
            global_scale_enc: `()` or one for each index of the first axis, float32, of a format that is `encoded`.
        """
        return _QUANTIZED[self.name](x, global_scale_enc)


def multiplied_in(activations: Format) -> str:
    """Return the type that decoded operands of a unit without block scales have, a key of matrix_units.FORMATS."""
    return activations.element if activations.plain else "bfloat16"


def _as(dtype: torch.dtype) -> Callable[[Tensor, Tensor | None], Coded]:
    return lambda x, _: Coded(x.to(dtype), x.new_zeros((*x.shape[:-1], 0), dtype=torch.uint8))


def _nvfp4(x: Tensor, global_scale_enc: Tensor | None) -> Coded:
    assert global_scale_enc is not None  # noqa: S101 - an encoded format
    quantized = nvfp4.quantize_nvfp4(x, global_scale_enc)
    return Coded(quantized.codes, quantized.block_scale)


def _mxfp4(x: Tensor, _: Tensor | None) -> Coded:
    quantized = mxfp4.quantize_mxfp4(x)
    return Coded(quantized.codes, quantized.block_scale)


_QUANTIZED: dict[str, Callable[[Tensor, Tensor | None], Coded]] = {
    "nvfp4": _nvfp4,
    "bf16": _as(torch.bfloat16),
    "fp16": _as(torch.float16),
    "mxfp4": _mxfp4,
}

FORMATS = {
    each.name: each
    for each in (
        Format("nvfp4", "e2m1", block=16, scale="e4m3", encoded=True),
        Format("bf16", "bfloat16"),
        Format("fp16", "float16"),
        Format("mxfp4", "e2m1", block=32, scale="ue8m0"),
    )
}
"""By the name that Traits.activation_format and Traits.weight_format have."""
NVFP4 = FORMATS["nvfp4"]
