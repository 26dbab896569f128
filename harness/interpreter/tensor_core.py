"""tcgen05.cp and the block-scaled tcgen05.mma, on one CTA or a pair.

The arithmetic is that of reference/matrix_units, bit for bit: which instruction it is decides how many bits of each
term are kept before they are added (docs/numerics.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from harness.interpreter.descriptors import (
    InstructionDescriptor,
    decode_instruction_descriptor,
    decode_shared_descriptor,
    read_rows,
)
from harness.interpreter.errors import InterpreterError, UnsupportedPtxError
from harness.interpreter.lanes import Array
from harness.interpreter.memory import SharedMemory
from harness.interpreter.tensor_memory import TensorMemory
from reference.matrix_units import UNITS, MatrixUnit, Numbers, Operand, add_terms, all_pairs

_SCALE_BITS = 0xC000_0000  # of a scale address: the byte, repeated from the instruction descriptor


@dataclass(frozen=True)
class MmaKind:
    """A block-scaled kind: elements of k per instruction, bits of an element, elements per scale, the unit that adds."""

    k: int
    element_bits: int
    block: int
    unit: MatrixUnit


KINDS = {
    ("mxf4nvf4", "block16"): MmaKind(64, 4, 16, UNITS["sm_100 mxf4nvf4"]),
    ("mxf4nvf4", "block32"): MmaKind(64, 4, 32, UNITS["sm_100 mxf4nvf4"]),
    ("mxf4", "block32"): MmaKind(64, 4, 32, UNITS["sm_100 mxf4nvf4"]),
    ("mxf8f6f4", "block32"): MmaKind(32, 8, 32, UNITS["sm_100 mxf8f6f4"]),
}


def _small_float(exponent_bits: int, mantissa: int, bias: int) -> Array:
    values = []
    for code in range(1 << (1 + exponent_bits + mantissa)):
        exponent, fraction = code >> mantissa & ((1 << exponent_bits) - 1), code & ((1 << mantissa) - 1)
        size = 2.0 ** (max(exponent, 1) - bias) * ((exponent > 0) + fraction / (1 << mantissa))
        values.append(-size if code >> (exponent_bits + mantissa) else size)
    return np.array(values)


_E2M1 = _small_float(2, 1, 1)
_E2M1_PAIRS = np.stack([_E2M1[np.arange(256) & 15], _E2M1[np.arange(256) >> 4]], axis=1)
_E4M3 = _small_float(4, 3, 7)
_E4M3[[0x7F, 0xFF]] = np.nan
_E5M2 = _small_float(5, 2, 15)
_E5M2[[0x7C, 0xFC]] = [np.inf, -np.inf]
_E5M2[[0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF]] = np.nan
_UE4M3 = np.abs(_E4M3)  # the sign bit of an unsigned scale is ignored: an assumption
_UE8M0 = np.append(2.0 ** (np.arange(255.0) - 127), np.nan)
_EIGHT_BIT = {0: _E4M3, 1: _E5M2}
_EIGHT_BIT_NAMES = {0: "e4m3", 1: "e5m2"}


@dataclass
class CtaUnits:
    """The memories of one CTA that the tensor core works on."""

    shared: SharedMemory
    tensor: TensorMemory


def copy_scales(cta: CtaUnits, address: int, descriptor: int) -> None:
    """Run tcgen05.cp.32x128b.warpx4: 32 rows of 16 bytes to 4 columns, the same in all four partitions of 32 lanes."""
    where = decode_shared_descriptor(descriptor)
    rows = read_rows(cta.shared, where, 32, 16)
    column = address & 0xFFFF
    if address >> 16 & 0x3FFF:
        raise UnsupportedPtxError(f"tcgen05.cp to {address:#x}: a lane other than 0 is not modelled")
    cta.tensor.check(column, 4)
    cta.tensor.cells[:, column : column + 4] = np.tile(np.ascontiguousarray(rows).view(np.uint32), (4, 1))


def multiply(
    ctas: list[CtaUnits], kind: MmaKind, accumulator: int, a: int, b: int, descriptor: int, a_scale: int, b_scale: int,
    *, accumulate: bool,
) -> None:  # fmt: skip
    """Run one tcgen05.mma with block scales.

    Args:
        ctas: the CTA, or both of a pair, the even rank first: each holds its rows of A and the result, and its half of B.
        kind: which one.
        accumulator: tensor memory address of the result.
        a: shared-memory descriptor of A.
        b: shared-memory descriptor of B.
        descriptor: instruction descriptor.
        a_scale: tensor memory address of A's scales.
        b_scale: tensor memory address of B's scales: every CTA holds all of them.
        accumulate: add to the result instead of replacing it.
    """
    what = decode_instruction_descriptor(descriptor)
    if what.m != 128 * len(ctas) or what.n % 16 or not 16 <= what.n <= 256:
        raise UnsupportedPtxError(f"tcgen05.mma of {what.m} x {what.n} on {len(ctas)} CTAs is not modelled")
    for address, byte, name in ((a_scale, what.a_scale_byte, "A"), (b_scale, what.b_scale_byte, "B")):
        if (address & _SCALE_BITS) >> 30 != byte:
            raise UnsupportedPtxError(
                f"tcgen05.mma: scales of {name} at {address:#x} and byte {byte} of the descriptor differ"
            )
    size = kind.k * kind.element_bits // 8
    where_a, where_b = decode_shared_descriptor(a), decode_shared_descriptor(b)
    share = what.n // len(ctas)
    right = np.concatenate(
        [_decode(read_rows(c.shared, where_b, share, size), kind, what.b_format) for c in ctas]
    )
    column = accumulator & 0xFFFF
    if accumulator >> 16:
        raise UnsupportedPtxError(
            f"tcgen05.mma: result at {accumulator:#x}: a lane other than 0 is not modelled"
        )
    for cta in ctas:
        cta.tensor.check(column, what.n)
        left = _decode(read_rows(cta.shared, where_a, 128, size), kind, what.a_format)
        a_scales = _scales(cta.tensor, a_scale, 128, kind, what, what.a_scale_byte)
        b_scales = _scales(cta.tensor, b_scale, what.n, kind, what, what.b_scale_byte)
        terms = all_pairs(
            kind.unit,
            _operand(left, what.a_format, a_scales, kind, what),
            _operand(right, what.b_format, b_scales, kind, what),
        )
        if what.negate_a != what.negate_b:
            terms = Numbers(-terms.values, terms.exponents)
        result = cta.tensor.cells[:, column : column + what.n].view(np.float32)
        before = torch.from_numpy(result if accumulate else np.zeros_like(result))
        result[...] = add_terms(kind.unit, terms, before).numpy()


def _operand(values: Array, code: int, scales: Array, kind: MmaKind, what: InstructionDescriptor) -> Operand:
    """Return elements `(rows, k)` of a format and their block scales `(rows, blocks)` as the unit takes them."""
    elements = "e2m1" if kind.element_bits == 4 else _EIGHT_BIT_NAMES[code]
    return Operand.of(
        torch.from_numpy(values), elements, torch.from_numpy(scales), "ue8m0" if what.scale_e8m0 else "e4m3"
    )


def _decode(rows: Array, kind: MmaKind, code: int) -> Array:
    """Return elements as float64 `(rows, k)`."""
    if kind.element_bits == 4:
        if code != 1:
            raise UnsupportedPtxError(
                f"tcgen05.mma: element format {code} of a 4-bit kind is not modelled; 1 is E2M1"
            )
        return _E2M1_PAIRS[rows].reshape(rows.shape[0], kind.k)
    if code not in _EIGHT_BIT:
        raise UnsupportedPtxError(f"tcgen05.mma: element format {code} of mxf8f6f4 is not modelled")
    return _EIGHT_BIT[code][rows]


def _scales(
    tensor: TensorMemory,
    address: int,
    rows: int,
    kind: MmaKind,
    what: InstructionDescriptor,
    byte: int,
) -> Array:
    """Return block scales, `(rows, blocks)` float64: row r has its scales in lane r % 32, column r / 32, one byte a block."""
    column = address & 0xFFFF
    if address >> 16 & 0x3FFF:
        raise UnsupportedPtxError(f"tcgen05.mma: scales at {address:#x}: a lane other than 0 is not modelled")
    groups, blocks = -(-rows // 32), kind.k // kind.block
    tensor.check(column, groups)
    cells = tensor.cells[:, column : column + groups]
    words = np.ascontiguousarray(cells[:32])
    if not np.array_equal(np.tile(words, (4, 1)), cells):
        raise InterpreterError(
            f"tcgen05.mma: scales at column {column} differ between the four partitions of lanes"
        )
    if byte + blocks > 4:
        raise UnsupportedPtxError(f"tcgen05.mma: {blocks} scales from byte {byte} leave their word")
    codes = words.view(np.uint8).reshape(32, groups, 4)[:, :, byte : byte + blocks]
    decoded = (_UE8M0 if what.scale_e8m0 else _UE4M3)[codes]
    return np.ascontiguousarray(decoded.transpose(1, 0, 2).reshape(groups * 32, blocks)[:rows])
