"""The stored results of known versions (`baseline.json`), and what is different from them now."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.compile.matrix import Entry
from harness.compile.result import result_from
from harness.records.parts.compile import CompileChange, CompileResult
from harness.records.whole_files import write_whole
from harness.verdict import UsageError

FORMAT = 1
ERRORS = ("failed", "crashed", "timeout")
SHIPPED = Path(__file__).with_name("baseline.json")

# Chosen: a compilation counts as slow at twice its earlier effort, if it lost more than this many seconds of CPU time.
SLOWER, SLOWER_SECONDS = 2.0, 0.5
SHARED_LIMIT = (
    232_448  # bytes a block may have on compute capability 10.x (CUDA C++ programming guide, table of limits)
)


@dataclass
class Baseline:
    """Earlier results by the case's string, and what they were made with."""

    versions: dict[str, str] = field(default_factory=dict)
    made: str = ""
    results: dict[str, CompileResult] = field(default_factory=dict)


def load_baseline(path: Path) -> Baseline:
    """Read a baseline.

    Raises:
        UsageError: it cannot be read, or is none.
    """
    try:
        stored: Any = json.loads(path.read_text(encoding="utf-8"))
        if stored["format"] != FORMAT:
            raise UsageError(
                f"{path} has format {stored['format']!r}, expected {FORMAT}: --write-baseline makes one"
            )
        results = {case: result_from(value, case) for case, value in stored["results"].items()}
        return Baseline(dict(stored["versions"]), str(stored["made"]), results)
    except OSError as error:
        raise UsageError(f"the baseline {path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} is no baseline of harness compile ({error}); --write-baseline makes one"
        ) from error


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Write a baseline, one case a line, so that a review shows what changed."""
    head = json.dumps({"format": FORMAT, "made": baseline.made, "versions": baseline.versions})[1:-1]
    lines = ",\n".join(
        f"{json.dumps(case)}: {json.dumps(result.to_json())}"
        for case, result in sorted(baseline.results.items())
    )
    try:
        write_whole(path, f'{{{head}, "results": {{\n{lines}\n}}}}\n')
    except OSError as error:
        raise UsageError(f"the baseline {path} cannot be written: {error.strerror}") from error


def is_slower(now: CompileResult, before: CompileResult) -> bool:
    """Return whether a compilation takes more than twice the effort it took, by more than noise."""
    if now.status != "compiled" or before.status != "compiled" or not before.effort:
        return False
    lost = now.cpu_seconds * (1 - before.effort / now.effort) if now.effort else 0.0
    return now.effort > SLOWER * before.effort and lost > SLOWER_SECONDS


def compare(entry: Entry, now: CompileResult, before: CompileResult | None) -> list[CompileChange]:
    """Return what is wrong with a result by itself, and what differs from the earlier one.

    Args:
        entry: the case, and whether it is there to be refused.
        now: its result.
        before: the earlier one, None for a case that the baseline does not have.
    """
    case = str(entry.case)
    found: list[CompileChange] = []

    def add(kind: str, text: str, *, bad: bool = False) -> None:
        found.append(CompileChange(case, kind, text, bad))

    if entry.guard and now.status == "compiled":
        add("guard lost", "compiles, but the kernel's contract rules it out: it must be refused", bad=True)
    if now.status == "compiled" and (now.shared_bytes or 0) > SHARED_LIMIT:
        add("shared memory", f"{now.shared_bytes} bytes, a block has {SHARED_LIMIT}", bad=True)
    if before is None:
        if now.status in ERRORS:
            add("broken", f"{now.status}: {now.reason}", bad=True)
        else:
            add("new", f"{now.status}; the baseline does not have it")
    elif now.status != before.status:
        _compare_status(entry, now, before, add)
    elif now.status == "compiled":
        _compare_compiled(now, before, add)
    elif now.status in ERRORS:
        add("still broken", f"{now.status}: {now.reason}")
    elif now.reason != before.reason:
        add("reason", f"refused for another reason: {now.reason} (was: {before.reason})")
    return found


def _compare_status(entry: Entry, now: CompileResult, before: CompileResult, add: Any) -> None:
    """What compiled and no longer does is broken, or refused; what did not and now does is good news."""
    was = f"was {before.status}"
    if now.status in ERRORS:
        add("broken", f"{now.status}, {was}: {now.reason}", bad=True)
    elif now.status == "refused":
        lost = before.status == "compiled" and not entry.guard
        add("refused now", f"{was}: {now.reason}", bad=lost)
    elif not entry.guard:
        add("compiles now", f"{was}: {before.reason}")


def _compare_compiled(now: CompileResult, before: CompileResult, add: Any) -> None:
    memory, earlier = (now.stack_bytes, now.spill_bytes or 0), (before.stack_bytes, before.spill_bytes or 0)
    if memory != earlier:
        worse = memory[0] > earlier[0] or memory[1] > earlier[1]
        words = "{} bytes of stack, {} of spill stores and loads"
        add("spills", f"{words.format(*memory)} a thread; were {earlier[0]} and {earlier[1]}", bad=worse)
    if is_slower(now, before):
        add(
            "slower",
            f"{now.cpu_seconds:.1f} s of CPU time, {now.effort / before.effort:.1f} times the effort before",
            bad=True,
        )
    for kind, value, was in (
        ("registers", now.registers, before.registers),
        ("threads", now.threads, before.threads),
        ("shared memory", now.shared_bytes, before.shared_bytes),
    ):
        if value != was:
            add(kind, f"{value}, were {was}")
    if abs(now.code_bytes - before.code_bytes) > before.code_bytes / 4:
        add("code", f"{now.code_bytes} bytes, were {before.code_bytes}")
    gained = ", ".join(sorted(set(now.features) - set(before.features)))
    lost = ", ".join(sorted(set(before.features) - set(now.features)))
    if gained or lost:
        add("features", "; ".join([f"uses {gained}"] * bool(gained) + [f"no longer {lost}"] * bool(lost)))
