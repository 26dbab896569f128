"""Every captured call judged, rank by rank and layer by layer; the first illegal one diagnosed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.candidates.protocol import ROUTED, STAGES, stages_of
from harness.diagnosis.cases.observation import MASKED_GEMM, MASKED_MOE, name_calls
from harness.diagnosis.diagnose import diagnose_calls
from harness.judging.comparison import Comparison
from harness.records.parts.replay import ReplayedCall, ReplayRun
from harness.replay import routers
from harness.replay.baseline import Baseline
from harness.replay.captured import Captured, NotJudgedError, Process
from harness.replay.errors import relative_error
from harness.replay.exchange import COLLECTIVES, Exchanges
from harness.replay.export import export
from harness.replay.fused import observed_fused
from harness.replay.judging import Judged, judge_in_its_way, judge_passed_on
from harness.replay.observing import observed
from harness.replay.rerun import run_again
from harness.replay.slices import CUT
from harness.verdict import UsageError, Verdict

_DIAGNOSIS_SECONDS = 20.0


def replay(
    processes: list[Process],
    *,
    arithmetic: str = "fast",
    candidate: Any = None,
    name: str = "",
    command: str = "",
    baseline: Baseline | None = None,
    device: str = "cpu",
) -> Iterator[ReplayedCall]:
    """Judge every captured call.

    Args:
        processes: of harness.replay.reading.read_capture.
        arithmetic: of the quantizers, a key of reference.legal.KINDS.
        candidate: runs each stage again on the captured input, and is judged as well; None for none.
        name: of the candidate.
        command: repeats this.
        baseline: an earlier capture of the same requests, which every call is compared with.
        device: that stages are judged on.

    Yields:
        What was found, in the order in which the calls ended; the whole layer after its stages.
    """
    exchanges = Exchanges(processes)
    again = [stage for stage in stages_of(candidate) if stage in (*STAGES, ROUTED)]
    for process in processes:
        known, diagnosed = Judged.on(process.header.get("capability"), arithmetic), False
        for call in process.calls:
            line = _line(process, call, known, exchanges, device)
            if line.verdict is Verdict.FAIL and not diagnosed:
                diagnosed = True
                line.diagnosis = _diagnosis(process, call, known, exchanges, command)
            if baseline is not None:
                baseline.compare(call, line)
            yield line
            if candidate is not None and call.stage in again:
                yield _again(process, call, known, candidate, name)
    if baseline is not None:
        baseline.finished()


def _line(process: Process, call: Captured, known: Judged, exchanges: Exchanges, device: str) -> ReplayedCall:
    line = ReplayedCall(process.rank, call.layer, call.number, call.stage or call.function, call.parent)
    try:
        if call.stage in COLLECTIVES:
            return _filled(line, exchanges.judge(process.rank, call, known.bounds.arithmetic))
        seen = observed(call, device)
        gemms = [part for part in process.parts_of(call) if part.stage == MASKED_GEMM]
        last = observed(gemms[-1], device) if call.stage == MASKED_MOE and gemms else None
    except NotJudgedError as error:
        return _unknown(line, str(error))
    if seen.output is None:
        return _unknown(line, "inputs only: give --candidate, which is run on them and judged")
    found = judge_in_its_way(seen, known.of(call)) if last is None else [judge_passed_on(seen, last)]
    line.error = relative_error(known.of(call).likeliest(seen))
    line = _filled(line, found)
    if line.verdict is Verdict.PASS and call.stage == ROUTED and routers.routes_itself(given := call.inputs):
        line.words = routers.left_out(given)
    if seen.changed and line.verdict is not Verdict.FAIL:
        line.verdict, line.words = (
            Verdict.FAIL,
            f"{call.stage} changed its input {', '.join(sorted(seen.changed))}",
        )
        line.illegal = line.illegal or 1
    return line


def _unknown(line: ReplayedCall, words: str) -> ReplayedCall:
    line.verdict, line.words = Verdict.UNKNOWN, words
    return line


def _filled(line: ReplayedCall, found: list[Comparison]) -> ReplayedCall:
    line.compared = sum(one.compared for one in found)
    line.illegal = sum(one.illegal for one in found)
    wrong = [one for one in found if one.illegal]
    weak = [one for one in found if one.accepted_altered]
    if wrong:
        line.verdict, line.words = Verdict.FAIL, wrong[0].message
    elif weak:
        line.verdict = Verdict.UNKNOWN
        line.words = (
            f"no power: {weak[0].stage} would be accepted with {', '.join(weak[0].accepted_altered)} too"
        )
    elif not line.compared:
        line.words = "no valid row"
    return line


def _diagnosis(
    process: Process, call: Captured, known: Judged, exchanges: Exchanges, command: str
) -> list[dict[str, Any]]:
    """Return what explains a call that failed; the calls of its layer before it are looked at too."""
    if call.stage in COLLECTIVES:
        whole = exchanges.observed(process.rank, call)
        return diagnose_calls([whole], known.bounds, _DIAGNOSIS_SECONDS, command) if whole else []
    if call.stage == ROUTED and (found := _misrouted(call, known.of(call), command)):
        return found
    before = [one for one in process.calls if one.parent == call.parent and one.layer == call.layer]
    together = [one for one in before if one.number <= call.number] if call.parent is not None else [call]
    calls = name_calls([known.of(one).likeliest(observed(one)) for one in together if one.stage])
    return diagnose_calls(calls, known.of(call).bounds, _DIAGNOSIS_SECONDS, command)


def _misrouted(call: Captured, known: Judged, command: str) -> list[dict[str, Any]]:
    """Return by which other routing a layer that routes itself would be right, nothing where by none."""
    given = call.inputs
    if not routers.routes_itself(given):
        return []
    for words, changed in routers.otherwise(given):
        try:
            other = observed_fused(call, **changed)
        except NotJudgedError:
            continue
        found = judge_in_its_way(other, known)
        compared = sum(one.compared for one in found)
        if compared and not any(one.illegal or one.accepted_altered for one in found):
            evidence = f"with that, all {compared:,} elements of {len(other.output)} tokens are legal"
            return [
                {
                    "fault": routers.FAULT, "title": words, "explained": 1.0, "elements": compared, "evidence": evidence,
                    "command": command,
                }
            ]  # fmt: skip
    return []


def _again(process: Process, call: Captured, known: Judged, candidate: Any, name: str) -> ReplayedCall:
    """Run a captured call through a candidate, and judge that."""
    line = ReplayedCall(process.rank, call.layer, call.number, call.stage, call.parent, by=name)
    try:
        given = observed(call)
    except NotJudgedError as error:
        return _unknown(line, str(error))
    try:
        again = run_again(given, candidate)
    except Exception as error:  # noqa: BLE001 - the candidate's answer
        line.verdict, line.words = Verdict.FAIL, f"raised {type(error).__name__}: {error}"
        return line
    return _filled(line, judge_in_its_way(again, known.of(call)))


def conclude(run: ReplayRun, *, faulty_changes: bool) -> tuple[Verdict, str]:
    """Return the worst verdict, and one sentence: the first illegal stage, or how much was legal.

    Args:
        run: what was found.
        faulty_changes: whether one of its changes against the baseline is a fault.
    """
    judged = [call for call in run.calls if call.compared]
    if run.illegal:
        first = run.illegal[0]
        named = [one["title"] for one in first.diagnosis if one.get("fault")]
        again = " (as in the baseline)" if run.baseline and not first.regressed else ""
        return Verdict.FAIL, f"first illegal{again}: {first.place}" + (f": {named[0]}" if named else "")
    if faulty_changes:
        return Verdict.FAIL, f"not as in the baseline: {run.changes[0]}"
    if not judged:
        return Verdict.UNKNOWN, "nothing of the capture could be judged"
    counts = Counter(call.stage for call in judged)
    what = ", ".join(f"{count} {stage}" for stage, count in counts.items())
    ranks = len({call.rank for call in judged})
    powerless = [call for call in judged if call.verdict is Verdict.UNKNOWN]
    blind = {call.stage for call in powerless} - {
        call.stage for call in judged if call.verdict is Verdict.PASS
    }
    found = f"{sum(call.compared for call in judged):,} elements of {what} on {ranks} rank(s)"
    found += f"; {len(powerless)} calls without power" if powerless else ""
    if blind:
        return Verdict.UNKNOWN, f"{found}, among them all of {', '.join(sorted(blind))}"
    return Verdict.PASS, found


def export_first(processes: list[Process], lines: list[ReplayedCall], path: Path, arithmetic: str) -> str:
    """Write the first illegal captured call as a pytest file; return to what it was cut.

    Raises:
        UsageError: nothing captured is illegal, or not by itself.
    """
    for line in lines:
        if line.verdict is not Verdict.FAIL or line.by or line.stage not in CUT:
            continue
        for process in processes:
            for call in process.calls:
                if (process.rank, call.number) == (line.rank, line.call):
                    capability = process.header.get("capability")
                    named = [one["title"] for one in line.diagnosis if one.get("fault")]
                    known = Judged.on(capability, arithmetic)
                    known = known.of(call) if call.stage == ROUTED else known
                    return export(
                        path, known.likeliest(observed(call)), known, function=call.function,
                        place=f"rank {line.rank}, layer {line.layer}, call {line.call}",
                        title=(named or [f"An illegal element of {call.stage}"])[0], capability=capability,
                    )  # fmt: skip
    raise UsageError(f"--export: no captured call of {', '.join(CUT)} is illegal")
