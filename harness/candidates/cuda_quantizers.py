"""FlashInfer's grouped quantizers, which are CUDA C++, as PTX made by nvcc and interpreted on CPU tensors.

The kernel is the template `cvt_fp16_to_fp4_expert` of csrc/nv_internal/tensorrt_llm/kernels/quantization.cuh as the package
ships it. Its host side needs a driver, so the grid is computed here as quantization.cu:746-783 computes it, for one
multiprocessor. PTX is kept in the user's cache folder, by the text of every header and the version of nvcc.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.candidates.cutedsl_support import flashinfer_folder
from harness.candidates.support import Support, supported, unsupported

if TYPE_CHECKING:
    from torch import Tensor

_SOURCE = """#include "tensorrt_llm/kernels/quantization.cuh"
namespace tensorrt_llm::kernels {
#define KERNEL(T, EXACT) template __global__ void cvt_fp16_to_fp4_expert<T, false, EXACT>( \\
    int32_t, int32_t, T const*, float const*, uint32_t*, uint32_t*, int32_t*, bool, int);
KERNEL(__nv_bfloat16, false)
KERNEL(half, false)
KERNEL(__nv_bfloat16, true)
KERNEL(half, true)
}
"""
# The header pulls in cuBLAS and cuRAND for an error table; the kernel uses neither, and an nvcc without them will do.
_STUBS = {
    "cublas_v2.h": "#pragma once\nenum cublasStatus_t { "
    + ", ".join(
        f"CUBLAS_STATUS_{name}"
        for name in (
            "SUCCESS",
            "NOT_INITIALIZED",
            "ALLOC_FAILED",
            "INVALID_VALUE",
            "ARCH_MISMATCH",
            "MAPPING_ERROR",
            "EXECUTION_FAILED",
            "INTERNAL_ERROR",
            "NOT_SUPPORTED",
            "LICENSE_ERROR",
        )
    )
    + " };\n",
    "cublasLt.h": '#include "cublas_v2.h"\n',
    "curand_kernel.h": "#pragma once\n",
}
_HEADER = "tensorrt_llm/kernels/quantization.cuh"
# Where nvcc looks for headers, below flashinfer/data. Of these, cutlass and spdlog are other projects' and hold no arithmetic
# of the quantizers.
_INCLUDES = (
    "csrc/nv_internal", "csrc/nv_internal/include", "include", "csrc", "cutlass/include", "spdlog/include",
)  # fmt: skip
_FOREIGN = ("cutlass", "spdlog")
_DEFINES = (
    "-DENABLE_BF16",
    "-DENABLE_FP8",
    "-DENABLE_FP4",
    "-DFLASHINFER_ENABLE_FP8_E8M0",
    "-DFLASHINFER_ENABLE_FP4_E2M1",
)


def nvcc() -> str:
    """Return the path of nvcc, "" where there is none."""
    home = os.environ.get("CUDA_HOME", "")
    candidate = Path(home) / "bin" / "nvcc" if home else None
    return str(candidate) if candidate and candidate.exists() else shutil.which("nvcc") or ""


def quantizer_support() -> Support:
    """Return whether the kernels can be compiled and interpreted here, with the reason if not.

    Compiles them on the first call: seconds.
    """
    if not nvcc():
        return unsupported("no nvcc was found (CUDA_HOME, PATH)")
    problem = _smoke_problem()
    return unsupported(problem) if problem else supported()


@functools.cache
def _smoke_problem() -> str:
    """Quantize one row of 64 ones with and without silu; return why that is impossible, "" for nothing.

    Which values come out is what the rules judge.
    """
    import torch

    from harness.interpreter.errors import InterpreterError

    masked_m, scale = torch.ones(1, dtype=torch.int32), torch.ones(1)
    try:
        for silu_mul, width in ((False, 64), (True, 128)):
            grouped_quantize(
                torch.ones(1, 1, width, dtype=torch.bfloat16), masked_m, scale, silu_mul=silu_mul
            )
    except (OSError, RuntimeError) as error:
        return str(error)
    except (InterpreterError, ValueError) as error:
        return f"the smoke problem of FlashInfer's quantizers failed: {type(error).__name__}: {error}"
    return ""


def header_files(folder: Path, *, foreign: bool = False) -> list[Path]:
    """Return the package's headers that the kernel is compiled from, in the order in which they are included.

    Args:
        folder: FlashInfer's package folder.
        foreign: those of cutlass and spdlog, which the package brings, as well.

    Raises:
        OSError: the kernel's header is not there.
    """
    data = folder / "data"
    searched = [data / place for place in _INCLUDES if foreign or not place.startswith(_FOREIGN)]
    found: dict[Path, None] = {}

    def add(path: Path) -> None:
        if path in found:
            return
        found[path] = None
        text = path.read_text(encoding="utf-8", errors="replace")
        for quote, name in re.findall(r'^[ \t]*#[ \t]*include[ \t]*(["<])([^">]+)', text, re.MULTILINE):
            folders = [path.parent, *searched] if quote == '"' else searched
            at = next((f / name for f in folders if (f / name).is_file()), None)
            if at is not None:
                add(Path(os.path.normpath(at)))

    add(data / _INCLUDES[0] / _HEADER)
    return list(found)


@functools.cache
def quantizer_ptx() -> str:
    """Return the PTX of the grouped quantizers for sm_100a.

    Raises:
        RuntimeError: nvcc failed; the message has its first error.
    """
    compiler, package = nvcc(), flashinfer_folder()
    if package is None:
        raise RuntimeError("flashinfer-python is not installed: its CUDA quantizers cannot be compiled")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S603
    key = hashlib.sha256("|".join((_SOURCE, version, *_DEFINES)).encode())
    for path in header_files(package, foreign=True):
        key.update(path.read_bytes())
    cache = (
        Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        / "fp4-moe-harness"
        / f"quantizers-{key.hexdigest()[:16]}.ptx"
    )
    if cache.exists():
        return cache.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "quantizers.cu", Path(folder) / "quantizers.ptx"
        source.write_text(_SOURCE, encoding="utf-8")
        stubs = Path(folder) / "stubs"
        stubs.mkdir()
        for name, text in _STUBS.items():
            (stubs / name).write_text(text, encoding="utf-8")
        paths = [f"-I{package / 'data' / place}" for place in _INCLUDES]
        # -idirafter: the stubs are used only where the toolkit lacks the header
        command = [compiler, "-ptx", "-arch=sm_100a", "-std=c++17", *_DEFINES, *paths, "-Xcompiler", f"-idirafter,{stubs}",
                   "-o", str(result), str(source)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            error = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
            raise RuntimeError(f"nvcc cannot compile FlashInfer's quantizers: {error.strip()}")
        text = result.read_text(encoding="utf-8")
    cache.parent.mkdir(parents=True, exist_ok=True)
    partial = cache.with_suffix(f".{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(cache)
    return text


@functools.cache
def _program(dtype: str, exact: bool) -> Any:
    from harness.interpreter.parser import parse_ptx
    from harness.interpreter.program import Program

    element = {"bfloat16": "13__nv_bfloat16", "float16": "6__half"}[dtype]
    names = re.findall(r"\.entry\s+(\w*cvt_fp16_to_fp4_expert\w*)", quantizer_ptx())
    (name,) = [n for n in names if f"I{element}Lb0ELb{int(exact)}E" in n]
    return Program(parse_ptx(quantizer_ptx(), name))


def grouped_quantize(
    x: Tensor, masked_m: Tensor, global_scale_enc: Tensor, *, silu_mul: bool
) -> tuple[Tensor, Tensor]:
    """Run cvt_fp16_to_fp4_expert as scaled_fp4_grouped_quantize and silu_and_mul_scaled_nvfp4_experts_quantize do.

    Args:
        x: `(l, m, k)` bfloat16 or float16, or `(l, m, 2k)` with `silu_mul`, contiguous.
        masked_m: `(l,)` int32.
        global_scale_enc: `(l,)` float32.
        silu_mul: quantize silu(first half) * second half.

    Returns:
        packed, uint8 logical `(m, k/2, l)`, and block scales, float8_e4m3fn logical `(32, 4, rm, 4, rk, l)`; what the kernel
        does not write holds NaN patterns.

    Raises:
        ValueError: k is no multiple of 16, or a tensor has another type.
        InterpreterError: the kernel did something wrong.
    """
    import torch

    from harness.candidates import layouts
    from harness.emulation.memory import unwritten
    from harness.interpreter.cluster import Launch
    from harness.interpreter.launch import run_launch
    from harness.interpreter.memory import GlobalMemory
    from harness.interpreter.schedule import late
    from reference.layout import padded_extents

    experts, rows, width = x.shape
    k = width // 2 if silu_mul else width
    if k % 16 or x.dtype not in {torch.bfloat16, torch.float16} or global_scale_enc.dtype != torch.float32:
        raise ValueError(
            f"k must be a multiple of 16, x bfloat16 or float16, scales float32; got k={k}, {x.dtype}, {global_scale_enc.dtype}"
        )
    padded_rows, padded_columns = padded_extents(rows, k // 16, "128x4")
    packed = unwritten((experts, rows, k // 2), torch.uint8)
    swizzled = unwritten((experts, padded_rows, padded_columns), torch.uint8)
    memory = GlobalMemory()
    for name, tensor in (("x", x), ("masked_m", masked_m), ("global_scale_enc", global_scale_enc)):
        memory.add(tensor.data_ptr(), tensor.numel() * tensor.element_size(), name, writable=False)
    for name, tensor in (("packed", packed), ("block_scale", swizzled)):
        memory.add(tensor.data_ptr(), tensor.numel(), name)
    exact = os.environ.get("FLASHINFER_DISABLE_FP4_QUANT_FAST_MATH") == "1"
    program = _program(str(x.dtype).removeprefix("torch."), exact)
    grid, block = _launch_shape(experts * rows, k, experts)
    pointers = (x, global_scale_enc, packed, swizzled, masked_m)
    parameters = struct.pack(
        "<ii5QB3xi", experts * rows, k, *(t.data_ptr() for t in pointers), silu_mul, experts
    )
    run_launch(program, Launch(memory, (grid, 1, 1), (block, 1, 1), (1, 1, 1), 0, parameters), late())
    return packed.permute(1, 2, 0), layouts.as_mma(swizzled)


def _launch_shape(rows: int, k: int, experts: int, processors: int = 1) -> tuple[int, int]:
    """Return blocks and threads of a block, as invokeSiluAndMulNVFP4Quantization computes them (quantization.cu:757-774)."""
    work = max(1, k // 16)
    block = min(work, 512)
    grid = min(-(-rows * work // block), processors * (2048 // block))
    while grid <= processors and block > 64:
        grid, block = grid * 2, (block + 1) // 2
    return -(-grid // experts) * experts, block
