"""ld, st, atom, red, cvta, mapa, stmatrix, prefetch, fence: bounds, poison, alignment, divergence."""

from __future__ import annotations

import numpy as np
import pytest

from harness.interpreter.errors import MemoryFaultError, ProtocolError, UnsupportedPtxError
from tests.interpreter.conftest import launch, left_behind, module, per_lane


def test_vector_loads_and_stores_of_every_width():
    source = np.arange(64, dtype=np.uint32).reshape(8, 8)
    result = np.zeros((8, 8), dtype=np.uint32)
    body = """
    mov.u32 %r0, %tid.x; setp.gt.u32 %p0, %r0, 7; @%p0 bra END;
    mul.wide.u32 %d3, %r0, 32;
    ld.param.b64 %d0, [a]; cvta.to.global.u64 %d0, %d0; add.s64 %d0, %d0, %d3; ld.param.b64 %d1, [b]; add.s64 %d1, %d1, %d3;
    ld.global.nc.v4.b32 {%r1, %r2, %r3, %r4}, [%d0];
    ld.global.v2.b64 {%d4, %d5}, [%d0+16];
    st.global.v4.b32 [%d1], {%r4, %r3, %r2, %r1};
    st.global.v2.b64 [%d1+16], {%d5, %d4};
    ld.global.u8 %h1, [%d0+4]; st.global.u8 [%d1], %h1;
    END:"""
    launch(module(body, ("a", "b")), (source, result))
    wanted = source[:, [3, 2, 1, 0, 6, 7, 4, 5]].copy()
    wanted.view(np.uint8)[:, 0] = source.view(np.uint8)[:, 4]
    assert np.array_equal(result, wanted)


@pytest.mark.parametrize("text", ["ld.global.b32 %r1, [%d0+{}];", "st.global.b32 [%d0+{}], %r0;"])
def test_an_access_outside_every_buffer_is_a_fault_that_names_the_nearest(text):
    body = "ld.param.b64 %d0, [a]; mov.b32 %r0, 1; "
    launch(module(body + text.format(124), ("a",)), (np.zeros(32, dtype=np.uint32),))
    for offset in (-4, 126, 128):
        with pytest.raises(MemoryFaultError, match=r"outside every known buffer \(nearest is"):
            launch(module(body + text.format(offset), ("a",)), (np.zeros(32, dtype=np.uint32),))


def test_a_lane_that_is_not_active_touches_nothing():
    data = np.zeros(4, dtype=np.uint32)
    body = """
    mov.u32 %r0, %tid.x; mul.wide.u32 %d1, %r0, 4; ld.param.b64 %d0, [a]; add.s64 %d0, %d0, %d1;
    setp.lt.u32 %p0, %r0, 4; @%p0 st.global.b32 [%d0], %r0;"""
    launch(module(body, ("a",)), (data,))
    assert data.tolist() == [0, 1, 2, 3]


def test_misaligned_accesses_are_refused():
    body = "mov.u32 %r0, %tid.x; mul.wide.u32 %d1, %r0, 4; ld.param.b64 %d0, [a]; add.s64 %d0, %d0, %d1; ld.global.b32 %r1, [%d0+2];"
    with pytest.raises(MemoryFaultError, match="not aligned"):
        launch(module(body, ("a",)), (np.zeros(64, dtype=np.uint32),))


def test_shared_memory_starts_poisoned_and_is_bounded():
    result = np.zeros(2, dtype=np.uint32)
    body = """
    ld.param.b64 %d0, [a]; mov.b32 %r0, smem; ld.shared.b32 %r1, [%r0]; mov.b32 %r2, 7; st.shared.b32 [%r0+4], %r2;
    ld.shared.b32 %r3, [%r0+4]; st.global.b32 [%d0], %r1; st.global.b32 [%d0+4], %r3;"""
    launch(module(body, ("a",)), (result,), shared=64)
    assert result.tolist() == [0xFFFFFFFF, 7]
    with pytest.raises(MemoryFaultError, match="outside the launch's 64 bytes"):
        launch(module("mov.b32 %r0, smem; ld.shared.b32 %r1, [%r0+64];"), shared=64)
    with pytest.raises(MemoryFaultError, match="outside the launch's 64 bytes"):
        launch(
            module(
                "mov.u32 %r1, %tid.x; shl.b32 %r1, %r1, 2; add.s32 %r1, %r1, 1024; st.shared.v2.b32 [%r1], {%r1, %r1};"
            ),
            shared=64,
        )


def test_a_register_that_nobody_wrote_is_named():
    with pytest.raises(ProtocolError, match="register %r5 is read before it is written"):
        launch(
            module(
                "add.s32 %r1, %r5, 1; mov.b32 %r5, %r1; ld.param.b64 %d0, [a]; st.global.b32 [%d0], %r5;",
                ("a",),
            ),
            (np.zeros(1, dtype=np.uint32),),
        )


