"""A GEMM tile written by hand in PTX: a producer warp, an MMA warp and four epilogue warps, two stages, 128 x 128 x 256n.

It has every kind of synchronisation that the compiled kernels have, in a tenth of their length.
"""

from __future__ import annotations

import numpy as np

from tests.interpreter.conftest import module, tensor_map

A, B, SCALE_A, SCALE_B, C = 1024, 33792, 66560, 70656, 74752  # offsets in shared memory
SHARED = C + 16384
STAGES = 2
_count = iter(range(1 << 30))


def wait(at, parity):
    n = next(_count)
    return f"""
    {{ .reg .pred P1; LAB{n}: mbarrier.try_wait.parity.shared.b64 P1, [{at}], {parity}; @P1 bra.uni OK{n}; bra.uni LAB{n}; OK{n}: }}"""


def elected(code):
    n = next(_count)
    return f"""
    elect.sync %r90|%p20, -1; not.pred %p21, %p20; @%p21 bra SKIP{n};
    {code}
    SKIP{n}:"""


def _load(name, to, shift, coordinates):
    return f"""ld.param.b64 %d0, [{name}]; add.s32 %r25, %r0, {to}; shl.b32 %r26, %r21, {shift}; add.s32 %r25, %r25, %r26;
    cp.async.bulk.tensor.2d.shared::cta.global.tile.mbarrier::complete_tx::bytes [%r25], [%d0, {coordinates}], [%r23];"""


def _descriptor(number, base, shift, constant):
    """%d{number}: descriptor of the current stage's operand."""
    return f"""add.s32 %r40, %r0, {base}; shl.b32 %r41, %r31, {shift}; add.s32 %r40, %r40, %r41; shr.u32 %r40, %r40, 4; and.b32 %r40, %r40, 16383;
    cvt.u64.u32 %d{number}, %r40; or.b64 %d{number}, %d{number}, {constant};"""


OPERAND = 2 << 61 | 1 << 46 | 64 << 32  # 128-byte swizzle, groups of 8 rows 1,024 bytes apart
SCALES = 1 << 46 | 8 << 32
INSTRUCTION = 8 << 24 | 16 << 17 | 1 << 10 | 1 << 7  # 128 x 128, E2M1 times E2M1, UE4M3 scales


def _multiply():
    lines = [
        _descriptor(1, A, 14, OPERAND),
        _descriptor(2, B, 14, OPERAND),
        _descriptor(3, SCALE_A, 11, SCALES),
        _descriptor(4, SCALE_B, 11, SCALES),
    ]
    lines += [
        f"add.s32 %r42, %r10, {128 + 16 * side + 4 * j}; add.s64 %d5, %d{3 + side}, {32 * j}; tcgen05.cp.cta_group::1.32x128b.warpx4 [%r42], %d5;"
        for side in (0, 1)
        for j in range(4)
    ]
    for j in range(4):
        enable = "setp.ne.b32 %p22, %r30, 0;" if j == 0 else "mov.pred %p22, -1;"
        lines.append(
            f"{enable} add.s64 %d6, %d1, {2 * j}; add.s64 %d7, %d2, {2 * j}; add.s32 %r43, %r10, {128 + 4 * j}; add.s32 %r44, %r10, {144 + 4 * j};"
            f"tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16 [%r10], %d6, %d7, {INSTRUCTION}, [%r43], [%r44], %p22;"
        )
    lines.append("tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%r33+16];")
    return "\n".join(lines)


def _epilogue():
    words = [f"%r{i}" for i in range(50, 82)]
    parts = []
    for j in range(4):
        stores = "\n".join(
            f"xor.b32 %r46, %r45, {16 * c}; st.shared.v4.b32 [%r46], {{{', '.join(words[4 * c : 4 * c + 4])}}};"
            for c in range(8)
        )
        n = next(_count)
        parts.append(f"""
    add.s32 %r48, %r47, {32 * j}; tcgen05.ld.sync.aligned.32x32b.x32.b32 {{{", ".join(words)}}}, [%r48]; tcgen05.wait::ld.sync.aligned;
    {stores}
    fence.proxy.async.shared::cta; bar.sync 1, 128;
    setp.ne.b32 %p3, %r2, 0; @%p3 bra STORED{n};
    ld.param.b64 %d0, [map_c]; add.s32 %r49, %r0, {C};
    cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%d0, {{{32 * j}, 0}}], [%r49];
    cp.async.bulk.commit_group; cp.async.bulk.wait_group.read 0;
    STORED{n}: bar.sync 1, 128;""")
    return "\n".join(parts)


