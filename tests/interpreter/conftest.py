"""Small PTX kernels around one instruction, and a tensor map builder."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from harness.interpreter.cluster import Cluster, Launch
from harness.interpreter.launch import ClusterRun, run_launch
from harness.interpreter.memory import GlobalMemory
from harness.interpreter.parser import parse_ptx
from harness.interpreter.program import Program
from harness.interpreter.schedule import Schedule, late

HEAD = ".version 9.0\n.target sm_100a\n.address_size 64\n"
REGISTERS = ".reg .pred %p<32>; .reg .b16 %h<32>; .reg .b32 %r<128>; .reg .b64 %d<64>;\n"
WORDS_IN, WORDS_OUT = 8, 4


def module(body, parameters=(), shared=True):
    """A PTX module of one entry `k` with 64-bit parameters."""
    declared = ", ".join(f".param .b64 {name}" for name in parameters)
    dynamic = ".extern .shared .align 1024 .b8 smem[];\n" if shared else ""
    return f"{HEAD}{dynamic}.visible .entry k({declared})\n{{\n{REGISTERS}{body}\nret;\n}}\n"


def launch(ptx, arrays=(), *, threads=32, grid=1, cluster=1, shared=0, schedule=None, raw=()):
    """Run a module; arrays are NumPy arrays whose addresses are its parameters, raw are parameters as they are."""
    memory = GlobalMemory()
    addresses = [memory.add_array(array, f"array {number}") for number, array in enumerate(arrays)]
    parameters = b"".join(struct.pack("<Q", a) for a in [*addresses, *raw])
    program = Program(parse_ptx(ptx))
    run_launch(
        program,
        Launch(memory, (grid, 1, 1), (threads, 1, 1), (cluster, 1, 1), shared, parameters),
        schedule or late(),
    )


def left_behind(ptx, *, shared=64):
    """Run a module of one warp without parameters; return the warp, for what it left in its CTA."""
    cluster = Cluster(
        Launch(GlobalMemory(), (1, 1, 1), (32, 1, 1), (1, 1, 1), shared, b""), (0, 0, 0), late()
    )
    run = ClusterRun(Program(parse_ptx(ptx)), cluster)
    run.run()
    return run.warps[0]


def per_lane(code, rows, *, uniform=False):
    """Run code in 32 lanes: words of `rows` (cycled over the lanes) are in %r0.. , %r8 to %r11 come back, `(rows, 4)`."""
    width = max(len(row) for row in rows)
    given = np.zeros((32, WORDS_IN), dtype=np.uint32)
    for lane in range(32):
        row = rows[0] if uniform else rows[lane % len(rows)]
        given[lane, : len(row)] = [value & 0xFFFFFFFF for value in row]
    result = np.full((32, WORDS_OUT), 0xDEADBEEF, dtype=np.uint32)
    loads = "".join(f"ld.global.b32 %r{i}, [%d60+{4 * i}];\n" for i in range(width))
    same = "".join(f"shfl.sync.idx.b32 %r{i}, %r{i}, 0, 31, -1;\n" for i in range(width)) if uniform else ""
    clear = "".join(f"mov.b32 %r{i}, 0;\n" for i in range(8, 12))
    stores = "".join(f"st.global.b32 [%d62+{4 * i}], %r{8 + i};\n" for i in range(WORDS_OUT))
    body = f"""
    mov.u32 %r100, %tid.x;
    ld.param.b64 %d60, [in]; ld.param.b64 %d62, [out];
    mul.wide.u32 %d61, %r100, {4 * WORDS_IN}; add.s64 %d60, %d60, %d61;
    mul.wide.u32 %d63, %r100, {4 * WORDS_OUT}; add.s64 %d62, %d62, %d63;
    {loads}{same}{clear}{code}
    {stores}"""
    launch(module(body, ("in", "out")), (given, result))
    return result[: 1 if uniform else len(rows)]


def tensor_map(array, box, *, code, bits, swizzle=0, atom32=False, extents=None):
    """The 128 bytes of a map over a C-contiguous array of bytes, `extents` in elements, innermost first."""
    block = bytearray(128)
    shape = array.shape[::-1]
    extents = extents or (shape[0] * 8 // bits, *shape[1:])
    strides, size = [], shape[0]
    for extent in shape[1:]:
        strides.append(size)
        size *= extent
    control = (
        0x2
        | 1 << 18
        | (len(box) - 1) << 4
        | code << 7
        | {0: 0, 32: 1, 64: 2, 128: 3}[swizzle] << 13
        | atom32 << 19
    )
    struct.pack_into("<QI", block, 0, array.ctypes.data, control)
    for number, stride in enumerate(strides[: len(box) - 1]):
        struct.pack_into("<I", block, 12 + 4 * number, stride >> 4)
    for number, extent in enumerate(extents):
        struct.pack_into("<I", block, 32 + 4 * number, extent - 1)
    for number, size in enumerate(box):
        block[55 + number] = size - 1
    return np.frombuffer(bytes(block), dtype=np.uint8).copy()


@pytest.fixture
def schedules():
    """The latest schedule and a few drawn ones."""
    from harness.interpreter.schedule import seeded

    return [late(), *(seeded(seed) for seed in range(1, 9))]


def eager(seed=0):
    """A schedule that runs asynchronous operations as soon as it can."""
    import random

    return Schedule(seed, asynchronous=1.0, burst=1, _random=random.Random(seed))
