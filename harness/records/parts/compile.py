"""`record.compile`, as `record.compile_run`: cross-compiled kernels against a baseline (harness/compile/README.md)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class CompileResult:
    """What compiling one case gave.

    Attributes:
        status: "compiled" (PTX and machine code came out), "refused" (FlashInfer said no before compiling, with a reason),
            "failed" (an error, in the compiler or on the way to it), "crashed" or "timeout" (the compiler took its process
            down, ran out of memory or disk, or did not end; these may not come again).
        reason: why it did not compile.
        seconds, cpu_seconds: of FlashInfer's call: tracing, PTX and machine code.
        effort: cpu_seconds over the time that this machine took for a fixed piece of work just before, so that runs on
            different machines can be compared; see harness/compile/worker.py.
        measured: how often it was compiled; the times are those of the fastest.
        registers: per thread.
        stack_bytes: local memory per thread, from the cubin.
        spill_bytes: per thread, stores and loads, as ptxas reports them; None where it reported nothing.
        shared_bytes: shared memory per block, static and dynamic; None where the launch takes it from a variable.
        threads: per block.
        code_bytes: machine code.
        ptx_lines: lines of PTX.
        ptx_digest: first 16 hexadecimal digits of its SHA-256.
        features: instructions by feature, see harness/compile/ptx.py.
    """

    status: str = ""
    reason: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    effort: float = 0.0
    measured: int = 0
    registers: int = 0
    stack_bytes: int = 0
    spill_bytes: int | None = None
    shared_bytes: int | None = None
    threads: int = 0
    code_bytes: int = 0
    ptx_lines: int = 0
    ptx_digest: str = ""
    features: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object without the fields that say nothing."""
        unsaid = asdict(CompileResult())
        values = {f.name: getattr(self, f.name) for f in fields(CompileResult)}
        return {name: value for name, value in values.items() if name == "status" or value != unsaid[name]}


@dataclass(frozen=True)
class CaseResult(CompileResult):
    """One case of a run with its result. `origin`: where it comes from; `guard`: it is there to be refused."""

    case: str = ""
    origin: str = ""
    guard: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object without the fields of the result that say nothing."""
        return {"case": self.case, "origin": self.origin, "guard": self.guard, **super().to_json()}


@dataclass(frozen=True)
class CompileChange:
    """One difference of one case. `bad`: it makes the run a FAIL.

    `kind` is one of: broken (does not compile), guard lost (compiles what it must refuse), spills, slower, shared memory
    (more than a block may have), compiles now, refused now, still broken, reason, registers, threads, code, features, new, gone.
    """

    case: str = ""
    kind: str = ""
    text: str = ""
    bad: bool = False


@dataclass(frozen=True)
class CompileBaseline:
    """What a run was compared with: how the report calls it, the packages that it was made with, and the day."""

    name: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    made: str = ""


@dataclass(frozen=True)
class CompileRun:
    """One run of `harness compile`.

    Attributes:
        verdict, reason: as of the run.
        versions: distribution to version.
        baseline: None where nothing was compared.
        jobs, wanted: processes; cases asked for.
        cached: results that came out of the cache.
        seconds, cpu_seconds: of the run; of the compilers.
        changes: the bad ones first.
        cases: those that have a result.
        warning: where the cache could not be written.
    """

    verdict: str = "UNKNOWN"
    reason: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    baseline: CompileBaseline | None = None
    jobs: int = 0
    wanted: int = 0
    changes: list[CompileChange] = field(default_factory=list)
    cases: list[CaseResult] = field(default_factory=list)
    cached: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    warning: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return what the record holds; the warning is left out where there is none."""
        found = asdict(self) | {"cases": [case.to_json() for case in self.cases]}
        if not self.warning:
            del found["warning"]
        return found