def text():
    """The module."""
    return module(f"""
    mov.b32 %r0, smem; mov.u32 %r1, %tid.x; shr.u32 %r2, %r1, 5; shfl.sync.idx.b32 %r2, %r2, 0, 31, -1; ld.param.b32 %r3, [tiles];
    setp.ne.b32 %p0, %r2, 0; @%p0 bra READY;
    {elected("mov.b32 %r4, 1;" + "".join(f"mbarrier.init.shared.b64 [%r0+{8 * i}], %r4;" for i in range(5)))}
    mov.b32 %r4, 256; tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r0+40], %r4; tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;
    READY: fence.mbarrier_init.release.cluster; bar.sync 0; ld.shared.b32 %r10, [%r0+40];
    setp.eq.b32 %p1, %r2, 5; @%p1 bra PRODUCER; setp.eq.b32 %p2, %r2, 4; @%p2 bra MMA; bra EPILOGUE;
    PRODUCER: mov.b32 %r20, 0; mov.b32 %r21, 0; mov.b32 %r22, 1;
    NEXT: shl.b32 %r24, %r21, 3; add.s32 %r23, %r0, %r24; add.s32 %r27, %r23, 16; // empty
    {wait("%r27", "%r22")}
    shl.b32 %r28, %r20, 8; shl.b32 %r29, %r20, 2;
    {elected("mov.b32 %r4, 36864; mbarrier.arrive.expect_tx.shared.b64 %d9, [%r23], %r4;"
             + _load("map_a", A, 14, "{%r28, 0}") + _load("map_b", B, 14, "{%r28, 0}")
             + _load("map_sa", SCALE_A, 11, "{0, %r29}") + _load("map_sb", SCALE_B, 11, "{0, %r29}"))}
    add.s32 %r21, %r21, 1; setp.eq.b32 %p4, %r21, {STAGES}; selp.b32 %r21, 0, %r21, %p4; selp.b32 %r4, 1, 0, %p4; xor.b32 %r22, %r22, %r4;
    add.s32 %r20, %r20, 1; setp.lt.u32 %p5, %r20, %r3; @%p5 bra NEXT; bra END;
    MMA: mov.b32 %r30, 0; mov.b32 %r31, 0; mov.b32 %r32, 0;
    TILE: shl.b32 %r24, %r31, 3; add.s32 %r33, %r0, %r24; // full
    {wait("%r33", "%r32")}
    {elected(_multiply())}
    add.s32 %r31, %r31, 1; setp.eq.b32 %p4, %r31, {STAGES}; selp.b32 %r31, 0, %r31, %p4; selp.b32 %r4, 1, 0, %p4; xor.b32 %r32, %r32, %r4;
    add.s32 %r30, %r30, 1; setp.lt.u32 %p5, %r30, %r3; @%p5 bra TILE;
    {elected("tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%r0+32];")} bra END;
    EPILOGUE: add.s32 %r34, %r0, 32; // accumulator
    {wait("%r34", "0")}
    shl.b32 %r47, %r2, 21; add.s32 %r47, %r47, %r10;
    shl.b32 %r45, %r1, 7; and.b32 %r46, %r1, 7; shl.b32 %r46, %r46, 4; or.b32 %r45, %r45, %r46; add.s32 %r45, %r45, %r0; add.s32 %r45, %r45, {C};
    {_epilogue()}
    setp.ne.b32 %p3, %r2, 0; @%p3 bra END; mov.b32 %r4, 256; tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r10, %r4; cp.async.bulk.wait_group 0;
    END:""", ("map_a", "map_b", "map_sa", "map_sb", "map_c", "tiles"))  # fmt: skip


def problem(tiles, seed=0):
    """Packed codes, scales and the exact product, `(128, 128)` float64."""
    import torch

    from reference.e2m1 import pack_e2m1
    from reference.layout import swizzle_128x4
    from reference.nvfp4 import decode_blocks

    draw = torch.Generator().manual_seed(seed)
    k = 256 * tiles
    codes = [torch.randint(0, 16, (128, k), dtype=torch.uint8, generator=draw) for _ in "ab"]
    scales = [torch.randint(0x30, 0x48, (128, k // 16), dtype=torch.uint8, generator=draw) for _ in "ab"]
    packed = [pack_e2m1(c).numpy().copy() for c in codes]
    swizzled = [swizzle_128x4(s[None])[0].numpy().reshape(k // 64, 512).copy() for s in scales]
    a, b = (decode_blocks(c, s, torch.float64) for c, s in zip(codes, scales, strict=True))
    return packed, swizzled, (a @ b.T).numpy()


def run(ptx, tiles, given, schedule=None):
    """Run the module; return C."""
    packed, swizzled, _ = given
    c = np.full((128, 128), np.nan, dtype=np.float32)
    maps = [
        *(tensor_map(p, (256, 128), code=11, bits=4, swizzle=128) for p in packed),
        *(tensor_map(s, (256, 4), code=1, bits=16) for s in swizzled),
        tensor_map(c.view(np.uint8), (32, 128), code=7, bits=32, swizzle=128),
    ]
    return launch_with(ptx, maps, [*packed, *swizzled], c, tiles, schedule)


def launch_with(ptx, maps, inputs, c, tiles, schedule):
    import struct

    from harness.interpreter.cluster import Launch
    from harness.interpreter.launch import run_launch
    from harness.interpreter.memory import GlobalMemory
    from harness.interpreter.parser import parse_ptx
    from harness.interpreter.program import Program
    from harness.interpreter.schedule import late

    memory = GlobalMemory()
    addresses = [memory.add_array(m, "tensor map", writable=False) for m in maps]
    for name, array in zip(["A", "B", "SFA", "SFB"], inputs, strict=True):
        memory.add_array(array, name, writable=False)
    memory.add_array(c, "C")
    parameters = struct.pack("<6Q", *addresses, tiles)
    run_launch(
        Program(parse_ptx(ptx)),
        Launch(memory, (1, 1, 1), (192, 1, 1), (1, 1, 1), SHARED, parameters),
        schedule or late(),
    )
    return c
