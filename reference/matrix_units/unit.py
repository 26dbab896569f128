"""What is known of each matrix unit, as data: products of an instruction, and what it keeps of them.

Source: arXiv 2511.10909 (models compared by their authors with real GPUs, V100 to B200) and arXiv 2512.07004. What was
confirmed on a device by this project's own runs stands in docs/numerics.md.
"""

from __future__ import annotations

from dataclasses import dataclass

FORMATS = {
    "float32": -126,
    "bfloat16": -126,
    "float16": -14,
    "e4m3": -6,
    "e4m3, scaled": -400,  # each number by a power of two of its own, as a kernel that knows it puts it into the epilogue
    "e5m2": -14,
    "e2m1": 0,
    "e2m3": 0,
    "e3m2": -2,
    "ue8m0": -127,
}
"""Format of an element or a block scale -> exponent of its smallest normal number: subnormals and zero have that one."""


@dataclass(frozen=True)
class MatrixUnit:
    """One instruction, c + sum a_i b_i: every term is aligned to the largest exponent, cut, and added exactly.

    The exponent of a product is the sum of its operands' exponents, not that of the product, which may be one larger.
    With block scales their exponents are added to it. A term keeps `fraction` bits below the largest exponent.

    Attributes:
        k: products that one instruction adds.
        fraction: bits below the largest exponent that a term keeps, the rest is cut toward zero; None: every term is
            exact, and so is the sum of the k products, which must fit float64 (those of NVFP4 do up to k 512).
        result: what the sum is rounded to: "float32" or "13 bits" (13 fractional bits), both toward zero, "float16" to
            nearest, or "nearest" (float32 to nearest, ties to even).
        zero: exponent of a term that is zero: the alignment never starts below it.
        group: consecutive products that are added exactly before the alignment, at the exponent of their block scales
            alone; 0: each product is aligned by itself.
        width: elements of k that one of several accumulators takes at a time in most kernels: 128 bytes, a row of shared memory.
    """

    k: int
    fraction: int | None
    result: str = "float32"
    zero: int = -133
    group: int = 0
    width: int = 64

    @property
    def adds_exactly(self) -> bool:
        """Whether every product is a term of its own that nothing is cut from."""
        return self.fraction is None and not self.group


FMA = MatrixUnit(k=1, fraction=None, result="nearest")
"""Not a matrix unit: float32 FMA, one product at a time, rounded to nearest."""

EXACT = MatrixUnit(k=1 << 30, fraction=None, result="nearest")
"""Not a matrix unit: the exact sum of all products, rounded once to float32, as a float64 product gives it."""


def exact_chunks(k: int) -> MatrixUnit:
    """Return no unit that exists, but a simple one: k products are added exactly, their sum truncated to float32."""
    return MatrixUnit(k=k, fraction=None)


_F16 = MatrixUnit(k=16, fraction=25)
_BYTES = MatrixUnit(k=32, fraction=25)
_FOUR_BITS = MatrixUnit(k=64, fraction=35, zero=-139, group=16)

UNITS = {
    "sm_80 f16": MatrixUnit(k=8, fraction=24, zero=-132),
    "sm_89 f8": MatrixUnit(k=16, fraction=13, result="13 bits", zero=-132, width=128),
    "sm_90 f16": _F16,
    "sm_90 f8": MatrixUnit(k=32, fraction=13, result="13 bits", width=128),
    "sm_100 f16": _F16,
    "sm_100 f8f6f4": _BYTES,
    "sm_100 mxf8f6f4": _BYTES,
    "sm_100 mxf4nvf4": _FOUR_BITS,
    "sm_120 mxf8f6f4": _BYTES,
    "sm_120 mxf4nvf4": _FOUR_BITS,
}
"""Architecture and kind of operands -> the unit. f16 stands for bfloat16 and float16, f8 for E4M3 and E5M2; mx and nv
have block scales. "sm_100" is tcgen05.mma and does not hold for the k 96 of SM103, which is not public."""
