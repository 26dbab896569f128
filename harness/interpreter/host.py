"""Runs compiled CuTe DSL functions without a GPU: the launch that their host code makes goes to the interpreter.

The DSL's host code is machine code that calls a few functions of its runtime library by name. Each JIT engine is given our
functions under those names before it resolves them, so nothing of the package is replaced on disk, no C compiler is needed
and no driver is loaded. Only this module touches cutlass.
"""

from __future__ import annotations

import contextlib
import ctypes
import struct
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from harness.interpreter.cluster import Launch
from harness.interpreter.errors import UnsupportedPtxError
from harness.interpreter.launch import run_launch
from harness.interpreter.memory import GlobalMemory
from harness.interpreter.parser import parse_ptx
from harness.interpreter.program import Program
from harness.interpreter.schedule import Schedule

ARCHITECTURE = "sm_100a"
_SHARED_LIMIT = 232_448  # bytes of shared memory that a block may opt in to on SM100 (cudaDevAttr 97)
_ATTRIBUTES = {97: _SHARED_LIMIT, 81: 233_472, 16: 148, 75: 10, 76: 0}  # cudaDeviceAttr -> value
_CLUSTER_ATTRIBUTE = 4  # cudaLaunchAttributeClusterDimension
_HARMLESS_ATTRIBUTES = {2, 6}  # cooperative 0, programmatic stream serialization
_POINTER, _INT = ctypes.c_void_p, ctypes.c_int32


class Device:
    """The device that is not there: takes launches and interprets them.

    Attributes:
        memory: what kernels may touch.
        schedule: makes the schedule of each launch.
        rewrite: changes the PTX of a kernel before it is parsed (mutations), None for none.
        launches: launches interpreted so far.
        programs: distinct kernels parsed so far.
    """

    def __init__(self) -> None:
        self.memory = GlobalMemory()
        self.schedule: Callable[[], Schedule] = Schedule
        self.rewrite: Callable[[str], str] | None = None
        self.error: BaseException | None = None
        self.launches = 0
        self.folder = tempfile.TemporaryDirectory(prefix="ptx-")
        self._loading = ""
        self._libraries: dict[int, str] = {}
        self._kernels: dict[int, tuple[int, str]] = {}
        self._programs: dict[tuple[str, str], Program] = {}

    @property
    def programs(self) -> int:
        """Distinct kernels parsed so far."""
        return len(self._programs)

    def program(self, ptx: str, entry: str) -> Program:
        """Return the compiled form of a kernel, made once."""
        text = self.rewrite(ptx) if self.rewrite else ptx
        key = (text, entry)
        if key not in self._programs:
            self._programs[key] = Program(parse_ptx(text, entry))
        return self._programs[key]

    def load(self, ptx: str) -> int:
        """Remember a module; return its handle."""
        handle = len(self._libraries) + 1
        self._libraries[handle] = ptx
        return handle

    def kernel(self, library: int, name: str) -> int:
        """Remember an entry of a module; return its handle."""
        handle = len(self._kernels) + 1
        self._kernels[handle] = (library, name)
        return handle

    def launch(self, configuration: int, kernel: int, arguments: int) -> None:
        """Interpret a launch.

        Args:
            configuration: address of cudaLaunchConfig_t.
            kernel: handle.
            arguments: address of the array of pointers to the arguments.
        """
        grid, block, cluster, shared = _configuration(configuration)
        library, name = self._kernels[kernel]
        program = self.program(self._libraries[library], name)
        parameters = bytearray(program.kernel.parameter_bytes)
        pointers = ctypes.cast(arguments, ctypes.POINTER(_POINTER))
        for number, parameter in enumerate(program.kernel.parameters):
            value = ctypes.string_at(pointers[number], parameter.size)
            parameters[parameter.offset : parameter.offset + parameter.size] = value
        self.launches += 1
        configured = Launch(self.memory, grid, block, cluster, shared, bytes(parameters))
        run_launch(program, configured, self.schedule())


def _configuration(
    address: int,
) -> tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int], int]:
    """Return grid, block, cluster and dynamic shared memory of a cudaLaunchConfig_t."""
    *sizes, shared, _, attributes, count = struct.unpack("<6IQQQI", ctypes.string_at(address, 52))
    cluster = (1, 1, 1)
    for number in range(count):
        entry = ctypes.string_at(attributes + 72 * number, 72)
        kind = struct.unpack_from("<I", entry)[0]
        if kind == _CLUSTER_ATTRIBUTE:
            x, y, z = struct.unpack_from("<3I", entry, 8)
            cluster = (x, y, z)
        elif kind not in _HARMLESS_ATTRIBUTES:
            raise UnsupportedPtxError(f"launch attribute {kind} is not modelled")
    return (sizes[0], sizes[1], sizes[2]), (sizes[3], sizes[4], sizes[5]), cluster, shared


