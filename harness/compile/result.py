"""What compiling one case gave. Plain data: it crosses a pipe, lies in the cache, the baseline and the record."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

# compiled: PTX and machine code came out. refused: FlashInfer said no before compiling, with a reason. failed: an error,
# in the compiler or on the way to it. crashed, timeout: the compiler took its process down, ran out of memory or disk, or
# did not end; these may not come again.
STATUSES = ("compiled", "refused", "failed", "crashed", "timeout")


@dataclass
class Result:
    """One case.

    Attributes:
        status: one of STATUSES.
        reason: why it did not compile.
        seconds, cpu_seconds: of FlashInfer's call: tracing, PTX and machine code.
        effort: cpu_seconds over the time that this machine took for a fixed piece of work just before, so that runs on
            different machines can be compared; see worker.py.
        measured: how often it was compiled; the times are those of the fastest.
        registers: per thread.
        stack_bytes: local memory per thread, from the cubin.
        spill_bytes: per thread, stores and loads, as ptxas reports them; None where it reported nothing.
        shared_bytes: shared memory per block, static and dynamic; None where the launch takes it from a variable.
        threads: per block.
        code_bytes: machine code.
        ptx_lines: lines of PTX.
        ptx_digest: first 16 hexadecimal digits of its SHA-256.
        features: instructions by feature, see ptx.py.
    """

    status: str
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
        defaults = asdict(Result(self.status))
        return {
            name: value for name, value in asdict(self).items() if name == "status" or value != defaults[name]
        }


def result_from(stored: Any, where: str) -> Result:
    """Read what `to_json` wrote.

    Args:
        stored: the JSON object.
        where: names the place in an error.

    Raises:
        ValueError: not such an object.
    """
    known = {f.name for f in fields(Result)}
    if not isinstance(stored, dict) or stored.get("status") not in STATUSES or set(stored) - known:
        raise ValueError(
            f"{where} must be an object with a status of {', '.join(STATUSES)} and fields of "
            f"harness/compile/result.py, got {stored!r:.120}"
        )
    return Result(**stored)
