"""FlashInfer's CuTe DSL path on CPU tensors: which of its questions about a device are answered, and which versions this knows.

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
from typing import TYPE_CHECKING, Any

from harness.candidates.cutedsl_support import function_support, import_quietly, installed_version, load
from harness.candidates.support import Support, supported, unsupported
from harness.extras import install_hint

if TYPE_CHECKING:
    from torch import Tensor

    from harness.interpreter.host import Device
    from harness.interpreter.schedule import Schedule

# (flashinfer-python, nvidia-cutlass-dsl): the pairs whose host code and PTX were seen to be understood.
VERSIONS = (("0.7.2.post1", "4.8.1"),)
CAPABILITY = (10, 0)
SMS_OF_A_B200 = 148
SM_COUNT = 2  # how many a call uses that does not say: every CTA costs milliseconds; two of them still share the work of a persistent kernel


def cpu_support(name: str) -> Support:
    """Return whether the interpreted path can run here: packages, exact versions, and a smoke problem.

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
    found = (installed_version("flashinfer-python"), installed_version("nvidia-cutlass-dsl"))
    if found not in VERSIONS:
        known = "; ".join(f"flashinfer-python {a} with nvidia-cutlass-dsl {b}" for a, b in VERSIONS)
        return unsupported(
            f"{name} knows {known}; found flashinfer-python {found[0]} with nvidia-cutlass-dsl {found[1]}, whose "
            "compiled host code and PTX nobody has compared with the interpreter"
        )
    called = function_support("grouped_gemm_nt_masked")
    if not called:
        return unsupported(f"{name}: {called.reason}")
    problem = smoke_problem()
    return supported() if not problem else unsupported(f"{name}: its smoke problem failed: {problem}")


@functools.cache
def smoke_problem() -> str:
    """Run one 128 x 128 x 128 GEMM through the public call; return what is wrong with it, "" for nothing."""
    import torch

    from harness.candidates import layouts
    from reference.nvfp4 import decode_blocks

    draw = torch.Generator().manual_seed(5)
    codes = [torch.randint(0, 16, (1, 128, 128), dtype=torch.uint8, generator=draw) for _ in range(2)]
    scales = [torch.randint(0x30, 0x48, (1, 128, 8), dtype=torch.uint8, generator=draw) for _ in range(2)]
    out = layouts.empty_out(1, 128, 128, torch.float32, "cpu", float("nan"))
    operands = [(layouts.operand(c), layouts.scales(s)) for c, s in zip(codes, scales, strict=True)]
    masked_m = torch.tensor([128], dtype=torch.int32)
    try:
        gemm(operands[0], operands[1], out, masked_m, None, {})
    except Exception as error:  # noqa: BLE001 - whatever another version does differently is the reason
        return f"{type(error).__name__}: {error}"
    a, b = (decode_blocks(c[0], s[0], torch.float64) for c, s in zip(codes, scales, strict=True))
    wrong = int((out[:, :, 0].double() != (a @ b.T).float().double()).sum())
    return f"{wrong} of {out.numel()} elements differ from the exact result" if wrong else ""


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
