"""FlashInfer's CuTe DSL path on CPU tensors: which of its questions about a device are answered, and whether it can run here.

FlashInfer's Python, the CuTe DSL compiler and the compiled host function run as they are; only what asks for a GPU is
answered here, and the launch goes to harness.interpreter. Read docs/cutedsl-cpu.md first.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.candidates.cutedsl_support import function_support, import_quietly, load
from harness.candidates.known_kernels import (
    COMPILER,
    CUDA_QUANTIZERS,
    CUTEDSL_QUANTIZERS,
    GEMM,
    not_yet_known,
    ptx_fingerprint,
    source_fingerprint,
)
from harness.candidates.support import Support, supported, unsupported
from harness.extras import install_hint

if TYPE_CHECKING:
    from torch import Tensor

    from harness.interpreter.host import Device
    from harness.interpreter.schedule import Schedule

CAPABILITY = (10, 0)
SMS_OF_A_B200 = 148
SM_COUNT = 2  # how many a call uses that does not say: every CTA costs milliseconds; two of them still share the work of a persistent kernel

# The smoke problem's kernels: one CTA, and a pair of CTAs on one tile, which takes other paths through the compiler.
SMOKE_OPTIONS: tuple[dict[str, Any], ...] = ({}, {"mma_tiler_mn": (256, 128), "cluster_shape_mn": (2, 1)})


@dataclass(frozen=True)
class Smoke:
    """What became of the smoke problem.

    Attributes:
        problem: what is wrong, "" for nothing.
        ptx: of the kernels that were compiled, in the order of `SMOKE_OPTIONS`.
    """

    problem: str
    ptx: tuple[str, ...]


def cpu_support(name: str) -> Support:
    """Return whether the interpreted path can run here: packages, the function's signature, and a smoke problem.

    Any version may: what it is made of is looked up for `new_version` only.

    Args:
        name: the candidate's name, for the reason.
    """
    for distribution, module in (
        ("flashinfer-python", "flashinfer"),
        ("nvidia-cutlass-dsl", "cutlass"),
        ("numpy", "numpy"),
    ):
        if importlib.util.find_spec(module) is None:
            return unsupported(
                f"{name} needs {distribution}, which is not installed; run: {install_hint('cutedsl')}"
            )
    called = function_support("grouped_gemm_nt_masked")
    if not called:
        return unsupported(f"{name}: {called.reason}")
    problem = smoke().problem
    if not problem:
        return supported()
    new = new_version("emulated")
    return unsupported(f"{name}: its smoke problem failed: {problem}{f' ({new})' if new else ''}")


def new_version(quantizers: str) -> str:
    """Return one sentence that names what is used here and in no row of the table of known kernels, "" for nothing.

    Args:
        quantizers: "interpreted", "cutedsl" or "emulated": which of the package's quantizers are used.
    """
    used = {"interpreted": (CUDA_QUANTIZERS,), "cutedsl": (CUTEDSL_QUANTIZERS,)}.get(quantizers, ())
    return not_yet_known(fingerprints(GEMM, *used))


def fingerprints(*parts: str) -> dict[str, str]:
    """Return the fingerprints of parts of the installed packages, and of the compiler by what it makes of the smoke problem."""
    found = {part: source_fingerprint(part) for part in parts}
    if any(found.values()) and smoke().ptx:
        found[COMPILER] = ptx_fingerprint(smoke().ptx)
    return found


@functools.cache
def smoke() -> Smoke:
    """Run one 128 x 128 x 128 GEMM through the public call, by each of `SMOKE_OPTIONS`."""
    import torch

    from harness.candidates import layouts
    from harness.interpreter.host import device, patched
    from reference.nvfp4 import decode_blocks

    draw = torch.Generator().manual_seed(5)
    codes = [torch.randint(0, 16, (1, 128, 128), dtype=torch.uint8, generator=draw) for _ in range(2)]
    scales = [torch.randint(0x30, 0x48, (1, 128, 8), dtype=torch.uint8, generator=draw) for _ in range(2)]
    a, b = (decode_blocks(c[0], s[0], torch.float64) for c, s in zip(codes, scales, strict=True))
    exact = (a @ b.T).float()
    operands = [(layouts.operand(c), layouts.scales(s)) for c, s in zip(codes, scales, strict=True)]
    masked_m = torch.tensor([128], dtype=torch.int32)
    ptx: list[str] = []

    def look(text: str) -> str:
        ptx.append(text)
        return text

    for options in SMOKE_OPTIONS:
        out = layouts.empty_out(1, 128, 128, torch.float32, "cpu", float("nan"))
        try:
            with patched(device(), "rewrite", look):
                gemm(operands[0], operands[1], out, masked_m, None, options)
        except Exception as error:  # noqa: BLE001 - whatever another version does differently is the reason
            return Smoke(f"{type(error).__name__}: {error}", tuple(ptx))
        if wrong := int((out[:, :, 0] != exact).sum()):
            text = f"{wrong} of {out.numel()} elements differ from the exact result"
            return Smoke(f"{text}{f' with {options}' if options else ''}", tuple(ptx))
    return Smoke("", tuple(ptx))


def gemm(
    lhs: tuple[Tensor, Tensor],
    rhs: tuple[Tensor, Tensor],
    out: Tensor,
    masked_m: Tensor,
    alpha: Tensor | None,
    options: dict[str, Any],
    *,
    schedule: Callable[[], Schedule] | None = None,
) -> None:
    """Call `flashinfer.gemm.grouped_gemm_nt_masked` on CPU tensors.

    Args:
        lhs: A and its scales, as FlashInfer takes them.
        rhs: B and its scales.
        out: written in place.
        masked_m: `(l,)` int32.
        alpha: `(l,)` float32 or None.
        options: further keyword arguments, over the defaults of NVFP4.
        schedule: makes the schedule of each launch; None: asynchronous units as late as possible.

    Raises:
        InterpreterError: the kernel did something wrong, or something that is not modelled.
    """
    grouped_gemm_nt_masked = load("grouped_gemm_nt_masked")
    named = {"a": lhs[0], "a_scale": lhs[1], "b": rhs[0], "b_scale": rhs[1], "masked_m": masked_m}
    arguments: dict[str, Any] = {
        "ab_dtype": "float4_e2m1fn",
        "sf_dtype": "float8_e4m3fn",
        "c_dtype": str(out.dtype).removeprefix("torch."),
        "sf_vec_size": 16,
        "sm_count": SM_COUNT,
    }
    if alpha is not None:
        named["alpha"] = alpha
        arguments |= {"alpha": alpha.view(1, 1, -1), "alpha_dtype": "float32"}
    if options.get("dst_signals") is not None:
        named_out = {"out": out, "dst_signals": options["dst_signals"]}
    else:
        named_out = {"out": out}
    with on_cpu(named, named_out, schedule=schedule), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package about itself, while it compiles
        grouped_gemm_nt_masked(lhs, rhs, out, masked_m, **(arguments | options))


@contextlib.contextmanager
def on_cpu(
    inputs: dict[str, Tensor], outputs: dict[str, Tensor], *, schedule: Callable[[], Schedule] | None = None
) -> Iterator[Device]:
    """Let FlashInfer's CuTe DSL kernels run on CPU tensors until the context ends.

    Args:
        inputs: tensors that kernels may read, by the name for messages.
        outputs: tensors that they may write too.
        schedule: makes the schedule of each launch.
    """
    from cuda.bindings.driver import CUstream

    from harness.interpreter import host
    from harness.interpreter.memory import GlobalMemory
    from harness.interpreter.schedule import late

    blackwell, wrapper = (
        import_quietly(f"flashinfer.gemm.kernels.grouped_gemm_masked_{name}")
        for name in ("blackwell", "wrapper")
    )
    device = host.device()
    device.memory = GlobalMemory()
    device.schedule = schedule or late
    for writable, tensors in ((False, inputs), (True, outputs)):
        for name, tensor in tensors.items():
            device.memory.add(tensor.data_ptr(), _span(tensor), name, writable=writable)
    answers = (
        (wrapper, "get_compute_capability", lambda _: CAPABILITY),
        (blackwell, "get_compute_capability", lambda _: CAPABILITY),
        (wrapper, "get_num_sm", lambda _: SM_COUNT),
        (blackwell, "get_num_sm", lambda _: SM_COUNT),
        (blackwell, "get_max_active_clusters", lambda size: SMS_OF_A_B200 // size),
        (sys.modules["cutlass.torch"], "current_stream", lambda: CUstream(0)),
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(host.interpreted(device))
        for target, name, value in answers:
            stack.enter_context(host.patched(target, name, value))
        yield device


def _span(tensor: Tensor) -> int:
    """Return the bytes from a tensor's first to its last element, strides counted."""
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()
