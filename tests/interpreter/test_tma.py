"""Tensor maps and the copies that they describe: boxes, bounds, fill, swizzles, multicast, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from harness.interpreter import tma
from harness.interpreter.errors import MemoryFaultError, ProtocolError, UnsupportedPtxError
from harness.interpreter.memory import GlobalMemory, SharedMemory
from harness.interpreter.tensor_map import decode_tensor_map
from tests.interpreter.conftest import launch, module, tensor_map


def mapped(array, box, **options):
    memory = GlobalMemory()
    memory.add_array(array, "tensor")
    return decode_tensor_map(tensor_map(array, box, **options).tobytes()), memory


def draw(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_a_map_is_decoded_into_what_it_was_made_of():
    array = draw(3, 200, 352)
    tensor, _ = mapped(array, (256, 128, 1), code=11, bits=4, swizzle=128)
    assert (tensor.extents, tensor.strides, tensor.box) == ((704, 200, 3), (352, 352 * 200), (256, 128, 1))
    assert (tensor.swizzle, tensor.atom, tensor.box_bytes, tensor.address) == (
        128,
        16,
        128 * 128,
        array.ctypes.data,
    )


@pytest.mark.parametrize(("byte", "value", "message"), [
    (8, 0x80, "element code|bits"), (9, 0x80, "bits 0x8000 are not known"), (11, 0x80, "bits 0x80000000"), (12 + 4, 1, "more strides"),
    (28, 1, "word 7"), (44, 1, "higher dimensions"), (57, 1, "higher dimensions"), (61, 1, "bytes 60 to 63"),
])  # fmt: skip
def test_a_bit_that_was_never_seen_is_refused(byte, value, message):
    block = bytearray(tensor_map(draw(16, 64), (64, 8), code=0, bits=8).tobytes())
    block[byte] |= value
    if byte == 8:
        block[8:10] = (0x92 | 1 << 7 | 1 << 8).to_bytes(2, "little")  # element code 3
    with pytest.raises(UnsupportedPtxError, match=message):
        decode_tensor_map(bytes(block))


@pytest.mark.parametrize(
    "at", [(0, 0, 0), (32, 5, 1), (40, 12, 2), (-16, -3, 0), (48, 15, 2), (64, 0, 0), (0, 0, 3)]
)
def test_a_box_is_clipped_on_store_and_filled_with_zeros_on_load(at):
    array = draw(3, 16, 64)
    tensor, memory = mapped(array, (32, 8, 2), code=0, bits=8)
    wanted = np.zeros((2, 8, 32), dtype=np.uint8)
    before = array.copy()
    for z, y, x in np.ndindex(wanted.shape):
        where = (at[2] + z, at[1] + y, at[0] + x)
        if all(0 <= w < extent for w, extent in zip(where, array.shape, strict=True)):
            wanted[z, y, x] = array[where]
    assert np.array_equal(tma.load_box(tensor, memory, at), wanted)
    tma.store_box(wanted ^ 0xFF, tensor, memory, at)
    changed = before.copy()
    for z, y, x in np.ndindex(wanted.shape):
        where = (at[2] + z, at[1] + y, at[0] + x)
        if all(0 <= w < extent for w, extent in zip(where, array.shape, strict=True)):
            changed[where] = before[where] ^ 0xFF
    assert np.array_equal(array, changed)


@pytest.mark.parametrize(
    ("swizzle", "atom32"), [(0, False), (32, False), (64, False), (128, False), (128, True)]
)
def test_swizzles_are_xors_of_address_bits(swizzle, atom32):
    """Byte a of the box lies at a with bits 4.. XORed with bits 7..; with 32-byte atoms bits 5, 6 with bits 7, 8."""
    inner = swizzle or 64
    array = draw(32, inner)
    tensor, memory = mapped(array, (inner, 32), code=0, bits=8, swizzle=swizzle, atom32=atom32)
    shared = SharedMemory(8192)
    tma.write_shared(tma.load_box(tensor, memory, (0, 0)), tensor, shared, 2048)
    flat = array.reshape(-1)
    for a in range(flat.size):
        address = 2048 + a
        if atom32:
            address ^= (address >> 7 & 3) << 5
        else:
            address ^= (address >> 7 & {0: 0, 32: 1, 64: 3, 128: 7}[swizzle]) << 4
        assert shared.generic[address] == shared.proxy[address] == flat[a]
    assert np.array_equal(tma.read_shared(tensor, shared, 2048), array)


def test_what_the_tma_unit_cannot_do_is_refused():
    array = draw(16, 64)
    with pytest.raises(UnsupportedPtxError, match="no multiple of 16 bytes"):
        mapped(array, (8, 8), code=0, bits=8)
    tensor, memory = mapped(array, (64, 8), code=0, bits=8, swizzle=32)
    with pytest.raises(UnsupportedPtxError, match="wider than its 32-byte swizzle"):
        tma.write_shared(tma.load_box(tensor, memory, (0, 0)), tensor, SharedMemory(8192), 1024)
    tensor, memory = mapped(array, (64, 8), code=0, bits=8)
    with pytest.raises(MemoryFaultError, match="not a multiple of 128"):
        tma.write_shared(tma.load_box(tensor, memory, (0, 0)), tensor, SharedMemory(8192), 1040)
    with pytest.raises(MemoryFaultError, match="outside the launch's"):
        tma.write_shared(tma.load_box(tensor, memory, (0, 0)), tensor, SharedMemory(128), 1024)
    tensor, memory = mapped(
        draw(4, 64), (64, 2), code=11, bits=4, extents=(128, 8)
    )  # a map that promises more rows
    with pytest.raises(MemoryFaultError, match="outside every known buffer"):
        tma.load_box(tensor, memory, (0, 6))


LOAD = """
    mov.b32 %r0, smem; mov.b32 %r1, 1; setp.eq.b32 %p0, %r0, 0; mov.u32 %r6, %tid.x; mov.u32 %r7, %cluster_ctarank;
    setp.ne.u32 %p1, %r6, 0; @%p1 bra READY; mbarrier.init.shared.b64 [%r0], %r1; READY:
    fence.mbarrier_init.release.cluster; barrier.cluster.arrive.relaxed; barrier.cluster.wait;
    @%p1 bra ISSUED; mov.b32 %r2, {bytes}; mbarrier.arrive.expect_tx.shared.b64 %d5, [%r0], %r2;
    ld.param.b64 %d0, [map]; mov.b32 %r3, 0; mov.u16 %h1, {mask};
    {only} cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes{multicast} [%r0+1024], [%d0, {{%r3, %r3}}], [%r0]{operand};
    ISSUED:
    {{ .reg .pred P1; W: mbarrier.try_wait.parity.shared.b64 P1, [%r0], 0; @P1 bra D; bra W; D: }}
    mul.wide.u32 %d2, %r6, 4; ld.param.b64 %d1, [out]; add.s64 %d1, %d1, %d2; mul.wide.u32 %d3, %r7, 128; add.s64 %d1, %d1, %d3;
    shl.b32 %r8, %r6, 2; add.s32 %r8, %r8, %r0; ld.shared.b32 %r9, [%r8+1024]; st.global.b32 [%d1], %r9;"""  # fmt: skip


def test_a_multicast_reaches_every_cta_of_the_mask(schedules):
    """The bytes and the count arrive at the same offset in each CTA."""
    array = draw(8, 16)
    kernel = LOAD.format(
        bytes=128,
        mask=3,
        multicast=".multicast::cluster",
        operand=", %h1",
        only="setp.ne.u32 %p3, %r7, 0; @!%p3",
    )
    for schedule in schedules:
        out = np.zeros((2, 32), dtype=np.uint32)
        memory_map = tensor_map(array, (16, 8), code=0, bits=8)
        launch(
            module(kernel.replace("[map]", "[a]").replace("[out]", "[b]"), ("a", "b", "c")),
            (memory_map, out, array),
            grid=2,
            cluster=2,
            shared=4096,
            schedule=schedule,
        )
        assert np.array_equal(out[0].view(np.uint8), array.reshape(-1))
        assert np.array_equal(out[1], out[0])


def test_a_mask_that_leaves_a_cta_out_leaves_it_waiting():
    from harness.interpreter.errors import DeadlockError

    array = draw(8, 16)
    out = np.zeros((2, 32), dtype=np.uint32)
    kernel = LOAD.format(
        bytes=128,
        mask=1,
        multicast=".multicast::cluster",
        operand=", %h1",
        only="setp.ne.u32 %p3, %r7, 0; @!%p3",
    )
    with pytest.raises(DeadlockError, match=r"rank 1, warp 0 waits for mbarrier .*128 bytes pending"):
        launch(
            module(kernel.replace("[map]", "[a]").replace("[out]", "[b]"), ("a", "b", "c")),
            (tensor_map(array, (16, 8), code=0, bits=8), out, array),
            grid=2,
            cluster=2,
            shared=4096,
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("@%p1 bra ISSUED;", ""), "mbarrier .* arrivals|issued by 32 lanes"),
        (("mov.u16 %h1, 3", "mov.u16 %h1, 7"), "multicast mask 0x7: the cluster has 2 CTAs"),
        (("[%r0], %r2;", "[%r0], 64;"), "arrivals|pending"),
    ],
)
def test_wrong_use_is_reported(change, message):
    array = draw(8, 16)
    out = np.zeros((2, 32), dtype=np.uint32)
    kernel = LOAD.format(
        bytes=128,
        mask=3,
        multicast=".multicast::cluster",
        operand=", %h1",
        only="setp.ne.u32 %p3, %r7, 0; @!%p3",
    ).replace(*change)
    from harness.interpreter.errors import DeadlockError

    with pytest.raises((ProtocolError, DeadlockError), match=message):
        launch(
            module(kernel.replace("[map]", "[a]").replace("[out]", "[b]"), ("a", "b", "c")),
            (tensor_map(array, (16, 8), code=0, bits=8), out, array),
            grid=2,
            cluster=2,
            shared=4096,
        )