@pytest.mark.parametrize(
    ("op", "start", "wanted"),
    [
        ("add.s32", 5, 5 + 32),
        ("max.s32", -9, 1),
        ("min.u32", 7, 1),
        ("or.b32", 6, 7),
        ("and.b32", 7, 1),
        ("exch.b32", 7, 1),
    ],
)
def test_atom_and_red_act_lane_after_lane(op, start, wanted):
    for name in ("atom", "red"):
        if (name, op) == ("red", "exch.b32"):
            continue
        data = np.array([start], dtype=np.int32).view(np.uint32)
        first = "%r1, " if name == "atom" else ""
        launch(
            module(
                f"ld.param.b64 %d0, [a]; mov.b32 %r0, 1; {name}.release.gpu.global.{op} {first}[%d0], %r0;",
                ("a",),
            ),
            (data,),
        )
        assert data.view(np.int32)[0] == wanted


def test_atom_returns_what_was_there():
    found = per_lane("atom.global.add.u32 %r8, [%d62], 2;", [(0,)] * 2)
    assert found[:, 0].tolist() == [0xDEADBEEF, 0xDEADBEEF]  # each lane has a place of its own


def test_cvta_and_mapa_keep_the_rank_of_a_shared_address():
    found = per_lane("mov.b32 %r0, smem; cvt.u64.u32 %d0, %r0; cvta.shared.u64 %d1, %d0; cvta.to.shared::cluster.u64 %d2, %d1; cvt.u32.u64 %r8, %d2;"
                     "mapa.shared::cluster.u32 %r9, %r0, 3;", [(0,)])  # fmt: skip
    assert found[0, :2].tolist() == [1024, 3 << 24 | 1024]


@pytest.mark.parametrize("transposed", [False, True])
def test_stmatrix_places_fragments_as_the_isa_draws_them(transposed):
    """9.7.14.5.16: lane t holds row t / 4, columns 2 * (t % 4) and the next of each 8 x 8 matrix."""
    matrices = np.arange(4 * 64, dtype=np.uint16).reshape(4, 8, 8)
    words = np.ascontiguousarray(matrices.reshape(4, 32, 2)).view(np.uint32).reshape(4, 32)
    given = np.ascontiguousarray(words.T)
    result = np.zeros((32, 8), dtype=np.uint16)
    trans = ".trans" if transposed else ""
    body = f"""
    mov.u32 %r0, %tid.x; mul.wide.u32 %d2, %r0, 16; ld.param.b64 %d0, [a]; add.s64 %d0, %d0, %d2;
    ld.global.v4.b32 {{%r1, %r2, %r3, %r4}}, [%d0];
    shl.b32 %r5, %r0, 4; add.s32 %r5, %r5, 1024;
    stmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 [%r5], {{%r1, %r2, %r3, %r4}};
    ld.shared.v4.b32 {{%r6, %r7, %r8, %r9}}, [%r5];
    ld.param.b64 %d1, [b]; add.s64 %d1, %d1, %d2; st.global.v4.b32 [%d1], {{%r6, %r7, %r8, %r9}};"""
    launch(module(body, ("a", "b")), (given, result), shared=1024)
    wanted = matrices.transpose(0, 2, 1) if transposed else matrices
    assert np.array_equal(result.reshape(4, 8, 8), wanted)


def test_inputs_may_not_be_written():
    from harness.interpreter.memory import GlobalMemory

    memory = GlobalMemory()
    address = memory.add_array(np.zeros(4, dtype=np.uint32), "x", writable=False)
    assert memory.load(address, 4, None) == 0
    with pytest.raises(MemoryFaultError, match=r"write of 4 bytes .* an input"):
        memory.store(address, 1, 4, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("frobnicate.b32 %r1, %r2;", "opcode frobnicate.b32 is not modelled"),
        ("add.s32.sometimes %r1, %r2, %r3;", "modifier .sometimes is not modelled"),
        ("add.rz.f32 %r1, %r2, %r3;", r"one of \.f32.* is expected|modifier .rz is not modelled"),
        ("ld.local.b32 %r1, [%r2];", r"one of \.param, \.global, \.shared"),
        ("mov.b32 %r1, %clock;", None),
        ("cvt.rp.satfinite.ue8m0x2.f32 %h1, %r1, %r2;", "with two sources is not modelled"),
        ("mov.b32 %r1, nowhere;", "operand 'nowhere' is not understood"),
        ("mov.b32 %q1, 1;", "destination '%q1' is no declared register"),
        ("mbarrier.try_wait.shared.b64 %p0, [%r1], %d1;", "waiting by state is not modelled"),
        ("tcgen05.shift.cta_group::1.down [%r1];", r"one of \.alloc"),
        ("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%d1, {%r1, %r2}];", "not modelled"),
        ("cp.reduce.async.bulk.global [%d1], [%r1], 16;", "opcode cp.reduce"),
    ],
)
def test_what_is_not_modelled_is_an_error_that_names_it(text, message):
    data = np.zeros(1, dtype=np.uint32)
    with pytest.raises(UnsupportedPtxError, match=message or "special register %clock is not modelled"):
        launch(module("mov.b32 %r1, 0; mov.b32 %r2, 0;" + text, ("a",)), (data,))


