"""Make FlashInfer believe that it runs on a Blackwell GPU, and stop every call where its kernel is compiled.

What is replaced, all of it in torch and cutlass and none in FlashInfer: the GPU's properties, the current stream, two
hardware queries, and `cutlass.cute.compile`, which compiles as ever and then hands the result out instead of returning,
so that nothing is launched. A version of cutlass that lacks one of these names raises `StandInError`, which says which.
"""

from __future__ import annotations

import contextlib
import io
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SM_COUNT = 148  # of a B200 and a B300: kernels are compiled for it, since it bounds their grid
SHARED_PER_SM = 233_472  # bytes of shared memory of a streaming multiprocessor, compute capability 10.x
_CAPABILITY = {"sm_100a": (10, 0), "sm_103a": (10, 3)}


class StandInError(Exception):
    """This version of torch or cutlass lacks something that has to be replaced."""


class CompiledSignal(BaseException):
    """Carries a compiled kernel out of the call. Not an Exception: FlashInfer must not catch it."""

    def __init__(self, function: Any) -> None:
        super().__init__("compiled")
        self.function = function


@dataclass
class Compiler:
    """The replaced `cutlass.cute.compile`. `entered` tells a refusal (before it) from a failure (inside it)."""

    real: Any
    entered: bool = False

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Compile, then leave the whole call with the result."""
        self.entered = True
        raise CompiledSignal(self.real(*arguments, **options))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __getitem__(self, options: Any) -> Compiler:
        """`cute.compile[options](...)`."""
        outer = self

        class _WithOptions(Compiler):
            def __call__(self, *arguments: Any, **rest: Any) -> Any:
                outer.entered = True
                return super().__call__(*arguments, **rest)

        return _WithOptions(self.real[options])


def pretend(arch: str) -> Compiler:
    """Replace what asks for a GPU, for the rest of this process.

    Args:
        arch: sm_100a or sm_103a; the environment variable CUTE_DSL_ARCH must already say the same.

    Raises:
        StandInError: a name that has to be replaced is not there.
    """
    import cutlass
    import cutlass.cute
    import torch
    from cutlass.cutlass_dsl import cutlass as dsl

    major, minor = _CAPABILITY[arch]
    properties = types.SimpleNamespace(
        name=f"{arch} (none here)", major=major, minor=minor, multi_processor_count=SM_COUNT,
        total_memory=192 << 30, shared_memory_per_multiprocessor=SHARED_PER_SM,
    )  # fmt: skip
    _replace(torch.cuda, "get_device_properties", lambda _device=None: properties)
    _replace(torch.cuda, "get_device_capability", lambda _device=None: (major, minor))
    _replace(torch.cuda, "current_stream", lambda _device=None: types.SimpleNamespace(cuda_stream=0))
    hardware = _get(cutlass, "utils.HardwareInfo")
    _replace(hardware, "__init__", lambda _self, *_arguments: None)
    _replace(hardware, "get_max_active_clusters", lambda _self, size, *_rest: SM_COUNT // size)
    # The one attribute that the compiler asks of a device: shared memory per multiprocessor.
    _replace(_get(dsl, "cuda_helpers"), "get_device_attribute", lambda _attribute, *_rest: SHARED_PER_SM)
    compiler = Compiler(_get(cutlass, "cute.compile"))
    _replace(cutlass.cute, "compile", compiler)
    return compiler


def tensor_maker() -> Callable[..., Any]:
    """Return `tensor(*shape, dtype="uint8")`: a meta tensor that says it is on the GPU, with an aligned address."""
    import torch

    class OnGpu(torch.Tensor):
        """A tensor with a shape, strides, a type and no memory."""

        @property
        def device(self) -> torch.device:  # type: ignore[override]
            return torch.device("cuda", 0)

        @property
        def is_cuda(self) -> bool:  # type: ignore[override]
            return True

        def data_ptr(self) -> int:
            return 1 << 12

        def to(self, *_arguments: Any, **_options: Any) -> Any:
            return self

        def cuda(self, *_arguments: Any, **_options: Any) -> Any:
            return self

    def tensor(*shape: int, dtype: str = "uint8") -> Any:
        return torch.empty(*shape, dtype=getattr(torch, dtype), device="meta").as_subclass(OnGpu)

    return tensor


def compile_call(compiler: Compiler, call: Callable[[], None]) -> tuple[Any, str]:
    """Run a call until its kernel is compiled.

    Returns:
        What cutlass.cute.compile returned, and what it printed (the report of ptxas).

    Raises:
        RuntimeError: the call ended without compiling anything.
        Exception: whatever the call raised; `compiler.entered` says whether compilation had begun.
    """
    compiler.entered = False
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            call()
    except CompiledSignal as compiled:
        return compiled.function, printed.getvalue()
    raise RuntimeError("the call returned without compiling a kernel")


def _get(root: Any, path: str) -> Any:
    found = root
    for name in path.split("."):
        if not hasattr(found, name):
            raise StandInError(
                f"{root.__name__} has no {path}: harness/compile/no_gpu.py must learn this version"
            )
        found = getattr(found, name)
    return found


def _replace(owner: Any, name: str, value: Any) -> None:
    _get(owner, name)
    setattr(owner, name, value)