def _callbacks(device: Device) -> dict[str, Any]:  # noqa: C901 - a table of small functions
    """Return the functions that emitted host code calls, by the names that it calls them."""

    def guarded(function: Callable[..., None]) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            try:
                function(*arguments)
            except BaseException as error:  # noqa: BLE001 - must not unwind machine code; raised again behind it
                device.error = error
                return 999  # cudaErrorUnknown
            return 0

        return call

    def put(address: int, value: int, kind: Any) -> None:
        ctypes.cast(address, ctypes.POINTER(kind))[0] = value

    def load(library: int, *_: Any) -> None:
        put(library, device.load(device._loading), _POINTER)  # noqa: SLF001 - one of ours

    def get_kernel(kernel: int, library: int, name: int) -> None:
        put(kernel, device.kernel(library, ctypes.string_at(name).decode()), _POINTER)

    def device_attribute(to: int, attribute: int, _: int) -> None:
        if attribute not in _ATTRIBUTES:
            raise UnsupportedPtxError(f"device attribute {attribute} is not known")
        put(to, _ATTRIBUTES[attribute], _INT)

    def kernel_attribute(to: int, attribute: int, *_: Any) -> None:
        if attribute != 1:  # static shared memory
            raise UnsupportedPtxError(f"kernel attribute {attribute} is not known")
        put(to, 0, _INT)

    p, i = _POINTER, _INT
    table: dict[str, tuple[Callable[..., None], tuple[Any, ...]]] = {
        "_cudaLibraryLoadData": (load, (p, p, p, p, i, p, p, i)),
        "_cudaLibraryGetKernel": (get_kernel, (p, p, p)),
        "_cuKernelGetAttribute": (kernel_attribute, (p, i, p, i)),
        "_cudaDeviceGetAttribute": (device_attribute, (p, i, i)),
        "_cudaKernelSetAttributeForDevice": (lambda *_: None, (p, i, i, i)),
        "_cudaFuncSetAttribute": (lambda *_: None, (p, i, i)),
        "_cudaGetDevice": (lambda to: put(to, 0, _INT), (p,)),
        "_cudaLaunchKernelEx": (device.launch, (p, p, p)),
        "cuda_dialect_init_library_once": (lambda *_: None, (p,)),
    }
    return {name: ctypes.CFUNCTYPE(i, *types)(guarded(function)) for name, (function, types) in table.items()}


@contextlib.contextmanager
def patched(target: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute for a while."""
    before = getattr(target, name)
    setattr(target, name, value)
    try:
        yield
    finally:
        setattr(target, name, before)


_SHARED_DEVICE: list[tuple[Device, dict[str, Any]]] = []


def device() -> Device:
    """Return this process's device: compiled functions keep calling the one that they were made with."""
    if not _SHARED_DEVICE:
        made = Device()
        _SHARED_DEVICE.append((made, _callbacks(made)))
    return _SHARED_DEVICE[0][0]


@contextlib.contextmanager
def interpreted(here: Device) -> Iterator[None]:
    """Let CuTe DSL compile for SM100 and launch on the interpreter, until the context ends.

    Raises:
        BaseException: whatever the interpreter raised in a launch, in place of the DSL's own error.
    """
    from cutlass._mlir import execution_engine
    from cutlass.base_dsl.runtime import cuda
    from cutlass.cutlass_dsl import CuTeDSL
    from cutlass.cutlass_dsl.cuda_jit_executor import CudaDialectJitCompiledFunction as Compiled

    callbacks = _SHARED_DEVICE[0][1]
    engine = execution_engine.ExecutionEngine
    make, load = engine.__init__, Compiled._load_cuda_library  # noqa: SLF001 - the place where a cubin becomes a library

    def make_engine(self: Any, *arguments: Any, **named: Any) -> None:
        make(self, *arguments, **named)
        for name, callback in callbacks.items():
            self.raw_register_runtime(name, ctypes.cast(callback, _POINTER))

    def load_library(self: Any) -> Any:
        if not self.__ptx__:
            raise UnsupportedPtxError(
                "a compiled function brings no PTX: it was compiled before the interpreter was set up"
            )
        here._loading = self.__ptx__  # noqa: SLF001 - one of ours
        return load(self)

    environment = CuTeDSL._get_dsl().envar  # noqa: SLF001 - no public way to ask one compilation for its PTX
    with contextlib.ExitStack() as stack:
        for target, name, value in (
            (engine, "__init__", make_engine),
            (Compiled, "_load_cuda_library", load_library),
            (Compiled, "num_devices", 1),
            (cuda, "get_device_attribute", lambda attribute, _=0: _ATTRIBUTES[int(attribute)]),
            (environment, "keep_ptx", True),
            (environment, "dump_dir", here.folder.name),
            (environment, "arch", ARCHITECTURE),
        ):
            stack.enter_context(patched(target, name, value))
        here.error = None
        try:
            yield
        except Exception as error:
            if here.error is not None and not isinstance(error, type(here.error)):
                raise here.error from None
            raise
        if here.error is not None:
            raise here.error