def test_statements_that_are_no_ptx_are_refused():
    with pytest.raises(UnsupportedPtxError, match=r"register type \.b128"):
        launch(module(".reg .b128 %q<2>;"))
    with pytest.raises(UnsupportedPtxError, match="directive not understood"):
        launch(module(".local .align 4 .b8 x[4];"))
    with pytest.raises(UnsupportedPtxError, match="one entry"):
        launch("// nothing here")


def test_branches_diverge_and_meet_again():
    """Lanes loop a different number of times; registers of waiting lanes keep their values."""
    found = per_lane("""
    mov.b32 %r9, 100; mov.b32 %r8, 0;
    LOOP: setp.ge.s32 %p0, %r8, %r0; @%p0 bra DONE;
    add.s32 %r8, %r8, 1; add.s32 %r9, %r9, %r8; bra.uni LOOP;
    DONE: add.s32 %r10, %r9, 1;""", [(n,) for n in range(6)])  # fmt: skip
    assert found[:, 0].tolist() == list(range(6))
    assert found[:, 2].tolist() == [101 + n * (n + 1) // 2 for n in range(6)]


def test_lanes_may_return_early():
    data = np.zeros(32, dtype=np.uint32)
    body = "mov.u32 %r0, %tid.x; setp.gt.u32 %p0, %r0, 4; @%p0 exit; mul.wide.u32 %d1, %r0, 4; ld.param.b64 %d0, [a]; add.s64 %d0, %d0, %d1; mov.b32 %r1, 1; st.global.b32 [%d0], %r1;"
    launch(module(body, ("a",)), (data,))
    assert data.tolist() == [1] * 5 + [0] * 27


def test_a_trap_and_a_shuffle_of_missing_lanes_are_errors():
    with pytest.raises(ProtocolError, match="trap at line"):
        launch(module("trap;"))
    with pytest.raises(ProtocolError, match="names the lanes 0xffffffff, active are 0x00000001"):
        launch(
            module(
                "mov.u32 %r0, %tid.x; setp.ne.u32 %p0, %r0, 0; @%p0 bra L; shfl.sync.idx.b32 %r1, %r0, 0, 31, -1; L:"
            )
        )


@pytest.mark.parametrize("op", [
    "prefetch.tensormap [%d0];", "prefetchu.L1 [%d0];", "applypriority.global.L2 [%d0];", "discard.global.L2 [%d0];",
    "griddepcontrol.wait;", "griddepcontrol.launch_dependents;", "setmaxnreg.inc.sync.aligned.u32 240;",
    "membar.gl;", "fence.acq_rel.cluster;", "fence.mbarrier_init.release.cluster;",
])  # fmt: skip
def test_what_only_changes_speed_or_order_changes_neither_memory_nor_registers(op):
    """Registers of every width come back as they were, in lanes of their own; so does global and shared memory."""
    data = np.zeros((32, 6), dtype=np.uint32)
    data[:, 0] = np.arange(32) * 3 + 1
    body = f"""
    mov.u32 %r0, %tid.x; ld.param.b64 %d0, [a]; mul.wide.u32 %d1, %r0, 24; add.s64 %d2, %d0, %d1; ld.global.b32 %r1, [%d2];
    shl.b32 %r2, %r0, 2; add.s32 %r2, %r2, 1024; st.shared.b32 [%r2], %r1;
    cvt.u16.u32 %h0, %r1; setp.lt.u32 %p0, %r0, 5; cvt.u64.u32 %d3, %r1;
    {op}
    ld.shared.b32 %r3, [%r2]; selp.b32 %r4, 1, 0, %p0; cvt.u32.u16 %r5, %h0; cvt.u32.u64 %r6, %d3;
    st.global.b32 [%d2+4], %r1; st.global.b32 [%d2+8], %r3; st.global.b32 [%d2+12], %r4; st.global.b32 [%d2+16], %r5;
    st.global.b32 [%d2+20], %r6;"""
    value = data[:, 0].copy()
    launch(module(body, ("a",)), (data,), shared=128)
    assert np.array_equal(data, np.stack([value, value, value, np.arange(32) < 5, value, value], axis=1))


@pytest.mark.parametrize(
    ("fence", "seen"),
    [
        ("", False),
        ("membar.gl;", False),
        ("fence.acq_rel.cta;", False),
        ("fence.proxy.async.shared::cta;", True),
    ],
)
def test_only_the_proxy_fence_shows_stores_to_the_asynchronous_units(fence, seen):
    cta = left_behind(module(f"mov.b32 %r0, smem; mov.b32 %r1, 7; st.shared.b32 [%r0], %r1; {fence}")).cta
    words = (cta.shared.generic.view(np.uint32)[256], cta.shared.proxy.view(np.uint32)[256])
    assert words == (7, 7 if seen else 0xFFFFFFFF)
