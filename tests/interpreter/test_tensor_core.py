"""tcgen05: allocation, copies of scales, block-scaled products of every kind on one CTA and on a pair, loads, descriptors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.interpreter.descriptors import decode_instruction_descriptor, decode_shared_descriptor, read_rows
from harness.interpreter.errors import InterpreterError, MemoryFaultError, ProtocolError, UnsupportedPtxError
from harness.interpreter.memory import SharedMemory
from harness.interpreter.tensor_core import KINDS, CtaUnits, copy_scales, multiply
from harness.interpreter.tensor_memory import TensorMemory
from reference.matrix_units import Operand, add_terms, all_pairs
from tests.interpreter.conftest import launch, module

OPERAND = 2 << 61 | 1 << 46 | 64 << 32
SCALES = 1 << 46 | 8 << 32
A, B, SFA, SFB = 1024, 17408, 50176, 52224  # shared memory
VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def e4m3(code):
    code = np.asarray(code, dtype=np.int64)
    exponent, fraction = code >> 3 & 15, code & 7
    size = np.where(exponent > 0, (8 + fraction) * 2.0 ** (exponent - 10), fraction * 2.0**-9)
    return np.where(code & 128, -size, size)


def place_rows(shared, at, rows):
    """Rows of up to 128 bytes, swizzled over 128 bytes, 8-row groups 1,024 bytes apart."""
    for r, row in enumerate(rows):
        for c, byte in enumerate(row):
            address = at + r // 8 * 1024 + r % 8 * 128 + c
            shared.proxy[address ^ (address >> 7 & 7) << 4] = byte


def place_scales(shared, at, scales):
    """`(rows, blocks)` scale bytes in 128x4 order, blocks padded to 4, 512 bytes for each 128 rows."""
    for (r, block), byte in np.ndenumerate(scales):
        shared.proxy[at + r // 128 * 512 + r % 32 * 16 + r % 128 // 32 * 4 + block] = byte


def units():
    cta = CtaUnits(SharedMemory(60000), TensorMemory())
    cta.tensor.allocate(512)
    return cta


def descriptor(n, m=128, *, fmt=1, e8m0=False, byte_a=0, byte_b=0, extra=0):
    return (
        m // 16 << 24 | n // 8 << 17 | fmt << 10 | fmt << 7 | e8m0 << 23 | byte_a << 29 | byte_b << 4 | extra
    )


def drawn(rows, kind, seed):
    draw = np.random.default_rng(seed)
    blocks = kind.k // kind.block
    if kind.element_bits == 4:
        codes = draw.integers(0, 16, (rows, kind.k), dtype=np.uint8)
        return codes[:, ::2] | codes[:, 1::2] << 4, VALUES[codes], draw, blocks
    codes = (
        draw.integers(0, 127, (rows, kind.k), dtype=np.uint8)
        | draw.integers(0, 2, (rows, kind.k), dtype=np.uint8) << 7
    )
    codes[codes & 127 == 127] = 0
    return codes, e4m3(codes), draw, blocks


@pytest.mark.parametrize("name", KINDS, ids=["-".join(k) for k in KINDS])
@pytest.mark.parametrize("n", [128, 256])
@pytest.mark.parametrize("pair", [False, True])
def test_a_product_is_the_sum_of_scaled_products(name, n, pair):
    """As the unit adds decoded operands; a second instruction adds, and the scale byte is chosen by the descriptor."""
    kind = KINDS[name]
    e8m0 = name[1] == "block32"
    ctas = [units(), units()] if pair else [units()]
    m = 128 * len(ctas)
    a_rows, a, draw, blocks = drawn(m, kind, 1)
    b_rows, b, _, _ = drawn(n, kind, 2)
    byte = 0 if blocks == 4 else 2 if blocks == 2 else 3
    low, high = (120, 134) if e8m0 else (0x28, 0x50)
    scales = [draw.integers(low, high, (rows, 4), dtype=np.uint8) for rows in (m, n)]
    decode = (lambda c: 2.0 ** (c.astype(float) - 127)) if e8m0 else e4m3
    share = n // len(ctas)
    for rank, cta in enumerate(ctas):
        place_rows(cta.shared, A, a_rows[128 * rank : 128 * rank + 128])
        place_rows(cta.shared, B, b_rows[share * rank : share * rank + share])
        place_scales(cta.shared, SFA, scales[0][128 * rank : 128 * rank + 128])
        place_scales(cta.shared, SFB, scales[1])
        copy_scales(cta, 256, SCALES | SFA >> 4)
        for group in range(n // 128):
            copy_scales(cta, 272 + 4 * group, SCALES | (SFB + 512 * group) >> 4)
    used = [s[:, byte : byte + blocks] for s in scales]
    formats = ("e2m1" if kind.element_bits == 4 else "e4m3", "ue8m0" if e8m0 else "e4m3")
    operands = [
        Operand.of(torch.from_numpy(x), formats[0], torch.from_numpy(decode(s)), formats[1])
        for x, s in zip((a, b), used, strict=True)
    ]
    terms, wanted = all_pairs(kind.unit, *operands), torch.zeros(m, n)
    word = byte << 30
    for times in (1, 2):
        multiply(
            ctas, kind, 0, OPERAND | A >> 4, OPERAND | B >> 4,
            descriptor(n, m, fmt=1 if kind.element_bits == 4 else 0, e8m0=e8m0, byte_a=byte, byte_b=byte),
            256 | word, 272 | word, accumulate=times == 2,
        )  # fmt: skip
        got = np.concatenate([cta.tensor.cells[:, :n].view(np.float32) for cta in ctas])
        wanted = add_terms(kind.unit, terms, wanted)
        assert np.array_equal(got, wanted.numpy())


def test_negation_bits_negate():
    kind = KINDS["mxf4nvf4", "block16"]
    cta = units()
    rows, values, _, _ = drawn(128, kind, 1)
    place_rows(cta.shared, A, rows)
    place_scales(cta.shared, SFA, np.full((128, 4), 0x38, dtype=np.uint8))
    for column in (256, 272):
        copy_scales(cta, column, SCALES | SFA >> 4)
    for extra, sign in ((0, 1), (1 << 13, -1), (1 << 14, -1), (3 << 13, 1)):
        multiply(
            [cta],
            kind,
            0,
            OPERAND | A >> 4,
            OPERAND | A >> 4,
            descriptor(128, extra=extra),
            256,
            272,
            accumulate=False,
        )
        assert np.array_equal(
            cta.tensor.cells[:, :128].view(np.float32), sign * (values @ values.T).astype(np.float32)
        )


def test_what_was_never_written_makes_nan():
    cta = units()
    multiply(
        [cta],
        KINDS["mxf4nvf4", "block16"],
        0,
        OPERAND | A >> 4,
        OPERAND | B >> 4,
        descriptor(128),
        256,
        272,
        accumulate=False,
    )
    assert np.isnan(cta.tensor.cells[:, :128].view(np.float32)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"descriptor": descriptor(128) | 4}, "sparsity is not modelled"),
        ({"descriptor": descriptor(128) | 1 << 15}, "transposed A is not modelled"),
        ({"descriptor": descriptor(128) | 1 << 31}, "k size is not modelled"),
        ({"descriptor": descriptor(128, m=64)}, "64 x 128 on 1 CTAs is not modelled"),
        ({"descriptor": descriptor(128, fmt=3)}, "element format 3 of a 4-bit kind"),
        (
            {"descriptor": descriptor(128, byte_a=2)},
            "scales of A at 0x100 and byte 2 of the descriptor differ",
        ),
        ({"a": 1 << 61 | 1 << 46 | 64 << 32 | A >> 4}, "layout type 1 is not modelled"),
        ({"a": OPERAND | 1 << 50 | A >> 4}, "bits 0x4000000000000 are not modelled"),
        ({"a": (OPERAND & ~(1 << 46)) | A >> 4}, "version must be 1"),
        ({"a": OPERAND | (A + 112) >> 4}, "leave their 128-byte swizzle atom"),
        ({"a": OPERAND | 262000 >> 4}, "outside the launch's|8-row boundary|swizzle atom"),
        ({"a_scale": 510}, r"columns \[510, 514\) are not allocated"),
        ({"result": 1 << 16}, "a lane other than 0 is not modelled"),
    ],
)
def test_what_is_not_modelled_is_refused(change, message):
    arguments = {
        "result": 0,
        "a": OPERAND | A >> 4,
        "b": OPERAND | B >> 4,
        "descriptor": descriptor(128),
        "a_scale": 256,
        "b_scale": 272,
    } | change
    with pytest.raises((UnsupportedPtxError, MemoryFaultError), match=message):
        multiply([units()], KINDS["mxf4nvf4", "block16"], *arguments.values(), accumulate=False)


def test_scales_must_be_the_same_in_all_four_partitions():
    cta = units()
    cta.tensor.cells[40, 256] = 0
    with pytest.raises(InterpreterError, match="differ between the four partitions"):
        multiply(
            [cta],
            KINDS["mxf4nvf4", "block16"],
            0,
            OPERAND | A >> 4,
            OPERAND | B >> 4,
            descriptor(128),
            256,
            272,
            accumulate=False,
        )


def test_descriptors_are_decoded_as_cutlass_documents_them():
    found = decode_shared_descriptor(4611756662049538048 | 0x123)
    assert (found.start, found.group_stride, found.swizzle) == (0x1230, 1024, 128)
    found = decode_instruction_descriptor(136316032 | 1 << 23 | 2 << 29 | 1 << 4)
    assert (
        found.m,
        found.n,
        found.a_format,
        found.b_format,
        found.scale_e8m0,
        found.a_scale_byte,
        found.b_scale_byte,
    ) == (128, 128, 1, 1, True, 2, 1)
    with pytest.raises(UnsupportedPtxError, match="leading-dimension"):
        read_rows(SharedMemory(4096), decode_shared_descriptor(SCALES | 64), 8, 32)


def test_allocation_keeps_books():
    memory = TensorMemory()
    assert [memory.allocate(128), memory.allocate(256), memory.allocate(128), memory.allocate(32)] == [
        0,
        256,
        128,
        None,
    ]
    with pytest.raises(ProtocolError, match="power of two"):
        memory.allocate(48)
    with pytest.raises(ProtocolError, match="dealloc of 64 columns"):
        memory.free(0, 64)
    memory.free(256, 256)
    assert memory.leaked() == {0: 128, 128: 128}
    memory.may_allocate = False
    with pytest.raises(ProtocolError, match="relinquish_alloc_permit"):
        memory.allocate(32)


def test_loads_take_the_lanes_of_their_warp():
    memory = TensorMemory()
    memory.allocate(512)
    memory.cells[:] = np.arange(128, dtype=np.uint32)[:, None] * 1000 + np.arange(512, dtype=np.uint32)
    rows = memory.read_32x32b(64 << 16 | 10, 4, 2)
    assert [row.tolist() for row in rows] == [[(64 + i) * 1000 + 10 + j for i in range(32)] for j in range(4)]
    found = memory.read_16x256b(48 << 16 | 8, 2, 1)
    for j, register in enumerate(found):
        step, down, right = j // 4, j // 2 % 2, j % 2
        assert register.tolist() == [
            (48 + 8 * down + t // 4) * 1000 + 8 + 8 * step + t % 4 * 2 + right for t in range(32)
        ]
    with pytest.raises(MemoryFaultError, match="row 0 is not one that warp 1 may read"):
        memory.read_32x32b(0, 1, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "mov.b32 %r4, 64; tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r0], %r4;",
            "still allocated: {0: 64}",
        ),
        (
            "mov.b32 %r4, 0; tcgen05.cp.cta_group::1.32x128b.warpx4 [%r4], %d0;",
            "tcgen05.cp is issued by 32 lanes",
        ),
        (
            "tcgen05.commit.cta_group::2.mbarrier::arrive::one.shared::cluster.b64 [%r0];",
            "without a pair|issued by 32 lanes",
        ),
    ],
)
def test_wrong_use_is_reported(text, message):
    with pytest.raises(ProtocolError, match=message):
        launch(module("mov.b32 %r0, smem; mov.b64 %d0, 0;" + text), shared=64)
