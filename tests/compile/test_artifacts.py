"""Numbers out of PTX, cubins, the report of ptxas and the host module."""

from __future__ import annotations

import struct
import types

import pytest

from harness.compile.cubin import CubinError, Usage, read_cubin
from harness.compile.measure import dynamic_shared_bytes, measure, spill_bytes
from harness.compile.ptx import count_features, count_opcodes, threads_of

PTX = """\
.version 9.4
.target sm_100a
.extern .shared .align 1024 .b8 __dynamic_shmem__0[];
.visible .entry kernel(
    .param .align 64 .b8 kernel_param_0[128]
)
.maxntid 128, 2, 1
{
    .reg .b32 %r<5>;
$L__BB0_1: // tcgen05.mma in a comment is none
    elect.sync %r1|%p1, -1;
    @%p1 bra.uni $L__BB0_1;
    @!%p2 mbarrier.arrive.expect_tx.shared.b64 _, [%r2], %r3;
    cp.async.bulk.tensor.3d.shared::cta.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%r1], [%rd1, {%r2}], [%r3], %rd2;
    cp.async.bulk.tensor.3d.cta_group::2.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%r1], [%rd1, {%r2}], [%r3], %rs1;
    cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%rd1, {%r2}], [%r3];
    cp.async.bulk.commit_group;
    tcgen05.mma.cta_group::2.kind::mxf8f6f4.block_scale.block32 [%r2], %rd1, %rd2, %r3, [%r4], [%r5], %p1;
    tcgen05.ld.sync.aligned.32x32b.x2.b32 {%r1, %r2}, [%r3];
    cvt.rn.satfinite.e2m1x2.f32 %rs1, %f1, %f2;
    st.local.b32 [%rd1], %r1;
    add.s32 %r1, %r1, 1;
    ret;
}
"""


def test_features_are_counted_by_instruction_and_by_qualifier():
    assert count_features(PTX) == {
        "multicast::cluster": 1, "block_scale 32": 1, "cp.async.bulk groups": 1, "cp.async.bulk.tensor load": 2,
        "cp.async.bulk.tensor store": 1, "cta_group::2": 2, "cvt e2m1": 1, "elect.sync": 1, "local memory": 1,
        "mbarrier": 1, "tcgen05.ld": 1, "tcgen05.mma mxf8f6f4": 1,
    }  # fmt: skip


def test_labels_directives_and_comments_are_no_instructions():
    opcodes = count_opcodes(PTX)
    assert sum(opcodes.values()) == 13
    assert opcodes["add.s32"] == opcodes["bra.uni"] == 1
    assert threads_of(PTX) == 256
    assert threads_of("ret;") == 0


@pytest.mark.parametrize(("registers", "stack", "shared"), [(40, 0, 0), (168, 8, 16), (255, 4096, 49_152)])
def test_a_cubin_says_what_its_kernel_needs(cubin, registers, stack, shared):
    assert read_cubin(cubin(registers, stack, shared, code=384)) == Usage(registers, stack, shared, 384)


def test_a_damaged_cubin_is_an_error_that_names_it(cubin):
    whole = cubin()
    with pytest.raises(CubinError, match="64-bit little-endian ELF"):
        read_cubin(b"PTX text, no cubin")
    for length in range(64, len(whole) - 1, 7):
        with pytest.raises(CubinError, match="cut short or damaged"):
            read_cubin(whole[:length])
    with pytest.raises(CubinError, match="longer than its section"):
        read_cubin(cubin(extra=struct.pack("<BBH", 4, 0x2F, 60_000)))


def test_spills_are_stores_and_loads_of_all_kernels_and_silence_is_not_zero():
    line = "ptxas . 8 bytes stack frame, {} bytes spill stores, {} bytes spill loads\n"
    assert spill_bytes(line.format(0, 0)) == 0
    assert spill_bytes(line.format(8, 12) + line.format(4, 0)) == 24
    assert spill_bytes("") is None


def test_dynamic_shared_memory_is_the_constant_of_the_launch():
    struct_type = "!llvm.struct<(array<3 x i32>, array<3 x i32>, i64, ptr, ptr, i32)>"
    launch = (
        "  %139 = llvm.getelementptr %136[0, 1, 0] : (!llvm.ptr) -> !llvm.ptr, {0}\n  llvm.store %29, %139 : i32, !llvm.ptr\n"
        "  %142 = llvm.getelementptr %136[0, 2] : (!llvm.ptr) -> !llvm.ptr, {0}\n  llvm.store %30, %142 : i64, !llvm.ptr\n"
    ).replace("{0}", struct_type)
    constant = "  %30 = llvm.mlir.constant(226304 : i64) : i64\n"
    assert dynamic_shared_bytes(constant + launch) == 226_304
    assert dynamic_shared_bytes(launch.replace("%30", "%arg3")) is None
    assert dynamic_shared_bytes("") is None


def test_a_function_without_ptx_is_an_error(cubin):
    function = types.SimpleNamespace(__ptx__=None, __cubin__=cubin(), ir_module=None)
    with pytest.raises(ValueError, match="CUTE_DSL_KEEP"):
        measure(function, "")
    function.__ptx__ = PTX
    result = measure(function, "")
    assert (result.status, result.shared_bytes, result.spill_bytes, result.threads) == (
        "compiled",
        None,
        None,
        256,
    )
