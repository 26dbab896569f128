"""The process that compiles: `python -m harness.compile.worker ARCH`, started by pool.py, one JSON line each way.

In:  {"case": "masked_gemm@sm_100a,..."}
Out: {"ready": true} or {"ready": false, "ours": ..., "reason": ...} once, then one CompileResult for each case.

A compiler that aborts takes only this process down. FlashInfer and cutlass may print what they like: their standard
output goes to standard error, which pool.py keeps for the reason of a crash.
"""

from __future__ import annotations

import json
import linecache
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from harness.compile.case import CompileCase, parse_case
from harness.records.parts.compile import CompileResult

if TYPE_CHECKING:
    from harness.compile.no_gpu import Compiler

_REFUSALS = (ValueError, TypeError, NotImplementedError, AssertionError)
_LONGEST_REASON = 400
_COLOUR = re.compile(r"\x1b\[\d*m")
_PATH = re.compile(r"(?<![\w.])/(?:[\w.+-]+/)+")


def main() -> int:
    """Serve cases until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    arch = sys.argv[1]
    try:
        compiler, tensor = _start(arch)
    except Exception as error:  # noqa: BLE001 - whatever importing the packages raises is the answer
        from harness.compile.no_gpu import StandInError

        _answer(answers, {"ready": False, "ours": isinstance(error, StandInError), "reason": _reason(error)})
        return 1
    keep = os.environ.get("HARNESS_COMPILE_KEEP", "")
    _answer(answers, {"ready": True})
    warm = False
    for line in sys.stdin:
        case = parse_case(json.loads(line)["case"])
        if not warm:  # the first compilation of a process also loads the compiler
            compile_case(case, compiler, tensor)
            warm = True
        _answer(answers, compile_case(case, compiler, tensor, Path(keep) if keep else None).to_json())
    return 0


def _start(arch: str) -> tuple[Compiler, Callable[..., Any]]:
    from harness.compile.no_gpu import pretend, tensor_maker

    compiler = pretend(arch)
    import flashinfer  # noqa: F401 - after the stand-ins; seconds

    return compiler, tensor_maker()


def compile_case(
    case: CompileCase, compiler: Compiler, tensor: Callable[..., Any], keep: Path | None = None
) -> CompileResult:
    """Compile one case and describe it; never raises for what the package or the compiler does.

    Args:
        case: what to compile.
        compiler: from no_gpu.pretend.
        tensor: from no_gpu.tensor_maker.
        keep: folder that the PTX and the cubin are written to.
    """
    from harness.compile.kernels import call_kernel
    from harness.compile.measure import measure
    from harness.compile.no_gpu import compile_call

    yardstick = yardstick_seconds()
    started, cpu = time.monotonic(), time.process_time()
    try:
        function, report = compile_call(compiler, lambda: call_kernel(case, tensor))
    except (OSError, MemoryError) as error:  # no disk, no memory: of this machine now, not of the kernel
        return CompileResult("crashed", reason=_reason(error))
    except Exception as error:  # noqa: BLE001 - judged below
        refused = not compiler.entered and is_refusal(error)
        return CompileResult("refused" if refused else "failed", reason=_reason(error))
    seconds, used = time.monotonic() - started, time.process_time() - cpu
    try:
        result = measure(function, report)
    except Exception as error:  # noqa: BLE001 - a compiled kernel that cannot be described is worth a line, not a crash
        return CompileResult("failed", reason=f"compiled, but not readable: {_reason(error)}")
    result = replace(
        result,
        seconds=round(seconds, 3),
        cpu_seconds=round(used, 3),
        effort=round(used / yardstick, 2),
        measured=1,
    )
    if keep is not None:
        name = str(case).replace(",", "_").replace("=", "")
        (keep / f"{name}.ptx").write_text(function.__ptx__, encoding="utf-8")
        (keep / f"{name}.cubin").write_bytes(function.__cubin__)
    return result


def is_refusal(error: BaseException) -> bool:
    """Return whether an error was raised on purpose: by a `raise` or `assert` of the package that was called.

    A call that no longer fits its function raises TypeError too, but from the line of the call.
    """
    if not isinstance(error, _REFUSALS):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1]
    line = linecache.getline(last.filename, last.lineno or 0).lstrip()
    foreign = Path(last.filename).parent != Path(__file__).parent
    return foreign and line.startswith(("raise ", "assert "))


def yardstick_seconds() -> float:
    """Return the CPU time of a fixed piece of interpreted work: what a compilation's own time is measured in.

    Half of a compilation is tracing in Python, the rest branches as much, so a faster machine is faster at both.
    """
    best = float("inf")
    for _ in range(3):
        started = time.process_time()
        total = 0
        table: dict[str, int] = {}
        for i in range(20_000):
            key = f"%r{i % 977}"
            table[key] = table.get(key, 0) + i
            total += len(key)
        best = min(best, time.process_time() - started)
    return max(best, 1e-6)


def _reason(error: BaseException) -> str:
    """Return the name of an error and what it says, without the paths of this machine.

    Of the compiler's long reports only what ptxas or NVVM said; for an assertion without words, the assertion.
    """
    text = getattr(error, "ptxas_error", "") or getattr(error, "nvvm_error", "") or str(error)
    frames = traceback.extract_tb(error.__traceback__)
    if not text and frames:
        text = linecache.getline(frames[-1].filename, frames[-1].lineno or 0)
    text = _PATH.sub("", _COLOUR.sub("", " ".join(text.split())))
    name = type(error).__name__
    return (f"{name}: {text}" if text else name)[:_LONGEST_REASON]


def _answer(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main())
