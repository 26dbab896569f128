"""From what the compiler handed out to a CompileResult: PTX, cubin, the report of ptxas, and the module of the host code."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from harness.compile.cubin import read_cubin
from harness.compile.ptx import count_features, threads_of
from harness.records.parts.compile import CompileResult

_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
# The launch configuration of the host code is cudaLaunchConfig_t: field 2 is the dynamic shared memory.
_CONFIG = re.escape("struct<(array<3 x i32>, array<3 x i32>, i64, ptr, ptr, i32)>")
_DYNAMIC = re.compile(
    rf"(%\w+) = llvm\.getelementptr %\w+\[0, 2\][^\n]*{_CONFIG}\s*\n\s*llvm\.store (%\w+), \1 : i64"
)


def measure(function: Any, report: str) -> CompileResult:
    """Describe a compiled kernel.

    Args:
        function: what cutlass.cute.compile returned; with CUTE_DSL_KEEP=ptx,cubin it carries both texts.
        report: what was printed meanwhile: the report of ptxas, with CUTE_DSL_COMPILER_OPT=remarks{ptx}.

    Raises:
        ValueError: no PTX or no cubin came with it.
        CubinError: the cubin cannot be read.
    """
    text, binary = function.__ptx__, function.__cubin__
    if not text or not binary:
        raise ValueError("cutlass.cute.compile returned neither PTX nor a cubin: is CUTE_DSL_KEEP obeyed?")
    usage = read_cubin(binary)
    dynamic = dynamic_shared_bytes(str(function.ir_module)) if function.ir_module is not None else None
    return CompileResult(
        "compiled",
        registers=usage.registers,
        stack_bytes=usage.stack_bytes,
        spill_bytes=spill_bytes(report),
        shared_bytes=None if dynamic is None else dynamic + usage.shared_bytes,
        threads=threads_of(text),
        code_bytes=usage.code_bytes,
        ptx_lines=text.count("\n"),
        ptx_digest=hashlib.sha256(text.encode()).hexdigest()[:16],
        features=count_features(text),
    )


def spill_bytes(report: str) -> int | None:
    """Return the bytes of spill stores and loads that ptxas reported, all kernels, or None if it reported none."""
    found = _SPILLS.findall(report)
    return sum(int(stores) + int(loads) for stores, loads in found) if found else None


def dynamic_shared_bytes(module: str) -> int | None:
    """Return the dynamic shared memory of the largest launch in a module of host code, None where it is no constant.

    Args:
        module: MLIR text in the llvm dialect, as cutlass leaves it behind.
    """
    sizes = []
    for _address, value in _DYNAMIC.findall(module):
        constant = re.search(rf"{re.escape(value)} = llvm\.mlir\.constant\((\d+) : i64\)", module)
        if constant is None:
            return None
        sizes.append(int(constant[1]))
    return max(sizes, default=None)
